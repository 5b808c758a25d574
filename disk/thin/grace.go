package thin

import (
	"sync"
	"sync/atomic"
)

// grace lets an extent be given to another disk only when no request can
// reach it any more. Requests enter before they look where an extent is, and
// leave when they are done with it; neither takes a lock. wait returns when all
// that had entered before it have left.
type grace struct {
	turn   atomic.Uint64
	inside [2]atomic.Int64 // by the turn's lowest bit

	waiting atomic.Bool
	mu      sync.Mutex
	cond    sync.Cond
}

// enter returns what leave wants.
func (g *grace) enter() (turn uint64) {
	for {
		turn = g.turn.Load()
		g.inside[turn&1].Add(1)
		// A wait that began between the two lines may not have seen this.
		if g.turn.Load() == turn {
			return turn
		}
		g.leave(turn)
	}
}

func (g *grace) leave(turn uint64) {
	if g.inside[turn&1].Add(-1) == 0 && g.waiting.Load() {
		g.mu.Lock()
		if g.cond.L != nil {
			g.cond.Broadcast()
		}
		g.mu.Unlock()
	}
}

// wait must not run twice at once.
func (g *grace) wait() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cond.L = &g.mu
	g.waiting.Store(true)
	defer g.waiting.Store(false)
	// Whoever enters from now on counts for the other turn, which the last
	// wait has seen empty.
	old := g.turn.Add(1) - 1
	for g.inside[old&1].Load() != 0 {
		g.cond.Wait()
	}
}
