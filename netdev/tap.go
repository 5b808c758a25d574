package netdev

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/wakeup"
)

const tunPath = "/dev/net/tun"

// maxTapQueues is the kernel's limit of queues of one interface.
const maxTapQueues = 256

// TapConfig describes a tap interface. Its zero value makes a new interface
// with one queue and a name chosen by the kernel.
type TapConfig struct {
	// Name is the interface's name, of at most 15 bytes. If there is such an
	// interface it is attached to, and it must be a tap that nobody else
	// uses; otherwise it is created, down and without address, and goes
	// away with Close. A name that holds "%d" gets a number, and an empty
	// one stands for "tap%d".
	Name string
	// Queues is the number of queue pairs, 1 to 256. 0 means 1. Several
	// need an interface with the multi_queue flag.
	Queues int
}

// Tap is a tap interface of the host: the host's network stack is at its
// other end. Frames go between the host's kernel and Data without another
// copy, with checksums and segmentation left to whoever is able.
type Tap struct {
	name   string
	caps   Caps
	queues []*tapQueue

	mu     sync.Mutex // guards Configure and Close
	closed bool
}

var _ Endpoint = (*Tap)(nil)

// OpenTap opens the tap interface that cfg describes, in the network
// namespace of the calling thread. It needs access to /dev/net/tun and, to
// create an interface, CAP_NET_ADMIN; the interface's owner may attach
// without it. Errors wrap those of the system calls and say what to do.
func OpenTap(cfg TapConfig) (*Tap, error) {
	if cfg.Queues == 0 {
		cfg.Queues = 1
	}
	if cfg.Queues < 1 || cfg.Queues > maxTapQueues {
		return nil, fmt.Errorf("tap %s: %d queues, want 1 to %d", cfg.Name, cfg.Queues, maxTapQueues)
	}
	if cfg.Name == "" {
		cfg.Name = "tap%d"
	}
	t := &Tap{name: cfg.Name}
	if err := t.open(cfg.Queues); err != nil {
		_ = t.Close() // the first error is the one to report
		return nil, err
	}
	return t, nil
}

func (t *Tap) open(queues int) error {
	// An interface made without multi_queue refuses to be opened with it
	// and the other way round, so a single queue tries both.
	modes := []uint16{0, unix.IFF_MULTI_QUEUE}
	if queues > 1 {
		modes = modes[1:]
	}
	var err error
	for _, mode := range modes {
		err = t.addQueue(mode)
		if !errors.Is(err, unix.EINVAL) {
			modes[0] = mode
			break
		}
	}
	for i := 1; i < queues && err == nil; i++ {
		err = t.addQueue(modes[0])
	}
	if err != nil {
		return err
	}
	for _, q := range t.queues {
		if err := unix.IoctlSetPointerInt(q.fd, unix.TUNSETVNETHDRSZ, HeaderLen); err != nil {
			return fmt.Errorf("tap %s: set header size: %w", t.name, err)
		}
	}
	t.caps = Caps{Queues: queues, Offload: OffloadAll &^ OffloadUSO}
	if t.setOffload(OffloadChecksum|OffloadUSO) == nil {
		t.caps.Offload |= OffloadUSO // Linux 6.2
	}
	if t.caps.MTU, err = interfaceMTU(t.name); err != nil {
		return fmt.Errorf("tap %s: get MTU: %w", t.name, err)
	}
	return t.Configure(Settings{Queues: 1})
}

// addQueue opens one more queue of the interface.
func (t *Tap) addQueue(mode uint16) error {
	q, err := openTapQueue(t.name)
	if err != nil {
		return err
	}
	t.queues = append(t.queues, q)
	ifr, err := unix.NewIfreq(t.name)
	if err != nil {
		return fmt.Errorf("tap %q: a name has 1 to 15 bytes: %w", t.name, err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | mode)
	if err := unix.IoctlIfreq(q.fd, unix.TUNSETIFF, ifr); err != nil {
		if len(t.queues) == 1 {
			t.queues = nil
			q.close()
		}
		switch {
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("tap %s: attach: %w: it needs CAP_NET_ADMIN, or an interface made for this user with 'ip tuntap add %s mode tap user $USER'", t.name, err, t.name)
		case errors.Is(err, unix.EBUSY):
			return fmt.Errorf("tap %s: attach: %w: another program uses the interface", t.name, err)
		case errors.Is(err, unix.EINVAL):
			return fmt.Errorf("tap %s: attach: %w: an interface of that name exists and is not a tap, or not one with as many queues ('ip tuntap add %s mode tap multi_queue')", t.name, err, t.name)
		}
		return fmt.Errorf("tap %s: attach: %w", t.name, err)
	}
	t.name = ifr.Name()
	q.name = t.name
	q.attached.Store(true)
	return nil
}

// interfaceMTU asks for the MTU of an interface of this thread's namespace.
func interfaceMTU(name string) (int, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFMTU, ifr); err != nil {
		return 0, err
	}
	return int(ifr.Uint32()), nil
}

