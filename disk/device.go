package disk

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// Feature bits of a block device (virtio 1.2, section 5.2.3).
const (
	FeatureSegMax      uint64 = 1 << 2
	FeatureReadOnly    uint64 = 1 << 5
	FeatureBlockSize   uint64 = 1 << 6
	FeatureFlush       uint64 = 1 << 9
	FeatureTopology    uint64 = 1 << 10
	FeatureConfigWCE   uint64 = 1 << 11
	FeatureMQ          uint64 = 1 << 12
	FeatureDiscard     uint64 = 1 << 13
	FeatureWriteZeroes uint64 = 1 << 14
)

const sectorSize = 512 // the unit of every sector number, whatever the block size

// Config says what a guest sees of a disk. The zero value is a writable disk
// with one queue.
type Config struct {
	// ReadOnly refuses every change by the guest. It is implied by a
	// backend that is read-only.
	ReadOnly bool
	// Serial names the disk to the guest, which reads it with GET_ID: up to
	// 20 bytes of printable ASCII.
	Serial string
	// Queues is the number of request queues, 1 to 64; 0 means 1. A guest
	// uses up to one for each of its CPUs.
	Queues int
	// QueueSize is the number of descriptors of each queue, a power of two
	// from 4 to 1024; 0 means 512. A request has at most two fewer buffers:
	// with 512, one of 1 MiB from scattered pages need not be cut.
	QueueSize int
	// BlockSize is the logical block size in bytes that the guest is told: a
	// power of two from 512 to 4096; 0 means 512. A disk's partition table
	// and file systems depend on it.
	BlockSize int
	// WriteThrough makes every write durable before it completes. Otherwise
	// a write is durable when a flush after it has completed, and the guest
	// may choose.
	WriteThrough bool
	// Workers is how many requests wait for the backend at once, 1 to 1024; 0
	// means 32.
	Workers int
	// Hold, if not nil, makes the device hold requests that the backend
	// cannot serve for now, with an error wrapping ErrNoSpace or
	// ErrUnavailable, instead of failing them: the guest waits for their
	// answer until Device.Retry succeeds. Hold is told when that begins and
	// ends. It is called on a goroutine of its own, one call at a time, may
	// use the device as it likes, and learns of the latest event only if
	// several happen while it runs.
	Hold func(HoldEvent)
	// HoldTimeout limits how long requests are held, counted from when the
	// first was; then they fail, as with Device.Fail. 0 means no limit.
	HoldTimeout time.Duration
}

// Device is a virtio block device (virtio 1.2, section 5.2) over a [Backend].
// It implements virtio.Device.
//
// What the backend answers at once is answered on the queue's own goroutine;
// the rest waits on a bounded number of workers. Data moves straight between
// guest memory and the backend, except where the machine records its input:
// then what was read passes through the inbox. Where the machine wants work done
// promptly there are no workers: the notification carries requests out, in order.
//
// A request that the backend fails is answered with IOERR, logged at most once
// a second, and harms no other, unless Config.Hold makes the guest wait where
// waiting can help. A write that was acknowledged and then lost shows as a
// failed flush; see [Backend].
//
// The backend belongs to the caller, who closes it after the device. Nothing
// else may change it while a guest runs, except through the device.
type Device struct {
	backend  Backend
	imm      Immediate // nil if the backend is none
	info     Info
	cfg      Config
	features uint64 // offered

	host *virtio.Host
	port device.Port

	capacity  atomic.Uint64 // sectors that the guest may use
	writeback atomic.Bool   // as the guest sees it
	stop      atomic.Bool   // drains end: paused, reset or not active
	paused    atomic.Bool

	active atomic.Pointer[session] // nil between Reset and Activate
	epoch  uint16                  // that of the last session

	// resizeMu keeps one Resize at a time.
	resizeMu sync.Mutex
	pool     workers
	hold     hold
	log      limiter
}

var _ virtio.Device = (*Device)(nil)

// session is the time from an Activate to the next Reset.
type session struct {
	epoch    uint16 // counts activations, to tell stale events
	direct   bool   // the backend may write to guest memory
	prompt   bool   // requests are carried out where they are notified
	features uint64 // negotiated
	queues   []*queue
}

