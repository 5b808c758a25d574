package netdev

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// copyFrames passes the frames of one endpoint on to another until the first
// is interrupted. It counts those that were to be segmented.
func copyFrames(from, to Queue, gso *atomic.Int64) error {
	frames := make([]Frame, 16)
	for i := range frames {
		frames[i].Data = [][]byte{make([]byte, MaxFrame)}
	}
	for {
		n, err := from.Read(frames, true)
		if err != nil || n == 0 {
			return err
		}
		for i := range n {
			f := Frame{Header: frames[i].Header, Data: [][]byte{frames[i].Data[0][:frames[i].Len]}}
			if f.Header.GSOType != GSONone {
				gso.Add(1)
			}
			if _, err := to.Write([]Frame{f}, true); err != nil {
				return err
			}
		}
	}
}

// bridge joins two endpoints until the test ends.
func bridge(t testing.TB, a, b Queue) *atomic.Int64 {
	gso := new(atomic.Int64)
	var wg sync.WaitGroup
	for _, q := range [][2]Queue{{a, b}, {b, a}} {
		wg.Go(func() {
			if err := copyFrames(q[0], q[1], gso); err != nil && !errors.Is(err, ErrClosed) {
				t.Errorf("bridge: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		a.Interrupt(true)
		b.Interrupt(true)
		wg.Wait()
	})
	return gso
}

// transfer sends n random bytes each way over a TCP connection and compares.
func transfer(t *testing.T, client, server *namespace, serverHost byte, n int64) {
	t.Helper()
	l := server.listen(serverHost)
	type result struct {
		sent, got [32]byte
		err       error
	}
	both := func(c net.Conn, seed byte) (r result) {
		c.SetDeadline(time.Now().Add(60 * time.Second))
		var wg sync.WaitGroup
		var werr error
		wg.Go(func() {
			src := io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
			h := sha256.New()
			_, werr = io.Copy(c, io.TeeReader(src, h))
			r.sent = [32]byte(h.Sum(nil))
			c.(*net.TCPConn).CloseWrite()
		})
		h := sha256.New()
		m, err := io.Copy(h, c)
		r.got = [32]byte(h.Sum(nil))
		wg.Wait()
		r.err = errors.Join(err, werr)
		if m != n && r.err == nil {
			r.err = fmt.Errorf("received %d bytes, want %d", m, n)
		}
		return r
	}
	done := make(chan result, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- result{err: err}
			return
		}
		defer c.Close()
		done <- both(c, 1)
	}()
	c := both(client.dial("tcp4", l.Addr().String()), 2)
	s := <-done
	require.NoError(t, c.err)
	require.NoError(t, s.err)
	require.Equal(t, c.sent, s.got)
	require.Equal(t, s.sent, c.got)
}

func TestTapTCP(t *testing.T) {
	for _, o := range []Offload{0, OffloadChecksum, OffloadAll} {
		t.Run(fmt.Sprintf("offload=%#x", o), func(t *testing.T) {
			ns1, ns2 := newNamespace(t), newNamespace(t)
			a, b := ns1.tap(TapConfig{}, 1), ns2.tap(TapConfig{}, 2)
			require.Equal(t, "tap0", a.Name())
			require.Equal(t, 1500, a.Caps().MTU)
			for _, e := range []Endpoint{a, b} {
				require.NoError(t, e.Configure(Settings{Queues: 1, Offload: o}))
			}
			gso := bridge(t, a.Queue(0), b.Queue(0))
			transfer(t, ns1, ns2, 2, 3<<20)
			require.Equal(t, o&OffloadTSO4 != 0, gso.Load() > 0, "%d frames for segmentation", gso.Load())
		})
	}
}

// TestPipeTCP checks the segmenter against the kernel's: TCP leaves one tap
// with everything undone, and a pipe whose reader accepts nothing does it.
func TestPipeTCP(t *testing.T) {
	ns1, ns2 := newNamespace(t), newNamespace(t)
	a, b := ns1.tap(TapConfig{}, 1), ns2.tap(TapConfig{}, 2)
	x, y := newPipe(t, PipeConfig{})
	for _, e := range []Endpoint{a, b} {
		require.NoError(t, e.Configure(Settings{Queues: 1, Offload: OffloadAll}))
	}
	left := bridge(t, a.Queue(0), x.Queue(0))
	right := bridge(t, b.Queue(0), y.Queue(0))
	transfer(t, ns1, ns2, 2, 3<<20)
	require.Positive(t, left.Load())
	require.Positive(t, right.Load())
}

// TestDeviceTCP passes TCP through two devices over taps, with a driver
// between them that hands frames from one to the other.
func TestDeviceTCP(t *testing.T) {
	const offload = featCsum | featGuestCsum | featHostTSO4 | featGuestTSO4 | featHostECN | featGuestECN
	for _, tt := range []struct {
		name     string
		features uint64
		direct   bool
	}{
		{"plain", 0, true},
		{"mergeable", featMrgRxBuf, true},
		{"offload", featMrgRxBuf | offload, true},
		{"recording", featMrgRxBuf | offload, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ns := [2]*namespace{newNamespace(t), newNamespace(t)}
			var gs [2]*guest
			for i := range gs {
				gs[i] = newGuest(t, ns[i].tap(TapConfig{}, byte(1+i)), Config{}, tt.direct)
				gs[i].activate(baseFeatures|tt.features, 256)
			}
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for i := range gs {
				for gs[i].rings[0].Free() > 0 {
					gs[i].offer(0, 1600)
				}
				gs[i].notify(0)
			}
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					idle := true
					for i, g := range gs {
						for {
							if _, _, ok := g.rings[1].Used1(); !ok {
								break
							}
						}
						h, frame, ok := g.recv(0)
						if !ok {
							continue
						}
						idle = false
						for g.rings[0].Free() > 0 {
							g.offer(0, 1600)
						}
						g.notify(0)
						if gs[1-i].rings[1].Free() > 8 {
							h.Flags &= NeedsChecksum
							gs[1-i].send(1, h, frame)
						}
					}
					if idle {
						time.Sleep(20 * time.Microsecond)
					}
				}
			})
			transfer(t, ns[0], ns[1], 2, 1<<20)
			close(stop)
			wg.Wait()
		})
	}
}

