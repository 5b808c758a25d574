package thin

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

const (
	// batch is how many free extents are marked unclean at once. A crash
	// costs the zeroing of as many.
	batch = 256
	// low is how few extents may be ready before more are made so in the
	// background.
	low = 64
)

// set is a set of extents.
type set struct {
	words []uint64
	n     int
	at    int // word at which to look first
}

func (s *set) grow(n int64) {
	s.words = append(s.words, make([]uint64, (n+63)/64-int64(len(s.words)))...)
}

func (s *set) has(x uint32) bool {
	return int(x/64) < len(s.words) && s.words[x/64]&(1<<(x%64)) != 0
}

func (s *set) set(x uint32) {
	if !s.has(x) {
		s.n++
		s.words[x/64] |= 1 << (x % 64)
	}
}

func (s *set) clear(x uint32) {
	if s.has(x) {
		s.n--
		s.words[x/64] &^= 1 << (x % 64)
	}
}

// any returns a member, if there is one.
func (s *set) any() (uint32, bool) {
	if s.n == 0 {
		return 0, false
	}
	for range s.words {
		if s.at >= len(s.words) {
			s.at = 0
		}
		if w := s.words[s.at]; w != 0 {
			return uint32(s.at*64 + bits.TrailingZeros64(w)), true
		}
		s.at++
	}
	return 0, false
}

// freed is an extent that a disk has given back, but that requests in flight
// may still use.
type freed struct {
	x uint32
	v *volume
}

// take takes up to n extents in a row for a disk, if possible from hint on,
// and returns the first. They are zero, and nobody's until their entries are
// set.
func (p *Pool) take(hint uint32, n int) (x uint32, got int, err error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return 0, 0, errClosed
		}
		x, ok := hint, p.ready.has(hint)
		if !ok {
			x, ok = p.ready.any()
		}
		if ok {
			for got = 0; got < n && p.ready.has(x+uint32(got)) && (got == 0 || p.lay.joined(x+uint32(got))); got++ {
				p.ready.clear(x + uint32(got))
			}
			p.used += int64(got)
			p.watch()
			p.tend()
			p.mu.Unlock()
			return x, got, nil
		}
		p.mu.Unlock()
		if err := p.refill(); err != nil {
			return 0, 0, err
		}
	}
}

// give gives extents back that a disk does not use any more. Their entries
// are unclean. It is called with mu held.
func (p *Pool) give(v *volume, xs ...uint32) {
	for _, x := range xs {
		p.limbo = append(p.limbo, freed{x, v})
	}
	p.used -= int64(len(xs))
	p.watch()
	p.tend()
	p.wake()
}

// refill makes extents ready, or says why there are none.
func (p *Pool) refill() error {
	p.refillMu.Lock()
	defer p.refillMu.Unlock()
	p.mu.Lock()
	n := p.ready.n
	p.mu.Unlock()
	if n > 0 {
		return nil // somebody else has
	}
	err := p.step(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.ready.n > 0:
		return nil
	case err != nil:
		return err
	case p.used < p.lay.extents:
		return nil // taken by others, or given back just now
	}
	return fmt.Errorf("%w: all %d bytes are allocated", errFull, p.lay.extents*p.lay.extent)
}

// step zeroes what was given back and marks free extents unclean if there are
// few. With now, as many as possible are ready at the end; else only what
// does not take a flush of its own. It is called with refillMu held.
func (p *Pool) step(now bool) error {
	err := p.scrub()
	p.mu.Lock()
	var marked []uint32
	if p.ready.n < low {
		for len(marked) < batch {
			x, ok := p.free.any()
			if !ok {
				break
			}
			p.free.clear(x)
			p.setEntry(x, entryUnclean)
			marked = append(marked, x)
		}
	}
	pending := len(p.zeroed) > 0
	p.mu.Unlock()
	unmark := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, x := range marked {
			p.setEntry(x, entryFree)
			p.free.set(x)
		}
	}
	if len(marked) > 0 {
		if e := p.commit(); e != nil {
			unmark()
			return errors.Join(err, e)
		}
	}
	if len(marked) > 0 || now && pending {
		if e := p.flush(); e != nil {
			unmark()
			return errors.Join(err, e)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range marked {
		p.ready.set(x)
	}
	return err
}

// scrub zeroes what was given back, once no request can reach it any more. It
// is called with refillMu held.
func (p *Pool) scrub() error {
	p.mu.Lock()
	limbo := p.limbo
	p.limbo = nil
	p.mu.Unlock()
	if len(limbo) == 0 {
		return nil
	}
	waited := map[*volume]bool{}
	xs := make([]uint32, len(limbo))
	for i, f := range limbo {
		if !waited[f.v] {
			waited[f.v] = true
			f.v.readers.wait()
		}
		xs[i] = f.x
	}
	slices.Sort(xs)
	done, err := p.zeroExtents(xs)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.zeroed = append(p.zeroed, xs[:done]...)
	p.zeroedCount += uint64(done)
	for _, x := range xs[done:] {
		p.limbo = append(p.limbo, freed{x, limbo[0].v})
	}
	return err
}

// zeroExtents zeroes extents, which are sorted, and returns how many it did.
func (p *Pool) zeroExtents(xs []uint32) (done int, err error) {
	for done < len(xs) {
		n := 1
		for done+n < len(xs) && xs[done+n] == xs[done]+uint32(n) && p.lay.joined(xs[done+n]) {
			n++
		}
		if err := p.store.WriteZeroes(p.lay.data(xs[done]), int64(n)*p.lay.extent, true); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// tend starts the work in the background if there is some. It is called with
// mu held.
func (p *Pool) tend() {
	if p.tending || p.closed || !p.wanting() {
		return
	}
	p.tending = true
	p.work.Go(func() {
		for {
			p.refillMu.Lock()
			err := p.step(false)
			p.refillMu.Unlock()
			p.mu.Lock()
			// What failed is tried again when somebody needs it.
			if err != nil || p.closed || !p.wanting() {
				p.tending = false
				p.mu.Unlock()
				return
			}
			p.mu.Unlock()
		}
	})
}

// wanting reports whether there is work for step.
func (p *Pool) wanting() bool {
	return len(p.limbo) > 0 || p.ready.n < low && p.free.n > 0
}
