package soft

import (
	"testing"

	"github.com/vmkit-go/vmkit/vcpu"
)

// exits runs the machine until it writes to a port, and calls read for each read.
func (m *machine) exits(read func(*vcpu.Exit)) {
	m.t.Helper()
	for range 10 {
		var exit vcpu.Exit
		if err := m.e.Runner().Run(&exit); err != nil {
			m.t.Fatal(err)
		}
		if exit.Write || exit.Reason == vcpu.ExitShutdown {
			return
		}
		if exit.Reason != vcpu.ExitKick {
			read(&exit)
		}
	}
	m.t.Fatal("too many exits")
}

// TestInterruptAtAccess: an interrupt that a device sends while it is read came before the
// instruction that reads it was complete, so that the device was read twice.
func TestInterruptAtAccess(t *testing.T) {
	m := newLong(t)
	m.kernel(0xe4, 0x80, 0xe6, 0x81)       // IN AL, 0x80; OUT 0x81, AL
	m.code(atHandlers+16*0x40, 0x48, 0xcf) // IRETQ
	m.flags |= flagIF
	m.e.chips.LAPIC(0).Write(0xf0, 0x1ff)
	reads := 0
	m.exits(func(exit *vcpu.Exit) {
		reads++
		exit.Data[0] = byte(reads)
		if err := m.e.Signal(0xfee00000, 0x40); err != nil {
			t.Fatal(err)
		}
	})
	if reads != 1 || m.r[regRAX]&0xff != 1 {
		t.Errorf("%d reads, AL %d", reads, m.r[regRAX]&0xff)
	}
}

// TestKickAtAccess: a kick during a read of a device left an instruction half done that
// asks for more than this, and State failed.
func TestKickAtAccess(t *testing.T) {
	m := newLong(t)
	m.kernel(0x6c, 0xe6, 0x81) // INSB; OUT 0x81, AL
	m.put64(atTables+0x3000+8*(atData>>12), 0xd0000000|ptePresent|pteWritable)
	m.r[regRDI], m.r[regRDX] = atData, 0x80
	for {
		var exit vcpu.Exit
		if err := m.e.Runner().Run(&exit); err != nil {
			t.Fatal(err)
		}
		if exit.Reason == vcpu.ExitKick {
			break
		}
		m.Kick()
	}
	var s vcpu.State
	if err := m.State(&s); err != nil {
		t.Error(err)
	}
	if s.Regs.RIP != atCode+1 {
		t.Errorf("RIP %#x", s.Regs.RIP)
	}
}

// TestKickInRepetition: a kick does not wait for all repetitions of a string instruction
// that reads a device.
func TestKickInRepetition(t *testing.T) {
	m := newLong(t)
	m.kernel(0xf3, 0xac, 0xf4) // REP LODSB; HLT
	m.put64(atTables+0x3000+8*(atData>>12), 0xd0000000|ptePresent|pteWritable)
	m.r[regRSI], m.r[regRCX] = atData, 1000
	for n := 0; ; n++ {
		var exit vcpu.Exit
		if err := m.e.Runner().Run(&exit); err != nil {
			t.Fatal(err)
		}
		if exit.Reason == vcpu.ExitKick {
			break
		}
		if n == 1 {
			t.Fatal("not kicked after two reads")
		}
		exit.Data[0] = 0x77
		m.Kick()
	}
	var s vcpu.State
	if err := m.State(&s); err != nil {
		t.Fatal(err)
	}
	if s.Regs.RIP != atCode || s.Regs.RCX != 999 || s.Regs.RSI != atData+1 || s.Regs.RAX != 0x77 {
		t.Errorf("RIP %#x, RCX %d, RSI %#x, RAX %#x", s.Regs.RIP, s.Regs.RCX, s.Regs.RSI, s.Regs.RAX)
	}
}
