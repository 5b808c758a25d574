package pit

import (
	"errors"
	"math/big"
	"testing"

	"github.com/vmkit-go/vmkit/vcpu"
)

// bench is a chip with a clock that a test sets, in nanoseconds or clock pulses.
type bench struct {
	*Chip
	t     testing.TB
	now   int64
	base  int64
	ticks int // interrupts
}

func newBench(t testing.TB) *bench { return &bench{Chip: New(), t: t} }

// at sets the clock to a clock pulse, counted from the last call of mark.
func (b *bench) at(pulse uint64) {
	b.t.Helper()
	b.to(b.base + duration(pulse))
}

// mark has at count from now.
func (b *bench) mark() { b.base = b.now }

// to moves the clock from interrupt to interrupt.
func (b *bench) to(now int64) {
	b.t.Helper()
	for b.Due() <= now && b.Due() != Never {
		b.now = max(b.Due(), b.now)
		if b.Expire(b.now) {
			b.ticks++
		}
		if b.Due() <= b.now {
			b.t.Fatalf("due at %d, after Expire(%d)", b.Due(), b.now)
		}
	}
	b.now = now
}

func (b *bench) write(port uint16, values ...byte) {
	for _, v := range values {
		b.Write(port, v, b.now)
	}
}

// count reads a counter by a latch command.
func (b *bench) count(i int) int {
	b.write(0x43, byte(i<<6))
	port := 0x40 + uint16(i)
	lo := int(b.Read(port, b.now))
	return int(b.Read(port, b.now))<<8 | lo
}

// status is a counter's status by a read-back command.
func (b *bench) status(i int) byte {
	b.write(0x43, 0xe0|2<<i)
	return b.Read(0x40+uint16(i), b.now)
}

func (b *bench) out(i int) bool { return b.status(i)&statusOut != 0 }

func TestPulses(t *testing.T) {
	for _, n := range []int64{-1, 0, 1, 838, 839, 999_999_999, 1_000_000_000, 1 << 40, Never} {
		want := new(big.Int).Mul(big.NewInt(max(n, 0)), big.NewInt(1193182))
		want.Div(want, big.NewInt(second))
		if got := pulses(n); got != want.Uint64() {
			t.Errorf("pulses(%d) = %d, want %v", n, got, want)
		}
	}
	for _, p := range []uint64{0, 1, 2, 65536, 1193182, 1 << 40, 1 << 53} {
		ns := duration(p)
		if pulses(ns) != p || p > 0 && pulses(ns-1) != p-1 {
			t.Errorf("pulse %d at %d", p, ns)
		}
	}
	if duration(1<<63) != Never || duration(1<<54) != Never || add(Never-1, 2) != Never || add(3, Never) != Never {
		t.Error("overflow")
	}
}

// TestModes looks at counter 2's output and value pulse by pulse for a count of
// 4 or 5 (8254 data sheet, figures 15 to 20, counting from the load).
func TestModes(t *testing.T) {
	for _, tc := range []struct {
		mode   byte
		count  byte
		out    string
		values []int
	}{
		{0, 4, "0000111", []int{4, 3, 2, 1, 0, 0xffff, 0xfffe}},
		{2, 4, "111011101", []int{4, 3, 2, 1, 4, 3, 2, 1, 4}},
		{6, 4, "111011101", []int{4, 3, 2, 1, 4, 3, 2, 1, 4}},
		{3, 4, "110011001", []int{4, 2, 4, 2, 4, 2, 4, 2, 4}},
		{3, 5, "11100111001", []int{4, 2, 0, 4, 2, 4, 2, 0, 4, 2, 4}},
		{7, 5, "11100111001", []int{4, 2, 0, 4, 2, 4, 2, 0, 4, 2, 4}},
		{4, 4, "1111011", []int{4, 3, 2, 1, 0, 0xffff, 0xfffe}},
	} {
		b := newBench(t)
		b.write(0x61, 1)
		b.write(0x43, 0xb0|tc.mode<<1)
		if got := b.status(2); got&statusNull == 0 || got&statusOut != 0 != (tc.mode != 0) {
			t.Errorf("mode %d: status %#x after the control word", tc.mode, got)
		}
		b.write(0x42, tc.count, 0)
		for i, want := range tc.out {
			b.at(uint64(i))
			if got := b.out(2); got != (want == '1') {
				t.Errorf("mode %d, count %d, pulse %d: output %v", tc.mode, tc.count, i, got)
			}
			if b.Read(0x61, b.now)&systemOut2 != 0 != (want == '1') {
				t.Errorf("mode %d: port 0x61 disagrees", tc.mode)
			}
			if got := b.count(2); got != tc.values[i] {
				t.Errorf("mode %d, count %d, pulse %d: value %d, want %d", tc.mode, tc.count, i, got, tc.values[i])
			}
		}
	}
}

