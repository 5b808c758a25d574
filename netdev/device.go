package netdev

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// Feature bits of the network device (virtio 1.2, section 5.1.3).
const (
	featCsum          uint64 = 1 << 0
	featGuestCsum     uint64 = 1 << 1
	featGuestOffloads uint64 = 1 << 2
	featMTU           uint64 = 1 << 3
	featMAC           uint64 = 1 << 5
	featGuestTSO4     uint64 = 1 << 7
	featGuestTSO6     uint64 = 1 << 8
	featGuestECN      uint64 = 1 << 9
	featHostTSO4      uint64 = 1 << 11
	featHostTSO6      uint64 = 1 << 12
	featHostECN       uint64 = 1 << 13
	featMrgRxBuf      uint64 = 1 << 15
	featStatus        uint64 = 1 << 16
	featCtrlVQ        uint64 = 1 << 17
	featCtrlRx        uint64 = 1 << 18
	featCtrlRxExtra   uint64 = 1 << 20
	featAnnounce      uint64 = 1 << 21
	featMQ            uint64 = 1 << 22
	featCtrlMAC       uint64 = 1 << 23
	featGuestUSO4     uint64 = 1 << 54
	featGuestUSO6     uint64 = 1 << 55
	featHostUSO       uint64 = 1 << 56
)

// guestOffloadBits are the features that the guest may switch at run time
// (virtio 1.2, section 5.1.6.5.6.1).
const guestOffloadBits = featGuestCsum | featGuestTSO4 | featGuestTSO6 | featGuestECN | featGuestUSO4 | featGuestUSO6

const (
	ctrlQueueSize    = 64
	maxQueueSize     = 512 // a chain must fit MaxPieces
	defaultQueueSize = 256
	maxPairs         = 256
	minMTU, maxMTU   = 68, 65535
)

// Config describes a network device. Its zero value is a device with as many
// queue pairs and the MTU of its endpoint, a random address and every offload.
type Config struct {
	// MAC is the device's unicast address, 6 bytes. Without one, a random,
	// locally administered one is drawn when the machine is built, through
	// its inbox, and saved with its state.
	MAC net.HardwareAddr
	// Queues is the number of queue pairs, at most the endpoint's. 0 means
	// all of those.
	Queues int
	// QueueSize is the maximum size of the receive and transmit queues, a
	// power of two, 16 to 512. 0 means 256.
	QueueSize int
	// MTU is what the guest is told, in bytes, 68 to 65535. 0 means the
	// endpoint's; a guest is told nothing if that is 0 too.
	MTU int
	// NoOffload lists tasks that are not to be left undone in either
	// direction.
	NoOffload Offload
}

// Device is a virtio network device (virtio 1.2, section 5.1) over an
// [Endpoint]. It implements [virtio.Device].
//
// Frames to the guest wait in the endpoint until the guest has room for them.
// Frames from the guest are sent while it notifies; where the endpoint has no
// room they wait in the guest, except that a machine that is recording drops
// them, since how long they wait would be an input from outside.
type Device struct {
	ep     Endpoint
	cfg    Config
	offers uint64 // feature bits
	host   *virtio.Host
	port   device.Port
	pairs  []*pair

	mu       sync.Mutex // guards what follows, and starting and stopping
	active   bool
	paused   bool
	loaded   bool // Load came, Activate did not yet
	closed   bool
	features uint64
	ctrl     *virtio.Queue
	chain    virtio.Chain
	current  int    // queue pairs in use
	offloads uint64 // guestOffloadBits in force

	ctrlAt   atomic.Int32  // index of the control queue
	accept   atomic.Uint32 // Offload of frames to the guest
	filter   atomic.Pointer[filter]
	link     atomic.Bool // frames pass
	direct   atomic.Bool // as the port said when receiving started
	failed   atomic.Bool // the endpoint gave up
	announce atomic.Bool // to do when receiving starts

	confMu sync.Mutex // guards the configuration space
	mac    [6]byte
	status uint16
	// unplugged says why there is no link.
	unplugged byte
	ackable   bool // the guest negotiated announcements
	changing  bool // the guest negotiated status
}

// Bits of Device.unplugged.
const (
	unpluggedEndpoint = 1 << iota // the endpoint's link is down
	unpluggedHere                 // by SetLink
)

// Status bits of the configuration space.
const (
	statusLinkUp   = 1
	statusAnnounce = 2
)

// Events of the device's port: the kind, and the queue pair in the lower bits.
const (
	tagFrame    = 1 << 16 // data: header and frame
	tagBatch    = 2 << 16 // frames that are in guest memory already
	tagLink     = 3 << 16 // data: which of the unplugged bits changes, its value
	tagAnnounce = 4 << 16

	tagPair = 1<<16 - 1
)