// NewDevice returns a virtio block device over b.
func NewDevice(b Backend, cfg Config) (*Device, error) {
	if b == nil {
		return nil, errors.New("disk: device without a backend")
	}
	info := b.Info()
	fail := func(format string, args ...any) (*Device, error) {
		return nil, fmt.Errorf("disk %s: device: %w", info.Name, fmt.Errorf(format, args...))
	}
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&cfg.Queues, 1)
	def(&cfg.QueueSize, 512)
	def(&cfg.BlockSize, sectorSize)
	def(&cfg.Workers, 32)
	switch {
	case cfg.Queues < 1 || cfg.Queues > 64:
		return fail("%d queues, want 1 to 64", cfg.Queues)
	case cfg.QueueSize < 4 || cfg.QueueSize > 1024 || cfg.QueueSize&(cfg.QueueSize-1) != 0:
		return fail("queue size %d is not a power of two from 4 to 1024", cfg.QueueSize)
	case cfg.BlockSize < 512 || cfg.BlockSize > 4096 || cfg.BlockSize&(cfg.BlockSize-1) != 0:
		return fail("block size %d is not a power of two from 512 to 4096", cfg.BlockSize)
	case cfg.Workers < 1 || cfg.Workers > 1024:
		return fail("%d workers, want 1 to 1024", cfg.Workers)
	case cfg.HoldTimeout < 0 || cfg.HoldTimeout > 0 && cfg.Hold == nil:
		return fail("hold timeout %v, with a function to tell %v", cfg.HoldTimeout, cfg.Hold != nil)
	case len(cfg.Serial) > idLen:
		return fail("serial %q is longer than %d bytes", cfg.Serial, idLen)
	case info.BlockSize < 512 || bits.OnesCount(uint(info.BlockSize)) != 1:
		return fail("backend's block size %d is not a power of two of at least 512", info.BlockSize)
	}
	for _, c := range []byte(cfg.Serial) {
		if c < ' ' || c > '~' {
			return fail("serial %q is not printable ASCII", cfg.Serial)
		}
	}
	cfg.ReadOnly = cfg.ReadOnly || info.ReadOnly
	d := &Device{backend: b, info: info, cfg: cfg}
	d.imm, _ = b.(Immediate)
	d.features = FeatureSegMax | FeatureBlockSize | FeatureFlush | FeatureTopology | FeatureConfigWCE
	if cfg.Queues > 1 {
		d.features |= FeatureMQ
	}
	if cfg.ReadOnly {
		d.features |= FeatureReadOnly
	} else {
		d.features |= FeatureWriteZeroes
		if info.DiscardUnit > 0 {
			d.features |= FeatureDiscard
		}
	}
	d.capacity.Store(d.sectors())
	d.writeback.Store(!cfg.WriteThrough)
	d.stop.Store(true)
	d.pool.max = cfg.Workers
	d.pool.run = d.execute
	d.hold.d = d
	return d, nil
}

// sectors is the backend's size in whole sectors. A part of one at the end is
// out of a guest's reach.
func (d *Device) sectors() uint64 { return uint64(d.backend.Size()) / sectorSize }

// Type is virtio.TypeBlock.
func (d *Device) Type() virtio.Type { return virtio.TypeBlock }

// Features are the feature bits offered.
func (d *Device) Features() uint64 { return d.features }

// QueueSizes holds the maximum size of each queue.
func (d *Device) QueueSizes() []uint16 {
	s := make([]uint16, d.cfg.Queues)
	for i := range s {
		s[i] = uint16(d.cfg.QueueSize)
	}
	return s
}

// Backend returns the disk behind the device.
func (d *Device) Backend() Backend { return d.backend }

// Attach gives the device its place in a machine.
func (d *Device) Attach(h *virtio.Host) error {
	if d.host != nil {
		return fmt.Errorf("disk %s: device is part of a machine already", d.info.Name)
	}
	port, err := h.Inbox.Open(h.Name, d)
	if err != nil {
		return fmt.Errorf("disk %s: %w", d.info.Name, err)
	}
	d.host, d.port = h, port
	return nil
}

