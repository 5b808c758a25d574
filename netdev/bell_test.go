package netdev

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// waitingPipe is an end of a pipe whose queue is a waiter, as a tap's is.
type waitingPipe struct {
	Endpoint
	broken atomic.Bool
}

type waitingQueue struct {
	Queue
	p *waitingPipe
}

var errBroken = errors.New("broken")

func (p *waitingPipe) Queue(i int) Queue { return waitingQueue{p.Endpoint.Queue(i), p} }

func (q waitingQueue) Read(f []Frame, wait bool) (int, error) {
	if wait {
		return 0, errors.New("a waiter's Read waits")
	}
	if q.p.broken.Load() {
		return 0, errBroken
	}
	return q.Queue.Read(f, false)
}

func (q waitingQueue) Wait(event int) error {
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(event), Events: unix.POLLIN}}, 1)
	if err == unix.EINTR {
		err = nil
	}
	return err
}

// One goroutine receives and serves the transmitter's doorbell, also while there are
// no buffers to receive into, and after receiving has failed for good.
func TestBell(t *testing.T) {
	for name, direct := range map[string]bool{"direct": true, "recording": false} {
		t.Run(name, func(t *testing.T) {
			a, b := newPipe(t, PipeConfig{})
			ep := &waitingPipe{Endpoint: a}
			g := newGuest(t, ep, Config{MAC: testMAC}, direct)
			require.Equal(t, g.dev.EventFD(0), g.dev.EventFD(1), "one for both directions")
			require.Equal(t, -1, g.dev.EventFD(2), "the control queue's is the transport's")
			g.activate(baseFeatures|featMrgRxBuf, 64)
			ring := func() {
				_, err := unix.Write(g.dev.EventFD(1), []byte{1, 0, 0, 0, 0, 0, 0, 0})
				require.NoError(t, err)
			}
			transmit := func(fill byte) {
				t.Helper()
				want := testFrame([6]byte{2, 9, 9, 9, 9, 9}, 100, fill)
				g.queueFrame(1, Header{}, want)
				ring()
				_, got := read1(t, b.Queue(0))
				require.Equal(t, want, got)
			}
			transmit(1) // no buffers to receive into
			want := testFrame([6]byte(testMAC), 80, 2)
			write1(t, b.Queue(0), Header{}, want)
			g.offer(0, 300)
			ring()
			_, got := g.mustRecv(0)
			require.Equal(t, want, got)
			g.offer(0, 300)
			ring()
			transmit(3) // while it waits for a frame

			g.dev.Pause()
			ring()
			g.dev.Resume()
			transmit(4)

			ep.broken.Store(true)
			g.eventually(func() bool { return g.dev.failed.Load() }, "the end of receiving")
			g.dev.SetLink(true)
			_, status, _, _ := g.config()
			require.Zero(t, status&statusLinkUp)
			g.queueFrame(1, Header{}, want)
			ring()
			g.eventually(func() bool { _, _, ok := g.rings[1].Used1(); return ok }, "the frame to be dropped")
		})
	}
}