// Name is the name of the interface.
func (t *Tap) Name() string { return t.name }

// Caps implements [Endpoint]. MTU is that of the interface when it was opened.
func (t *Tap) Caps() Caps { return t.caps }

// Queue implements [Endpoint].
func (t *Tap) Queue(i int) Queue { return t.queues[i] }

// WatchLink implements [Endpoint]. A tap is always up: while its interface is
// down, or nobody listens behind it, frames are lost as on a real wire.
func (t *Tap) WatchLink(func(up bool)) bool { return true }

// Configure implements [Endpoint].
func (t *Tap) Configure(s Settings) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("tap %s: %w", t.name, ErrClosed)
	}
	if s.Queues < 1 || s.Queues > len(t.queues) {
		return fmt.Errorf("tap %s: %d queues in use, have %d", t.name, s.Queues, len(t.queues))
	}
	if err := t.setOffload(s.Offload & t.caps.Offload); err != nil {
		return err
	}
	// The kernel spreads flows over attached queues.
	for i, q := range t.queues {
		if want := i < s.Queues; want != q.attached.Load() {
			if err := q.attach(want); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *Tap) setOffload(o Offload) error {
	o = o.sound()
	bits := 0
	for _, b := range []struct {
		o   Offload
		tun int
	}{
		{OffloadChecksum, unix.TUN_F_CSUM},
		{OffloadTSO4, unix.TUN_F_TSO4},
		{OffloadTSO6, unix.TUN_F_TSO6},
		{OffloadECN, unix.TUN_F_TSO_ECN},
		{OffloadUSO, unix.TUN_F_USO4 | unix.TUN_F_USO6},
	} {
		if o&b.o != 0 {
			bits |= b.tun
		}
	}
	if err := unix.IoctlSetInt(t.queues[0].fd, unix.TUNSETOFFLOAD, bits); err != nil {
		return fmt.Errorf("tap %s: set offload %#x: %w", t.name, bits, err)
	}
	return nil
}

// Close implements [Endpoint].
func (t *Tap) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	for _, q := range t.queues {
		q.close()
	}
	return nil
}

// tapQueue is one queue of a tap. Waiting is a poll on the tap and an eventfd:
// it wakes up sooner than the runtime's poller does, and the frames' buffers
// are not held while it blocks.
type tapQueue struct {
	name     string
	fd       int
	stop     int // eventfd, readable while interrupted or closed
	attached atomic.Bool

	intrMu      sync.Mutex
	interrupted bool
	closed      atomic.Bool
	quit        atomic.Bool // interrupted or closed

	rd, wr tapHalf
}

// tapHalf is what one direction of a queue needs for itself.
type tapHalf struct {
	mu   sync.Mutex // held by the reader or writer; Close waits for it
	iov  []unix.Iovec
	poll [3]unix.PollFd // the tap, stop, and whatever else is waited for
	loop wakeup.Loop
}

func openTapQueue(name string) (*tapQueue, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		err = &os.PathError{Op: "open", Path: tunPath, Err: err}
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
			return nil, fmt.Errorf("tap %s: %w: load the kernel's tun module ('modprobe tun')", name, err)
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			return nil, fmt.Errorf("tap %s: %w: this user needs access to the device", name, err)
		}
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("tap %s: eventfd: %w", name, err)
	}
	q := &tapQueue{name: name, fd: fd, stop: stop}
	q.rd.poll = [3]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}, {Events: unix.POLLIN}}
	q.wr.poll = [3]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}, {Fd: int32(stop), Events: unix.POLLIN}, {}}
	return q, nil
}

