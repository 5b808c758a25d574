package lapic

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/vmkit-go/vmkit/vcpu"
)

// bench is a local APIC with a clock that a test sets and a bus that notes what
// it sends. Its TSC counts at 2 GHz.
type bench struct {
	*APIC
	t    testing.TB
	now  int64
	sent []Message
	eois []uint8
}

func (b *bench) Send(_ *APIC, m Message) { b.sent = append(b.sent, m) }
func (b *bench) EOI(v uint8)             { b.eois = append(b.eois, v) }

func newBench(t testing.TB, id uint8) *bench {
	b := &bench{t: t}
	b.APIC = New(Config{
		ID: id, BSP: id == 0, Bus: b, Now: func() int64 { return b.now },
		TSCTime: func(tsc uint64) int64 { return int64((tsc + 1) / 2) },
	})
	return b
}

// enable enables the APIC by software, in x2APIC mode if x2.
func (b *bench) enable(x2 bool) *bench {
	b.t.Helper()
	if !x2 {
		b.Write(0xf0, 0x1ff)
	} else if !b.SetBase(b.Base()|vcpu.APICBaseX2APIC) || !b.WriteMSR(0x80f, 0x1ff) {
		b.t.Fatal("no x2APIC mode")
	}
	return b
}

func (b *bench) want(off, v uint32) {
	b.t.Helper()
	if got := b.Read(off); got != v {
		b.t.Errorf("register %#x is %#x, want %#x", off, got, v)
	}
}

func (b *bench) wantAck(vectors ...uint8) {
	b.t.Helper()
	for _, want := range vectors {
		if v, ok := b.Ack(); !ok || v != want {
			b.t.Errorf("Ack is %#x, %v, want %#x", v, ok, want)
		}
	}
	if v, ok := b.Ack(); ok {
		b.t.Errorf("Ack gives one more, %#x", v)
	}
}

// to moves the clock from interrupt to interrupt.
func (b *bench) to(now int64) {
	b.t.Helper()
	for b.Due() <= now {
		b.now = max(b.now, b.Due())
		b.Expire(b.now)
		if b.Due() <= b.now {
			b.t.Fatalf("due at %d, after Expire(%d)", b.Due(), b.now)
		}
	}
	b.now = now
}

func TestResetValues(t *testing.T) {
	for id := range uint8(2) {
		b := newBench(t, id)
		lint0 := uint32(lvtMask)
		if id == 0 {
			lint0 = 0x700 // virtual wire mode
		}
		for _, r := range []struct{ off, v uint32 }{
			{0x20, uint32(id) << 24}, {0x30, 0x50014}, {0x80, 0}, {0xa0, 0}, {0xd0, 0}, {0xe0, 0xffffffff},
			{0xf0, 0xff}, {0x280, 0}, {0x300, 0}, {0x310, 0}, {0x320, lvtMask}, {0x330, lvtMask}, {0x340, lvtMask},
			{0x350, lint0}, {0x360, lvtMask}, {0x370, lvtMask}, {0x380, 0}, {0x390, 0}, {0x3e0, 0},
		} {
			b.want(r.off, r.v)
		}
		if b.Due() != Never || b.Pending() || b.AcceptsExtINT() != (id == 0) {
			t.Error("something is pending at power-up")
		}
	}
}

// TestSoftwareDisabled: local vectors are masked and stay so, fixed interrupts
// are refused, NMI, INIT and start-up interrupts are not (section 11.4.7.2).
func TestSoftwareDisabled(t *testing.T) {
	b := newBench(t, 1).enable(false)
	b.Write(0x370, 0xfe)
	b.Accept(Message{Vector: 0x80})
	b.Write(0xf0, 0xff)
	b.want(0x370, 0xfe|lvtMask)
	b.Write(0x370, 0xfe)
	b.want(0x370, 0xfe|lvtMask)
	b.Write(0x320, 0x30)
	b.want(0x320, 0x30|lvtMask)
	if b.Accept(Message{Vector: 0x90}) {
		t.Error("takes a fixed interrupt")
	}
	b.wantAck(0x80) // what was pending stays
	for _, m := range []Message{{Mode: NMI}, {Mode: INIT}, {Mode: StartUp, Vector: 0x9a}} {
		if !b.Accept(m) {
			t.Errorf("refuses %+v", m)
		}
	}
	if !b.TakeNMI() || b.TakeNMI() || !b.TakeINIT() || b.TakeINIT() {
		t.Error("NMI, INIT")
	}
	if v, ok := b.TakeSIPI(); !ok || v != 0x9a {
		t.Errorf("start-up vector %#x, %v", v, ok)
	}
	for _, m := range []Message{{Mode: SMI}, {Mode: ExtINT}, {Mode: 3}} {
		if b.enable(false).Accept(m) {
			t.Errorf("takes %+v", m)
		}
	}
}

