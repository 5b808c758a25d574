package soft

import (
	"testing"

	"github.com/vmkit-go/vmkit/vcpu"
)

// What the hostile guest has found, each with the code that did it.

// TestMisalignedInPageZero: an odd address in page 0 looked like the tag of an empty entry
// of the TLB, and the access went to wherever that entry led.
func TestMisalignedInPageZero(t *testing.T) {
	m := newLong(t)
	m.put64(0x260, 0x1122334455667788, 0x99aabbccddeeff00)
	// MOVZX EAX, WORD [RBX]; MOV ECX, [RBX]; MOV RDX, [RBX]; MOV [RBX], SI; HLT
	m.kernel(0x0f, 0xb7, 0x03, 0x8b, 0x0b, 0x48, 0x8b, 0x13, 0x66, 0x89, 0x33, 0xf4)
	m.r[regRBX], m.r[regRSI] = 0x261, 0xabcd
	for i := range m.tlbs {
		e := &m.tlbs[i][0]
		e.add = 1 << 60
	}
	m.runs()
	if m.r[regRAX] != 0x6677 || m.r[regRCX] != 0x44556677 || m.r[regRDX] != 0x0011223344556677 || m.get(0x261, 2) != 0xabcd {
		t.Errorf("%#x, %#x, %#x, %#x", m.r[regRAX], m.r[regRCX], m.r[regRDX], m.get(0x261, 2))
	}
}

// TestInjectedDebugPayload: the payload of a #DB from a saved state went into DR6 whole.
func TestInjectedDebugPayload(t *testing.T) {
	m := newLong(t)
	m.kernel(0xf4)
	var s vcpu.State
	if err := m.State(&s); err != nil {
		t.Fatal(err)
	}
	s.Events.Exception = vcpu.Exception{Injected: true, Vector: excDB, HasPayload: true, Payload: ^uint64(0)}
	if err := m.SetState(&s); err != nil {
		t.Fatal(err)
	}
	m.runs()
	if m.dr6 != dr6Fixed|0xe00f {
		t.Errorf("DR6 %#x", m.dr6)
	}
	if err := m.State(&s); err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
}

// TestFetchFaultAfterStep: what the fetch of the next instruction raised came before the
// single-step trap of the last one, and beyond the budget of instructions.
func TestFetchFaultAfterStep(t *testing.T) {
	m := newLong(t)
	m.kernel(0xff, 0xe0) // JMP RAX
	m.r[regRAX] = atAbsent
	m.flags |= flagTF
	m.updateMode()
	m.runs()
	m.fault(excDB, -1, atAbsent)

	m = newLong(t)
	m.kernel(0xff, 0xe0)
	m.r[regRAX] = atAbsent
	m.run(1)
	if m.left != 0 || m.rip != atAbsent || m.cr2 != 0 {
		t.Errorf("left %d, RIP %#x, CR2 %#x", m.left, m.rip, m.cr2)
	}
}
