package netdev

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// pingEnv makes the test binary a client, in a process of its own: it sends
// that many datagrams and waits for each answer.
const pingEnv = "NETDEV_TEST_PINGS"

func TestMain(m *testing.M) {
	if n := os.Getenv(pingEnv); n != "" {
		if err := ping(n); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func ping(count string) error {
	var n int
	if _, err := fmt.Sscan(count, &n); err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(s, &unix.SockaddrInet4{Port: 7, Addr: [4]byte{10, 0, 0, 2}}); err != nil {
		return err
	}
	runtime.LockOSThread()
	var buf [64]byte
	var times []time.Duration
	for range n {
		begin := time.Now()
		if _, err := unix.Write(s, buf[:]); err != nil {
			return err
		}
		if _, err := unix.Read(s, buf[:]); err != nil {
			return err
		}
		times = append(times, time.Since(begin))
	}
	slices.Sort(times)
	fmt.Println(times[n/2].Nanoseconds(), times[n*9/10].Nanoseconds())
	return nil
}

// BenchmarkTapEcho measures a round trip from the host's stack through a tap, a
// device and a driver that turns datagrams around, and back. Doorbell and CPU
// are threads that block in the kernel, as with KVM.
func BenchmarkTapEcho(b *testing.B) {
	for _, procs := range []int{0, 16} {
		for _, idle := range []int{0, 4} {
			name := fmt.Sprintf("procs=%d,threads=%d", procs, idle)
			b.Run(name, func(b *testing.B) {
				if procs != 0 {
					defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
				}
				benchmarkEcho(b, idle)
			})
		}
	}
}

func benchmarkEcho(b *testing.B, idle int) {
	ns := newNamespace(b)
	tap := ns.tap(TapConfig{}, 1)
	g := newGuest(b, tap, Config{MAC: testMAC}, true)
	eventfd := func() int {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		require.NoError(b, err)
		b.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	bell, irq := eventfd(), eventfd()
	one := [8]byte{1}
	g.interrupt = func(q int) {
		if q == 0 {
			unix.Write(irq, one[:])
		}
	}
	g.activate(baseFeatures|virtio.FeatureEventIdx|featMrgRxBuf, 256)
	stop := make(chan struct{})
	loop := func(fd int, f func()) {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var p [8]byte
			for {
				if _, err := unix.Read(fd, p[:]); err == nil {
					f()
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		}()
	}
	loop(bell, func() { g.dev.Notify(1) })
	fds := []int{bell, irq}
	for range idle { // other queues' doorbells, and CPUs that halt
		fd := eventfd()
		fds = append(fds, fd)
		loop(fd, func() {})
	}
	for g.rings[0].Free() > 0 {
		g.offer(0, 1600)
	}
	g.rings[1].SetInterrupts(false)
	g.notify(0)
	loop(irq, func() {
		for {
			for {
				if _, _, ok := g.rings[1].Used1(); !ok {
					break
				}
			}
			h, frame, ok := g.recv(0)
			if !ok {
				return
			}
			g.offer(0, 1600)
			if g.rings[0].NeedNotify() {
				g.dev.Notify(0)
			}
			if !turnAround(frame) {
				continue
			}
			h = Header{}
			addr := uint64(bufBase - 4096)
			p := make([]byte, HeaderLen)
			h.put(p)
			_ = g.mem.Write(addr, append(p, frame...))
			_, _ = g.rings[1].Add(virtiotest.Buf{Addr: addr, Len: uint32(HeaderLen + len(frame))})
			if g.rings[1].NeedNotify() {
				unix.Write(bell, one[:])
			}
		}
	})
	defer func() {
		close(stop)
		for _, fd := range fds {
			unix.Write(fd, one[:])
		}
		time.Sleep(10 * time.Millisecond)
	}()
	var out []byte
	b.ResetTimer()
	ns.do(func() (err error) {
		c := exec.Command(os.Args[0], "-test.run=^$")
		c.Env = append(os.Environ(), fmt.Sprintf("%s=%d", pingEnv, b.N+10))
		c.Stderr = os.Stderr
		out, err = c.Output()
		return err
	})
	var p50, p90 float64
	_, err := fmt.Sscan(string(out), &p50, &p90)
	require.NoError(b, err)
	b.ReportMetric(p50/1e3, "p50-µs")
	b.ReportMetric(p90/1e3, "p90-µs")
}

// turnAround makes an answer of an ARP request or a datagram.
func turnAround(f []byte) bool {
	if len(f) < 42 {
		return false
	}
	swap := func(i, j, n int) {
		for k := range n {
			f[i+k], f[j+k] = f[j+k], f[i+k]
		}
	}
	switch {
	case f[12] == 8 && f[13] == 6 && f[21] == 1:
		f[21] = 2
		swap(22, 32, 10)
		copy(f[22:28], testMAC)
		copy(f[0:6], f[6:12])
		copy(f[6:12], testMAC)
		return true
	case f[12] == 8 && f[13] == 0 && f[23] == protoUDP:
		swap(0, 6, 6)
		swap(26, 30, 4)
		swap(34, 36, 2)
		f[40], f[41] = 0, 0
		return true
	}
	return false
}

// null is an endpoint that takes every frame and has one whenever asked.
type null struct {
	Endpoint
	size int
}

func (e null) Queue(int) Queue { return nullQueue{e.size} }

type nullQueue struct{ size int }

func (q nullQueue) Write(frames []Frame, _ bool) (int, error) { return len(frames), nil }
func (q nullQueue) Interrupt(bool)                            {}
func (q nullQueue) Read(frames []Frame, _ bool) (int, error) {
	for i := range frames {
		frames[i].Header, frames[i].Len = Header{}, q.size
	}
	return len(frames), nil
}

// BenchmarkTransmit and BenchmarkReceive measure what the device itself costs
// for a frame, with a driver that costs as much.
func BenchmarkTransmit(b *testing.B) {
	a, _ := newPipe(b, PipeConfig{})
	g := newGuest(b, null{Endpoint: a}, Config{MAC: testMAC}, true)
	g.activate(baseFeatures|virtio.FeatureEventIdx, 256)
	g.rings[1].SetInterrupts(false)
	require.NoError(b, g.mem.Write(bufBase+HeaderLen, testFrame(broadcast, 1514, 0)))
	buf := virtiotest.Buf{Addr: bufBase, Len: HeaderLen + 1514}
	b.ReportAllocs()
	for i := 0; i < b.N; i += 32 {
		for range 32 {
			if _, err := g.rings[1].Add(buf); err != nil {
				b.Fatal(err)
			}
		}
		g.notify(1)
		for range 32 {
			if _, _, ok := g.rings[1].Used1(); !ok {
				b.Fatal("not answered")
			}
		}
	}
}

func BenchmarkReceive(b *testing.B) {
	for _, size := range []int{60, 1514, 65000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			a, _ := newPipe(b, PipeConfig{})
			g := newGuest(b, null{Endpoint: a, size: size}, Config{MAC: testMAC}, true)
			g.dev.Pause() // the benchmark is the receiver's goroutine
			g.activate(baseFeatures|virtio.FeatureEventIdx|featMrgRxBuf, 256)
			g.rings[0].SetInterrupts(false)
			r := &g.dev.pairs[0].rx
			r.direct = true
			buf := virtiotest.Buf{Addr: bufBase, Len: 1536, Write: true}
			b.ReportAllocs()
			for b.Loop() {
				for g.rings[0].Free() > 0 {
					if _, err := g.rings[0].Add(buf); err != nil {
						b.Fatal(err)
					}
				}
				if !r.fill() {
					b.Fatal("no buffers")
				}
				if _, err := r.receive(false); err != nil {
					b.Fatal(err)
				}
				r.publish()
				for {
					if _, _, ok := g.rings[0].Used1(); !ok {
						break
					}
				}
			}
		})
	}
}
