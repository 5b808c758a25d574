package serial

import (
	"fmt"

	"github.com/vmkit-go/vmkit/vm/device"
)

// Registers, by offset. With the divisor latch access bit of LCR set, the
// first two are the divisor.
const (
	regData    = 0 // receiver buffer, transmitter holding
	regIER     = 1
	regIIR     = 2 // FCR when written
	regLCR     = 3
	regMCR     = 4
	regLSR     = 5
	regMSR     = 6
	regScratch = 7
)

// Interrupt enable.
const (
	ierReceived    = 1 << 0
	ierTransmit    = 1 << 1
	ierLine        = 1 << 2
	ierModem       = 1 << 3
	ierImplemented = ierReceived | ierTransmit | ierLine | ierModem
)

// Causes of an interrupt, as IIR tells them, and the FIFOs' bits beside.
const (
	causeModem    = 0x00
	causeNone     = 0x01
	causeTransmit = 0x02
	causeReceived = 0x04
	causeLine     = 0x06
	causeTimeout  = 0x0c
	iirFIFOs      = 0xc0
)

// FIFO control.
const (
	fcrEnable       = 1 << 0
	fcrClearReceive = 1 << 1
	fcrTriggerMask  = 0xc0
	fcrKept         = fcrEnable | fcrTriggerMask
)

const lcrDivisor = 1 << 7

// Modem control.
const (
	mcrDTR         = 1 << 0
	mcrRTS         = 1 << 1
	mcrOut1        = 1 << 2
	mcrOut2        = 1 << 3
	mcrLoop        = 1 << 4
	mcrImplemented = mcrDTR | mcrRTS | mcrOut1 | mcrOut2 | mcrLoop
)

// Line status.
const (
	lsrData    = 1 << 0
	lsrOverrun = 1 << 1
	lsrEmpty   = 1<<5 | 1<<6 // holding and shift register
)

// Modem status: the inputs, and in the low bits which of them have changed
// since the last read.
const (
	msrCTS    = 1 << 4
	msrDSR    = 1 << 5
	msrRI     = 1 << 6
	msrDCD    = 1 << 7
	msrDeltas = 0x0f
	msrTERI   = 1 << 2 // ring indicator: only its end counts
)

const fifoSize = 16

// trigger is how many bytes raise an interrupt, by the top bits of FCR.
var trigger = [4]int{1, 4, 8, 14}

// state is the chip's registers, and what is saved.
type state struct {
	IER     byte   `json:"ier"`
	FCR     byte   `json:"fcr"`
	LCR     byte   `json:"lcr"`
	MCR     byte   `json:"mcr"`
	Scratch byte   `json:"scratch"`
	Divisor uint16 `json:"divisor"`
	Deltas  byte   `json:"deltas"`  // of MSR
	Overrun bool   `json:"overrun"` // of LSR
	// Transmit is set while the transmitter-empty interrupt is pending.
	Transmit bool `json:"transmit"`
	// Receive is the receiver's FIFO, of one byte while FIFOs are off. Queue
	// is what has arrived and waits for room there.
	Receive []byte `json:"receive"`
	Queue   []byte `json:"queue"`
}

// reset is the master reset.
func (s *state) reset() {
	*s = state{
		Divisor: 12, // 9600 baud
		Receive: make([]byte, 0, fifoSize),
	}
}

// capacity is the room of the receiver.
func (s *state) capacity() int {
	if s.FCR&fcrEnable != 0 {
		return fifoSize
	}
	return 1
}

// receive moves queued bytes into the receiver and returns how many.
func (s *state) receive() int {
	if s.MCR&mcrLoop != 0 {
		return 0 // the line is cut off
	}
	n := min(s.capacity()-len(s.Receive), len(s.Queue))
	if n <= 0 {
		return 0
	}
	s.Receive = append(s.Receive, s.Queue[:n]...)
	if s.Queue = s.Queue[n:]; len(s.Queue) == 0 {
		s.Queue = nil
	}
	return n
}

// cause is the pending enabled interrupt of the highest priority.
func (s *state) cause() byte {
	switch {
	case s.IER&ierLine != 0 && s.Overrun:
		return causeLine
	case s.IER&ierReceived != 0 && len(s.Receive) > 0:
		// The timeout after four characters' time without a new one comes at
		// once, since the line has no speed.
		if s.FCR&fcrEnable != 0 && len(s.Receive) < trigger[s.FCR>>6] {
			return causeTimeout
		}
		return causeReceived
	case s.IER&ierTransmit != 0 && s.Transmit:
		return causeTransmit
	case s.IER&ierModem != 0 && s.Deltas != 0:
		return causeModem
	}
	return causeNone
}