// NewDevice returns a network device over ep. It does not own ep: whoever opened it
// closes it after the machine, or gives it to another device then.
func NewDevice(ep Endpoint, cfg Config) (*Device, error) {
	if ep == nil {
		return nil, errors.New("net: no endpoint")
	}
	caps := ep.Caps()
	if cfg.Queues == 0 {
		cfg.Queues = min(caps.Queues, maxPairs)
	}
	if cfg.QueueSize == 0 {
		cfg.QueueSize = defaultQueueSize
	}
	if cfg.MTU == 0 {
		cfg.MTU = caps.MTU
	}
	switch {
	case len(cfg.MAC) != 0 && !goodMAC(cfg.MAC):
		return nil, fmt.Errorf("net: MAC address %v is not a unicast address of 6 bytes", cfg.MAC)
	case cfg.Queues < 1 || cfg.Queues > min(caps.Queues, maxPairs):
		return nil, fmt.Errorf("net: %d queue pairs, want 1 to the endpoint's %d", cfg.Queues, caps.Queues)
	case cfg.QueueSize < 16 || cfg.QueueSize > maxQueueSize || cfg.QueueSize&(cfg.QueueSize-1) != 0:
		return nil, fmt.Errorf("net: queue size %d is not a power of two from 16 to %d", cfg.QueueSize, maxQueueSize)
	case cfg.MTU != 0 && (cfg.MTU < minMTU || cfg.MTU > maxMTU):
		return nil, fmt.Errorf("net: MTU %d, want %d to %d", cfg.MTU, minMTU, maxMTU)
	}
	d := &Device{ep: ep, cfg: cfg, status: statusLinkUp}
	copy(d.mac[:], cfg.MAC)
	d.link.Store(true)
	d.ctrlAt.Store(-1)
	d.offers = d.offered(caps)
	for i := range cfg.Queues {
		p, err := newPair(d, i)
		if err != nil {
			for _, p := range d.pairs {
				p.close()
			}
			return nil, fmt.Errorf("net: %w", err)
		}
		d.pairs = append(d.pairs, p)
	}
	d.forget()
	return d, nil
}

func goodMAC(a []byte) bool {
	return len(a) == 6 && a[0]&1 == 0 && [6]byte(a) != [6]byte{}
}

// offered computes the feature bits. HOST_UFO and GUEST_UFO are not among
// them: kernels no longer make such frames, and USO has taken their place.
func (d *Device) offered(caps Caps) uint64 {
	f := featMAC | featMrgRxBuf | featStatus | featCtrlVQ | featCtrlRx | featCtrlRxExtra |
		featCtrlMAC | featAnnounce | featGuestOffloads
	if d.cfg.Queues > 1 {
		f |= featMQ
	}
	if d.cfg.MTU != 0 {
		f |= featMTU
	}
	host := (caps.Offload &^ d.cfg.NoOffload).sound()
	guest := (OffloadAll &^ d.cfg.NoOffload).sound()
	for _, b := range []struct {
		o           Offload
		host, guest uint64
	}{
		{OffloadChecksum, featCsum, featGuestCsum},
		{OffloadTSO4, featHostTSO4, featGuestTSO4},
		{OffloadTSO6, featHostTSO6, featGuestTSO6},
		{OffloadECN, featHostECN, featGuestECN},
		{OffloadUSO, featHostUSO, featGuestUSO4 | featGuestUSO6},
	} {
		if host&b.o != 0 {
			f |= b.host
		}
		if guest&b.o != 0 {
			f |= b.guest
		}
	}
	return f
}

// Type implements [virtio.Device].
func (d *Device) Type() virtio.Type { return virtio.TypeNet }

// Features implements [virtio.Device].
func (d *Device) Features() uint64 { return d.offers }

// QueueSizes implements [virtio.Device]: receive and transmit queues in turn,
// then the control queue.
func (d *Device) QueueSizes() []uint16 {
	var s []uint16
	for range d.pairs {
		s = append(s, uint16(d.cfg.QueueSize), uint16(d.cfg.QueueSize))
	}
	return append(s, ctrlQueueSize)
}

// MAC is the address that the guest uses now. Before Attach it is zero if
// Config has none.
func (d *Device) MAC() net.HardwareAddr {
	d.confMu.Lock()
	defer d.confMu.Unlock()
	return append(net.HardwareAddr(nil), d.mac[:]...)
}

// Attach implements [virtio.Device].
func (d *Device) Attach(h *virtio.Host) error {
	port, err := h.Inbox.Open(h.Name, d)
	if err != nil {
		return fmt.Errorf("net %s: %w", h.Name, err)
	}
	d.host, d.port = h, port
	if len(d.cfg.MAC) == 0 {
		a := make([]byte, 6)
		err := port.Sample(a, func(p []byte) error { _, err := rand.Read(p); return err })
		if err != nil {
			return fmt.Errorf("net %s: draw a MAC address: %w", h.Name, err)
		}
		a[0] = a[0]&^1 | 2
		d.cfg.MAC = a
	}
	d.forget()
	if !d.ep.WatchLink(d.cable) {
		d.cable(false)
	}
	return nil
}

