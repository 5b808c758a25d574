package pci

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/vm/device"
)

// MSI-X message control bits, and the mask bit of a table entry (PCI 3.0,
// section 6.8.2).
const (
	msixEnable  = 1 << 15
	msixMaskAll = 1 << 14
	vectorMask  = 1
	entrySize   = 16

	// MaxVectors is the most vectors that a function can have.
	MaxVectors = 2048
)

// message is what a vector sends, an immutable pair.
type message struct {
	addr uint64
	data uint32
}

type vector struct {
	entry msixEntry
	// live is the message to send now; nil while the vector is masked or
	// MSI-X is off. Signal reads it without a lock.
	live    atomic.Pointer[message]
	pending bool
}

type msixEntry struct {
	Addr    uint64 `json:"addr"`
	Data    uint32 `json:"data"`
	Control uint32 `json:"control"`
}

// MSIX is the MSI-X capability of a function with its table and pending bits.
// Its methods may be called from any goroutine.
type MSIX struct {
	msi     device.MSI
	vectors []vector

	mu      sync.Mutex
	enabled bool
	masked  bool // the function mask
}

// NewMSIX adds an MSI-X capability with n vectors to f. The table and the
// pending bits lie at the given offsets, multiples of 8, of BAR bir; the caller
// routes accesses there to Table and Pending.
func NewMSIX(f *Function, msi device.MSI, n, bir int, table, pba uint32) (*MSIX, error) {
	if msi == nil || n < 1 || n > MaxVectors || bir < 0 || bir > 5 || table%8 != 0 || pba%8 != 0 {
		return nil, fmt.Errorf("%w: MSI-X with %d vectors, table at %#x, pending bits at %#x", ErrConfig, n, table, pba)
	}
	m := &MSIX{msi: msi, vectors: make([]vector, n)}
	m.clear()
	body := make([]byte, 10)
	put16(body, uint16(n-1))
	put32(body[2:], table|uint32(bir))
	put32(body[6:], pba|uint32(bir))
	wmask := make([]byte, 2)
	put16(wmask, msixEnable|msixMaskAll)
	at, err := f.AddCapability(CapMSIX, body, wmask, nil, func(off int, p []byte) {
		// The two bits lie in byte 3.
		if i := 3 - off; i >= 0 && i < len(p) {
			m.control(uint16(p[i]) << 8)
		}
	})
	if err != nil {
		return nil, err
	}
	f.onLoad = append(f.onLoad, func(cfg []byte) { m.control(uint16(cfg[at+3]) << 8) })
	return m, nil
}

func (m *MSIX) clear() {
	for i := range m.vectors {
		v := &m.vectors[i]
		v.entry = msixEntry{Control: vectorMask}
		v.pending = false
		v.live.Store(nil)
	}
}

// Vectors is the number of vectors.
func (m *MSIX) Vectors() int { return len(m.vectors) }

// Enabled reports whether the guest has turned MSI-X on.
func (m *MSIX) Enabled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.enabled
}

// Signal raises vector i: it sends the message, or makes it pending while the
// vector is masked. With MSI-X off, or i out of range, nothing happens and
// Signal returns false.
func (m *MSIX) Signal(i int) bool {
	if i < 0 || i >= len(m.vectors) {
		return false
	}
	v := &m.vectors[i]
	msg := v.live.Load()
	if msg == nil {
		m.mu.Lock()
		if !m.enabled {
			m.mu.Unlock()
			return false
		}
		if msg = v.live.Load(); msg == nil {
			v.pending = true
		}
		m.mu.Unlock()
	}
	if msg != nil {
		m.send(*msg)
	}
	return true
}

// send delivers a message. The guest chose address and data; one that its
// interrupt chips refuse is lost, as on hardware.
func (m *MSIX) send(msg message) { _ = m.msi.Signal(msg.addr, msg.data) }

// control takes a new message control register.
func (m *MSIX) control(v uint16) {
	enabled, masked := v&msixEnable != 0, v&msixMaskAll != 0
	m.mu.Lock()
	if enabled == m.enabled && masked == m.masked {
		m.mu.Unlock()
		return
	}
	m.enabled, m.masked = enabled, masked
	send := m.update(0, len(m.vectors))
	m.mu.Unlock()
	for _, msg := range send {
		m.send(msg)
	}
}