// inputs is the upper half of MSR.
func (s *state) inputs() byte {
	if s.MCR&mcrLoop == 0 {
		return msrCTS | msrDSR | msrDCD
	}
	var v byte
	if s.MCR&mcrRTS != 0 {
		v |= msrCTS
	}
	if s.MCR&mcrDTR != 0 {
		v |= msrDSR
	}
	if s.MCR&mcrOut1 != 0 {
		v |= msrRI
	}
	if s.MCR&mcrOut2 != 0 {
		v |= msrDCD
	}
	return v
}

// read reads a register, with what that does to the chip.
func (s *state) read(reg int) byte {
	switch {
	case reg == regData && s.LCR&lcrDivisor != 0:
		return byte(s.Divisor)
	case reg == regData:
		if len(s.Receive) == 0 {
			return 0
		}
		v := s.Receive[0]
		s.Receive = append(s.Receive[:0], s.Receive[1:]...)
		return v
	case reg == regIER && s.LCR&lcrDivisor != 0:
		return byte(s.Divisor >> 8)
	case reg == regIER:
		return s.IER
	case reg == regIIR:
		v := s.cause()
		if v == causeTransmit {
			s.Transmit = false
		}
		if s.FCR&fcrEnable != 0 {
			v |= iirFIFOs
		}
		return v
	case reg == regLCR:
		return s.LCR
	case reg == regMCR:
		return s.MCR
	case reg == regLSR:
		v := byte(lsrEmpty)
		if len(s.Receive) > 0 {
			v |= lsrData
		}
		if s.Overrun {
			v |= lsrOverrun
			s.Overrun = false
		}
		return v
	case reg == regMSR:
		v := s.inputs() | s.Deltas
		s.Deltas = 0
		return v
	}
	return s.Scratch
}

// write writes a register. It reports whether v went out on the line.
func (s *state) write(reg int, v byte) (sent bool) {
	switch {
	case reg == regData && s.LCR&lcrDivisor != 0:
		s.Divisor = s.Divisor&0xff00 | uint16(v)
	case reg == regData:
		s.Transmit = true // it was emptied again at once
		if s.MCR&mcrLoop == 0 {
			return true
		}
		if len(s.Receive) < s.capacity() {
			s.Receive = append(s.Receive, v)
		} else {
			s.Overrun = true
			if s.FCR&fcrEnable == 0 {
				s.Receive[0] = v
			}
		}
	case reg == regIER && s.LCR&lcrDivisor != 0:
		s.Divisor = s.Divisor&0x00ff | uint16(v)<<8
	case reg == regIER:
		if v&^s.IER&ierTransmit != 0 {
			s.Transmit = true
		}
		s.IER = v & ierImplemented
	case reg == regIIR:
		if v&fcrEnable != s.FCR&fcrEnable || v&fcrEnable != 0 && v&fcrClearReceive != 0 {
			s.Receive = s.Receive[:0]
		}
		if v &= fcrKept; v&fcrEnable == 0 {
			v = 0
		}
		s.FCR = v
	case reg == regLCR:
		s.LCR = v
	case reg == regMCR:
		before := s.inputs()
		s.MCR = v & mcrImplemented
		s.changed(before, s.inputs())
	case reg == regMSR, reg == regLSR:
		// Read-only: writes are for factory tests.
	case reg == regScratch:
		s.Scratch = v
	}
	return false
}

// changed notes which modem inputs moved.
func (s *state) changed(before, after byte) {
	d := (before ^ after) >> 4
	if after&msrRI != 0 {
		d &^= msrTERI
	}
	s.Deltas |= d
}

// stateVersion names the layout of state.
const stateVersion = 1

// Save returns the chip's state, with the input that the guest has not read.
// Output on its way to the host is no part of it.
func (u *UART) Save() (device.State, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return device.EncodeState(stateVersion, u.reg)
}

// Load takes a state from Save.
func (u *UART) Load(s device.State) error {
	var st state
	if err := s.Decode(stateVersion, &st); err != nil {
		return fmt.Errorf("serial: %w", err)
	}
	switch {
	case st.IER&^ierImplemented != 0, st.FCR&^fcrKept != 0, st.FCR&fcrEnable == 0 && st.FCR != 0,
		st.MCR&^mcrImplemented != 0, st.Deltas&^msrDeltas != 0:
		return fmt.Errorf("serial: saved IER %#x, FCR %#x, MCR %#x or MSR %#x has impossible bits", st.IER, st.FCR, st.MCR, st.Deltas)
	case len(st.Receive) > st.capacity():
		return fmt.Errorf("serial: %d saved bytes in a receiver of %d", len(st.Receive), st.capacity())
	case len(st.Queue) > inputMax:
		return fmt.Errorf("serial: %d saved bytes of input, the limit is %d", len(st.Queue), inputMax)
	}
	st.Receive = append(make([]byte, 0, fifoSize), st.Receive...)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reg = st
	u.pending = len(st.Queue)
	u.update()
	u.pin.Force(u.pin.Level())
	return nil
}