// TestTriggered: modes 1 and 5 wait for the gate to rise, and start again when it
// rises again.
func TestTriggered(t *testing.T) {
	for _, mode := range []byte{1, 5} {
		b := newBench(t)
		busy := mode == 5 // the output until the end
		wants := func(pulse uint64, out bool) {
			t.Helper()
			b.at(pulse)
			if b.out(2) != out {
				t.Errorf("mode %d: output %v at pulse %d", mode, !out, pulse)
			}
		}
		b.write(0x43, 0xb0|mode<<1)
		b.write(0x42, 10, 0)
		wants(100, true)
		b.write(0x61, 1)
		b.mark()
		wants(5, busy)
		b.write(0x61, 0) // the gate's fall does nothing
		wants(7, busy)
		b.write(0x61, 1)
		b.mark()
		wants(9, busy)
		wants(10, !busy)
		wants(11, true)
		wants(100, true)
		// A new count waits for the next trigger; one under way is kept.
		b.write(0x61, 0, 1)
		b.mark()
		wants(4, busy)
		b.write(0x42, 100, 0)
		wants(8, busy)
		wants(12, true)
		wants(50, true)
		b.write(0x61, 0, 1)
		b.mark()
		wants(99, busy)
		wants(101, true)
		b.write(0x61, 0, 1)
		b.mark()
		wants(10, busy)
		b.write(0x42, 5, 0) // shorter than what is left
		wants(14, busy)
		wants(17, true)
	}
}

// TestGate: a low gate stops modes 0 and 4 and holds the output of 2 and 3 high,
// which its rise starts again.
func TestGate(t *testing.T) {
	b := newBench(t)
	b.write(0x61, 1)
	b.write(0x43, 0xb0)
	b.write(0x42, 100, 0)
	b.at(40)
	b.write(0x61, 0)
	b.at(1000)
	if b.count(2) != 60 || b.out(2) {
		t.Errorf("count %d, output %v", b.count(2), b.out(2))
	}
	b.write(0x61, 1)
	b.at(1059)
	if b.out(2) {
		t.Error("too early")
	}
	b.at(1061)
	if !b.out(2) {
		t.Error("no terminal count")
	}
	b.write(0x43, 0xb4)
	b.write(0x42, 10, 0)
	b.mark()
	b.at(9)
	if b.out(2) {
		t.Error("mode 2: output high at 1")
	}
	b.write(0x61, 0)
	if !b.out(2) {
		t.Error("mode 2: output low with the gate")
	}
	b.at(2000)
	b.write(0x61, 1)
	b.mark()
	b.at(3)
	if b.count(2) != 7 {
		t.Errorf("count %d", b.count(2))
	}
}

func TestBCD(t *testing.T) {
	b := newBench(t)
	b.write(0x61, 1)
	b.write(0x43, 0xb1)
	b.write(0x42, 0x00, 0x20)
	for _, tc := range []struct {
		pulse uint64
		want  int
		out   bool
	}{{1, 0x1999, false}, {1234, 0x0766, false}, {2000, 0, true}, {2001, 0x9999, true}} {
		b.at(tc.pulse)
		if got := b.count(2); got != tc.want || b.out(2) != tc.out {
			t.Errorf("pulse %d: %#x, want %#x", tc.pulse, got, tc.want)
		}
	}
	b.write(0x43, 0xb5)
	b.write(0x42, 0, 0) // 10000
	b.mark()
	b.at(1)
	if got := b.count(2); got != 0x9999 {
		t.Errorf("count %#x", got)
	}
	b.write(0x42, 0xff, 0xff) // no such digits
	b.count(2)
}

