package rtc

import (
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/internal/chip/chiptest"
	"github.com/vmkit-go/vmkit/internal/inbox"
)

type bench struct {
	*Chip
	line  chiptest.Line
	clock *chiptest.Clock
}

// A Saturday.
var start = time.Date(2026, time.November, 21, 20, 13, 25, 0, time.UTC)

func newBench(t testing.TB, at time.Time) *bench {
	t.Helper()
	b := &bench{clock: chiptest.NewClock()}
	c, err := New(Config{Inbox: inbox.New(), Line: &b.line, Clock: b.clock, Start: at})
	if err != nil {
		t.Fatal(err)
	}
	b.Chip = c
	t.Cleanup(func() { c.Close() })
	return b
}

func (b *bench) in(reg byte) byte {
	chiptest.Out(b, portIndex, 1, uint32(reg))
	return byte(chiptest.In(b, portData, 1))
}

func (b *bench) set(reg, v byte) {
	chiptest.Out(b, portIndex, 1, uint32(reg))
	chiptest.Out(b, portData, 1, uint32(v))
}

func (b *bench) time() [8]byte {
	var v [8]byte
	for i, reg := range []byte{regCentury, regYear, regMonth, regDay, regWeekday, regHours, regMinutes, regSeconds} {
		v[i] = b.in(reg)
	}
	return v
}

func (b *bench) wantTime(t *testing.T, want [8]byte) {
	t.Helper()
	if got := b.time(); got != want {
		t.Errorf("time %x, want %x", got, want)
	}
}

func TestTimeFormats(t *testing.T) {
	for _, tt := range []struct {
		name string
		at   time.Time
		mode byte
		want [8]byte
	}{
		{"BCD, 24 hours", start, b24Hours, [8]byte{0x20, 0x26, 0x11, 0x21, 7, 0x20, 0x13, 0x25}},
		{"binary, 24 hours", start, b24Hours | bBinary, [8]byte{20, 26, 11, 21, 7, 20, 13, 25}},
		{"BCD, 12 hours", start, 0, [8]byte{0x20, 0x26, 0x11, 0x21, 7, 0x88, 0x13, 0x25}},
		{"binary, 12 hours", start, bBinary, [8]byte{20, 26, 11, 21, 7, 0x88, 13, 25}},
		{"noon", start.Add(-8 * time.Hour), 0, [8]byte{0x20, 0x26, 0x11, 0x21, 7, 0x92, 0x13, 0x25}},
		{"midnight", start.Add(-20 * time.Hour), 0, [8]byte{0x20, 0x26, 0x11, 0x21, 7, 0x12, 0x13, 0x25}},
		{"before 1970", time.Date(1969, 12, 31, 23, 59, 59, 5e8, time.UTC), b24Hours, [8]byte{0x19, 0x69, 0x12, 0x31, 4, 0x23, 0x59, 0x59}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, tt.at)
			b.set(regB, tt.mode)
			b.wantTime(t, tt.want)
			b.set(regB, tt.mode|bSet)
			b.clock.Add(time.Hour)
			b.wantTime(t, tt.want) // stands still
			b.set(regB, tt.mode)
			b.wantTime(t, tt.want) // and goes on from there
		})
	}
}

// TestSetAsLinux sets the time as mc146818_set_time in Linux does: with the
// divider in reset, so that the next second begins half a second later.
func TestSetAsLinux(t *testing.T) {
	b := newBench(t, start.Add(123*time.Millisecond))
	b.set(regB, b24Hours|bSet)
	b.set(regA, aInit|aDividerReset)
	for reg, v := range map[byte]byte{regCentury: 0x19, regYear: 0x99, regMonth: 0x12, regDay: 0x31, regHours: 0x23, regMinutes: 0x59, regSeconds: 0x59} {
		b.set(reg, v)
	}
	b.clock.Add(50 * time.Millisecond)
	b.set(regB, b24Hours)
	b.set(regA, aInit)
	b.wantTime(t, [8]byte{0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59})
	b.clock.Add(499 * time.Millisecond)
	b.wantTime(t, [8]byte{0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59})
	if b.in(regA)&aUpdating != 0 {
		t.Error("UIP a millisecond before the update")
	}
	b.clock.Add(time.Millisecond - 200*time.Microsecond)
	if b.in(regA)&aUpdating == 0 {
		t.Error("no UIP just before the update")
	}
	b.clock.Add(200 * time.Microsecond)
	b.wantTime(t, [8]byte{0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00})
	if b.in(regA)&aUpdating != 0 {
		t.Error("UIP after the update")
	}
	b.set(regMinutes, 0x30) // without SET
	b.wantTime(t, [8]byte{0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x30, 0x00})
}

