package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/vmkit-go/vmkit/stream/cache"
	"github.com/vmkit-go/vmkit/stream/checkout"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/lease"
)

// lastWords is how long a guest has between the warning and the end if its
// lease is lost without notice.
const lastWords = 5 * time.Second

// held is the lease of a streamed disk's image while the guest runs.
type held struct {
	lease  *lease.Lease
	out    *checkout.Checkout // nil unless the image is checked out
	cancel context.CancelFunc
	done   chan struct{}
	lost   error // valid once done is closed
}

// takeLease takes the lease of a disk's image from the depot that serves it,
// unless the image is checked out in the cache and so has it, and renews it
// until close. If it is lost, lost is called; warnings that it will be go to the
// user.
func takeLease(ctx context.Context, d diskOption, c *cache.Cache, lost func(error)) (*held, error) {
	base, name, _, err := fetch.Split(d.path)
	if err != nil {
		return nil, err
	}
	h := &held{done: make(chan struct{})}
	switch h.out, err = checkout.Resume(checkout.Config{URL: base, Manifest: name, Cache: c}); {
	case err == nil:
		h.lease = h.out.Lease()
	case errors.Is(err, checkout.ErrNone):
		where, err := url.JoinPath(base, "lease")
		if err != nil {
			return nil, err
		}
		host, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		holder := fmt.Sprintf("vmm %d on %s", os.Getpid(), host)
		if h.lease, err = (lease.Client{URL: where}).Acquire(ctx, name, holder, d.stream.lease); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	ctx, h.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(h.done)
		h.lost = h.lease.Keep(ctx, lease.KeepConfig{LastWords: lastWords, Warn: func(end time.Time, err error) {
			if end.IsZero() {
				fmt.Fprintf(os.Stderr, "vmm: %s: the lease is in no danger any more\n", d.path)
				return
			}
			fmt.Fprintf(os.Stderr, "vmm: the guest will be stopped in %v: %v\n", time.Until(end).Round(time.Second), err)
		}})
		if h.lost != nil {
			lost(h.lost)
		}
	}()
	return h, nil
}

// close gives the lease back, unless it was lost or is a check-out's.
func (h *held) close() error {
	h.cancel()
	<-h.done
	if h.lost != nil {
		return nil
	}
	if h.out != nil {
		return h.out.Save()
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastWords)
	defer cancel()
	if err := h.lease.Release(ctx); err != nil && !errors.Is(err, lease.ErrLost) {
		return err
	}
	return nil
}

// untilLost returns a context that ends when a lease is lost, too, and what the
// run's outcome is then.
func (ss *streams) untilLost(ctx context.Context) (context.Context, func(error) error) {
	ctx, cancel := context.WithCancelCause(ctx)
	ss.lost = cancel
	return ctx, func(err error) error {
		defer cancel(nil)
		if cause := context.Cause(ctx); errors.Is(cause, lease.ErrLost) {
			return fmt.Errorf("the guest was stopped: %w", cause)
		}
		return err
	}
}
