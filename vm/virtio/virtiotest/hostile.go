package virtiotest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/vm/virtio"
)

// HostileSteps is the number of steps for Hostile: that of the environment
// variable VMKIT_HOSTILE_STEPS, or else 300,000; a tenth of it with -short or
// the race detector.
func HostileSteps() int {
	n := 300_000
	if s := os.Getenv("VMKIT_HOSTILE_STEPS"); s != "" {
		if v, err := strconv.Atoi(s); err == nil && v > 0 {
			n = v
		}
	}
	if testing.Short() || raceEnabled {
		n = max(1, n/10)
	}
	return n
}

// HostileConfig describes a run of Hostile.
type HostileConfig struct {
	// New makes the device, for each transport anew.
	New func() (virtio.Device, error)
	// Steps in all; 0 means HostileSteps. They are shared out between both
	// transports, with and without doorbells, and a prompt machine.
	Steps int
	// Seed of the random numbers; 0 picks one, which is logged.
	Seed uint64
	// Request, if not nil, writes a request that makes sense for the
	// device to queue q into guest memory, at Machine.Scratch or after, and
	// returns its buffers. Half of the chains are made from these, often
	// with something in them spoiled afterwards.
	Request func(r *rand.Rand, m *Machine, q int) []Buf
	// Outside, if not nil, is called now and then to make something happen
	// on the host's side, such as input.
	Outside func(r *rand.Rand)
	// StepTimeout is how long a step may take; 0: a minute.
	StepTimeout time.Duration
}

// Scratch is where guest memory for requests begins in Hostile; ScratchSize
// bytes of it are there.
const (
	Scratch     = 8 << 20
	ScratchSize = 4 << 20

	hostileMemory = 16 << 20
)

// Hostile plays a driver that does its worst: random descriptors, indices,
// status, register, configuration and PCI writes, mixed with enough sense that
// the device gets to work. The device must not panic, hang, touch memory outside
// the guest's (which is fenced in), keep chains in flight over a pause, or
// refuse to load what it has saved; and it must still work at the end, and
// leave no goroutine.
func Hostile(t *testing.T, cfg HostileConfig) {
	if cfg.Steps == 0 {
		cfg.Steps = HostileSteps()
	}
	if cfg.StepTimeout == 0 {
		cfg.StepTimeout = time.Minute
	}
	if cfg.Seed == 0 {
		cfg.Seed = rand.Uint64()
	}
	for i, mc := range []Config{{}, {PCI: true}, {Doorbells: true}, {PCI: true, Doorbells: true}, {PCI: true, Prompt: true}} {
		name := "mmio"
		if mc.PCI {
			name = "pci"
		}
		if mc.Doorbells {
			name += " doorbells"
		}
		if mc.Prompt {
			name += " prompt"
		}
		t.Run(name, func(t *testing.T) {
			t.Logf("%d steps with seed %d", cfg.Steps/5, cfg.Seed)
			mc.Memory = hostileMemory
			mc.QueueSize = 16
			h := &hostile{t: t, cfg: cfg, mc: mc, r: rand.New(rand.NewPCG(cfg.Seed, uint64(i)))}
			h.run(cfg.Steps / 5)
		})
	}
}

type hostile struct {
	t     *testing.T
	cfg   HostileConfig
	mc    Config
	r     *rand.Rand
	m     *Machine
	bufs  []Buf
	steps atomic.Int64
	last  atomic.Pointer[string] // what the step does
	used  int                    // chains that came back
}

func (h *hostile) run(steps int) {
	goroutines := runtime.NumGoroutine()
	mem, unguard, err := guardedMemory(hostileMemory)
	if err != nil {
		h.t.Fatal(err)
	}
	defer unguard()
	defer mem.Close()
	dev, err := h.cfg.New()
	if err != nil {
		h.t.Fatal(err)
	}
	h.m = &Machine{Mem: mem, cfg: h.mc, next: allocBase, borrowed: true}
	if err := h.m.attach(dev); err != nil {
		h.t.Fatal(err)
	}
	stop := h.watch()
	h.start()
	for range steps {
		h.step()
		h.steps.Add(1)
	}
	// It still works, as far as anybody can tell without knowing what it is.
	h.start()
	if s := h.m.Status(); s != 15 {
		h.t.Errorf("status %#x after a proper start", s)
	}
	h.doing("close")
	if err := h.m.Transport.Close(); err != nil {
		h.t.Error(err)
	}
	stop()
	if n := h.m.bells.len(); n != 0 {
		h.t.Errorf("%d doorbells left open", n)
	}
	for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			h.t.Fatalf("%d goroutines left of %d before:\n%s", runtime.NumGoroutine(), goroutines, buf[:runtime.Stack(buf, true)])
		}
	}
	h.t.Logf("%d chains used", h.used)
}

