package wakeup

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestWoken(t *testing.T) {
	var l Loop
	l.woken()
	require.True(t, l.scheduled.IsZero(), "a first wait is a long one")
	l.woke = time.Now().Add(time.Hour)
	l.woken()
	first := l.scheduled
	require.False(t, first.IsZero(), "two waits in short order")
	l.woke, l.scheduled = time.Now().Add(time.Hour), time.Now().Add(time.Hour)
	first = l.scheduled
	l.woken()
	require.Equal(t, first, l.scheduled, "scheduled a moment ago")

	first = time.Now().Add(-time.Second)
	l.woke, l.scheduled = time.Now().Add(time.Hour), first
	l.woken()
	require.Greater(t, l.scheduled, first)

	l.woke, l.scheduled = time.Now().Add(-time.Second), time.Now().Add(-time.Second)
	stale := l.scheduled
	l.woken()
	require.Equal(t, stale, l.scheduled, "a long wait gave the processor up")

	require.Zero(t, testing.AllocsPerRun(100, l.woken))
}

func TestPoll(t *testing.T) {
	for name, procs := range map[string]int{"known to the scheduler": runtime.NumCPU(), "held": runtime.NumCPU() + 1} {
		t.Run(name, func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
			require.NoError(t, err)
			defer unix.Close(fd)
			one, count, fds := [8]byte{1}, [8]byte{}, []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			var l Loop
			ready := func() {
				for fds[0].Revents = 0; fds[0].Revents == 0; {
					if errno := l.Poll(fds); errno != 0 {
						require.Equal(t, unix.EINTR, errno)
					}
				}
			}
			go func() {
				// Longer than one wait, and then longer than a burst.
				for _, d := range []time.Duration{0, 3 * often, 2 * busy} {
					time.Sleep(d)
					_, _ = unix.Write(fd, one[:])
				}
			}()
			for range 3 {
				ready()
				require.EqualValues(t, unix.POLLIN, fds[0].Revents)
				_, err = unix.Read(fd, count[:])
				require.NoError(t, err)
			}
			require.Zero(t, holders.Load())

			// A collection of garbage does not wait for the goroutine.
			done := make(chan bool)
			go func() { ready(); close(done) }()
			runtime.GC()
			_, _ = unix.Write(fd, one[:])
			<-done
			require.Zero(t, testing.AllocsPerRun(100, ready))
		})
	}
}

// Processors for goroutines that have something to do are not held.
func TestHold(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 2))
	require.True(t, hold())
	require.True(t, hold())
	require.False(t, hold())
	require.EqualValues(t, 2, holders.Swap(0))
}
