package thin

import (
	"encoding/binary"
	"maps"
	"slices"
)

// entry is what the table says of an extent: the disk's id, and from there on
// which of its extents it is.
type entry uint64

const (
	entryFree    entry = 0 // zero on the medium
	entryUnclean entry = 1 // nobody's, and may hold anything after a crash
)

func owned(id, l uint32) entry { return entry(id)<<32 | entry(l) }

func (e entry) disk() uint32    { return uint32(e >> 32) }
func (e entry) logical() uint32 { return uint32(e) }

// entry returns that of extent p. It is called with mu held.
func (p *Pool) entry(x uint32) entry {
	if g := p.table[int64(x)/p.lay.perGroup]; g != nil {
		return g[int64(x)%p.lay.perGroup]
	}
	return entryFree
}

// setEntry changes that of extent x; the next commit writes it. It is called
// with mu held.
func (p *Pool) setEntry(x uint32, e entry) {
	g := &p.table[int64(x)/p.lay.perGroup]
	if *g == nil {
		*g = make([]entry, p.lay.perGroup)
	}
	(*g)[int64(x)%p.lay.perGroup] = e
	p.dirty[p.lay.entrySector(x)] = struct{}{}
}

// image encodes the sector of metadata at off. It is called with mu held.
func (p *Pool) image(buf []byte, off int64) {
	if off < p.lay.base {
		p.slots[(off-dirOffset)/sector].put(buf, off)
		return
	}
	clear(buf)
	size := p.lay.group(1) - p.lay.base
	g := p.table[(off-p.lay.base)/size]
	first := (off - p.lay.base) % size / sector * perSector
	for i := range int64(perSector) {
		binary.LittleEndian.PutUint64(buf[8+i*entrySize:], uint64(g[first+i]))
	}
	seal(buf, off)
}

// round is one writing of the metadata that changed, for all who wait for it.
type round struct {
	done chan struct{}
	err  error
}

// commit writes the metadata that has changed to the store. It survives the
// process then; a flush of the store makes it durable. What could not be
// written stays marked, and no later commit succeeds without it: the order of
// changes is thus kept for all that were acknowledged.
func (p *Pool) commit() error {
	p.mu.Lock()
	if p.next == nil {
		p.next = &round{done: make(chan struct{})}
	}
	r := p.next
	if p.writing {
		p.mu.Unlock()
		<-r.done
		return r.err
	}
	p.writing = true
	p.writeRound()
	if p.next != nil {
		// Others have come meanwhile; they are not this caller's burden.
		p.work.Go(func() {
			p.mu.Lock()
			for p.next != nil {
				p.writeRound()
			}
			p.writing = false
			p.mu.Unlock()
		})
	} else {
		p.writing = false
	}
	p.mu.Unlock()
	return r.err
}

// writeRound is called with mu held, which it releases meanwhile.
func (p *Pool) writeRound() {
	r := p.next
	p.next = nil
	offs := slices.Sorted(maps.Keys(p.dirty))
	clear(p.dirty)
	buf := make([]byte, len(offs)*sector)
	for i, off := range offs {
		p.image(buf[i*sector:][:sector], off)
	}
	p.mu.Unlock()
	var failed []int64
	for i := 0; i < len(offs); {
		n := 1
		for i+n < len(offs) && offs[i+n] == offs[i]+int64(n)*sector {
			n++
		}
		if _, err := p.store.WriteAt(buf[i*sector:(i+n)*sector], offs[i]); err != nil {
			r.err = err
			failed = append(failed, offs[i:i+n]...)
		}
		i += n
	}
	p.mu.Lock()
	for _, off := range failed {
		p.dirty[off] = struct{}{}
	}
	close(r.done)
}

// flush makes everything written so far durable. Extents that were zeroed
// before it can be taken again.
func (p *Pool) flush() error {
	p.mu.Lock()
	behind := len(p.dirty) > 0 || p.writing
	upTo := p.zeroedCount
	p.mu.Unlock()
	if behind {
		// What a commit failed to write, or has not written yet.
		if err := p.commit(); err != nil {
			return err
		}
	}
	if err := p.store.Flush(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := int(upTo - p.readyCount); n > 0 {
		for _, x := range p.zeroed[:n] {
			p.ready.set(x)
		}
		p.zeroed = slices.Delete(p.zeroed, 0, n)
		p.readyCount = upTo
	}
	return nil
}
