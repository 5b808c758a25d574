package serial

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
)

// output carries sent bytes to a writer that may be slow.
type output struct {
	w   io.Writer
	log *slog.Logger

	mu     sync.Mutex
	change *sync.Cond // any of the fields below
	buf    []byte     // not yet given to w
	total  uint64     // bytes put in so far
	done   uint64     // of these, bytes that w has taken or refused
	err    error      // of w
	paused bool
	closed bool
}

// newOutput starts the goroutine, if there is anything to write to.
func newOutput(cfg Config) *output {
	o := &output{w: cfg.Output, log: cfg.Log}
	o.change = sync.NewCond(&o.mu)
	if o.w == nil {
		o.closed = true
		return o
	}
	go o.run()
	return o
}

// put takes one byte. It waits while the buffer is full, unless paused.
func (o *output) put(v byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.buf) >= outputMax && !o.paused && !o.closed && o.err == nil {
		o.change.Wait()
	}
	if o.closed || o.err != nil {
		return
	}
	o.buf = append(o.buf, v)
	o.total++
	if len(o.buf) == 1 {
		o.change.Broadcast()
	}
}

// run writes until close or an error of the writer.
func (o *output) run() {
	var spare []byte
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		for len(o.buf) == 0 && !o.closed {
			o.change.Wait()
		}
		if len(o.buf) == 0 {
			return
		}
		p := o.buf
		o.buf = spare[:0]
		o.mu.Unlock()
		_, err := o.w.Write(p)
		o.mu.Lock()
		spare = p
		o.done += uint64(len(p))
		if err != nil {
			o.err = err
			o.done, o.buf = o.total, nil
			o.log.Error("serial output", "err", err)
		}
		o.change.Broadcast()
		if err != nil {
			return
		}
	}
}

func (o *output) setPaused(on bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.paused = on
	o.change.Broadcast()
}

// flush waits until everything put in so far is written.
func (o *output) flush(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.change.Broadcast()
	})
	defer stop()
	o.mu.Lock()
	defer o.mu.Unlock()
	for want := o.total; o.done < want && o.err == nil; o.change.Wait() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("serial output: %d bytes not written: %w", want-o.done, err)
		}
	}
	if o.err != nil {
		return fmt.Errorf("serial output: %w", o.err)
	}
	return nil
}

// close lets run end when it has written what there is.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.change.Broadcast()
}