// attach gives the queue its share of the interface's frames, or takes it away.
func (q *tapQueue) attach(on bool) error {
	ifr, err := unix.NewIfreq(q.name)
	if err != nil {
		return err
	}
	flag := uint16(unix.IFF_DETACH_QUEUE)
	if on {
		flag = unix.IFF_ATTACH_QUEUE
	}
	ifr.SetUint16(flag)
	if err := unix.IoctlIfreq(q.fd, unix.TUNSETQUEUE, ifr); err != nil {
		return fmt.Errorf("tap %s: attach queue %t: %w", q.name, on, err)
	}
	q.attached.Store(on)
	return nil
}

// Interrupt implements [Queue].
func (q *tapQueue) Interrupt(on bool) {
	q.intrMu.Lock()
	defer q.intrMu.Unlock()
	if q.closed.Load() || q.interrupted == on {
		return
	}
	q.interrupted = on
	q.quit.Store(on)
	q.signal(on)
}

// signal makes the eventfd readable, or not.
func (q *tapQueue) signal(on bool) {
	one := [8]byte{1}
	if on {
		_, _ = unix.Write(q.stop, one[:]) // cannot fail: the counter is 0 or 1
	} else {
		_, _ = unix.Read(q.stop, one[:])
	}
}

func (q *tapQueue) close() {
	q.intrMu.Lock()
	if q.closed.Swap(true) {
		q.intrMu.Unlock()
		return
	}
	q.quit.Store(true)
	if !q.interrupted {
		q.signal(true)
	}
	q.intrMu.Unlock()
	q.rd.mu.Lock()
	q.wr.mu.Lock()
	unix.Close(q.fd)
	unix.Close(q.stop)
	q.wr.mu.Unlock()
	q.rd.mu.Unlock()
}

func (q *tapQueue) closedErr(op string) error {
	return fmt.Errorf("tap %s: %s: %w", q.name, op, ErrClosed)
}

// Read implements [Queue].
func (q *tapQueue) Read(frames []Frame, wait bool) (int, error) {
	h := &q.rd
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for n < len(frames) {
		if q.closed.Load() {
			return n, q.closedErr("read")
		}
		got, room, errno := q.readv(h, &frames[n])
		switch errno {
		case 0:
			if got < HeaderLen {
				continue // cannot happen while the header size is ours
			}
			frames[n].Len = min(got-HeaderLen, room)
			n++
		case unix.EINTR:
		case unix.EAGAIN:
			if n > 0 || !wait || q.quit.Load() {
				return n, nil
			}
			if err := q.wait(h, -1); err != nil {
				return n, err
			}
		default:
			return n, fmt.Errorf("tap %s: read: %w", q.name, q.explain(errno))
		}
	}
	return n, nil
}

// Write implements [Queue].
func (q *tapQueue) Write(frames []Frame, wait bool) (int, error) {
	h := &q.wr
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for n < len(frames) {
		if q.closed.Load() {
			return n, q.closedErr("write")
		}
		switch errno := q.writev(h, &frames[n]); errno {
		case 0:
			n++
		case unix.EINTR:
		case unix.EAGAIN:
			if n > 0 || !wait || q.quit.Load() {
				return n, nil
			}
			if err := q.wait(h, -1); err != nil {
				return n, err
			}
		case unix.EBADF, unix.EBADFD:
			return n, fmt.Errorf("tap %s: write: %w", q.name, q.explain(errno))
		default:
			// EINVAL for a frame that makes no sense, EIO while the interface is
			// down, ENOMEM, ...: the frame is lost, the tap is not.
			n++
		}
	}
	return n, nil
}

// Wait implements [waiter].
func (q *tapQueue) Wait(event int) error {
	q.rd.mu.Lock()
	defer q.rd.mu.Unlock()
	if q.closed.Load() {
		return q.closedErr("wait")
	}
	return q.wait(&q.rd, event)
}

// wait blocks until the tap is ready in one direction, the queue is interrupted, or
// event is readable, if that is not -1.
func (q *tapQueue) wait(h *tapHalf, event int) error {
	h.poll[2].Fd = int32(event)
	if errno := h.loop.Poll(h.poll[:]); errno != 0 && errno != unix.EINTR {
		return fmt.Errorf("tap %s: poll: %w", q.name, errno)
	}
	return nil
}

// explain makes sense of the errors that end a tap.
func (q *tapQueue) explain(errno unix.Errno) error {
	if errno == unix.EBADFD {
		return fmt.Errorf("%w: the interface was deleted", errno)
	}
	return errno
}