func TestTapQueues(t *testing.T) {
	ns := newNamespace(t)
	tap := ns.tap(TapConfig{Name: "mq%d", Queues: 4}, 1)
	require.Equal(t, "mq0", tap.Name())
	require.Equal(t, 4, tap.Caps().Queues)
	for _, active := range []int{1, 4, 2} {
		require.NoError(t, tap.Configure(Settings{Queues: active}))
		for i := range active {
			drainQueue(t, tap.Queue(i))
		}
		// A static neighbour is not needed: datagrams to the broadcast address do.
		for i := range 64 {
			c := ns.dial("udp4", fmt.Sprintf("10.0.0.255:%d", 1000+i))
			_, err := c.Write([]byte("hello"))
			require.NoError(t, err)
			c.Close()
		}
		// The kernel may have left some of them for later.
		used, total := map[int]bool{}, 0
		for end := time.Now().Add(time.Minute); total < 64; {
			for i := range active {
				if n := drainQueue(t, tap.Queue(i)); n > 0 {
					used[i] = true
					total += n
				}
			}
			require.True(t, total >= 64 || time.Now().Before(end), "%d frames came", total)
		}
		require.GreaterOrEqual(t, len(used), min(active, 2))
	}
	n, err := tap.Queue(3).Read([]Frame{{}}, false)
	require.NoError(t, err)
	require.Zero(t, n, "a queue that is not in use")
	require.Error(t, tap.Configure(Settings{Queues: 5}))
	require.Error(t, tap.Configure(Settings{}))
}

// drainQueue counts the frames with an IPv4 broadcast in a queue.
func drainQueue(t *testing.T, q Queue) (n int) {
	f := []Frame{{Data: [][]byte{make([]byte, 2000)}}}
	for {
		k, err := q.Read(f, false)
		require.NoError(t, err)
		if k == 0 {
			return n
		}
		if p := f[0].Data[0]; p[0] == 0xff && p[12] == 8 && p[13] == 0 {
			n++
		}
	}
}

func TestTapUnblocks(t *testing.T) {
	ns := newNamespace(t)
	tap := ns.tap(TapConfig{}, 1)
	read := func() chan error {
		done := make(chan error, 1)
		go func() {
			f := []Frame{{Data: [][]byte{make([]byte, 2000)}}}
			for {
				n, err := tap.Queue(0).Read(f, true)
				if n == 0 || err != nil {
					done <- err
					return
				}
			}
		}()
		time.Sleep(10 * time.Millisecond)
		return done
	}
	done := read()
	tap.Queue(0).Interrupt(true)
	require.NoError(t, <-done)
	done = read()
	require.NoError(t, <-done, "interrupted already")
	tap.Queue(0).Interrupt(false)
	done = read()
	require.Empty(t, done)
	require.NoError(t, tap.Close())
	require.ErrorIs(t, <-done, ErrClosed)
	_, err := tap.Queue(0).Write([]Frame{{Data: [][]byte{make([]byte, 60)}}}, true)
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, tap.Configure(Settings{Queues: 1}), ErrClosed)
	tap.Queue(0).Interrupt(true)
	require.NoError(t, tap.Close())
}

