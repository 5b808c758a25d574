package lapic

import "testing"

var divisors = map[uint32]int64{0: 2, 1: 4, 2: 8, 3: 16, 8: 32, 9: 64, 0xa: 128, 0xb: 1}

func TestOneShot(t *testing.T) {
	for reg, div := range divisors {
		b := newBench(t, 0).enable(false)
		b.now = 1000 * div
		b.Write(0x3e0, reg|0xf4)
		b.want(0x3e0, reg)
		b.Write(0x320, 0x40)
		b.Write(0x380, 100)
		if want := b.now + 100*div; b.Due() != want {
			t.Fatalf("divide by %d: due at %d, want %d", div, b.Due(), want)
		}
		b.want(0x390, 100)
		b.now += 40 * div
		b.want(0x390, 60)
		b.now += 59*div + div - 1
		b.want(0x390, 1)
		b.wantAck()
		b.now++
		b.want(0x390, 0) // reading it is enough
		b.wantAck(0x40)
		b.Write(0xb0, 0)
		b.to(b.now + 1000*div)
		b.wantAck()
		b.Write(0x380, 100)
		b.Write(0x380, 0) // stops
		if b.Due() != Never {
			t.Error("a count of 0 counts")
		}
	}
}

// TestPeriodicNoDrift: the n-th interrupt is at n periods, whenever the former
// ones were noticed.
func TestPeriodicNoDrift(t *testing.T) {
	b := newBench(t, 0).enable(false)
	b.Write(0x3e0, 3) // by 16
	b.now = 1600
	b.Write(0x320, 0x20040)
	b.Write(0x380, 62501)
	const period = 62501 * 16
	for n := int64(1); n < 1000; n += 1 + n%3 {
		b.now = 1600 + n*period + n*n%period // late
		b.Expire(b.now)
		b.wantAck(0x40) // those that were missed are one
		b.Write(0xb0, 0)
		if want := 1600 + (n+1)*period; b.Due() != want {
			t.Fatalf("period %d ends at %d, want %d", n+1, b.Due(), want)
		}
		if c := int64(b.Read(0x390)); c != 62501-(b.now-1600)/16%62501 {
			t.Fatalf("count %d at %d", c, b.now)
		}
	}
}

// TestTinyPeriod: a guest must not make the engine turn in circles.
func TestTinyPeriod(t *testing.T) {
	for _, count := range []uint32{1, 2, 3, 7, 100, 49_999} {
		b := newBench(t, 0).enable(false)
		b.Write(0x3e0, 0xb) // by 1
		b.Write(0x320, 0x20040)
		b.now = 123
		b.Write(0x380, count)
		n := 0
		for b.Due() < 10_000_000 {
			if b.Due() <= b.now || (b.Due()-123)%int64(count) != 0 {
				t.Fatalf("count %d: due at %d, now %d", count, b.Due(), b.now)
			}
			b.now = b.Due()
			b.Expire(b.now)
			b.wantAck(0x40)
			b.Write(0xb0, 0)
			n++
		}
		if n < 90 || n > 201 {
			t.Errorf("count %d: %d interrupts in 10 ms", count, n)
		}
		b.now += 1 << 60 // a jump is one step
		b.Expire(b.now)
		if b.Due() <= b.now {
			t.Errorf("count %d: due at %d, now %d", count, b.Due(), b.now)
		}
	}
}

// TestMaskedTimer: a masked timer counts and interrupts nobody, not even later.
func TestMaskedTimer(t *testing.T) {
	b := newBench(t, 0).enable(false)
	b.Write(0x3e0, 0xb)
	b.Write(0x380, 1000)
	if b.Due() != Never {
		t.Error("a masked timer is due")
	}
	b.now = 600
	b.want(0x390, 400)
	b.now = 1500
	b.Write(0x320, 0x40)
	b.wantAck()
	b.want(0x390, 0)
	// Periodic: unmasked in the middle of a period, it interrupts at its end.
	b.Write(0x320, 0x30040)
	b.Write(0x380, 1_000_000)
	b.now += 2_500_000
	b.Write(0x320, 0x20040)
	b.wantAck()
	if b.Due() != 1500+3_000_000 {
		t.Errorf("due at %d", b.Due())
	}
	// To one-shot while it runs: it ends once.
	b.Write(0x320, 0x40)
	b.to(b.Due())
	b.wantAck(0x40)
	if b.Due() != Never {
		t.Error("one-shot goes on")
	}
}

