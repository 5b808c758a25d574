package thin

import "fmt"

// Level says how full a pool is.
type Level int

// The levels. A pool that was warned about is so until it is five points of a
// hundred below the mark, so that one at the mark does not flap; a full one
// stops being full with the first extent.
const (
	Normal   Level = iota
	Warn           // Config.Warn is reached
	Critical       // Config.Critical is reached
	Full           // writes that need space fail
)

const hysteresis = 5 // points of a hundred

func (l Level) String() string {
	switch l {
	case Normal:
		return "normal"
	case Warn:
		return "warn"
	case Critical:
		return "critical"
	case Full:
		return "full"
	}
	return fmt.Sprintf("Level(%d)", int(l))
}

// Event says that a pool's level has changed.
type Event struct {
	// Pool is the store's name.
	Pool string
	// From and To are the levels. They are the same if the level changed and
	// changed back before that could be told: a write may have met a full
	// pool meanwhile.
	From, To Level
	// Usage is the pool's at that moment.
	Usage Usage
}

func (e Event) String() string {
	return fmt.Sprintf("thin pool %s: %v after %v: %d of %d bytes allocated, %d promised",
		e.Pool, e.To, e.From, e.Usage.Allocated, e.Usage.Capacity, e.Usage.Promised)
}

// Usage compares what a pool has with what it has promised.
type Usage struct {
	// Capacity is the number of bytes that all disks together can take.
	Capacity int64
	// Allocated is the number of bytes that they take.
	Allocated int64
	// Promised is the sum of their sizes.
	Promised int64
	// Level says how full the pool is.
	Level Level
}

// usage is called with mu held.
func (p *Pool) usage() Usage {
	u := Usage{Capacity: p.lay.extents * p.lay.extent, Allocated: p.used * p.lay.extent, Level: p.level}
	for i := range p.slots {
		if p.slots[i].id != 0 && !p.slots[i].ended {
			u.Promised += p.slots[i].size
		}
	}
	return u
}

// levelNow is the level that follows from what is used.
func (p *Pool) levelNow() Level {
	above := func(percent int) bool { return p.used*100 >= p.lay.extents*int64(percent) }
	switch {
	case p.used >= p.lay.extents:
		return Full
	case above(p.cfg.Critical), p.level >= Critical && above(p.cfg.Critical-hysteresis):
		return Critical
	case above(p.cfg.Warn), p.level >= Warn && above(p.cfg.Warn-hysteresis):
		return Warn
	}
	return Normal
}

// watch tells of a change of the level. It is called with mu held.
func (p *Pool) watch() {
	level := p.levelNow()
	if level == p.level {
		return
	}
	old := p.level
	p.level = level
	if p.cfg.Notify == nil {
		return
	}
	// The latest event stands for those that were not told yet.
	if p.unread {
		old = p.news.From
	}
	p.news = Event{Pool: p.name, From: old, To: level, Usage: p.usage()}
	p.unread = true
	if p.telling {
		return
	}
	p.telling = true
	go func() {
		for {
			p.mu.Lock()
			e := p.news
			if !p.unread {
				p.telling = false
				p.mu.Unlock()
				return
			}
			p.unread = false
			p.mu.Unlock()
			p.cfg.Notify(e)
		}
	}()
}
