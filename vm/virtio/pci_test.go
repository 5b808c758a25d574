package virtio_test

import (
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

const bar = virtiotest.BARBase

// config gives access to the function's configuration space.
func config(m *virtiotest.Machine) (read func(reg, n int) uint32, write func(reg int, p ...byte)) {
	fn := m.Transport.(*virtio.PCI).Function()
	return func(reg, n int) uint32 {
			var p [4]byte
			fn.Read(reg, p[:n])
			return uint32(p[0]) | uint32(p[1])<<8 | uint32(p[2])<<16 | uint32(p[3])<<24
		}, func(reg int, p ...byte) {
			fn.Write(reg, p)
		}
}

func TestPCIIdentity(t *testing.T) {
	rng, err := virtio.NewRNG(virtio.RNGConfig{})
	if err != nil {
		t.Fatal(err)
	}
	m := virtiotest.New(t, rng, virtiotest.Config{PCI: true})
	read, _ := config(m)
	if v := read(0, 4); v != 0x10441af4 {
		t.Fatalf("identity %#x", v)
	}
	types := map[uint32]int{}
	for at := read(0x34, 1); at != 0; at = read(int(at)+1, 1) {
		if read(int(at), 1) == 9 {
			types[read(int(at)+3, 1)]++
			if l := read(int(at)+2, 1); l < 16 {
				t.Fatalf("capability of %d bytes", l)
			}
		}
	}
	for typ := uint32(1); typ <= 5; typ++ {
		if types[typ] != 1 {
			t.Errorf("%d capabilities of type %d", types[typ], typ)
		}
	}
}

func TestPCIMoveBAR(t *testing.T) {
	for _, bells := range []bool{false, true} {
		m := start(t, &echo{t: t}, virtiotest.Config{PCI: true, Doorbells: bells})
		_, write := config(m)
		echoOnce(t, m, 0, "here")
		write(4, 0, 0) // off: notifications go nowhere
		if v := m.Read(bar+20, 1); v != 0xff {
			t.Fatalf("read of an unmapped BAR gives %#x", v)
		}
		if _, err := m.Rings[0].Add(virtiotest.Buf{Addr: 0x800000, Len: 1}); err != nil {
			t.Fatal(err)
		}
		m.Notify(0)
		time.Sleep(2 * time.Millisecond)
		if _, _, ok := m.Rings[0].Used1(); ok {
			t.Fatal("served without a BAR")
		}
		write(0x10, 0, 0, 8, 0xc0)
		write(4, 6, 0)
		if _, _, err := m.WaitUsed(0, time.Minute); err != nil {
			t.Fatal(err) // moving re-notifies
		}
		if v := m.Read(bar+0x80000+20, 1); v != 15 {
			t.Fatalf("status %#x at the new place", v)
		}
		if _, err := m.Rings[1].Add(virtiotest.Buf{Addr: 0x800000, Len: 1}); err != nil {
			t.Fatal(err)
		}
		m.Write(bar+0x80000+0x6004, 2, 1)
		if _, _, err := m.WaitUsed(1, time.Minute); err != nil {
			t.Fatal(err)
		}
		// Onto something else: not mapped, but not fatal.
		if err := m.Bus.Map(bar+0x100000, 0x1000, discard{}); err != nil {
			t.Fatal(err)
		}
		write(0x10, 0, 0, 0x10, 0xc0)
		write(0x10, 0, 0, 0, 0xc0)
		if v := m.Read(bar+20, 1); v != 15 {
			t.Fatalf("status %#x back home", v)
		}
		if m.Bus.Unmap(bar+0x100000) != true {
			t.Fatal("the other device's mapping is gone")
		}
		echoOnce(t, m, 0, "home")
	}
}

type discard struct{}

func (discard) Read(uint64, []byte)  {}
func (discard) Write(uint64, []byte) {}

func TestPCIVectors(t *testing.T) {
	d := &echo{t: t}
	m := start(t, d, virtiotest.Config{PCI: true})
	for _, tc := range []struct{ write, want uint64 }{{2, 2}, {3, 0xffff}, {0xffff, 0xffff}, {0, 0}} {
		m.Write(bar+16, 2, tc.write)
		if v := m.Read(bar+16, 2); v != tc.want {
			t.Errorf("configuration vector %d reads %#x", tc.write, v)
		}
		m.Write(bar+22, 2, 1)
		m.Write(bar+26, 2, tc.write)
		if v := m.Read(bar+26, 2); v != tc.want {
			t.Errorf("queue vector %d reads %#x", tc.write, v)
		}
	}
	// A queue that does not exist.
	m.Write(bar+22, 2, 2)
	if v := m.Read(bar+24, 2); v != 0 {
		t.Errorf("size %d of a queue that does not exist", v)
	}
	m.Write(bar+24, 2, 8)
	m.Write(bar+28, 2, 1)
	m.Write(bar+26, 2, 1)
	if v := m.Read(bar+26, 2); v != 0xffff {
		t.Errorf("vector %#x of a queue that does not exist", v)
	}
	// Registers of a live queue do not change.
	m.Write(bar+22, 2, 0)
	m.Write(bar+24, 2, 2)
	m.Write(bar+32, 8, 0x1000)
	m.Write(bar+28, 2, 0)
	if m.Read(bar+24, 2) != 64 || m.Read(bar+32, 8) != m.Rings[0].Desc || m.Read(bar+28, 2) != 1 {
		t.Error("a live queue's registers changed")
	}
	before := m.Interrupts.Messages(0)
	d.host.ConfigChanged()
	if m.Interrupts.Messages(0) != before+1 {
		t.Error("no configuration interrupt")
	}
}

func TestPCIWithoutMSIX(t *testing.T) {
	d := &echo{t: t}
	m := start(t, d, virtiotest.Config{PCI: true, INTx: true})
	read, write := config(m)
	if read(0x3d, 1) != 1 {
		t.Fatal("no interrupt pin")
	}
	for at := read(0x34, 1); at != 0; at = read(int(at)+1, 1) {
		if read(int(at), 1) == 0x11 {
			write(int(at)+2, 0, 0)
		}
	}
	echoOnce(t, m, 0, "x")
	if !m.Interrupts.Level() {
		t.Fatal("no interrupt")
	}
	write(4, 6, 4) // INTx disable
	if m.Interrupts.Level() {
		t.Fatal("interrupt while disabled")
	}
	write(4, 6, 0)
	d.host.ConfigChanged()
	if isr := m.Read(bar+0x1000, 1); isr != 3 || m.Interrupts.Level() {
		t.Fatalf("ISR %#x, level %v", isr, m.Interrupts.Level())
	}
	if isr := m.Read(bar+0x1000, 1); isr != 0 {
		t.Fatalf("ISR %#x after reading it", isr)
	}
}

func TestPCIConfigWindow(t *testing.T) {
	m := start(t, &echo{t: t}, virtiotest.Config{PCI: true})
	read, write := config(m)
	at := 0
	for a := read(0x34, 1); a != 0; a = read(int(a)+1, 1) {
		if read(int(a), 1) == 9 && read(int(a)+3, 1) == 5 {
			at = int(a)
		}
	}
	window := func(barIndex byte, off, length uint32) {
		write(at+4, barIndex)
		write(at+8, byte(off), byte(off>>8), byte(off>>16), byte(off>>24))
		write(at+12, byte(length), byte(length>>8), byte(length>>16), byte(length>>24))
	}
	window(0, 20, 1)
	if v := read(at+16, 1); v != 15 {
		t.Fatalf("status %#x through the window", v)
	}
	window(0, 22, 2)
	write(at+16, 1, 0)
	if v := m.Read(bar+22, 2); v != 1 {
		t.Fatalf("queue_select %d", v)
	}
	if v := read(at+16, 2); v != 1 {
		t.Fatalf("queue_select %d through the window", v)
	}
	// A notification.
	if _, err := m.Rings[1].Add(virtiotest.Buf{Addr: 0x800000, Len: 1}); err != nil {
		t.Fatal(err)
	}
	window(0, 0x6004, 2)
	write(at+16, 1, 0)
	if _, _, err := m.WaitUsed(1, time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []struct {
		bar      byte
		off, len uint32
	}{{1, 20, 1}, {0, 20, 3}, {0, 21, 2}, {0, 0x8000, 1}, {0, 0xffffffff, 1}, {0, 0xfffffffc, 4}, {0, 20, 0}} {
		window(bad.bar, bad.off, bad.len)
		write(at+16, 0, 0, 0, 0)
		read(at+16, 4)
	}
	if s := m.Status(); s != 15 {
		t.Fatalf("status %#x", s)
	}
	// Resetting through the window works from inside the lock of the
	// configuration space.
	window(0, 20, 1)
	write(at+16, 0)
	if s := m.Status(); s != 0 {
		t.Fatalf("status %#x", s)
	}
}
