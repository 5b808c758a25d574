// Package pci is a PCI bus of emulated functions: configuration spaces with
// BARs, capabilities and MSI-X, reached through configuration mechanism #1 and
// through an ECAM window (PCI Local Bus Specification 3.0; PCI Express Base
// Specification, section 7.2.2).
//
//	bus := pci.NewBus(pci.Window{Base: 0xc000_0000, Size: 0x1000_0000})
//	err := bus.Add(0, pci.NewHostBridge())
//	err = bus.Add(1, fn)
//	err = ports.Map(0xcf8, 8, bus.Ports())
//	err = mmio.Map(0xe000_0000, pci.ECAMSize, bus.ECAM())
package pci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// Registers of a type 0 header (PCI 3.0, section 6.1).
const (
	regCommand      = 0x04
	regStatus       = 0x06
	regRevision     = 0x08
	regClass        = 0x09
	regCacheLine    = 0x0c
	regBAR0         = 0x10
	regSubsystem    = 0x2c
	regCapabilities = 0x34
	regIntLine      = 0x3c
	regIntPin       = 0x3d

	firstCapability = 0x40
	configSize      = 256

	statusCapabilities = 1 << 4
)

// Command register bits (PCI 3.0, section 6.2.2).
const (
	CommandMemory      = 1 << 1
	CommandMaster      = 1 << 2
	CommandINTxDisable = 1 << 10
)

// Identifiers of capabilities (PCI 3.0, appendix H).
const (
	CapVendor = 0x09
	CapMSIX   = 0x11
)

// Errors of this package.
var (
	// ErrConfig is wrapped by errors for a function or bus put together wrongly.
	ErrConfig = errors.New("pci")
	// ErrState is wrapped by errors for saved state that does not fit.
	ErrState = errors.New("pci: saved state")
)

// Header is the identity of a function.
type Header struct {
	Vendor, Device                   uint16
	SubsystemVendor, SubsystemDevice uint16
	Class                            uint32 // base class, subclass and interface: 24 bits
	Revision                         uint8
	InterruptPin                     uint8 // 0: none, 1: INTA#
	InterruptLine                    uint8 // what firmware would have stored
}

// BAR is a memory range of a function (PCI 3.0, section 6.2.5.1).
type BAR struct {
	// Size in bytes, a power of two from 16 on.
	Size uint64
	// Addr is the address assigned before the guest starts, aligned to
	// Size, or 0 for none.
	Addr uint64
	// Is64 makes it a 64-bit BAR, which takes the next index too.
	Is64 bool
	// Prefetchable sets that bit.
	Prefetchable bool
	// Move maps the range at addr, or unmaps it when mapped is false. It is
	// called whenever what the guest programmed changes that, one call at a
	// time, with the function's configuration space locked.
	Move func(addr uint64, mapped bool)
}

type bar struct {
	BAR
	used   bool
	at     uint64 // where it is mapped now
	mapped bool
}

// capability is a part of the list that does more than hold bytes.
type capability struct {
	off, end int
	read     func(off int, p []byte)
	write    func(off int, p []byte)
}

// Function is one PCI function: its configuration space. Its methods may be
// called from any goroutine once it is on a bus.
type Function struct {
	mu     sync.Mutex
	cfg    [configSize]byte
	wmask  [configSize]byte // bits that the guest may write
	reset  [configSize]byte // cfg after Reset
	bars   [6]bar
	caps   []capability
	end    int // of the capability list
	last   int // offset of the last capability's link
	window Window
	onCmd  func(command uint16)
	onLoad []func(cfg []byte) // cfg was replaced as a whole
}