func TestMemory(t *testing.T) {
	b := newBench(t, start)
	if v := b.in(regD); v != dValid {
		t.Errorf("register D reads %#x", v)
	}
	for reg := firstPlain; reg < 128; reg++ {
		if reg == regCentury {
			continue
		}
		b.set(byte(reg), byte(reg)^0x5a)
		b.set(byte(reg)|0x80, byte(reg)^0x5a) // with NMIs masked
	}
	for reg := firstPlain; reg < 128; reg++ {
		if v := b.in(byte(reg)); reg != regCentury && v != byte(reg)^0x5a {
			t.Errorf("byte %#x reads %#x", reg, v)
		}
	}
	if v := chiptest.In(b, portIndex, 2); v != (0x7f^0x5a)<<8|0xff {
		t.Errorf("both ports read %#x", v)
	}
}

func TestAlarm(t *testing.T) {
	const any = 0xc0
	for _, tt := range []struct {
		name    string
		h, m, s byte
		mode    byte
		after   int // seconds from start, 20:13:25; -1 for never
	}{
		{"exact", 0x20, 0x14, 0x00, b24Hours, 35},
		{"any", any, any, any, b24Hours, 1},
		{"each minute", any, any, 0x30, b24Hours, 5},
		{"each minute, just past", any, any, 0x25, b24Hours, 60},
		{"each hour", 0xff, 0x13, 0x26, b24Hours, 1},
		{"any second of a minute", 0x20, 0x15, any, b24Hours, 95},
		{"tomorrow", 0x20, 0x13, 0x25, b24Hours, 86400},
		{"binary", 20, 14, 1, b24Hours | bBinary, 36},
		{"12 hours", 0x88, 0x14, 0x00, 0, 35},
		{"12 hours, morning", 0x12, 0x00, 0x00, 0, 13595},
		{"impossible second", any, any, 0x60, b24Hours, -1},
		{"impossible minute", any, 0x77, any, b24Hours, -1},
		{"impossible hour", 0x24, any, any, b24Hours, -1},
		{"impossible hour of 12", 0x00, any, any, 0, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, start)
			b.set(regB, tt.mode)
			b.set(regHoursAlarm, tt.h)
			b.set(regMinutesAlarm, tt.m)
			b.set(regSecondsAlarm, tt.s)
			b.in(regC)
			if tt.after < 0 {
				b.clock.Add(48 * time.Hour)
				if v := b.in(regC); v != bUpdate|bPeriodic {
					t.Errorf("flags %#x after two days", v)
				}
				return
			}
			b.clock.Add(time.Duration(tt.after)*time.Second - time.Nanosecond)
			if v := b.in(regC); v&bAlarm != 0 {
				t.Error("too early")
			}
			b.clock.Add(time.Nanosecond)
			if v := b.in(regC); v != bAlarm|bUpdate|bPeriodic {
				t.Errorf("flags %#x", v)
			}
			b.in(regC)
			b.clock.Add(24 * time.Hour)
			if v := b.in(regC); v&bAlarm == 0 {
				t.Error("not again after a day")
			}
		})
	}
}

func TestInterruptLine(t *testing.T) {
	b := newBench(t, start)
	b.clock.Add(time.Second)
	b.set(regB, b24Hours|bUpdate)
	if !b.line.Level() {
		t.Fatal("no interrupt for a flag that was set before its enable")
	}
	if v := b.in(regC); v != cRequest|bUpdate|bPeriodic || b.line.Level() {
		t.Fatalf("flags %#x, line %v", v, b.line.Level())
	}
	if v := b.in(regC); v != 0 {
		t.Errorf("flags %#x on the second read", v)
	}
	b.set(regB, b24Hours|bUpdate|bSet)
	if v := b.in(regB); v != b24Hours|bSet {
		t.Errorf("B reads %#x: SET clears UIE", v)
	}
	b.clock.Add(-time.Hour) // the host's clock is set back
	b.set(regB, b24Hours|bAlarm)
	b.clock.Add(-time.Hour)
	b.in(regC)
	b.Deliver(0, nil) // from a bad tape
}

