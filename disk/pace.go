package disk

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// pace guesses whether a transfer through the page cache will be quick, from
// how those before it went. One that waited, for the disk, for a journal or
// because too much is dirty, sends the next ones elsewhere for a while. Time on
// the clock alone does not count: on a busy host, any thread may lose its CPU.
type pace struct {
	n     atomic.Uint32
	sulks atomic.Int32 // transfers still to be refused
}

const (
	paceMax   = 4 << 20 // larger ones are never called quick
	paceSlow  = time.Millisecond
	paceSulk  = 64
	paceEvery = 4 // only some are watched, which has its price
)

// quick reports whether to try a transfer of n bytes.
func (p *pace) quick(n int64) bool {
	if n > paceMax {
		return false
	}
	if p.sulks.Load() > 0 {
		p.sulks.Add(-1)
		return false
	}
	return true
}

// watch is one transfer watched.
type watch struct {
	start time.Time // zero: not watched
	waits int64     // the thread's waits before
}

func (p *pace) start() (w watch) {
	if p.n.Add(1)%paceEvery == 0 {
		runtime.LockOSThread()
		w = watch{time.Now(), threadWaits()}
	}
	return w
}

func (p *pace) stop(w watch) {
	if w.start.IsZero() {
		return
	}
	if time.Since(w.start) > paceSlow && threadWaits() > w.waits {
		p.sulks.Store(paceSulk)
	}
	runtime.UnlockOSThread()
}

// threadWaits is how often this thread has given up its CPU of its own accord.
func threadWaits() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_THREAD, &u) != nil {
		return 0
	}
	return u.Nvcsw
}
