package pit

import (
	"encoding/binary"
	"testing"

	"github.com/vmkit-go/vmkit/vcpu"
)

var ports = []uint16{0x40, 0x41, 0x42, 0x43, 0x61}

// step does what four bytes say and returns what was read.
func (b *bench) step(p []byte) byte {
	port := ports[int(p[0]>>3)%len(ports)]
	switch p[0] & 7 {
	case 0, 1, 2:
		b.write(port, p[1])
	case 3, 4:
		return b.Read(port, b.now)
	case 5:
		b.now += int64(binary.LittleEndian.Uint16(p[2:])) << (p[1] & 31)
		if b.Expire(b.now) {
			b.ticks++
		}
	default:
		b.to(b.now + int64(binary.LittleEndian.Uint16(p[2:]))<<(p[1]&7))
	}
	return 0
}

// FuzzPIT does anything to a chip, saves it at some moment, and has one with its
// state and another clock go the same way from there.
func FuzzPIT(f *testing.F) {
	f.Add([]byte{24, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 6, 7, 255, 255, 3, 0, 0, 0, 24, 0xc2, 0, 0, 3, 0, 0, 0}, uint8(4), uint32(0))
	f.Add([]byte{24, 0xb2, 0, 0, 16, 9, 0, 0, 16, 0, 0, 0, 32, 1, 0, 0, 6, 7, 255, 255, 35, 0, 0, 0, 32, 0, 0, 0}, uint8(3), uint32(1234))
	f.Fuzz(func(t *testing.T, data []byte, save uint8, shift uint32) {
		b := newBench(t)
		var o *bench
		for i := 0; len(data) >= 4; i, data = i+1, data[4:] {
			if i == int(save) {
				s := b.Save(b.now)
				if err := (&vcpu.ChipState{PIT: &s}).Validate(); err != nil {
					t.Fatal(err)
				}
				o = newBench(t)
				o.now = b.now + int64(shift)
				o.ticks = b.ticks
				if err := o.Load(&s, o.now); err != nil {
					t.Fatal(err)
				}
			}
			got := b.step(data)
			if b.Due() <= b.now {
				t.Fatalf("due at %d, now %d", b.Due(), b.now)
			}
			for c := range b.counters {
				b.counters[c].value(b.now)
				b.counters[c].out(b.now)
			}
			if o == nil {
				continue
			}
			again := o.step(data)
			if data[0]>>3%5 == 4 {
				// The refresh follows the clock, not the state.
				got, again = got&^systemRefresh, again&^systemRefresh
			}
			due := o.Due()
			if due != Never {
				due -= int64(shift)
			}
			if got != again || b.ticks != o.ticks || due != b.Due() || b.Save(b.now) != o.Save(o.now) {
				t.Fatalf("step %d: reads %#x and %#x, %d and %d interrupts, due at %d and %d\n%+v\n%+v",
					i, got, again, b.ticks, o.ticks, b.Due(), due, b.Save(b.now), o.Save(o.now))
			}
		}
	})
}

// FuzzLoad loads any state.
func FuzzLoad(f *testing.F) {
	f.Add(uint32(1), uint8(0x12), uint8(2), uint8(1), int64(5), []byte{3, 0, 0, 0, 5, 20, 255, 255})
	f.Fuzz(func(t *testing.T, count uint32, states, mode, flags uint8, elapsed int64, data []byte) {
		b := newBench(t)
		var s vcpu.PIT
		for i := range s.Channels {
			s.Channels[i] = vcpu.PITChannel{
				Count: count, LatchedCount: uint16(count), CountLatched: states & 3, ReadState: states >> 2 & 7, WriteState: states >> 5,
				RWMode: flags & 3, Mode: mode, BCD: flags&4 != 0, Gate: flags&8 != 0, StatusLatched: flags&16 != 0, Elapsed: elapsed,
			}
		}
		s.HPETLegacy, s.SpeakerOn = flags&32 != 0, flags&64 != 0
		if b.Load(&s, 0) != nil {
			return
		}
		for ; len(data) >= 4; data = data[4:] {
			b.step(data)
			if b.Due() <= b.now {
				t.Fatalf("due at %d, now %d", b.Due(), b.now)
			}
		}
	})
}
