package disk

import "sync"

// workers runs requests that wait for the backend, on up to max goroutines.
// They start when needed and stay until shut. The queue in front of them needs
// no limit: a request is in it at most once.
type workers struct {
	run func(r *request, bounce *[]byte)
	max int

	mu          sync.Mutex
	cond        sync.Cond
	first, last *request
	n, idle     int
	quit        bool
	done        sync.WaitGroup
}

func (w *workers) submit(r *request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cond.L == nil {
		w.cond.L = &w.mu
	}
	r.next = nil
	if w.first == nil {
		w.first = r
	} else {
		w.last.next = r
	}
	w.last = r
	switch {
	case w.idle > 0:
		w.idle-- // it is awake, or on its way
		w.cond.Signal()
	case w.n < w.max:
		w.n++
		w.done.Go(w.work)
	}
}

func (w *workers) work() {
	var bounce []byte
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for w.first == nil {
			if w.quit {
				return
			}
			w.idle++
			w.cond.Wait()
		}
		r := w.first
		w.first, r.next = r.next, nil
		w.mu.Unlock()
		w.run(r, &bounce)
		w.mu.Lock()
	}
}

// shut ends the goroutines. Nothing may be in the queue.
func (w *workers) shut() {
	w.mu.Lock()
	if w.cond.L != nil {
		w.quit = true
		w.cond.Broadcast()
	}
	w.mu.Unlock()
	w.done.Wait()
	w.mu.Lock()
	w.quit, w.n, w.idle = false, 0, 0
	w.mu.Unlock()
}
