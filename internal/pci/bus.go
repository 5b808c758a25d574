package pci

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/vm/device"
)

// Slots is the number of device slots of a bus; slot 0 is usually the host
// bridge, which leaves 31 for devices.
const Slots = 32

// ECAMSize is the size of the ECAM window of one bus: 4 KiB for each of 8
// functions of 32 devices.
const ECAMSize = 1 << 20

// Window is the range of guest-physical addresses that a bus forwards to its
// functions. The zero Window forwards everything.
type Window struct{ Base, Size uint64 }

func (w Window) contains(addr, size uint64) bool {
	return w.Size == 0 || addr >= w.Base && size <= w.Size && addr-w.Base <= w.Size-size
}

// Bus is PCI bus 0.
type Bus struct {
	window Window
	slots  [Slots]atomic.Pointer[Function]
	addr   atomic.Uint32 // CONFIG_ADDRESS
}

// NewBus returns an empty bus whose BARs are served inside w.
func NewBus(w Window) *Bus { return &Bus{window: w} }

// Add puts f into a slot, as function 0 of a device.
func (b *Bus) Add(slot int, f *Function) error {
	if slot < 0 || slot >= Slots || f == nil {
		return fmt.Errorf("%w: slot %d", ErrConfig, slot)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !b.slots[slot].CompareAndSwap(nil, f) {
		return fmt.Errorf("%w: slot %d is taken", ErrConfig, slot)
	}
	f.window = b.window
	return nil
}

// NewHostBridge returns a host bridge, for slot 0: a function without BARs
// that operating systems recognise as the root of the bus.
func NewHostBridge() *Function {
	return NewFunction(Header{Vendor: 0x1b36, Device: 0x0008, Class: 0x060000, SubsystemVendor: 0x1af4, SubsystemDevice: 0x1100})
}

// read and write access register reg of function fn of a device on bus 0.
// Where no function is, reads give ones (master abort) and writes are lost.
func (b *Bus) read(slot, fn, reg int, p []byte) {
	if f := b.slots[slot].Load(); f != nil && fn == 0 {
		f.Read(reg, p)
		return
	}
	ones(p)
}

func (b *Bus) write(slot, fn, reg int, p []byte) {
	if f := b.slots[slot].Load(); f != nil && fn == 0 {
		f.Write(reg, p)
	}
}

func ones(p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}

// Ports returns the handler of ports 0xcf8 to 0xcff: configuration mechanism
// #1 (PCI 3.0, section 3.2.2.3.2).
func (b *Bus) Ports() device.Handler { return (*ports)(b) }

type ports Bus

// target splits CONFIG_ADDRESS for a data access at port 0xcfc+off.
func (b *ports) target(off uint64) (slot, fn, reg int, ok bool) {
	a := b.addr.Load()
	return int(a >> 11 & 31), int(a >> 8 & 7), int(a&0xfc) + int(off), a>>31 != 0 && a>>16&0xff == 0
}

func (b *ports) Read(off uint64, p []byte) {
	switch {
	case off == 0 && len(p) == 4:
		binary.LittleEndian.PutUint32(p, b.addr.Load())
		return
	case off >= 4 && off+uint64(len(p)) <= 8:
		if slot, fn, reg, ok := b.target(off - 4); ok {
			(*Bus)(b).read(slot, fn, reg, p)
			return
		}
	}
	ones(p)
}

func (b *ports) Write(off uint64, p []byte) {
	switch {
	case off == 0 && len(p) == 4:
		b.addr.Store(binary.LittleEndian.Uint32(p) & 0x80ff_fffc)
	case off >= 4 && off+uint64(len(p)) <= 8:
		if slot, fn, reg, ok := b.target(off - 4); ok {
			(*Bus)(b).write(slot, fn, reg, p)
		}
	}
}

// ECAM returns the handler of the memory-mapped configuration window of
// ECAMSize bytes (PCI Express Base Specification, section 7.2.2).
func (b *Bus) ECAM() device.Handler { return (*ecam)(b) }

type ecam Bus

func (b *ecam) Read(off uint64, p []byte) {
	if off >= ECAMSize || off%4096+uint64(len(p)) > 4096 {
		ones(p)
		return
	}
	(*Bus)(b).read(int(off>>15), int(off>>12&7), int(off&0xfff), p)
}

func (b *ecam) Write(off uint64, p []byte) {
	if off >= ECAMSize || off%4096+uint64(len(p)) > 4096 {
		return
	}
	(*Bus)(b).write(int(off>>15), int(off>>12&7), int(off&0xfff), p)
}

// Reset clears CONFIG_ADDRESS. The functions are reset by their owners.
func (b *Bus) Reset() { b.addr.Store(0) }

type busState struct {
	Address uint32 `json:"config_address"`
}

// Save returns the state of the bus itself; that of each function belongs to
// its owner.
func (b *Bus) Save() (device.State, error) {
	return device.EncodeState(1, busState{b.addr.Load()})
}

// Load replaces the state of the bus itself.
func (b *Bus) Load(s device.State) error {
	var st busState
	if err := s.Decode(1, &st); err != nil {
		return fmt.Errorf("pci bus: %w", err)
	}
	if st.Address&^0x80ff_fffc != 0 {
		return fmt.Errorf("%w: CONFIG_ADDRESS %#x", ErrState, st.Address)
	}
	b.addr.Store(st.Address)
	return nil
}