func TestAccess(t *testing.T) {
	b := newBench(t)
	b.write(0x61, 1)
	b.write(0x43, 0x94) // low byte
	b.write(0x42, 0x40)
	b.at(1)
	if v := b.Read(0x42, b.now); v != 0x3f {
		t.Errorf("low byte %#x", v)
	}
	b.write(0x43, 0xa4) // high byte
	b.write(0x42, 0x40)
	b.mark()
	b.at(1)
	if v := b.Read(0x42, b.now); v != 0x3f {
		t.Errorf("high byte %#x", v)
	}
	b.write(0x43, 0xb4)
	b.write(0x42, 0x34, 0x12)
	if lo, hi := b.Read(0x42, b.now), b.Read(0x42, b.now); lo != 0x34 || hi != 0x12 {
		t.Errorf("count %#x %#x", lo, hi)
	}
	// A latch holds until it is read, and a second is ignored; status comes
	// before count.
	b.write(0x43, 0x80)
	b.at(100)
	b.write(0x43, 0x80)
	b.write(0x43, 0xc8)
	b.at(200)
	if s := b.Read(0x42, b.now); s != 0xb4 {
		t.Errorf("status %#x", s)
	}
	if lo, hi := b.Read(0x42, b.now), b.Read(0x42, b.now); lo != 0x34 || hi != 0x12 {
		t.Errorf("latched %#x %#x", lo, hi)
	}
	// A latch between the two bytes of a write disturbs neither.
	b.write(0x42, 0x78)
	b.count(2)
	b.write(0x42, 0x56)
	if c := b.count(2); c != 0x5678 {
		t.Errorf("count %#x", c)
	}
	if b.Read(0x43, b.now) != 0 {
		t.Error("the control word reads")
	}
	// In mode 0 the first byte stops the counter.
	b.write(0x43, 0xb0)
	b.write(0x42, 1, 0)
	b.at(1000)
	b.write(0x42, 8)
	if s := b.status(2); s&(statusOut|statusNull) != statusNull {
		t.Errorf("status %#x", s)
	}
	b.at(2000)
	b.write(0x42, 0)
	b.mark()
	b.at(7)
	if b.out(2) {
		t.Error("too early")
	}
}

// TestReadBack latches several counters at once.
func TestReadBack(t *testing.T) {
	b := newBench(t)
	b.write(0x61, 1)
	for i := range byte(3) {
		b.write(0x43, i<<6|0x34)
		b.write(0x40+uint16(i), 0, 1+i)
	}
	b.at(16)
	b.write(0x43, 0xce) // counts and status of all
	b.at(50)
	for i := range 3 {
		if s := b.Read(0x40+uint16(i), b.now); s != 0xb4 {
			t.Errorf("counter %d: status %#x", i, s)
		}
		lo, hi := b.Read(0x40+uint16(i), b.now), b.Read(0x40+uint16(i), b.now)
		if lo != 0xf0 || hi != byte(i) {
			t.Errorf("counter %d: %#x %#x", i, hi, lo)
		}
	}
}

// TestQuickCalibrate is what Linux's quick_pit_calibrate does: it watches the
// high byte of counter 2 in mode 0 go down, by reads of two bytes that it does
// not latch.
func TestQuickCalibrate(t *testing.T) {
	b := newBench(t)
	b.now = 5_000_000
	b.write(0x61, b.Read(0x61, b.now)&^2|1)
	b.write(0x43, 0xb0)
	b.write(0x42, 0xff, 0xff)
	read := func() byte {
		b.now += 1000 // an access takes a microsecond
		b.Read(0x42, b.now)
		b.now += 1000
		return b.Read(0x42, b.now)
	}
	start := b.now
	for want := 0xff; want > 0xe0; want-- {
		n := 0
		for read() == byte(want) {
			n++
		}
		if n < 50 {
			t.Fatalf("high byte %#x seen %d times", want, n)
		}
	}
	// The high byte has gone down by 31 after 30*256 + 255 and some pulses.
	if took := b.now - start; took < duration(30*256+255) || took > duration(31*256)+10_000 {
		t.Errorf("31 steps took %d ns", took)
	}
}

// TestCalibrateByOutput is Linux's pit_calibrate_tsc: it waits for counter 2's
// output in port 0x61.
func TestCalibrateByOutput(t *testing.T) {
	b := newBench(t)
	b.write(0x61, 1)
	const latch = 1193182 / 100
	b.write(0x43, 0xb0)
	b.write(0x42, latch&0xff, latch>>8)
	for b.Read(0x61, b.now)&systemOut2 == 0 {
		b.now += 100
	}
	if b.now < 9_999_000 || b.now > 10_000_500 {
		t.Errorf("10 ms are %d ns", b.now)
	}
}