// TestHostTimer runs on the real clock.
func TestHostTimer(t *testing.T) {
	for _, tt := range []struct {
		name   string
		enable byte
	}{{"periodic", bPeriodic}, {"update", bUpdate}, {"alarm", bAlarm}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var line chiptest.Line
			c, err := New(Config{Inbox: inbox.New(), Line: &line})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			b := &bench{Chip: c}
			for _, reg := range []byte{regSecondsAlarm, regMinutesAlarm, regHoursAlarm} {
				b.set(reg, 0xff)
			}
			b.in(regC)
			b.set(regB, b24Hours|tt.enable)
			await(t, &line)
			if v := b.in(regC); v&tt.enable == 0 || v&cRequest == 0 {
				t.Errorf("flags %#x", v)
			}
			c.Pause()
			rises := line.Rises()
			time.Sleep(5 * time.Millisecond)
			if line.Rises() != rises {
				t.Error("interrupt while paused")
			}
			c.Resume()
			c.Resume()
			await(t, &line)
		})
	}
}

func await(t *testing.T, line *chiptest.Line) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !line.Level(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no interrupt")
		}
	}
}

func TestNext(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b byte
		nsec int64
		want time.Duration
	}{
		{"nothing", aInit, b24Hours, 0, 0},
		{"1024 Hz", aInit, bPeriodic, 0, 976563},
		{"1024 Hz, under way", aInit, bPeriodic, 500_000, 476563},
		{"8192 Hz", 0x23, bPeriodic, 0, 122071},
		{"256 Hz", 0x21, bPeriodic, 0, 3906250},
		{"2 Hz", 0x2f, bPeriodic, 0, 500 * time.Millisecond},
		{"no rate", 0x20, bPeriodic, 0, time.Minute},
		{"update", aInit, bUpdate, 1, time.Second - 1},
		{"divider in reset", aInit | aDividerReset, bUpdate, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s state
			s.reset(moment{})
			s.CMOS[regA], s.CMOS[regB] = tt.a, tt.b
			if d, _ := s.next(moment{1000, tt.nsec}); d != tt.want {
				t.Errorf("%v, want %v", d, tt.want)
			}
		})
	}
}

func TestState(t *testing.T) {
	a := newBench(t, start)
	a.set(regYear, 0x30)
	a.set(0x40, 0x99)
	a.set(regB, b24Hours|bUpdate)
	s, err := a.Save()
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, start.Add(time.Hour))
	if err := b.Load(s); err != nil {
		t.Fatal(err)
	}
	if !b.line.Level() {
		t.Error("an hour has passed, and no update interrupt")
	}
	b.wantTime(t, [8]byte{0x20, 0x30, 0x11, 0x21, 5, 0x21, 0x13, 0x25})
	if v := b.in(0x40); v != 0x99 {
		t.Errorf("memory %#x", v)
	}
	chiptest.BadStates(t, b,
		`{"index":128}`, `{"index":256}`, `{"flags":1}`, `{"flags":128}`, `{"cmos":""}`, `{"cmos":"zz"}`,
		`{"offset":{"sec":0,"nsec":1000000000}}`, `{"offset":{"sec":0,"nsec":-1}}`, `{"seen":{"sec":9223372036854775807,"nsec":0}}`)
}

func TestAllocs(t *testing.T) {
	b := newBench(t, start)
	p := []byte{0}
	if n := testing.AllocsPerRun(100, func() {
		p[0] = regSeconds
		b.Write(portIndex, p)
		b.Read(portData, p)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzChip(f *testing.F) {
	f.Add([]byte{1, 0, 0x0b, 1, 1, 0x72, 6, 0, 40, 1, 0, 0x0c, 0, 1, 2, 0})
	f.Add([]byte("\x03\x00" + `{"index":12,"flags":16,"offset":{"sec":-4398046511104,"nsec":5},"seen":{"sec":4398046511104,"nsec":0}}`))
	f.Fuzz(func(t *testing.T, script []byte) {
		b, fresh := newBench(t, start), newBench(t, start)
		chiptest.Drive(t, b, fresh, Size, script, func(op byte) {
			switch op & 3 {
			case 0:
				b.clock.Add(time.Duration(op) * 777 * time.Millisecond)
			case 1:
				b.clock.Add(-time.Duration(op) * time.Hour)
			case 2:
				b.Deliver(0, []byte{op, op, op, op, op, op, op, op})
			case 3:
				b.Pause()
				b.Resume()
			}
		})
	})
}
