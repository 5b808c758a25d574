package chip

import (
	"sync"
	"time"

	"github.com/vmkit-go/vmkit/vm/device"
)

// hostClock is the host's monotonic clock since start.
type hostClock struct{ start time.Time }

// HostClock returns a clock that is the host's and begins now. It and its
// timers may be used from any goroutine, at any time.
func HostClock() device.Clock { return hostClock{time.Now()} }

// OrHost returns c, or the host's clock if that is nil.
func OrHost(c device.Clock) device.Clock {
	if c == nil {
		return HostClock()
	}
	return c
}

func (c hostClock) Now() int64 { return int64(time.Since(c.start)) }

func (c hostClock) NewTimer(f func()) device.Timer { return &hostTimer{fire: f} }

// hostTimer is a timer of the host. All methods may be called from any
// goroutine.
type hostTimer struct {
	fire func()

	mu     sync.Mutex
	timer  *time.Timer
	gen    uint64 // of the setting; a call that finds another is too late
	closed bool
}

// Set makes the timer fire in d, in place of any earlier setting.
func (t *hostTimer) Set(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.halt()
	if t.closed {
		return
	}
	gen := t.gen
	t.timer = time.AfterFunc(max(d, 0), func() {
		t.mu.Lock()
		late := gen != t.gen
		t.mu.Unlock()
		if !late {
			t.fire()
		}
	})
}

// Stop forgets the setting. A call that is already running is not waited for.
func (t *hostTimer) Stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.halt()
}

// Close stops the timer for good.
func (t *hostTimer) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.halt()
}

func (t *hostTimer) halt() {
	t.gen++
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
}
