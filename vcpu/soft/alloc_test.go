package soft

import (
	"testing"

	"github.com/vmkit-go/vmkit/vcpu"
)

// TestSteadyStateAllocatesNothing runs a loop of integer, SSE and x87 instructions,
// memory, a call, a change of page tables and ports, with their exits.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	m := newLong(t)
	loop := []byte{
		0x48, 0x83, 0xc3, 0x01, // ADD RBX, 1
		0x66, 0x0f, 0x6e, 0xc3, 0x66, 0x0f, 0xfe, 0xc8, 0xf2, 0x0f, 0x58, 0xd1, // MOVD, PADDD, ADDSD
		0xd9, 0xe8, 0xdd, 0xd8, // FLD1; FSTP ST0
		0x48, 0x89, 0x1c, 0x25, 0, 0, 4, 0, // MOV [0x40000], RBX
		0x48, 0x8b, 0x34, 0x25, 0, 0, 4, 0, // MOV RSI, [0x40000]
		0xe8, 0, 0, 0, 0, 0x58, // CALL; POP RAX
		0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, // MOV RAX, CR3; MOV CR3, RAX
		0xe6, 0x80, 0xe4, 0x81, // OUT 0x80, AL; IN AL, 0x81
	}
	m.kernel(append(append([]byte{0xdb, 0xe3}, loop...), 0xeb, byte(-len(loop)-2))...) // after FNINIT
	m.r[regRBX] = 0
	m.e.Clock().NewTimer(m.e.kick).Set(1e9) // a guest that halts ends Run
	r := m.e.Runner()
	var exit vcpu.Exit
	run := func() {
		for range 100 {
			if err := r.Run(&exit); err != nil || exit.Reason != vcpu.ExitIO {
				t.Fatalf("%v, %+v at %#x, exception %+v", err, exit, m.rip, m.exc)
			}
		}
	}
	run()
	if n := testing.AllocsPerRun(50, run); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if m.r[regRBX] != 52*50 {
		t.Errorf("%d rounds", m.r[regRBX])
	}
}
