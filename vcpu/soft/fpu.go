package soft

// fpu is the x87 state, which MMX shares (Intel SDM volume 1, chapters 8 and 9).
type fpu struct {
	// The physical registers: ST(i) is register (TOP+i)&7, MMi is register i. mm is
	// the significand, se the sign (bit 15) and the biased exponent.
	mm [8]uint64
	se [8]uint16

	cw uint16
	sw uint16 // TOP is bits 13 to 11
	// tw is the tag word in the abridged form of FXSAVE: bit i says that physical
	// register i is in use. The full tags follow from the values.
	tw uint8

	fop uint16 // of the last instruction that was no control instruction, 11 bits
	// Where that instruction and its memory operand were. The selectors are kept
	// where the mode has them; 64-bit forms of FXSAVE leave them out.
	fip, fdp uint64
	fcs, fds uint16
}

const fpuTop = 7 << 11

// init does what FNINIT does.
func (f *fpu) init() {
	f.cw, f.sw, f.tw, f.fop = 0x37f, 0, 0, 0
	f.fip, f.fdp, f.fcs, f.fds = 0, 0, 0, 0
}

// reset is the state after power-up: FCW and the tags differ from FNINIT's, and the
// registers are +0.
func (f *fpu) reset() {
	*f = fpu{cw: 0x40, tw: 0xff}
}

// top is TOP.
func (f *fpu) top() uint8 { return uint8(f.sw >> 11 & 7) }

// pending reports whether an unmasked exception waits to be delivered: ES.
func (f *fpu) pending() bool { return f.sw&0x80 != 0 }

// enterMMX is what every MMX instruction does: all registers are in use, TOP is 0.
func (f *fpu) enterMMX() { f.sw, f.tw = f.sw&^fpuTop, 0xff }

// leaveMMX is EMMS: no register is in use.
func (f *fpu) leaveMMX() { f.sw, f.tw = f.sw&^fpuTop, 0 }