// NewFunction returns a function with no BARs and no capabilities.
func NewFunction(h Header) *Function {
	f := &Function{end: firstCapability, last: regCapabilities}
	put16(f.cfg[0:], h.Vendor)
	put16(f.cfg[2:], h.Device)
	f.cfg[regRevision] = h.Revision
	f.cfg[regClass] = byte(h.Class)
	put16(f.cfg[regClass+1:], uint16(h.Class>>8))
	put16(f.cfg[regSubsystem:], h.SubsystemVendor)
	put16(f.cfg[regSubsystem+2:], h.SubsystemDevice)
	f.cfg[regIntPin] = h.InterruptPin
	f.cfg[regIntLine] = h.InterruptLine
	put16(f.wmask[regCommand:], CommandMemory|CommandMaster|CommandINTxDisable)
	f.wmask[regCacheLine] = 0xff
	f.wmask[regIntLine] = 0xff
	f.reset = f.cfg
	return f
}

func put16(p []byte, v uint16) { binary.LittleEndian.PutUint16(p, v) }
func put32(p []byte, v uint32) { binary.LittleEndian.PutUint32(p, v) }

// AddBAR gives the function BAR i. It belongs to setting the function up.
func (f *Function) AddBAR(i int, b BAR) error {
	n := 1
	if b.Is64 {
		n = 2
	}
	switch {
	case i < 0 || i+n > len(f.bars) || f.bars[i].used || f.bars[i+n-1].used:
		return fmt.Errorf("%w: BAR %d is taken or does not exist", ErrConfig, i)
	case b.Size < 16 || b.Size&(b.Size-1) != 0 || !b.Is64 && b.Size > 1<<31:
		return fmt.Errorf("%w: BAR %d: size %#x", ErrConfig, i, b.Size)
	case b.Addr&(b.Size-1) != 0 || b.Addr+(b.Size-1) < b.Addr || !b.Is64 && b.Addr>>32 != 0:
		return fmt.Errorf("%w: BAR %d: address %#x, size %#x", ErrConfig, i, b.Addr, b.Size)
	case b.Move == nil:
		return fmt.Errorf("%w: BAR %d: no Move", ErrConfig, i)
	}
	f.bars[i] = bar{BAR: b, used: true}
	reg := regBAR0 + 4*i
	low := uint32(b.Addr)
	if b.Is64 {
		low |= 4
	}
	if b.Prefetchable {
		low |= 8
	}
	put32(f.cfg[reg:], low)
	put32(f.wmask[reg:], uint32(^(b.Size-1))&^0xf)
	if b.Is64 {
		f.bars[i+1].used = true // Size 0: the upper half
		put32(f.cfg[reg+4:], uint32(b.Addr>>32))
		put32(f.wmask[reg+4:], uint32(^(b.Size-1)>>32))
	}
	f.reset = f.cfg
	return nil
}

// AddCapability appends a capability: its identifier, the bytes after the
// link, and the bits of those that the guest may write (nil: none). read, if
// not nil, may change p before the guest gets it; write, if not nil, is called
// after the guest has written, with the new bytes. Offsets count from the start
// of the capability. It belongs to setting the function up; hooks run with the
// configuration space locked.
func (f *Function) AddCapability(id byte, body, wmask []byte, read, write func(off int, p []byte)) (off int, err error) {
	off = f.end
	end := (off + 2 + len(body) + 3) &^ 3
	if end > configSize || len(wmask) > len(body) {
		return 0, fmt.Errorf("%w: no room for capability %#x of %d bytes", ErrConfig, id, len(body)+2)
	}
	f.cfg[off] = id
	copy(f.cfg[off+2:], body)
	copy(f.wmask[off+2:], wmask)
	f.cfg[f.last] = byte(off)
	f.cfg[regStatus] |= statusCapabilities
	f.last, f.end = off+1, end
	if read != nil || write != nil {
		f.caps = append(f.caps, capability{off, end, read, write})
	}
	f.reset = f.cfg
	return off, nil
}

// OnCommand sets a hook for changes of the command register. It belongs to
// setting the function up.
func (f *Function) OnCommand(fn func(command uint16)) { f.onCmd = fn }