// TestPriorities walks through nesting, TPR and PPR (section 11.8.3).
func TestPriorities(t *testing.T) {
	b := newBench(t, 0).enable(false)
	for _, v := range []uint8{0x31, 0x52, 0x55, 0x91} {
		b.Accept(Message{Vector: v})
	}
	b.wantAck(0x91)
	b.want(0xa0, 0x90)
	b.Accept(Message{Vector: 0x9f}) // same class: waits
	b.wantAck()
	b.Accept(Message{Vector: 0xa0})
	b.wantAck(0xa0)
	b.Write(0xb0, 0) // ends 0xa0
	b.wantAck()
	b.Write(0xb0, 0)
	b.wantAck(0x9f)
	b.Write(0xb0, 0)
	b.Write(0x80, 0x5a) // TPR holds off class 5
	b.want(0xa0, 0x5a)
	b.wantAck()
	if b.TPR() != 5 {
		t.Errorf("CR8 is %d", b.TPR())
	}
	b.SetTPR(4)
	b.want(0x80, 0x40)
	b.wantAck(0x55)
	b.Write(0xb0, 0)
	b.wantAck(0x52)
	b.want(0xa0, 0x50)
	b.SetTPR(0)
	b.Write(0xb0, 0)
	b.wantAck(0x31)
	b.Write(0xb0, 0)
	b.Write(0xb0, 0) // nothing in service
	if len(b.eois) != 0 {
		t.Errorf("broadcast %#x of edge-triggered interrupts", b.eois)
	}
}

// TestTMR: the trigger mode is that of the last arrival; an EOI of a
// level-triggered interrupt is broadcast.
func TestTMR(t *testing.T) {
	b := newBench(t, 0).enable(false)
	b.Accept(Message{Vector: 0x45, Level: true})
	b.want(0x180+0x20, 1<<5)
	b.want(0x200+0x20, 1<<5)
	b.wantAck(0x45)
	b.want(0x200+0x20, 0)
	b.want(0x100+0x20, 1<<5)
	b.Write(0xf0, 0x11ff) // EOI broadcasts cannot be suppressed
	b.want(0xf0, 0x1ff)
	b.Write(0xb0, 0)
	if len(b.eois) != 1 || b.eois[0] != 0x45 {
		t.Errorf("EOIs %#x", b.eois)
	}
	b.Accept(Message{Vector: 0x45})
	b.want(0x180+0x20, 0)
}

// TestErrors: illegal vectors, and the error register's two halves (section
// 11.5.3).
func TestErrors(t *testing.T) {
	b := newBench(t, 0).enable(false)
	b.Write(0x370, 0xfe)
	if b.Accept(Message{Vector: 15}) {
		t.Error("takes vector 15")
	}
	b.wantAck(0xfe)
	b.Write(0xb0, 0)
	b.want(0x280, 0) // until written
	b.Write(0x280, 0)
	b.want(0x280, esrReceiveVector)
	b.Write(0x300, 0x0f)
	b.Write(0x280, 0)
	b.want(0x280, esrSendVector)
	if len(b.sent) != 0 {
		t.Errorf("sent %+v", b.sent)
	}
	b.Read(0x2f0) // CMCI does not exist in this version
	b.Write(0x40, 0)
	b.Write(0x280, 0)
	b.want(0x280, esrRegister)
	b.Write(0x280, 0)
	b.want(0x280, 0)
	// An error vector that is illegal itself must not go round for ever.
	b.Write(0x370, 0x03)
	b.Accept(Message{Vector: 1})
	b.Read(0x2f0)
	b.Write(0x280, 0)
	b.want(0x280, esrReceiveVector|esrRegister)
}