func TestTapDropsBadFrames(t *testing.T) {
	ns := newNamespace(t)
	tap := ns.tap(TapConfig{}, 1)
	q := tap.Queue(0)
	bad := []Frame{
		{Data: [][]byte{make([]byte, 5)}},
		{},
		{Header: Header{Flags: NeedsChecksum, CsumStart: 60000, CsumOffset: 16}, Data: [][]byte{make([]byte, 100)}},
		{Header: Header{GSOType: 77, GSOSize: 10}, Data: [][]byte{make([]byte, 100)}},
	}
	n, err := q.Write(bad, true)
	require.NoError(t, err)
	require.Equal(t, len(bad), n)
	ns.do(func() error { // down: the wire is dead, the tap is not
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		ifr, _ := unix.NewIfreq(tap.Name())
		return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
	})
	n, err = q.Write([]Frame{{Data: [][]byte{testFrame(broadcast, 60, 0)}}}, true)
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestTapAttach(t *testing.T) {
	ns := newNamespace(t)
	// An interface as 'ip tuntap add' makes it outlives its maker.
	for _, mode := range []uint16{0, unix.IFF_MULTI_QUEUE} {
		name := fmt.Sprintf("keep%d", mode)
		ns.do(func() error {
			fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			ifr, err := unix.NewIfreq(name)
			if err != nil {
				return err
			}
			ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | mode)
			if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
				return err
			}
			return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
		})
		tap := ns.tap(TapConfig{Name: name}, 1)
		ns.do(func() error {
			_, err := OpenTap(TapConfig{Name: name})
			if mode == 0 {
				require.ErrorIs(t, err, unix.EBUSY)
				require.ErrorContains(t, err, "another program")
				_, err = OpenTap(TapConfig{Name: name, Queues: 2})
				require.ErrorContains(t, err, "multi_queue")
			}
			return nil
		})
		require.NoError(t, tap.Close())
		tap = ns.tap(TapConfig{Name: name}, 1)
		require.NoError(t, tap.Close())
	}
}

func TestTapErrors(t *testing.T) {
	ns := newNamespace(t)
	before := openFiles(t)
	for _, tt := range []struct {
		cfg  TapConfig
		want string
	}{
		{TapConfig{Queues: -1}, "want 1 to 256"},
		{TapConfig{Queues: 257}, "want 1 to 256"},
		{TapConfig{Name: "a-name-much-too-long"}, "1 to 15 bytes"},
		{TapConfig{Name: "lo"}, "not a tap"},
	} {
		ns.do(func() error {
			_, err := OpenTap(tt.cfg)
			require.ErrorContains(t, err, tt.want)
			return nil
		})
	}
	require.Equal(t, before, openFiles(t))
	// Without privileges the error says what is lacking.
	ns.do(func() error {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 { // this thread only
			return errno
		}
		_, err := OpenTap(TapConfig{Name: "new0"})
		require.Error(t, err)
		require.True(t, strings.Contains(err.Error(), "CAP_NET_ADMIN") || strings.Contains(err.Error(), "access to the device"), "%v", err)
		return nil
	})
	require.Equal(t, before, openFiles(t))
}

func openFiles(t *testing.T) int {
	d, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(d)
}

func TestTapAllocs(t *testing.T) {
	ns := newNamespace(t)
	tap := ns.tap(TapConfig{}, 1)
	c := ns.dial("udp4", "10.0.0.255:9")
	in := []Frame{{Data: [][]byte{make([]byte, 100), make([]byte, 2000)}}}
	out := []Frame{{Data: [][]byte{testFrame(broadcast, 60, 0)}}}
	msg := []byte("hello")
	require.Zero(t, testing.AllocsPerRun(200, func() {
		if _, err := c.Write(msg); err != nil {
			t.Error(err)
		}
		if n, err := tap.Queue(0).Read(in, true); n != 1 || err != nil {
			t.Error(n, err)
		}
		if n, err := tap.Queue(0).Write(out, true); n != 1 || err != nil {
			t.Error(n, err)
		}
	}))
}

func TestTapDeleted(t *testing.T) {
	ns := newNamespace(t)
	tap := ns.tap(TapConfig{Name: "gone"}, 1)
	drainQueue(t, tap.Queue(0))
	done := make(chan error, 1)
	go func() {
		f := []Frame{{Data: [][]byte{make([]byte, 2000)}}}
		for {
			if _, err := tap.Queue(0).Read(f, true); err != nil {
				done <- err
				return
			}
		}
	}()
	ns.do(func() error {
		s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		i, err := net.InterfaceByName("gone")
		if err != nil {
			return err
		}
		// RTM_DELLINK: struct nlmsghdr, struct ifinfomsg.
		b := make([]byte, 32)
		b[0] = 32
		b[4] = unix.RTM_DELLINK
		b[6] = unix.NLM_F_REQUEST
		b[20] = byte(i.Index)
		return unix.Sendto(s, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	select {
	case err := <-done:
		require.ErrorContains(t, err, "the interface was deleted")
	case <-time.After(time.Minute):
		t.Fatal("the reader still waits")
	}
}