func TestSystemB(t *testing.T) {
	b := newBench(t)
	b.write(0x61, 0xff)
	if v := b.Read(0x61, b.now); v != 3 {
		t.Errorf("port 0x61 is %#x", v)
	}
	toggles, last := 0, byte(0)
	for ; b.now < 1_000_000; b.now += 100 {
		if v := b.Read(0x61, b.now) & systemRefresh; v != last {
			toggles, last = toggles+1, v
		}
	}
	if toggles != 66 { // every 15.085 µs
		t.Errorf("%d refreshes in 1 ms", toggles)
	}
	b.write(0x61, 0)
	if v := b.Read(0x61, b.now) &^ systemRefresh; v != 0 {
		t.Errorf("port 0x61 is %#x", v)
	}
}

// TestInterrupts: one for each rise of counter 0's output, without drift.
func TestInterrupts(t *testing.T) {
	b := newBench(t)
	b.now = 777
	b.write(0x43, 0x34)
	b.write(0x40, 0x9c, 0x12) // 4764
	for n := uint64(1); n <= 100_000; n += 997 {
		b.now = 777 + duration((n-1)*4764) + 55 // late, and some were missed
		b.Expire(b.now)
		if want := 777 + duration(n*4764); b.Due() != want {
			t.Fatalf("interrupt %d at %d, want %d", n, b.Due(), want)
		}
	}
	for _, tc := range []struct {
		mode byte
		want int64
	}{{0, duration(4764)}, {1, Never}, {2, duration(4764)}, {3, duration(4764)}, {4, duration(4765)}, {5, Never}} {
		b := newBench(t)
		b.write(0x43, 0x30|tc.mode<<1)
		if b.Due() != Never {
			t.Errorf("mode %d: due before a count", tc.mode)
		}
		b.write(0x40, 0x9c, 0x12)
		if b.Due() != tc.want {
			t.Errorf("mode %d: due at %d, want %d", tc.mode, b.Due(), tc.want)
		}
		b.to(20_000_000)
		if want := map[byte]int{0: 1, 2: 5, 3: 5, 4: 1}[tc.mode]; b.ticks != want {
			t.Errorf("mode %d: %d interrupts", tc.mode, b.ticks)
		}
	}
}

// TestTinyPeriod: a guest must not make the engine turn in circles.
func TestTinyPeriod(t *testing.T) {
	for _, count := range []byte{1, 2, 3, 59, 60, 61} {
		b := newBench(t)
		b.write(0x43, 0x34)
		b.write(0x40, count, 0)
		b.to(10_000_000)
		if b.ticks < 90 || b.ticks > 200 {
			t.Errorf("count %d: %d interrupts in 10 ms", count, b.ticks)
		}
		b.now += 1 << 61 // a jump is one step
		if !b.Expire(b.now) || b.Due() <= b.now {
			t.Errorf("count %d: due at %d, now %d", count, b.Due(), b.now)
		}
	}
}

func TestHPETLegacy(t *testing.T) {
	b := newBench(t)
	b.write(0x43, 0x34)
	b.write(0x40, 0x9c, 0x12)
	s := b.Save(b.now)
	s.HPETLegacy = true
	if err := b.Load(&s, b.now); err != nil {
		t.Fatal(err)
	}
	if b.Due() != Never || !b.Save(b.now).HPETLegacy {
		t.Error("the PIT interrupts in place of the HPET")
	}
}

func TestLoadErrors(t *testing.T) {
	b := newBench(t)
	for _, f := range []func(c *vcpu.PITChannel){
		func(c *vcpu.PITChannel) { c.Count = 1<<16 + 1 },
		func(c *vcpu.PITChannel) { c.CountLatched = 4 },
		func(c *vcpu.PITChannel) { c.ReadState = 5 },
		func(c *vcpu.PITChannel) { c.WriteState = 5 },
		func(c *vcpu.PITChannel) { c.RWMode = 4 },
		func(c *vcpu.PITChannel) { c.Mode = 8 },
		func(c *vcpu.PITChannel) { c.Elapsed = -1 },
	} {
		s := b.Save(b.now)
		f(&s.Channels[1])
		if err := b.Load(&s, b.now); !errors.Is(err, vcpu.ErrState) {
			t.Errorf("%+v: %v", s.Channels[1], err)
		}
	}
}
