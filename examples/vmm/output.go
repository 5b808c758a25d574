package main

import (
	"context"
	"io"
	"sync"
)

// output passes on what the guest writes to one of vmm's own streams. While
// the guest runs it is as fast as the stream. What is left at the end of the
// guest is kept, however slow the reader, until drain has seen it written.
type output struct {
	w      io.Writer
	broken func() // called once when the stream takes no more

	mu     sync.Mutex
	change sync.Cond
	buf    []byte
	busy   bool // buf is empty and its content is being written
	ending bool // Write does not wait any more
	failed bool
}

func newOutput(w io.Writer, broken func()) *output {
	o := &output{w: w, broken: broken}
	o.change.L = &o.mu
	go o.write()
	return o
}

func (o *output) write() {
	var buf []byte
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		for len(o.buf) == 0 {
			if o.ending && o.failed {
				return
			}
			o.change.Wait()
		}
		buf, o.buf, o.busy = o.buf, buf[:0], true
		o.mu.Unlock()
		_, err := o.w.Write(buf)
		o.mu.Lock()
		o.busy = false
		if err != nil && !o.failed {
			o.failed = true
			o.broken()
		}
		o.change.Broadcast()
	}
}

// Write returns when the stream has taken p. What a broken stream does not
// take is dropped.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed {
		return len(p), nil
	}
	o.buf = append(o.buf, p...)
	o.change.Broadcast()
	for !o.ending && !o.failed && (len(o.buf) > 0 || o.busy) {
		o.change.Wait()
	}
	return len(p), nil
}

// end lets Write return at once.
func (o *output) end() {
	o.mu.Lock()
	o.ending = true
	o.change.Broadcast()
	o.mu.Unlock()
}

// drain waits until all that Write has got is written, or until ctx is done.
func (o *output) drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		o.mu.Lock()
		o.change.Broadcast()
		o.mu.Unlock()
	})
	defer stop()
	o.mu.Lock()
	defer o.mu.Unlock()
	for ctx.Err() == nil && !o.failed && (len(o.buf) > 0 || o.busy) {
		o.change.Wait()
	}
}