func (d *Device) log() *slog.Logger {
	if d.host == nil || d.host.Log == nil {
		return slog.Default()
	}
	return d.host.Log
}

// forget drops all that the driver has set.
func (d *Device) forget() {
	d.current = 1
	d.offloads = 0
	d.features = 0
	d.accept.Store(0)
	d.announce.Store(false)
	d.loaded = false
	for _, p := range d.pairs {
		p.rx.forget()
	}
	d.confMu.Lock()
	defer d.confMu.Unlock()
	copy(d.mac[:], d.cfg.MAC)
	d.filter.Store(&filter{own: d.mac, promisc: true})
	d.status &^= statusAnnounce
	d.ackable, d.changing = false, false
}

// ReadConfig implements [virtio.Device] (virtio 1.2, section 5.1.4).
func (d *Device) ReadConfig(off uint32, p []byte) {
	var c [12]byte
	d.confMu.Lock()
	copy(c[:], d.mac[:])
	c[6], c[7] = byte(d.status), byte(d.status>>8)
	d.confMu.Unlock()
	c[8], c[9] = byte(d.cfg.Queues), byte(d.cfg.Queues>>8)
	c[10], c[11] = byte(d.cfg.MTU), byte(d.cfg.MTU>>8)
	clear(p)
	if off < uint32(len(c)) {
		copy(p, c[off:])
	}
}

// WriteConfig implements [virtio.Device]. Nothing can be written: addresses
// are set through the control queue.
func (d *Device) WriteConfig(uint32, []byte) {}

// Activate implements [virtio.Device].
func (d *Device) Activate(features uint64, queues []*virtio.Queue) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.active || d.host == nil {
		return errors.New("net: activated out of turn")
	}
	if len(queues) != 2*len(d.pairs)+1 {
		return fmt.Errorf("net %s: %d queues, want %d", d.host.Name, len(queues), 2*len(d.pairs)+1)
	}
	d.features = features
	// The control queue comes after as many pairs as there would be (5.1.2).
	ctrlAt := 2
	if features&featMQ != 0 {
		ctrlAt = 2 * len(d.pairs)
	}
	d.ctrlAt.Store(int32(ctrlAt))
	d.ctrl = nil
	if features&featCtrlVQ != 0 {
		d.ctrl = queues[ctrlAt]
	}
	if !d.loaded {
		d.offloads = features & guestOffloadBits
	}
	d.offloads &= features
	if features&featMQ == 0 {
		d.current = 1
	}
	d.loaded = false
	for i, p := range d.pairs {
		rx, tx := queues[2*i], queues[2*i+1]
		if features&featMQ == 0 && i > 0 {
			rx, tx = nil, nil
		}
		p.activate(features, rx, tx)
	}
	d.confMu.Lock()
	d.ackable = features&featAnnounce != 0 && d.ctrl != nil
	d.changing = features&featStatus != 0
	d.confMu.Unlock()
	if err := d.configure(); err != nil {
		return fmt.Errorf("net %s: %w", d.host.Name, err)
	}
	d.active = true
	if !d.paused {
		d.start(0, d.current)
	}
	return nil
}

// configure tells the endpoint what is in use now.
func (d *Device) configure() error {
	var o Offload
	for _, b := range []struct {
		bits uint64
		o    Offload
	}{
		{featGuestCsum, OffloadChecksum},
		{featGuestTSO4, OffloadTSO4},
		{featGuestTSO6, OffloadTSO6},
		{featGuestECN, OffloadECN},
		{featGuestUSO4 | featGuestUSO6, OffloadUSO},
	} {
		if d.offloads&b.bits == b.bits {
			o |= b.o
		}
	}
	if d.features&featMrgRxBuf == 0 && d.cfg.QueueSize < 32 {
		o &= OffloadChecksum // a frame of 64 KiB takes a chain of 18 pages
	}
	o = o.sound()
	d.accept.Store(uint32(o))
	return d.ep.Configure(Settings{Queues: d.current, Offload: o})
}

// start runs the queue pairs from to to-1.
func (d *Device) start(from, to int) {
	d.direct.Store(d.port.Direct())
	if from == 0 && d.port.Prompt() {
		d.announceLoaded() // when the receiver gets to it would depend on the host
	}
	for _, p := range d.pairs[from:to] {
		p.start()
	}
}

// stop returns when nothing of the queue pairs from to to-1 runs any more.
func (d *Device) stop(from, to int) {
	for _, p := range d.pairs[from:to] {
		p.interrupt()
	}
	for _, p := range d.pairs[from:to] {
		p.wait()
	}
}

