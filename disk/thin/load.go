package thin

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/vmkit-go/vmkit/disk"
)

// load reads the pool's metadata, which may be anything, and cleans up what a
// crash has left.
func (p *Pool) load() error {
	lay, seq, err := readSuper(p.store)
	if err != nil {
		return err
	}
	p.lay, p.superSeq = lay, seq
	p.lay.extents = 0
	p.resize(lay)
	byID, err := p.loadDirectory()
	if err != nil {
		return err
	}
	// Extents to be zeroed, and entries to be changed for that.
	var unclean []uint32
	buf := make([]byte, p.lay.perGroup/perSector*sector)
	for g := range p.lay.groups() {
		if empty, err := p.knownZero(p.lay.group(g), int64(len(buf))); err != nil {
			return err
		} else if empty {
			continue
		}
		if err := readFull(p.store, buf, p.lay.group(g)); err != nil {
			return err
		}
		for i := 0; i < len(buf); i += sector {
			first := g*p.lay.perGroup + int64(i/sector)*perSector
			if err := p.loadSector(buf[i:][:sector], p.lay.group(g)+int64(i), first, byID, &unclean); err != nil {
				return fmt.Errorf("%w: table sector at offset %d: %w", ErrFormat, p.lay.group(g)+int64(i), err)
			}
		}
	}
	for slot := range p.slots {
		if p.slots[slot].ended {
			p.slots[slot] = record{}
			p.dirtySlot(slot)
		}
	}
	p.mu.Lock()
	p.watch()
	p.mu.Unlock()
	if p.readOnly {
		return nil
	}
	// Zeroed first: once an entry is changed nobody may see the old content.
	slices.Sort(unclean)
	if _, err := p.zeroExtents(unclean); err != nil {
		return err
	}
	if len(unclean) > 0 || len(p.dirty) > 0 {
		if err := p.sync(); err != nil {
			return err
		}
	}
	for _, x := range unclean {
		p.ready.set(x)
	}
	return nil
}

// knownZero reports whether the store knows that a range is all zero.
func (p *Pool) knownZero(off, n int64) (bool, error) {
	m, ok := p.store.(disk.Mapper)
	if !ok {
		return false, nil
	}
	e, err := m.Extent(off)
	return err == nil && e.Zero && e.Len >= n, err
}

func (p *Pool) loadDirectory() (byID map[uint32]*volume, err error) {
	p.slots = make([]record, p.lay.disks)
	byID = map[uint32]*volume{}
	ids := map[uint32]bool{}
	const step = 128
	buf := make([]byte, step*sector)
	for slot := range p.slots {
		off := dirOffset + int64(slot)*sector
		i := slot % step * sector
		if i == 0 {
			if err := readFull(p.store, buf[:min(len(buf), (len(p.slots)-slot)*sector)], off); err != nil {
				return nil, err
			}
		}
		r, err := p.lay.parseRecord(buf[i:][:sector], off)
		switch {
		case err != nil:
		case r.id == 0:
			continue
		case ids[r.id]:
			err = fmt.Errorf("disk number %d is there twice", r.id)
		case !r.ended && p.volumes[r.name] != nil:
			err = fmt.Errorf("disk %q is there twice", r.name)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: directory sector at offset %d: %w", ErrFormat, off, err)
		}
		ids[r.id] = true
		p.nextID = max(p.nextID, uint64(r.id)+1)
		p.slots[slot] = r
		if !r.ended {
			v := &volume{id: r.id, slot: slot, name: r.name}
			p.volumes[r.name] = v
			byID[r.id] = v
		}
	}
	return byID, nil
}

// loadSector takes over one sector of the table, whose first entry is that of
// extent first.
func (p *Pool) loadSector(buf []byte, off, first int64, byID map[uint32]*volume, unclean *[]uint32) error {
	written, err := sealed(buf, off)
	if err != nil || !written {
		return err
	}
	for i := range int64(perSector) {
		e := entry(binary.LittleEndian.Uint64(buf[8+i*entrySize:]))
		if e == entryFree {
			continue
		}
		if first+i >= p.lay.extents {
			return fmt.Errorf("entry for extent %d of %d", first+i, p.lay.extents)
		}
		x := uint32(first + i)
		v, l := byID[e.disk()], e.logical()
		if e.disk() == 0 && e != entryUnclean {
			return fmt.Errorf("entry %#x of extent %d", uint64(e), x)
		}
		p.free.clear(x)
		g := &p.table[int64(x)/p.lay.perGroup]
		if *g == nil {
			*g = make([]entry, p.lay.perGroup)
		}
		(*g)[int64(x)%p.lay.perGroup] = e
		if v != nil && int64(l) < p.extentsOf(p.slots[v.slot].size) {
			if _, taken := v.extents.get(l); !taken {
				v.extents.set(l, x)
				v.used++
				p.used++
				continue
			}
		}
		// Of a disk that was deleted or cut; or the power failed between
		// one extent's being freed and another's taking its place: neither
		// was flushed, so any of them will do.
		if e != entryUnclean {
			p.setEntry(x, entryUnclean)
		}
		*unclean = append(*unclean, x)
	}
	return nil
}

// extentsOf is the number of extents of a disk of size bytes.
func (p *Pool) extentsOf(size int64) int64 { return (size + p.lay.extent - 1) / p.lay.extent }