func TestICR(t *testing.T) {
	for _, tc := range []struct {
		high, low uint32
		want      *Message
	}{
		{0x0300_0000, 0x00040, &Message{Dest: 3, Vector: 0x40}},
		{0xff00_0000, 0x00840, &Message{Dest: 0xff, Vector: 0x40, Logical: true}},
		{0x0300_0000, 0x00140, &Message{Dest: 3, Vector: 0x40, Mode: LowestPriority}},
		{0, 0x40041, &Message{Vector: 0x41, Shorthand: Self}},
		{0, 0x80041, &Message{Vector: 0x41, Shorthand: AllIncludingSelf}},
		{0, 0xc0441, &Message{Vector: 0x41, Mode: NMI, Shorthand: AllExcludingSelf}},
		{0x0100_0000, 0x0c500, &Message{Dest: 1, Mode: INIT}},
		{0x0100_0000, 0x08500, nil}, // INIT de-assert
		{0x0100_0000, 0x00500, &Message{Dest: 1, Mode: INIT}},
		{0x0100_0000, 0x0069a, &Message{Dest: 1, Mode: StartUp, Vector: 0x9a}},
		{0x0100_0000, 0x0c040, &Message{Dest: 1, Vector: 0x40}}, // IPIs are edge-triggered
		{0x0100_0000, 0x00240, nil},                             // SMI
		{0x0100_0000, 0x00740, nil},
		{0x0100_0000, 0x00340, nil},
	} {
		b := newBench(t, 0).enable(false)
		b.Write(0x310, tc.high|0xffff)
		b.Write(0x300, tc.low|icrBusy)
		b.want(0x310, tc.high)
		b.want(0x300, tc.low)
		if tc.want == nil {
			if len(b.sent) != 0 {
				t.Errorf("ICR %#x sends %+v", tc.low, b.sent)
			}
		} else if len(b.sent) != 1 || b.sent[0] != *tc.want {
			t.Errorf("ICR %#x sends %+v, want %+v", tc.low, b.sent, *tc.want)
		}
		x := newBench(t, 0).enable(true)
		if !x.WriteMSR(0x830, 0x1_0002<<32|uint64(tc.low)) {
			t.Errorf("ICR %#x: #GP", tc.low)
		}
		if tc.want != nil {
			w := *tc.want
			w.Dest, w.Wide = 0x1_0002, true
			if len(x.sent) != 1 || x.sent[0] != w {
				t.Errorf("ICR %#x sends %+v, want %+v", tc.low, x.sent, w)
			}
		}
	}
}

