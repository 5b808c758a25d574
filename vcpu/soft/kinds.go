package soft

// The kinds of micro-operations. A source operand is r[s]+imm: for a register imm is
// 0, for an immediate s is regZero. Results of 32 bits clear the upper half.
const (
	kindCall kind = iota // fn
	kindNop

	kindMov64
	kindMov32
	kindLea64 // d = address without its segment's base
	kindLea32
	kindZx8 // d = zero- or sign-extended low part of s
	kindZx16
	kindSx8to32
	kindSx8to64
	kindSx16to32
	kindSx16to64
	kindSx32to64

	kindLoad8 // d = zero-extended memory
	kindLoad16
	kindLoad32
	kindLoad64
	kindLoad32B // the address is r[b]+disp
	kindLoad64B
	kindLoadW32 // as kindLoad, but sure that it can be written
	kindLoadW64
	kindLoadSx // sign-extended: size bytes to cc bytes
	kindStore8 // memory = source operand
	kindStore16
	kindStore32
	kindStore64
	kindStore32B
	kindStore64B
	kindProbe // makes sure that size bytes can be written

	// d = d op source, with flags. In the order of the opcodes' bits 5 to 3
	// without ADC and SBB; the 32-bit form follows the 64-bit form.
	kindAdd64
	kindAdd32
	kindOr64
	kindOr32
	kindAnd64
	kindAnd32
	kindSub64
	kindSub32
	kindXor64
	kindXor32
	// The same where nobody sees the flags.
	kindAdd64N
	kindAdd32N
	kindOr64N
	kindOr32N
	kindAnd64N
	kindAnd32N
	kindSub64N
	kindSub32N
	kindXor64N
	kindXor32N

	kindCmp64 // d - source
	kindCmp32
	kindCmp16
	kindCmp8
	kindTest64 // d & source
	kindTest32
	kindTest16
	kindTest8
	kindInc64
	kindInc32
	kindDec64
	kindDec32
	kindNot64
	kindNot32
	kindShl64 // by imm, not 0
	kindShl32
	kindShr64
	kindShr32
	kindSar64
	kindSar32
	kindIMul64 // d = s * imm if b is not 0, else d * s
	kindIMul32
	kindSetcc   // the low byte of d
	kindCmov64  // d = source if cc
	kindCmov32  // the upper half is cleared in any case
	kindPush    // source operand, 64 bits
	kindPop     // to d
	kindMerge8  // the low byte of d = that of the source
	kindMerge16 // likewise 16 bits

	// What ends a block. The target is at r[regRIP]+disp, except for kindJmpR
	// and kindCallR, which go to r[s].
	kindEnd // goes to the next instruction
	kindJmp
	kindJmpR
	kindCallRel
	kindCallR
	kindRet // pops imm bytes more
	kindJcc
	kindCmpJ64 // compare and branch
	kindCmpJ32
	kindCmpJ16
	kindCmpJ8
	kindTestJ64
	kindTestJ32
	kindTestJ16
	kindTestJ8
)