// watch ends the process, with all stacks, when a step takes too long.
func (h *hostile) watch() (stop func()) {
	end := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for last := int64(-1); ; {
			select {
			case <-end:
				return
			case <-time.After(h.cfg.StepTimeout):
			}
			n := h.steps.Load()
			if n == last {
				buf := make([]byte, 1<<20)
				panic(fmt.Sprintf("virtiotest: hang in step %d (%s), seed %d\n%s", n, *h.last.Load(), h.cfg.Seed, buf[:runtime.Stack(buf, true)]))
			}
			last = n
		}
	}()
	return func() { close(end); <-done }
}

func (h *hostile) doing(what string) { h.last.Store(&what) }

func (h *hostile) start() {
	h.doing("start")
	if err := h.m.Start(); err != nil {
		h.t.Fatalf("step %d, seed %d: %v", h.steps.Load(), h.cfg.Seed, err)
	}
}

func (h *hostile) chance(n int) bool { return h.r.IntN(n) == 0 }

func (h *hostile) step() {
	if len(h.m.Rings) == 0 || h.m.Status()&virtio.StatusNeedsReset != 0 && h.chance(8) || h.chance(5000) {
		h.start()
	}
	q := h.r.IntN(len(h.m.Rings))
	switch n := h.r.IntN(1000); {
	case n < 450:
		h.chain(q)
	case n < 620:
		h.doing("notify")
		h.m.Notify(q)
		if h.mc.Doorbells && h.chance(2) {
			runtime.Gosched() // let the device have a go
		}
	case n < 760:
		h.collect(q)
	case n < 790:
		h.spoil(q)
	case n < 800:
		h.doing("indices")
		switch h.r.IntN(6) {
		case 0:
			h.m.Rings[q].SetAvailIdx(uint16(h.r.Uint32()))
		case 1:
			h.m.Rings[q].Offer(uint16(h.r.Uint32()))
		default:
			h.m.Rings[q].Offer(uint16(h.r.IntN(int(h.m.Rings[q].Size))))
		}
	case n < 830:
		h.doing("register read")
		h.m.Read(h.register(), h.width())
	case n < 840:
		if h.chance(4) {
			h.doing("register write")
			h.m.Write(h.register(), h.width(), h.value())
		}
	case n < 900:
		h.doing("device configuration")
		off := h.m.regs.config() + uint64(h.r.IntN(80))
		if h.chance(2) {
			h.m.Write(off, h.width(), h.value())
		} else {
			h.m.Read(off, h.width())
		}
	case n < 920:
		h.function()
	case n < 940:
		if h.cfg.Outside != nil {
			h.doing("outside")
			h.cfg.Outside(h.r)
		}
	case n < 942:
		if h.chance(4) {
			h.pause()
		}
	case n < 943:
		if h.chance(20) {
			h.doing("reset by the machine")
			h.m.Transport.Reset()
			h.m.Rings = nil
		}
	case n < 945:
		if h.chance(10) {
			h.doing("status")
			h.m.SetStatus(byte(h.r.Uint32()))
		}
	default:
		h.doing("acknowledge")
		if !h.mc.PCI {
			h.m.Write(MMIOBase+0x64, 4, 3)
		}
	}
}

// chain offers one, sensible or not.
func (h *hostile) chain(q int) {
	h.doing("chain")
	ring := h.m.Rings[q]
	if ring.Free() < 4 {
		h.collect(q)
	}
	h.bufs = h.bufs[:0]
	if h.cfg.Request != nil && h.chance(2) {
		h.bufs = append(h.bufs, h.cfg.Request(h.r, h.m, q)...)
	} else {
		write := false
		for range 1 + h.r.IntN(4) {
			write = write || h.chance(2)
			h.bufs = append(h.bufs, Buf{Addr: Scratch + uint64(h.r.IntN(ScratchSize-70000)), Len: h.length(), Write: write})
		}
	}
	if h.chance(10) {
		b := &h.bufs[h.r.IntN(len(h.bufs))]
		switch h.r.IntN(4) {
		case 0:
			b.Addr = h.address()
		case 1:
			b.Len = h.r.Uint32()
		case 2:
			b.Write = !b.Write
		case 3:
			b.Len = uint32(h.r.IntN(64))
		}
	}
	ring.Indirect = h.chance(2)
	if _, err := ring.Add(h.bufs...); err != nil {
		return
	}
	if h.chance(2) {
		h.m.Kick(q)
	}
}