func TestMatch(t *testing.T) {
	type dest struct {
		m    Message
		want bool
	}
	for _, tc := range []struct {
		name  string
		id    uint8
		x2    bool
		ldr   uint32
		dfr   uint32
		dests []dest
	}{
		{"flat", 3, false, 0x08 << 24, 0xffffffff, []dest{
			{Message{Dest: 3}, true}, {Message{Dest: 2}, false}, {Message{Dest: 0xff}, true}, {Message{Dest: 0x103, Wide: true}, false},
			{Message{Dest: Broadcast, Wide: true}, true}, {Message{Dest: 0xff, Wide: true}, false},
			{Message{Dest: 0x08, Logical: true}, true}, {Message{Dest: 0xf7, Logical: true}, false},
			{Message{Dest: 0x0f, Logical: true}, true}, {Message{Dest: 0, Logical: true}, false},
			{Message{Dest: 0xff, Logical: true}, true}, {Message{Dest: 0x10008, Logical: true, Wide: true}, false},
		}},
		{"cluster", 3, false, 0x24 << 24, 0x0fffffff, []dest{
			{Message{Dest: 0x24, Logical: true}, true}, {Message{Dest: 0x2f, Logical: true}, true},
			{Message{Dest: 0x34, Logical: true}, false}, {Message{Dest: 0x22, Logical: true}, false},
			{Message{Dest: 0xff, Logical: true}, true}, {Message{Dest: 0x20, Logical: true}, false},
		}},
		{"bad model", 3, false, 0x24 << 24, 0x5fffffff, []dest{{Message{Dest: 0x24, Logical: true}, false}}},
		{"x2APIC", 0x25, true, 0, 0, []dest{ // LDR 2:0020
			{Message{Dest: 0x25}, true}, {Message{Dest: 0x25, Wide: true}, true}, {Message{Dest: 0x125, Wide: true}, false},
			{Message{Dest: 0x2_0020, Wide: true, Logical: true}, true}, {Message{Dest: 0x2_ffdf, Wide: true, Logical: true}, false},
			{Message{Dest: 0x1_0020, Wide: true, Logical: true}, false}, {Message{Dest: 0x20, Logical: true}, false},
			{Message{Dest: 0xff}, true}, {Message{Dest: Broadcast, Wide: true}, true}, {Message{Dest: 0xff, Wide: true}, false},
		}},
	} {
		b := newBench(t, tc.id).enable(tc.x2)
		if !tc.x2 {
			b.Write(0xd0, tc.ldr)
			b.Write(0xe0, tc.dfr)
			b.want(0xd0, tc.ldr)
			b.want(0xe0, tc.dfr)
		} else if v, _ := b.ReadMSR(0x80d); v != 0x2_0020 {
			t.Errorf("LDR %#x", v)
		}
		for _, d := range tc.dests {
			if b.Match(&d.m) != d.want {
				t.Errorf("%s: %+v: not %v", tc.name, d.m, d.want)
			}
		}
		if b.SetBase(0xfee00000); b.Match(&Message{Dest: 0xff}) {
			t.Errorf("%s: matches while off", tc.name)
		}
	}
	b := newBench(t, 3).enable(false)
	b.Write(0x20, 0x07<<24) // the ID can be written
	if !b.Match(&Message{Dest: 7}) || b.Match(&Message{Dest: 3}) {
		t.Error("a written ID does not count")
	}
}

func TestX2APICFaults(t *testing.T) {
	readable := map[uint32]bool{}
	for _, r := range []uint32{2, 3, 8, 0xa, 0xd, 0xf, 0x28, 0x30, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3e} {
		readable[0x800+r] = true
	}
	for r := uint32(0x810); r < 0x828; r++ {
		readable[r] = true
	}
	writable := map[uint32]uint64{ // the bits that may be set
		0x808: 0xff, 0x80b: 0, 0x80f: 0x3ff, 0x828: 0, 0x830: 0xffffffff_000cdfff, 0x832: 0x750ff, 0x833: 0x157ff, 0x834: 0x157ff,
		0x835: 0x1f7ff, 0x836: 0x1f7ff, 0x837: 0x150ff, 0x838: 0xffffffff, 0x83e: 0xb, 0x83f: 0xff,
	}
	b := newBench(t, 1).enable(true)
	for r := uint32(0x7f0); r < 0x910; r++ {
		if _, ok := b.ReadMSR(r); ok != readable[r] {
			t.Errorf("RDMSR %#x: %v", r, ok)
		}
		bits, ok := writable[r]
		if got := b.WriteMSR(r, 0); got != ok {
			t.Errorf("WRMSR %#x, 0: %v", r, got)
		}
		for i := range 64 {
			if got := b.WriteMSR(r, 1<<i); ok && got != (bits>>i&1 != 0) {
				t.Errorf("WRMSR %#x, bit %d: %v", r, i, got)
			}
		}
	}
	if b.Read(0x30) != 0xffffffff {
		t.Error("the page is there in x2APIC mode")
	}
	x := newBench(t, 1).enable(false)
	if _, ok := x.ReadMSR(0x802); ok || x.WriteMSR(0x808, 0) {
		t.Error("MSRs are there in xAPIC mode")
	}
	self := newBench(t, 1).enable(true)
	if !self.WriteMSR(0x83f, 0x77) || self.sent[0] != (Message{Vector: 0x77, Shorthand: Self}) {
		t.Errorf("self IPI: %+v", self.sent)
	}
}

