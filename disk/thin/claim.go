package thin

import "slices"

// claim is a range of a disk's extents that somebody maps or unmaps. What is
// mapped and stays so needs none.
type claim struct {
	first, end int64
	done       chan struct{}
}

// claim claims extents from first on, up to end but not into another's claim.
// It waits while the first is claimed.
func (v *volume) claim(first, end int64) *claim {
	for {
		v.mu.Lock()
		c := &claim{first: first, end: end, done: make(chan struct{})}
		var busy *claim
		for _, o := range v.claims {
			if o.first <= first && first < o.end {
				busy = o
			} else if o.first > first {
				c.end = min(c.end, o.first)
			}
		}
		if busy == nil {
			v.claims = append(v.claims, c)
			v.mu.Unlock()
			return c
		}
		v.mu.Unlock()
		<-busy.done
	}
}

func (v *volume) unclaim(c *claim) {
	v.mu.Lock()
	v.claims = slices.DeleteFunc(v.claims, func(o *claim) bool { return o == c })
	v.mu.Unlock()
	close(c.done)
}
