package acpipm

import (
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/internal/chip/chiptest"
	"github.com/vmkit-go/vmkit/internal/inbox"
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vm/device"
)

type bench struct {
	*Chip
	line         chiptest.Line
	clock        *chiptest.Clock
	offs, resets int
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{clock: chiptest.NewClock()}
	c, err := New(Config{
		Inbox: inbox.New(), Line: &b.line, Clock: b.clock,
		OnPowerOff: func() { b.offs++ }, OnReset: func() { b.resets++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Chip = c
	t.Cleanup(func() { c.Close() })
	return b
}

func TestConfig(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("no inbox, no error")
	}
	box := inbox.New()
	for i := range 2 {
		if _, err := New(Config{Inbox: box}); (err != nil) != (i == 1) {
			t.Errorf("chip %d at one inbox: %v", i, err)
		}
	}
}

func TestSleepAndReset(t *testing.T) {
	const s5 = platform.SleepTypeS5 << controlTypeShift
	for _, tt := range []struct {
		name         string
		off          uint64
		width        int
		v            uint32
		offs, resets int
	}{
		{"S5", regControl, 2, s5 | controlSleep, 1, 0},
		{"S5 without SLP_EN", regControl, 2, s5, 0, 0},
		{"S5, high byte", regControl + 1, 1, (s5 | controlSleep) >> 8, 1, 0},
		{"another type", regControl, 2, 1<<controlTypeShift | controlSleep, 0, 0},
		{"reset", regReset, 1, platform.ResetValue, 0, 1},
		{"not the reset value", regReset, 1, platform.ResetValue + 1, 0, 0},
		{"across everything", regControl, 4, s5 | controlSleep, 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			chiptest.Out(b, tt.off, tt.width, tt.v)
			if b.offs != tt.offs || b.resets != tt.resets {
				t.Errorf("%d power-offs, %d resets", b.offs, b.resets)
			}
			if v := chiptest.In(b, regControl, 2); v&controlSleep != 0 || v&controlSCI == 0 {
				t.Errorf("control reads %#x", v)
			}
		})
	}
	c, err := New(Config{Inbox: inbox.New()})
	if err != nil {
		t.Fatal(err)
	}
	chiptest.Out(c, regControl, 2, s5|controlSleep) // nobody listens
	chiptest.Out(c, regReset, 1, platform.ResetValue)
}

func TestPowerButton(t *testing.T) {
	b := newBench(t)
	b.PressPowerButton()
	if b.line.Level() {
		t.Fatal("SCI although the button is not enabled")
	}
	chiptest.Out(b, regEnable, 2, bitPowerButton)
	if !b.line.Level() {
		t.Fatal("no SCI after the enable")
	}
	if v := chiptest.In(b, regStatus, 2); v != bitPowerButton {
		t.Errorf("status %#x", v)
	}
	chiptest.Out(b, regStatus, 2, bitGlobal) // another bit
	if !b.line.Level() {
		t.Error("SCI fell for another bit")
	}
	chiptest.Out(b, regStatus, 2, bitPowerButton)
	if b.line.Level() || chiptest.In(b, regStatus, 2) != 0 {
		t.Error("SCI stays after the acknowledgement")
	}
	b.PressPowerButton()
	if !b.line.Level() || b.line.Rises() != 2 {
		t.Error("the second press was lost")
	}
}

func TestGPE(t *testing.T) {
	b := newBench(t)
	for _, n := range []int{-1, GPECount} {
		if err := b.RaiseGPE(n); err == nil {
			t.Errorf("event %d raised", n)
		}
	}
	chiptest.Out(b, regGPEEnable, 2, 1<<9)
	if err := b.RaiseGPE(3); err != nil || b.line.Level() {
		t.Fatal("SCI for an event that is not enabled", err)
	}
	if err := b.RaiseGPE(9); err != nil || !b.line.Level() {
		t.Fatal("no SCI", err)
	}
	if v := chiptest.In(b, regGPEStatus+1, 1); v != 2 {
		t.Errorf("status, high byte: %#x", v)
	}
	if v := chiptest.In(b, regGPEStatus, 4); v != 1<<25|1<<9|1<<3 {
		t.Errorf("block reads %#x", v)
	}
	chiptest.Out(b, regGPEStatus+1, 1, 2)
	if b.line.Level() {
		t.Error("SCI stays after the acknowledgement")
	}
	b.Deliver(tagGPE, []byte{200}) // from a bad tape
	b.Deliver(tagGPE, nil)
	b.Deliver(99, nil)
}

func TestTimer(t *testing.T) {
	b := newBench(t)
	if v := chiptest.In(b, regTimer, 4); v != 0 {
		t.Fatalf("starts at %d", v)
	}
	b.clock.Add(time.Second)
	if v := chiptest.In(b, regTimer, 4); v != platform.PMTimerHz {
		t.Errorf("after a second: %d", v)
	}
	for range 1000 {
		b.clock.Add(time.Microsecond) // less than 4 ticks, whose fractions add up
		chiptest.In(b, regTimer, 4)
	}
	if v := chiptest.In(b, regTimer, 4); v != platform.PMTimerHz*1001/1000 {
		t.Errorf("after another ms: %d", v)
	}
	if v := chiptest.In(b, regTimer+2, 2); v != platform.PMTimerHz*1001/1000>>16 {
		t.Errorf("upper half: %#x", v)
	}
	b.clock.Add(-time.Minute)
	if v := chiptest.In(b, regTimer, 4); v != platform.PMTimerHz*1001/1000 {
		t.Errorf("the clock went back, and the timer to %d", v)
	}
	b.clock.Add(time.Minute + 10*time.Second)
	want := uint32(platform.PMTimerHz*11001/1000) & timerMask
	if v := chiptest.In(b, regTimer, 4); v != want {
		t.Errorf("wraps to %#x, want %#x", v, want)
	}
	if v := chiptest.In(b, regStatus, 2); v != bitTimer {
		t.Errorf("status after wrapping: %#x", v)
	}
}

func TestTimerInterrupt(t *testing.T) {
	c, err := New(Config{Inbox: inbox.New(), Line: new(chiptest.Line)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	line := c.cfg.Line.(*chiptest.Line)
	// A state just before the high bit flips, so that the test need not wait.
	s, err := c.Save()
	if err != nil {
		t.Fatal(err)
	}
	s.Data = []byte(`{"status":0,"enable":1,"control":0,"gpeStatus":0,"gpeEnable":0,"ticks":8388000}`)
	if err := c.Load(s); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); !line.Level(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatal("the timer's interrupt did not come")
		}
	}
	c.Pause()
	before := chiptest.In(c, regTimer, 4)
	time.Sleep(time.Millisecond)
	if after := chiptest.In(c, regTimer, 4); after != before {
		t.Error("the timer runs while paused")
	}
	c.Resume()
	c.Resume()
}

func TestState(t *testing.T) {
	a := newBench(t)
	chiptest.Out(a, regEnable, 2, bitPowerButton)
	a.PressPowerButton()
	chiptest.Out(a, regControl, 2, 3<<controlTypeShift)
	a.clock.Add(2 * time.Second)
	s, err := a.Save()
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	b.clock.Add(time.Hour)
	if err := b.Load(s); err != nil {
		t.Fatal(err)
	}
	if !b.line.Level() {
		t.Error("SCI was not raised after the load")
	}
	if x, y := chiptest.In(a, regTimer, 4), chiptest.In(b, regTimer, 4); x != y {
		t.Errorf("timer at %d, was saved at %d", y, x)
	}
	chiptest.BadStates(t, b,
		`{"status":2}`, `{"enable":32768}`, `{"control":1}`, `{"control":8192}`, `{"status":65536}`, `{"ticks":-1}`, `{"gpeEnable":1.5}`)
}

func TestAllocs(t *testing.T) {
	b := newBench(t)
	p := make([]byte, 4)
	if n := testing.AllocsPerRun(100, func() { b.Read(regTimer, p); b.Write(regStatus, p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzChip(f *testing.F) {
	f.Add([]byte{9, 0, 1, 2, 3, 4, 2, 0, 8, 8, 6, 0, 200})
	f.Add([]byte("\x03\x00" + `{"status":1,"enable":1,"ticks":18446744073709551615}`))
	f.Fuzz(func(t *testing.T, script []byte) {
		b, fresh := newBench(t), newBench(t)
		chiptest.Drive(t, b, fresh, Size, script, func(op byte) {
			switch op & 3 {
			case 0:
				b.PressPowerButton()
			case 1:
				_ = b.RaiseGPE(int(op))
			case 2:
				b.clock.Add(time.Duration(op) * time.Second)
			case 3:
				b.Pause()
				b.Resume()
			}
		})
	})
}

// TestExact: on a clock whose timers are exact, the interrupt comes with the
// tick that flips the timer's high bit, and neither looking at the timer nor a
// pause in which the clock stands still moves it.
func TestExact(t *testing.T) {
	for _, disturbed := range []bool{false, true} {
		clock := &exact{}
		var line chiptest.Line
		c, err := New(Config{Inbox: inbox.New(), Line: &line, Clock: clock})
		if err != nil {
			t.Fatal(err)
		}
		chiptest.Out(c, regEnable, 2, bitTimer)
		// 2^23 ticks of 3579545 Hz.
		const due = 2343484438
		for clock.now < due-1 {
			clock.advance(min(due-1, clock.now+123456789))
			if disturbed {
				chiptest.In(c, regTimer, 4)
				c.Pause()
				c.Resume()
				c.PressPowerButton()
			}
		}
		if line.Level() || chiptest.In(c, regTimer, 4) != timerHalf-1 {
			t.Errorf("disturbed %v: an interrupt a nanosecond early", disturbed)
		}
		clock.advance(due)
		if !line.Level() || chiptest.In(c, regTimer, 4) != timerHalf {
			t.Errorf("disturbed %v: no interrupt in time, the timer is at %d", disturbed, chiptest.In(c, regTimer, 4))
		}
	}
}

// exact is a clock with one timer, which goes off at its time.
type exact struct {
	now, at int64
	f       func()
}

func (e *exact) Now() int64                     { return e.now }
func (e *exact) NewTimer(f func()) device.Timer { e.f = f; return e }
func (e *exact) Set(d time.Duration)            { e.at = e.now + int64(max(d, 0)) }
func (e *exact) Stop()                          { e.at = 0 }
func (e *exact) Close()                         { e.at = 0 }
func (e *exact) advance(to int64) {
	for e.at != 0 && e.at <= to {
		e.now, e.at = e.at, 0
		e.f()
	}
	e.now = to
}
