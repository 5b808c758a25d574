// Package hardware runs one x87 or SSE instruction of the real processor on
// given operands under a given control word. It exists for the tests of
// vcpu/soft/float, which compare their results with the processor's, and is
// empty on other architectures.
//
//	add, _ := hardware.X87Instr("FADD")
//	s := hardware.X87{ST0: x, ST1: y, CW: 0x37f}
//	add(&s)
//	sum, flags := s.Reg(0), s.SW()&0x3f
package hardware

import (
	"encoding/binary"
	"runtime"
)

// Reg is an 80-bit register: the significand, and sign and exponent.
type Reg struct {
	Mant uint64
	SE   uint16
}

// X87 is what an x87 instruction works on. Its layout is known to the assembly.
type X87 struct {
	ST1, ST0 Reg       // offset 0, 16: the stack before
	CW       uint16    // 32
	RFLAGS   uint64    // 40: after
	Mem      [16]byte  // 48: the memory operand
	Save     [108]byte // 64: FNSAVE's image after
}

// SW returns the status word after the instruction.
func (s *X87) SW() uint16 { return binary.LittleEndian.Uint16(s.Save[4:]) }

// Reg returns ST(i) after the instruction.
func (s *X87) Reg(i int) Reg {
	b := s.Save[28+10*i:]
	return Reg{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint16(b[8:])}
}

// SSE is what an SSE instruction works on. Its layout is known to the assembly.
type SSE struct {
	A, B, R [2]uint64 // offset 0, 16, 32: XMM0 and XMM1 before, XMM0 after
	MXCSR   uint32    // 48: before
	Out     uint32    // 52: MXCSR after
	GPR     uint64    // 56: RAX before and after
	RFLAGS  uint64    // 64: after
	saved   uint32    // 72: Go's MXCSR
}

// X87Instr returns the function that runs the named instruction: the mnemonic,
// followed by the operand size in bits if the operand is in memory.
func X87Instr(name string) (func(*X87), bool) { f, ok := x87[name]; return f, ok }

// SSEInstr returns the function that runs the named instruction: the mnemonic,
// followed by the size of an integer register or by the immediate byte. All
// exceptions must be masked in MXCSR, or else see Trap.
func SSEInstr(name string) (func(*SSE), bool) { f, ok := sse[name]; return f, ok }

// Trap runs an instruction with exceptions unmasked. It reports whether that ended
// in #XM; then only Out is set.
func (s *SSE) Trap(instr func(*SSE)) (exception bool) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer func() {
		// SIGFPE became a panic, with MXCSR as the instruction left it.
		if err := recover(); err != nil {
			s.Out = getMXCSR()
			setMXCSR(s.saved)
			exception = true
		}
	}()
	instr(s)
	return false
}
