package soft

import (
	"testing"

	"github.com/vmkit-go/vmkit/vcpu"
)

// served runs until the machine halts, and answers each access to a port with the next
// answer. It returns what the exits were.
func (m *machine) served(answers ...uint64) (exits []vcpu.Exit, values []uint64) {
	m.t.Helper()
	for range 100 {
		m.e.timesChanged = false
		m.run(1000)
		m.e.count = m.end - m.left
		if !m.access.pending() {
			if m.halted || m.shutdown {
				return exits, values
			}
			continue
		}
		var e vcpu.Exit
		m.access.exit(&e)
		if e.Write {
			var v uint64
			for i, b := range e.Data {
				v |= uint64(b) << (8 * i)
			}
			values = append(values, v)
		} else {
			for i := range e.Data {
				e.Data[i] = byte(answers[0] >> (8 * i))
			}
			answers = answers[1:]
		}
		e.Data = nil
		exits = append(exits, e)
		m.access.served()
	}
	m.t.Fatal("too many exits")
	return nil, nil
}

func TestPorts(t *testing.T) {
	m := newLong(t)
	// IN AL, 0x80; IN AX, DX; IN EAX, DX; OUT 0x81, AL; OUT DX, AX; OUT DX, EAX; HLT
	m.kernel(0xe4, 0x80, 0x48, 0x89, 0xc3, 0x66, 0xed, 0x48, 0x89, 0xc1, 0xed, 0xe6, 0x81, 0x66, 0xef, 0xef, 0xf4)
	m.r[regRAX], m.r[regRDX] = 0x1122334455667788, 0xabcd1234
	exits, values := m.served(0x99, 0xaabb, 0x12345678)
	if m.r[regRBX] != 0x1122334455667799 || m.r[regRCX] != 0x112233445566aabb || m.r[regRAX] != 0x12345678 {
		t.Errorf("%#x, %#x, %#x", m.r[regRBX], m.r[regRCX], m.r[regRAX])
	}
	for i, want := range []struct {
		port  uint16
		size  uint8
		write bool
		v     uint64
	}{{0x80, 1, false, 0}, {0x1234, 2, false, 0}, {0x1234, 4, false, 0}, {0x81, 1, true, 0x78}, {0x1234, 2, true, 0x5678}, {0x1234, 4, true, 0x12345678}} {
		if e := exits[i]; e.Reason != vcpu.ExitIO || e.Port != want.port || e.Size != want.size || e.Write != want.write || e.Count != 1 {
			t.Errorf("exit %d: %+v", i, e)
		}
		if want.write && values[i-3] != want.v {
			t.Errorf("exit %d: value %#x", i, values[i-3])
		}
	}
}

func TestPortStrings(t *testing.T) {
	m := newLong(t)
	m.kernel(0xf3, 0x66, 0x6d, 0xfd, 0xf3, 0x6e, 0xf4) // REP INSW; STD; REP OUTSB
	m.r[regRDX], m.r[regRCX], m.r[regRDI] = 0x1f0, 3, atData
	m.code(atCode+3, 0xb1, 4, 0xfd, 0xf3, 0x6e, 0xf4) // MOV CL, 4 in between
	m.r[regRSI] = atData + 3
	exits, values := m.served(0x1111, 0x2222, 0x3333)
	if len(exits) != 7 || m.get(atData, 8) != 0x333322221111 || m.r[regRDI] != atData+6 || m.r[regRCX] != 0 || m.r[regRSI] != atData-1 {
		t.Errorf("%d exits, data %#x, RDI %#x, RCX %d, RSI %#x", len(exits), m.get(atData, 8), m.r[regRDI], m.r[regRCX], m.r[regRSI])
	}
	for i, want := range []uint64{0x22, 0x22, 0x11, 0x11} {
		if values[i] != want {
			t.Errorf("byte %d is %#x", i, values[i])
		}
	}
	// With nothing to repeat, nothing happens.
	m = newLong(t)
	m.kernel(0xf3, 0x6c, 0xf4)
	if exits, _ := m.served(); len(exits) != 0 {
		t.Errorf("%d exits for no repetition", len(exits))
	}
	// A destination that faults leaves the port alone.
	m = newLong(t)
	m.kernel(0x6c)
	m.r[regRDI] = atReadOnly
	if exits, _ := m.served(); len(exits) != 0 {
		t.Errorf("%d exits before a fault", len(exits))
	}
	m.fault(excPF, pfPresent|pfWrite, atCode)
}

func TestPermissionBitmap(t *testing.T) {
	for _, tc := range []struct {
		name  string
		code  []byte
		iopl  uint64
		limit uint32
		ok    bool
	}{
		{"allowed", []byte{0xe4, 0x80}, 0, 0xffff, true},
		{"denied", []byte{0xe4, 0x83}, 0, 0xffff, false},
		{"denied, but IOPL", []byte{0xe4, 0x83}, 3, 0xffff, true},
		{"IOPL below CPL", []byte{0xe4, 0x83}, 2, 0xffff, false},
		{"one of two denied", []byte{0x66, 0xe5, 0x82}, 0, 0xffff, false},
		{"two allowed across bytes", []byte{0x66, 0xe5, 0x87}, 0, 0xffff, true},
		{"beyond the limit", []byte{0xe4, 0x80}, 0, 0x100 + 0x80/8, false},
		{"the last within", []byte{0xe4, 0x80}, 0, 0x100 + 0x80/8 + 1, true},
	} {
		m := newLong(t)
		m.put64(atTSS+0x60, 0x100<<48)
		m.put64(atTSS+0x100+0x80/8, 1<<3)
		m.tr.Limit = tc.limit
		m.user(append(tc.code, 0x0f, 0x0b)...)
		m.flags |= tc.iopl << 12
		m.served(0)
		want := excGP
		if tc.ok {
			want = excUD
		}
		if m.vector() != want {
			t.Errorf("%s: vector %d, want %d", tc.name, m.vector(), want)
		}
	}
}