// TestModes tries every transition of figure 11-26.
func TestModes(t *testing.T) {
	const off, xapic, bad, x2apic = 0xfee00000, 0xfee00800, 0xfee00400, 0xfee00c00
	for _, tc := range []struct {
		from, to uint64
		ok       bool
	}{
		{off, off, true}, {off, xapic, true}, {off, x2apic, false}, {off, bad, false},
		{xapic, off, true}, {xapic, xapic, true}, {xapic, x2apic, true}, {xapic, bad, false},
		{x2apic, off, true}, {x2apic, xapic, false}, {x2apic, x2apic, true}, {x2apic, bad, false},
		{xapic, xapic | 0x100, true}, {xapic, 0x1_2345_6800, true},
		{xapic, xapic | 1, false}, {xapic, xapic | 0x200, false}, {xapic, xapic | 1<<52, false},
	} {
		b := newBench(t, 5)
		if !b.LoadBase(tc.from) {
			t.Fatal("LoadBase")
		}
		if got := b.SetBase(tc.to); got != tc.ok {
			t.Errorf("%#x to %#x: %v", tc.from, tc.to, got)
		}
		want := tc.from
		if tc.ok {
			want = tc.to
		}
		if b.Base() != want {
			t.Errorf("%#x to %#x: %#x", tc.from, tc.to, b.Base())
		}
	}
	b := newBench(t, 5)
	if b.LoadBase(bad) {
		t.Error("LoadBase takes x2APIC mode of an APIC that is off")
	}
	b.enable(false)
	b.Write(0x20, 9<<24)
	b.enable(true)
	if v, _ := b.ReadMSR(0x802); v != 5 {
		t.Errorf("x2APIC ID %d", v)
	}
	b.SetTPR(3)
	b.SetBase(off)
	b.SetBase(xapic)
	b.want(0x80, 0)
	b.want(0xf0, 0xff)
	b.want(0x20, 5<<24)
	b.enable(true)
	b.SetTPR(3)
	b.Accept(Message{Mode: StartUp, Vector: 3})
	b.Accept(Message{Mode: NMI})
	b.Reset()
	if !b.SIPI() || b.NMI() || b.TPR() != 0 || !b.x2() {
		t.Error("INIT: NMI, TPR or mode")
	}
	if v, _ := b.ReadMSR(0x80d); v != 1<<5 {
		t.Errorf("LDR %#x after INIT", v)
	}
}

func TestLINT(t *testing.T) {
	b := newBench(t, 0).enable(false)
	for _, tc := range []struct {
		lvt       uint32
		ext, nmi  bool
		interrupt bool
	}{
		{0x700, true, false, false}, {0x10700, false, false, false}, {0x400, false, true, false},
		{0x10400, false, false, false}, {0x44, false, false, true}, {0x10044, false, false, false},
		{0x8044, false, false, true},
	} {
		b.Write(0x350, tc.lvt)
		b.want(0x350, tc.lvt)
		b.LINT0()
		if b.AcceptsExtINT() != tc.ext || b.TakeNMI() != tc.nmi || b.Pending() != tc.interrupt {
			t.Errorf("LINT0 %#x: not as in the table", tc.lvt)
		}
		if tc.interrupt {
			b.wantAck(0x44)
			b.Write(0xb0, 0)
		}
	}
	if len(b.eois) != 1 {
		t.Errorf("EOIs %#x of one level-triggered interrupt", b.eois)
	}
}

func TestLoadErrors(t *testing.T) {
	b := newBench(t, 2).enable(true)
	page := make([]byte, PageSize)
	b.Save(page)
	if err := b.Load(page); err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, page[:PageSize-1], append(page, 0)} {
		if err := b.Load(bad); !errors.Is(err, vcpu.ErrState) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
	binary.LittleEndian.PutUint32(page[0x20:], 3<<24)
	if err := b.Load(page); !errors.Is(err, vcpu.ErrState) {
		t.Errorf("ID 3 in x2APIC mode: %v", err)
	}
}
