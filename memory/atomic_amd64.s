#include "textflag.h"

// func load16(p *byte) uint16
TEXT ·load16(SB), NOSPLIT, $0-10
	MOVQ	p+0(FP), AX
	MOVWLZX	(AX), AX
	MOVW	AX, ret+8(FP)
	RET

// func store16(p *byte, v uint16)
TEXT ·store16(SB), NOSPLIT, $0-10
	MOVQ	p+0(FP), AX
	MOVWLZX	v+8(FP), BX
	MOVW	BX, (AX)
	RET

// func xchg16(p *byte, v uint16)
TEXT ·xchg16(SB), NOSPLIT, $0-10
	MOVQ	p+0(FP), AX
	MOVWLZX	v+8(FP), BX
	XCHGW	BX, (AX) // locked, therefore a full barrier
	RET

// func fence()
TEXT ·fence(SB), NOSPLIT, $8-0
	LOCK
	ORL	$0, 0(SP) // cheaper than MFENCE, and as strong for ordinary memory
	RET