// Activate starts serving queues.
func (d *Device) Activate(features uint64, queues []*virtio.Queue) error {
	if len(queues) != d.cfg.Queues {
		return fmt.Errorf("disk %s: %d queues, want %d", d.info.Name, len(queues), d.cfg.Queues)
	}
	if d.active.Load() != nil {
		return fmt.Errorf("disk %s: activated twice", d.info.Name)
	}
	// virtio 1.2, section 5.2.6.2: without FLUSH the driver cannot make
	// anything durable, so the device must.
	if features&FeatureFlush == 0 {
		d.writeback.Store(false)
	}
	d.epoch++
	s := &session{epoch: d.epoch, features: features, queues: make([]*queue, len(queues))}
	s.prompt = d.port.Prompt()
	s.direct = s.prompt || d.port.Direct() // the guest waits, so it sees nothing early
	for i, q := range queues {
		if q != nil {
			s.queues[i] = newQueue(d, s, i, q)
		}
	}
	d.active.Store(s)
	d.stop.Store(d.paused.Load())
	d.hold.setOpen(!d.paused.Load())
	return nil
}

// Notify serves queue q.
func (d *Device) Notify(q int) {
	if s := d.active.Load(); s != nil && q >= 0 && q < len(s.queues) && s.queues[q] != nil {
		s.queues[q].drain()
	}
}

// Pause ends all requests in flight and flushes. Requests that the guest
// offers meanwhile stay in its queues; those held stay so and are saved with
// the device. Where the machine records, Pause waits until the inbox has
// delivered every completion.
func (d *Device) Pause() {
	d.paused.Store(true)
	d.stop.Store(true)
	d.hold.setOpen(false)
	s := d.active.Load()
	if s == nil {
		return
	}
	for _, q := range s.queues {
		if q != nil {
			q.quiesce()
		}
	}
	if d.cfg.ReadOnly {
		return
	}
	if err := d.backend.Flush(); err != nil {
		d.host.Log.Error("flush before a pause failed", "disk", d.info.Name, "err", err)
	}
}

// Resume lets requests start again. Those held are tried once more.
func (d *Device) Resume() {
	d.paused.Store(false)
	d.stop.Store(d.active.Load() == nil)
	d.hold.setOpen(d.active.Load() != nil)
	d.hold.resume()
}

// Reset ends all requests in flight, drops those held, and forgets the queues.
func (d *Device) Reset() {
	d.stop.Store(true)
	d.hold.setOpen(false)
	if s := d.active.Load(); s != nil {
		for _, q := range s.queues {
			if q != nil {
				q.abandon()
			}
		}
		d.pool.shut()
		d.active.Store(nil)
	}
	d.hold.drop()
	d.writeback.Store(!d.cfg.WriteThrough)
}

// Close ends the device's goroutines. It does not close the backend.
func (d *Device) Close() error {
	d.Reset()
	return nil
}

// Resize changes the size of the disk to size bytes, if the backend is a
// [Resizer] or has that size already, and tells the guest. A guest must have
// stopped using what a smaller disk loses; its requests there fail.
func (d *Device) Resize(size int64) error {
	d.resizeMu.Lock()
	defer d.resizeMu.Unlock()
	if size < 0 {
		return &Error{"resize", d.info.Name, 0, size, ErrRange}
	}
	if size != d.backend.Size() {
		r, ok := d.backend.(Resizer)
		if !ok {
			return &Error{"resize", d.info.Name, 0, size, errors.ErrUnsupported}
		}
		if err := r.Resize(size); err != nil {
			return err
		}
	}
	n := uint64(size) / sectorSize
	if d.port == nil {
		d.capacity.Store(n)
		return nil
	}
	d.postCapacity(n)
	return nil
}

// limiter lets one log line a second through.
type limiter struct {
	mu      sync.Mutex
	last    int64 // seconds
	dropped int
}

// allow reports whether to log now, and how many lines were left out before.
func (l *limiter) allow(now int64) (dropped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now == l.last {
		l.dropped++
		return 0, false
	}
	dropped, l.last, l.dropped = l.dropped, now, 0
	return dropped, true
}