// Notify implements [virtio.Device].
func (d *Device) Notify(q int) {
	switch {
	case q == int(d.ctrlAt.Load()):
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.active && !d.paused {
			d.control()
		}
	case q < 0 || q/2 >= len(d.pairs):
	case q%2 == 0:
		d.pairs[q/2].rx.notify()
	default:
		d.pairs[q/2].tx.notify()
	}
}

// EventFD implements [virtio.Waiter].
func (d *Device) EventFD(q int) int {
	if q == int(d.ctrlAt.Load()) || q/2 >= len(d.pairs) || d.pairs[q/2].rx.bell == nil {
		return -1
	}
	return d.pairs[q/2].rx.bell.fd
}

// Pause implements [virtio.Device].
func (d *Device) Pause() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused = true
	if d.active {
		d.stop(0, len(d.pairs))
	}
}

// Resume implements [virtio.Device].
func (d *Device) Resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.paused {
		return
	}
	d.paused = false
	if d.active {
		d.start(0, d.current)
	}
}

// Reset implements [virtio.Device].
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reset()
}

func (d *Device) reset() {
	if d.active {
		d.stop(0, len(d.pairs))
	}
	for _, p := range d.pairs {
		p.deactivate()
	}
	d.active = false
	d.ctrl = nil
	d.forget()
	if !d.closed {
		if err := d.ep.Configure(Settings{Queues: 1}); err != nil && d.host != nil {
			d.log().Warn("net: endpoint refuses its defaults", "device", d.host.Name, "err", err)
		}
	}
}

// Close implements [virtio.Device]. It does not close the endpoint.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.ep.WatchLink(nil)
	d.reset()
	d.closed = true
	for _, p := range d.pairs {
		p.close()
	}
	return nil
}

// Deliver implements [device.Receiver].
func (d *Device) Deliver(tag uint64, data []byte) {
	i := int(tag & tagPair)
	if i >= len(d.pairs) {
		return
	}
	switch tag &^ tagPair {
	case tagFrame:
		d.pairs[i].rx.deliver(data)
	case tagBatch:
		d.pairs[i].rx.complete()
	case tagLink:
		if len(data) == 2 {
			d.setStatus(func() {
				d.unplugged = d.unplugged&^data[0] | data[1]&data[0]
				d.status |= statusLinkUp
				if d.unplugged != 0 {
					d.status &^= statusLinkUp
				}
			})
		}
	case tagAnnounce:
		d.setStatus(func() {
			if d.ackable {
				d.status |= statusAnnounce
			}
		})
	}
}

// setStatus changes the status and tells the guest.
func (d *Device) setStatus(change func()) {
	d.confMu.Lock()
	was := d.status
	change()
	d.link.Store(d.status&statusLinkUp != 0)
	tell := d.status != was && d.changing
	d.confMu.Unlock()
	if tell && d.host.ConfigChanged != nil {
		d.host.ConfigChanged()
	}
}

// SetLink plugs the cable in or pulls it, for the guest to see. It is in at
// first. It may be called from any goroutine once the device is attached.
func (d *Device) SetLink(up bool) { d.postLink(unpluggedHere, up) }

// cable takes the state of the endpoint.
func (d *Device) cable(up bool) { d.postLink(unpluggedEndpoint, up) }

func (d *Device) postLink(which byte, up bool) {
	b := []byte{which, which}
	if up {
		b[1] = 0
	}
	d.port.Post(tagLink, b)
}

// endpointFailed takes the link down for good.
func (d *Device) endpointFailed(err error) {
	if d.failed.Swap(true) {
		return
	}
	d.log().Error("net: endpoint failed", "device", d.host.Name, "err", err)
	d.postLink(unpluggedEndpoint, false)
}

// Announce tells the network where the device's address is now: switches by a
// frame from it, neighbours by way of the guest if that is able. It is done by
// itself when a loaded device starts, and is harmless at any time once the
// device is attached.
func (d *Device) Announce() {
	d.confMu.Lock()
	f := rarp(d.mac)
	d.confMu.Unlock()
	d.pairs[0].tx.send(f)
	d.port.Post(tagAnnounce, nil)
}

// announceLoaded announces a device that was loaded.
func (d *Device) announceLoaded() {
	if d.announce.Swap(false) {
		d.Announce()
	}
}

// rarp is a reverse ARP request for mac (RFC 903), which any switch learns
// from and no host answers.
func rarp(mac [6]byte) []byte {
	f := make([]byte, 60)
	for i := range 6 {
		f[i] = 0xff
	}
	copy(f[6:], mac[:])
	copy(f[12:], []byte{0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3})
	copy(f[22:], mac[:])
	copy(f[32:], mac[:])
	return f
}
