package thin

import "fmt"

// Check holds the pool's books against each other. The pool must be idle.
func (p *Pool) Check() error {
	p.refillMu.Lock()
	defer p.refillMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	kind := make([]string, p.lay.extents)
	put := func(x uint32, what string) error {
		if kind[x] != "" {
			return fmt.Errorf("extent %d is %s and %s", x, kind[x], what)
		}
		kind[x] = what
		return nil
	}
	ids := map[uint32]*volume{}
	used := int64(0)
	for _, v := range p.volumes {
		ids[v.id] = v
		n := int64(0)
		for l := v.extents.next(0, maxExtents); l < maxExtents; l = v.extents.next(l+1, maxExtents) {
			x, _ := v.extents.get(uint32(l))
			if err := put(x, fmt.Sprintf("disk %s's", v.name)); err != nil {
				return err
			}
			if p.entry(x) != owned(v.id, uint32(l)) {
				return fmt.Errorf("extent %d is disk %s's %d, its entry %#x", x, v.name, l, p.entry(x))
			}
			n++
		}
		if n != v.used {
			return fmt.Errorf("disk %s has %d extents, counted %d", v.name, n, v.used)
		}
		used += n
	}
	if used != p.used {
		return fmt.Errorf("%d extents are used, counted %d", used, p.used)
	}
	for x := range uint32(p.lay.extents) {
		for what, in := range map[string]bool{"free": p.free.has(x), "ready": p.ready.has(x)} {
			if in {
				if err := put(x, what); err != nil {
					return err
				}
				if want := map[string]entry{"free": entryFree, "ready": entryUnclean}[what]; p.entry(x) != want {
					return fmt.Errorf("extent %d is %s, its entry %#x", x, what, p.entry(x))
				}
			}
		}
	}
	for _, f := range p.limbo {
		if err := put(f.x, "given back"); err != nil {
			return err
		}
	}
	for _, x := range p.zeroed {
		if err := put(x, "zeroed"); err != nil {
			return err
		}
	}
	for x, k := range kind {
		if k == "" {
			return fmt.Errorf("extent %d is lost", x)
		}
	}
	return nil
}