// TestDivideChange: the count goes on from where it was.
func TestDivideChange(t *testing.T) {
	b := newBench(t, 0).enable(false)
	b.Write(0x3e0, 0xb)
	b.Write(0x320, 0x40)
	b.Write(0x380, 1280)
	b.now = 256
	b.Write(0x3e0, 0xa) // by 128
	b.want(0x390, 1024)
	if b.Due() != 256+1024*128 {
		t.Errorf("due at %d", b.Due())
	}
}

func TestDeadline(t *testing.T) {
	b := newBench(t, 0).enable(false)
	b.SetDeadline(1000) // not in that mode
	if b.Deadline() != 0 || b.Due() != Never {
		t.Error("a deadline in one-shot mode")
	}
	b.Write(0x320, 0x40040)
	b.Write(0x380, 77)
	b.want(0x380, 0)
	b.SetDeadline(1001)
	if b.Deadline() != 1001 || b.Due() != 501 {
		t.Errorf("deadline %d, due at %d", b.Deadline(), b.Due())
	}
	b.now = 500
	b.Expire(b.now)
	b.wantAck()
	b.now = 501
	if b.Deadline() != 0 { // reads 0 from the deadline on
		t.Errorf("deadline %d", b.Deadline())
	}
	b.wantAck(0x40)
	b.Write(0xb0, 0)
	b.SetDeadline(3) // past
	b.wantAck(0x40)
	b.Write(0xb0, 0)
	b.SetDeadline(5000)
	b.SetDeadline(0) // disarms
	b.to(10_000)
	b.wantAck()
	b.SetDeadline(1 << 62)
	b.Write(0x320, 0x40) // another mode disarms
	b.Write(0x320, 0x40040)
	if b.Deadline() != 0 {
		t.Error("the deadline survives a change of mode")
	}
	b.SetDeadline(30_000)
	b.Write(0x320, 0x50040) // masked: expires without an interrupt
	b.to(20_000)
	b.Write(0x320, 0x40040)
	b.wantAck()
	if b.Deadline() != 0 {
		t.Error("a masked deadline does not pass")
	}
	none := New(Config{Bus: b, Now: func() int64 { return 0 }})
	none.Write(0xf0, 0x1ff)
	none.Write(0x320, 0x40040)
	if none.Read(0x320) != 0x40 {
		t.Error("deadline mode without a TSC")
	}
}

func TestTSCChanged(t *testing.T) {
	scale := int64(2)
	b := &bench{t: t}
	b.APIC = New(Config{Bus: b, Now: func() int64 { return b.now },
		TSCTime: func(tsc uint64) int64 { return int64(tsc) / scale }})
	b.enable(false)
	b.Write(0x320, 0x40040)
	b.TSCChanged() // not armed
	b.SetDeadline(1000)
	scale = 4
	b.TSCChanged()
	if b.Due() != 250 {
		t.Errorf("due at %d", b.Due())
	}
	scale = 1000
	b.now = 10
	b.TSCChanged()
	b.wantAck(0x40)
}

// TestReservedTimerMode: nothing runs in mode 3.
func TestReservedTimerMode(t *testing.T) {
	b := newBench(t, 0).enable(false)
	b.Write(0x320, 0x60040)
	b.Write(0x380, 100)
	b.SetDeadline(100)
	if b.Due() != Never || b.Read(0x390) != 0 || b.Deadline() != 0 {
		t.Error("mode 3 counts")
	}
}

func TestEndOfTime(t *testing.T) {
	b := newBench(t, 0).enable(false)
	b.now = Never - 5
	b.Write(0x320, 0x20040)
	b.Write(0x380, 1)
	b.want(0x380, 1)
	b.Expire(Never)
	if b.Due() <= b.now && b.Due() != Never {
		t.Errorf("due at %d", b.Due())
	}
}
