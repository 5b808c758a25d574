// Package float is the floating point of x86 in integer arithmetic: the x87 in
// 80 bits and the scalar operations of SSE, exact to the bit with hardware
// (transcendental instructions excepted, see below) and equal on every host.
//
// The state of either unit is its own control and status word. A method does
// what one instruction does to its operands and raises exceptions in the word:
//
//	env := float.X87{CW: 0x37f}
//	sum, ok := env.Add(a, b) // FADD; ok: the result is to be written
//	m := float.MXCSR(0x1f80)
//	prod := m.Mul64(x, y) // MULSD on the bits of two float64
//
// # x87
//
// [X87] holds the control word (masks, precision, rounding) and the flags and
// condition codes of the status word. A method returns ok false where the
// instruction leaves its destination (and the stack) as it was, because of an
// unmasked exception; [X87.Pending] then tells that #MF is due at the next waiting
// instruction. The register stack and its faults are the caller's business.
//
// # SSE
//
// [MXCSR] is the register itself. While all exceptions are masked, its methods
// are all there is to it. Otherwise the caller runs the elements of an instruction
// on a copy from [MXCSR.Begin], and [MXCSR.End] tells whether #XM is due, in which
// case nothing is written.
//
// # Accuracy
//
// FSIN, FCOS, FSINCOS, FPTAN, FPATAN, F2XM1, FYL2X and FYL2XP1 are evaluated in 128
// bits and rounded once, by the rounding mode of the control word: the error before
// rounding is below 2^-50 units in the last place. Processors are specified to
// less than one unit (in round to nearest), and differ from each other in the last
// bit. As on hardware, arguments are reduced by a value of pi of 66 bits (Intel SDM
// volume 1, section 8.3.8). RCP and RSQRT have an error below 1.5 * 2^-12, and
// are not those of any vendor.
//
// No method allocates, and none keeps state outside of its receiver.
package float
