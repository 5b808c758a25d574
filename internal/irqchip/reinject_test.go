package irqchip

import (
	"testing"

	"github.com/vmkit-go/vmkit/internal/platform"
)

// TestReinject: ticks that come while the guest does not run are not lost, and do not
// fall together.
func TestReinject(t *testing.T) {
	const period = 4_000_000
	pit := func(b *bench) {
		b.cfg.Reinject = true
		b.out(platform.PortPITControl, 0x34)
		b.out(platform.PortPIT, 0xa4, 0x12) // 3.9994 ms
	}
	// serve counts the ticks that a guest gets by a time, which looks every so often.
	serve := func(b *bench, until, step int64, take func() bool) (ticks int) {
		for b.now < until {
			b.now += step
			b.Advance(b.now)
			for take() {
				ticks++
			}
		}
		return ticks
	}
	t.Run("IOAPIC", func(t *testing.T) {
		b := newBench(t, 1)
		b.xapic()
		b.out(platform.PortPIC1+1, 0xff)
		b.redirect(platform.GSITimer, 0x30)
		pit(b)
		take := func() bool {
			_, ok := b.LAPIC(0).Ack()
			if ok {
				b.LAPIC(0).Write(0xb0, 0)
			}
			return ok
		}
		b.now = 20*period + period/2
		b.Advance(b.now)
		if n := serve(b, 25*period, retry/2, take); n != 25 {
			t.Errorf("%d ticks in 25 periods", n)
		}
		b.now += 1e15
		b.Advance(b.now)
		if n := serve(b, b.now+maxOwed*retry*2, retry/2, take); n < maxOwed || n > maxOwed+maxOwed*retry*2/period {
			t.Errorf("%d ticks after a long time", n)
		}
		b.redirect(platform.GSITimer, 1<<16)
		b.now += 20 * period
		b.Advance(b.now)
		b.redirect(platform.GSITimer, 0x30)
		if n := serve(b, b.now+10*period, retry/2, take); n < 9 || n > 11 {
			t.Errorf("%d ticks in 10 periods after the input was masked", n)
		}
	})
	t.Run("PIC", func(t *testing.T) {
		b := newBench(t, 1)
		b.out(platform.PortPIC1, 0x11)
		b.out(platform.PortPIC1+1, 0x30, 4, 1, 0xfe)
		pit(b)
		take := func() bool {
			if !b.pics.Output() {
				return false
			}
			b.pics.Ack()
			b.out(platform.PortPIC1, 0x20)
			return true
		}
		b.now = 10*period + period/2
		b.Advance(b.now)
		if n := serve(b, 20*period, retry/2, take); n != 20 {
			t.Errorf("%d ticks in 20 periods", n)
		}
		// Unserved, the chips go on to look, and do nothing.
		b.now = b.Next()
		b.Advance(b.now)
		wakes := b.wakes[0]
		for range 100 {
			b.now = b.Next()
			b.Advance(b.now)
		}
		if b.wakes[0] > wakes+1 {
			t.Errorf("%d wakes", b.wakes[0]-wakes)
		}
	})
}