// Read reads configuration space from byte reg on. Beyond what exists it
// reads zeroes, which is an empty list of extended capabilities.
func (f *Function) Read(reg int, p []byte) {
	clear(p)
	if reg < 0 || reg >= configSize {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := copy(p, f.cfg[reg:])
	for _, c := range f.caps {
		if c.read != nil && reg < c.end && reg+n > c.off {
			lo, hi := max(reg, c.off), min(reg+n, c.end)
			c.read(lo-c.off, p[lo-reg:hi-reg])
		}
	}
}

// Write writes configuration space from byte reg on. Bits that are read-only
// stay as they are.
func (f *Function) Write(reg int, p []byte) {
	if reg < 0 || reg >= configSize {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := min(len(p), configSize-reg)
	for i, v := range p[:n] {
		m := f.wmask[reg+i]
		f.cfg[reg+i] = f.cfg[reg+i]&^m | v&m
	}
	if reg < regStatus && reg+n > regCommand {
		f.moveBARs()
		f.commandChanged()
	} else if reg < regBAR0+4*len(f.bars) && reg+n > regBAR0 {
		f.moveBARs()
	}
	for _, c := range f.caps {
		if c.write != nil && reg < c.end && reg+n > c.off {
			lo, hi := max(reg, c.off), min(reg+n, c.end)
			c.write(lo-c.off, f.cfg[lo:hi])
		}
	}
}

// Locked returns n bytes of configuration space from off on, for a hook to
// look at: it runs with the configuration space locked.
func (f *Function) Locked(off, n int) []byte { return f.cfg[off : off+n : off+n] }

func (f *Function) command() uint16 { return binary.LittleEndian.Uint16(f.cfg[regCommand:]) }

func (f *Function) commandChanged() {
	if f.onCmd != nil {
		f.onCmd(f.command())
	}
}

// barAddr is the address in BAR i's registers.
func (f *Function) barAddr(i int) uint64 {
	reg := regBAR0 + 4*i
	addr := uint64(binary.LittleEndian.Uint32(f.cfg[reg:])) &^ 0xf
	if f.bars[i].Is64 {
		addr |= uint64(binary.LittleEndian.Uint32(f.cfg[reg+4:])) << 32
	}
	return addr
}

// moveBARs makes the mappings agree with the registers. A range outside the
// bridge's window is not forwarded to the bus and therefore not mapped.
func (f *Function) moveBARs() {
	decode := f.command()&CommandMemory != 0
	for i := range f.bars {
		b := &f.bars[i]
		if b.Size == 0 {
			continue
		}
		addr := f.barAddr(i)
		want := decode && addr != 0 && f.window.contains(addr, b.Size)
		if b.mapped && (!want || addr != b.at) {
			b.mapped = false
			b.Move(b.at, false)
		}
		if want && !b.mapped {
			b.mapped, b.at = true, addr
			b.Move(addr, true)
		}
	}
}

// Reset returns the configuration space to how it was before the guest ran.
func (f *Function) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replace(f.reset)
}

// replace installs a whole configuration space.
func (f *Function) replace(cfg [configSize]byte) {
	f.cfg = cfg
	f.moveBARs()
	f.commandChanged()
	for _, fn := range f.onLoad {
		fn(f.cfg[:])
	}
}

// State is the saved state of a function: the whole configuration space.
type State struct {
	Config []byte `json:"config"`
}

// Save returns the function's state.
func (f *Function) Save() State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return State{Config: append([]byte(nil), f.cfg[:]...)}
}

// Check reports whether st may be loaded: it must be the state of a function
// put together in the same way.
func (f *Function) Check(st State) error {
	if len(st.Config) != configSize {
		return fmt.Errorf("%w: configuration space of %d bytes", ErrState, len(st.Config))
	}
	for i, v := range st.Config {
		if m := f.wmask[i]; (v^f.reset[i])&^m != 0 {
			return fmt.Errorf("%w: byte %#x is %#x, fixed bits are %#x", ErrState, i, v, f.reset[i]&^m)
		}
	}
	return nil
}

// Load replaces the configuration space by a saved one and maps the BARs
// where it says. Hooks run as if the guest had written it.
func (f *Function) Load(st State) error {
	if err := f.Check(st); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replace([configSize]byte(st.Config))
	return nil
}