func (h *hostile) length() uint32 {
	if h.chance(4) {
		return uint32(h.r.IntN(65536))
	}
	return uint32(h.r.IntN(600))
}

// address is one near a border of something.
func (h *hostile) address() uint64 {
	return [...]uint64{0, hostileMemory - 8, hostileMemory, Scratch, 3 << 30, 4 << 30, MMIOBase, BARBase, 1<<52 - 4, ^uint64(0) - 7, h.r.Uint64()}[h.r.IntN(11)] +
		uint64(h.r.IntN(16)) - 8
}

// collect takes what came back.
func (h *hostile) collect(q int) {
	h.doing("collect")
	for range 32 {
		if _, _, ok := h.m.Rings[q].Used1(); !ok {
			return
		}
		h.used++
	}
}

// spoil scribbles over a queue's areas while the device may be using them.
func (h *hostile) spoil(q int) {
	h.doing("spoil")
	r := h.m.Rings[q]
	switch h.r.IntN(4) {
	case 0: // a descriptor
		d := Desc{Addr: Scratch + uint64(h.r.IntN(ScratchSize/2)), Len: h.length(), Flags: uint16(h.r.IntN(8)), Next: uint16(h.r.IntN(int(r.Size) + 1))}
		if h.chance(4) {
			d.Addr = h.address()
		}
		if h.chance(8) {
			d.Flags = uint16(h.r.Uint32())
		}
		r.PutDescs(r.Desc+16*uint64(h.r.IntN(int(r.Size))), d)
	case 1: // one of an indirect table
		d := Desc{Addr: Scratch + uint64(h.r.IntN(ScratchSize/2)), Len: h.length(), Flags: uint16(h.r.IntN(8)), Next: uint16(h.r.IntN(MaxIndirect + 1))}
		r.PutDescs(r.Tables+16*uint64(h.r.IntN(int(r.Size)*MaxIndirect)), d)
	case 2: // a word anywhere in the rings
		h.m.Mem.PutUint16(r.Desc+2*uint64(h.r.IntN(int(r.Tables-r.Desc)/2)), uint16(h.r.Uint32()))
	case 3: // request headers in flight
		h.m.Mem.PutUint64(Scratch+8*uint64(h.r.IntN(512)), h.r.Uint64())
	}
}

// register is the address of a register of the transport.
func (h *hostile) register() uint64 {
	if h.mc.PCI {
		base := h.m.regs.(*pciRegs).common
		if h.chance(2) {
			return base + uint64(h.r.IntN(64))
		}
		return base + uint64(h.r.IntN(virtio.PCIBARSize))
	}
	if h.chance(4) {
		return MMIOBase + uint64(h.r.IntN(virtio.MMIOSize))
	}
	return MMIOBase + uint64(h.r.IntN(0x40))*4
}

func (h *hostile) width() int { return 1 << h.r.IntN(4) }

func (h *hostile) value() uint64 {
	if h.chance(2) {
		return uint64(h.r.IntN(20))
	}
	return h.r.Uint64() >> h.r.IntN(64)
}

// function accesses PCI configuration space.
func (h *hostile) function() {
	if !h.mc.PCI {
		return
	}
	h.doing("PCI configuration")
	regs := h.m.regs.(*pciRegs)
	var p [8]byte
	n := h.width()
	reg := h.r.IntN(256)
	if h.chance(3) {
		reg = regs.window + 4*h.r.IntN(5)
	}
	if !h.chance(4) {
		regs.cfg.Read(reg, p[:n])
		return
	}
	for i := range p {
		p[i] = byte(h.value())
	}
	regs.cfg.Write(reg, p[:n])
	if reg < 0x28 { // nothing works until the BAR is back
		regs.cfg.Write(0x10, []byte{0, 0, 0, BARBase >> 24, 0, 0, 0, 0})
		regs.cfg.Write(4, []byte{6, 0})
	}
}

// pause pauses, saves, loads and resumes.
func (h *hostile) pause() {
	h.doing("pause")
	t := h.m.Transport
	t.Pause()
	h.doing("save")
	st, err := t.Save()
	if err != nil {
		h.t.Fatalf("step %d, seed %d: save: %v", h.steps.Load(), h.cfg.Seed, err)
	}
	if h.chance(2) {
		h.doing("load")
		if err := t.Load(st); err != nil {
			h.t.Fatalf("step %d, seed %d: load: %v", h.steps.Load(), h.cfg.Seed, err)
		}
	}
	h.doing("resume")
	t.Resume()
}