// update brings vectors from to to-1 in line with their masks and returns the
// messages that were pending and are due now. mu is held.
func (m *MSIX) update(from, to int) (send []message) {
	for i := from; i < to; i++ {
		v := &m.vectors[i]
		if !m.enabled || m.masked || v.entry.Control&vectorMask != 0 {
			v.live.Store(nil)
			continue
		}
		msg := v.live.Load()
		if msg == nil || *msg != (message{v.entry.Addr, v.entry.Data}) {
			msg = &message{v.entry.Addr, v.entry.Data}
			v.live.Store(msg)
		}
		if v.pending {
			v.pending = false
			send = append(send, *msg)
		}
	}
	return send
}

// ReadTable reads the table from byte off on, in aligned units of 4 or 8 bytes.
func (m *MSIX) ReadTable(off uint64, p []byte) {
	clear(p)
	if !m.inTable(off, len(p)) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := 0; i < len(p); i += 4 {
		e := &m.vectors[(off+uint64(i))/entrySize].entry
		var v uint32
		switch (off + uint64(i)) % entrySize {
		case 0:
			v = uint32(e.Addr)
		case 4:
			v = uint32(e.Addr >> 32)
		case 8:
			v = e.Data
		case 12:
			v = e.Control
		}
		binary.LittleEndian.PutUint32(p[i:], v)
	}
}

// WriteTable writes the table from byte off on, in aligned units of 4 or 8
// bytes; any other write is dropped.
func (m *MSIX) WriteTable(off uint64, p []byte) {
	if !m.inTable(off, len(p)) {
		return
	}
	n := int(off / entrySize)
	m.mu.Lock()
	e := &m.vectors[n].entry
	for i := 0; i < len(p); i += 4 {
		v := binary.LittleEndian.Uint32(p[i:])
		switch (off + uint64(i)) % entrySize {
		case 0:
			e.Addr = e.Addr&^0xffff_ffff | uint64(v&^3)
		case 4:
			e.Addr = e.Addr&0xffff_ffff | uint64(v)<<32
		case 8:
			e.Data = v
		case 12:
			e.Control = v & vectorMask
		}
	}
	send := m.update(n, n+1)
	m.mu.Unlock()
	for _, msg := range send {
		m.send(msg)
	}
}

func (m *MSIX) inTable(off uint64, n int) bool {
	return (n == 4 || n == 8) && off%uint64(n) == 0 && off < uint64(len(m.vectors))*entrySize
}

// ReadPending reads the pending bits from byte off on. They are read-only.
func (m *MSIX) ReadPending(off uint64, p []byte) {
	clear(p)
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range p {
		for bit := range 8 {
			if n := (off+uint64(i))*8 + uint64(bit); n < uint64(len(m.vectors)) && m.vectors[n].pending {
				p[i] |= 1 << bit
			}
		}
	}
}

// Reset masks every vector and forgets what is pending. The enable bits live
// in configuration space and go with it.
func (m *MSIX) Reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clear()
}

// MSIXState is the saved state of the table and the pending bits.
type MSIXState struct {
	Entries []msixEntry `json:"entries"`
	Pending []int       `json:"pending"`
}

// Save returns the state. The enable bits are part of the function's.
func (m *MSIX) Save() MSIXState {
	m.mu.Lock()
	defer m.mu.Unlock()
	var st MSIXState
	for i := range m.vectors {
		st.Entries = append(st.Entries, m.vectors[i].entry)
		if m.vectors[i].pending {
			st.Pending = append(st.Pending, i)
		}
	}
	return st
}

// Check reports whether st may be loaded.
func (m *MSIX) Check(st MSIXState) error {
	if len(st.Entries) != len(m.vectors) {
		return fmt.Errorf("%w: %d MSI-X vectors, want %d", ErrState, len(st.Entries), len(m.vectors))
	}
	for i, e := range st.Entries {
		if e.Addr&3 != 0 || e.Control&^vectorMask != 0 {
			return fmt.Errorf("%w: MSI-X vector %d: address %#x, control %#x", ErrState, i, e.Addr, e.Control)
		}
	}
	for _, i := range st.Pending {
		if i < 0 || i >= len(m.vectors) {
			return fmt.Errorf("%w: MSI-X vector %d pending of %d", ErrState, i, len(m.vectors))
		}
	}
	return nil
}

// Load replaces table and pending bits; load the function after it, which
// sends what is pending and unmasked.
func (m *MSIX) Load(st MSIXState) error {
	if err := m.Check(st); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.vectors {
		m.vectors[i].entry = st.Entries[i]
		m.vectors[i].pending = false
	}
	for _, i := range st.Pending {
		m.vectors[i].pending = true
	}
	m.enabled = false
	m.update(0, len(m.vectors))
	return nil
}
