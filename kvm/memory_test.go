package kvm_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/kvm"
)

// writePages is code that writes a byte to each of pages, tells so by a port, and again.
func writePages(pages ...int) []byte {
	var code []byte
	for _, p := range pages {
		code = append(code,
			0xb8, 0, byte(p), // mov $page*256, %ax
			0x8e, 0xd8, // mov %ax, %ds
			0xc6, 0x06, 0x10, 0x00, 0x5a) // movb $0x5a, 0x10
	}
	code = append(code, 0xe6, 0xe9) // out %al, $0xe9
	return append(code, 0xe9, byte(-len(code)-3), byte((-len(code)-3)>>8))
}

// words is a bitmap for the guest's memory.
const words = memSize / 4096 / 64

// pagesOf lists the pages in bitmap, without that of the code: KVM may map that
// writable, and then log it, at the first fetch.
func pagesOf(bitmap []uint64) (pages []int) {
	for i := range len(bitmap) * 64 {
		if i != entry/4096 && bitmap[i/64]>>(i%64)&1 != 0 {
			pages = append(pages, i)
		}
	}
	return pages
}

func wantPages(t *testing.T, what string, bitmap []uint64, want ...int) {
	t.Helper()
	if got := pagesOf(bitmap); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: pages %v, not %v", what, got, want)
	}
}

func TestMemoryRegion(t *testing.T) {
	g := newGuest(t, nil, writePages(5)...)
	g.run(kvm.ExitIO)
	if g.mem[5*4096+0x10] != 0x5a {
		t.Error("the write is not in memory")
	}

	var e *kvm.Error
	err := g.vm.SetUserMemoryRegion(kvm.UserMemoryRegion{Slot: 7, GuestPhysAddr: 0x100001, MemorySize: 4096, UserspaceAddr: g.addr})
	if !errors.As(err, &e) || e.Errno != unix.EINVAL || !strings.Contains(err.Error(), "slot 7") {
		t.Errorf("a misaligned region: %v", err)
	}
	err = g.vm.SetUserMemoryRegion(kvm.UserMemoryRegion{Slot: 7, MemorySize: 4096, UserspaceAddr: g.addr})
	if !errors.Is(err, unix.EEXIST) {
		t.Errorf("an overlapping region: %v", err)
	}

	// Without the slot, and so without code, the guest cannot go on.
	g.ok(g.vm.SetUserMemoryRegion(kvm.UserMemoryRegion{}))
	run := kvmtest.Run(t, g.cpu, limit)
	if run.ExitReason == kvm.ExitIO {
		t.Errorf("a guest without memory runs on")
	}
}

func TestMemoryReadOnly(t *testing.T) {
	g := newGuest(t, nil, writePages(5)...)
	n, err := g.vm.CheckExtension(kvm.CapReadOnlyMem)
	g.ok(err)
	if n == 0 {
		kvmtest.Skipf(t, "this host lacks %v", kvm.CapReadOnlyMem)
	}
	g.ok(g.vm.SetUserMemoryRegion(kvm.UserMemoryRegion{})) // flags cannot change so
	g.slot(kvm.MemReadOnly)
	m := g.run(kvm.ExitMMIO).MMIO()
	if m.PhysAddr != 5*4096+0x10 || m.IsWrite != 1 || string(m.Bytes()) != "\x5a" {
		t.Errorf("%+v", *m)
	}
	if g.mem[5*4096+0x10] != 0 {
		t.Error("the write is in memory")
	}
}

func TestDirtyLog(t *testing.T) {
	g := newGuest(t, nil, writePages(5, 200)...)
	bitmap := make([]uint64, words)
	if err := g.vm.GetDirtyLog(0, bitmap); !errors.Is(err, unix.ENOENT) {
		t.Errorf("GetDirtyLog of a slot without one = %v", err)
	}
	if err := g.vm.GetDirtyLog(0, nil); !errors.Is(err, kvm.ErrInvalid) {
		t.Errorf("GetDirtyLog without bitmap = %v", err)
	}
	g.slot(kvm.MemLogDirtyPages)
	g.run(kvm.ExitIO)
	for range 2 {
		g.run(kvm.ExitIO)
		g.ok(g.vm.GetDirtyLog(0, bitmap))
		wantPages(t, "after writes", bitmap, 5, 200)
	}
	g.ok(g.vm.GetDirtyLog(0, bitmap))
	wantPages(t, "without writes", bitmap)
}

func TestDirtyLogManualProtect(t *testing.T) {
	g := newGuest(t, func(vm *kvm.VM) {
		kvmtest.Need(t, vm.EnableManualDirtyProtect(kvm.DirtyManualProtect))
	}, writePages(5, 200)...)
	g.slot(kvm.MemLogDirtyPages)
	g.run(kvm.ExitIO)
	bitmap := make([]uint64, words)
	for range 2 { // reading does not clear
		g.ok(g.vm.GetDirtyLog(0, bitmap))
		wantPages(t, "after writes", bitmap, 5, 200)
	}
	g.ok(g.vm.ClearDirtyLog(0, 192, 64, []uint64{1 << (200 - 192)}))
	g.ok(g.vm.GetDirtyLog(0, bitmap))
	wantPages(t, "after clearing one", bitmap, 5)
	g.run(kvm.ExitIO)
	g.ok(g.vm.GetDirtyLog(0, bitmap))
	wantPages(t, "after writing again", bitmap, 5, 200)

	if err := g.vm.ClearDirtyLog(0, 0, 128, make([]uint64, 1)); !errors.Is(err, kvm.ErrInvalid) {
		t.Errorf("ClearDirtyLog with too short a bitmap = %v", err)
	}
	if err := g.vm.ClearDirtyLog(0, 3, 64, make([]uint64, 1)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("ClearDirtyLog from page 3 = %v", err)
	}
}

func TestDirtyRing(t *testing.T) {
	const entries = 256
	g := newGuest(t, func(vm *kvm.VM) {
		for _, n := range []int{-1, 0, 3, 1000} {
			if err := vm.EnableDirtyRing(n); !errors.Is(err, kvm.ErrInvalid) {
				t.Errorf("EnableDirtyRing(%d) = %v", n, err)
			}
		}
		kvmtest.Need(t, vm.EnableDirtyRing(entries))
	}, writePages(5, 200)...)
	ring, err := g.cpu.DirtyRing()
	g.ok(err)
	if ring.Len() != entries {
		t.Errorf("Len = %d", ring.Len())
	}
	if again, err := g.cpu.DirtyRing(); again != ring || err != nil {
		t.Errorf("DirtyRing again = %p, %v", again, err)
	}
	g.slot(kvm.MemLogDirtyPages)
	taken := 0
	harvest := func() (pages []uint64) {
		for {
			p, ok := ring.Next()
			if !ok {
				return pages
			}
			if p.Slot != 0 {
				t.Errorf("%+v", p)
			}
			taken++
			if p.Page != entry/4096 { // see pagesOf
				pages = append(pages, p.Page)
			}
		}
	}
	native := kvmtest.Native(t, g.sys)
	for range entries { // twice round the ring
		g.run(kvm.ExitIO)
		if pages := harvest(); len(pages) != 2 || pages[0] != 5 || pages[1] != 200 {
			t.Fatalf("pages %v in the ring", pages)
		}
		g.run(kvm.ExitIO)
		// An emulator logs each write.
		if pages := harvest(); len(pages) != 0 && native {
			t.Fatalf("pages %v in the ring, before they were protected again", pages)
		}
		if n, err := g.vm.ResetDirtyRings(); n != taken || err != nil {
			t.Fatalf("ResetDirtyRings = %d, %v, after %d entries", n, err, taken)
		}
		taken = 0
	}
}

func TestDirtyRingFull(t *testing.T) {
	g := newGuest(t, func(vm *kvm.VM) { kvmtest.Need(t, vm.EnableDirtyRing(256)) },
		0xb8, 0x00, 0x20, // mov $0x2000, %ax
		0x05, 0x00, 0x01, // 1: add $0x100, %ax
		0x8e, 0xd8, // mov %ax, %ds
		0xfe, 0x06, 0x00, 0x00, // incb 0
		0xeb, 0xf5) // jmp 1b
	_, addr := kvmtest.Memory(t, 4<<20)
	g.ok(g.vm.SetUserMemoryRegion(kvm.UserMemoryRegion{
		Slot: 1, Flags: kvm.MemLogDirtyPages, GuestPhysAddr: memSize, MemorySize: 4 << 20, UserspaceAddr: addr}))
	g.slot(kvm.MemLogDirtyPages)
	ring, err := g.cpu.DirtyRing()
	g.ok(err)
	g.run(kvm.ExitDirtyRingFull)
	n := 0
	for {
		if _, ok := ring.Next(); !ok {
			break
		}
		n++
	}
	if n < 64 || n > 256 {
		t.Errorf("%d entries in a full ring of 256", n)
	}
}

func TestDirtyRingMissing(t *testing.T) {
	g := newGuest(t, nil)
	if _, err := g.cpu.DirtyRing(); !errors.Is(err, kvm.ErrInvalid) {
		t.Errorf("DirtyRing without EnableDirtyRing = %v", err)
	}
}

func TestCoalescedMMIO(t *testing.T) {
	g := newGuest(t, nil,
		0xc7, 0x06, 0x10, 0x00, 0x34, 0x12, // movw $0x1234, 0x10
		0xc6, 0x06, 0x12, 0x00, 0x56, // movb $0x56, 0x12
		0xc6, 0x06, 0x00, 0x10, 0x78, // movb $0x78, 0x1000 (outside)
		0xe6, 0xe9) // out %al, $0xe9
	sregs, err := g.cpu.Sregs()
	g.ok(err)
	sregs.DS.Base = noMemory
	g.ok(g.cpu.SetSregs(&sregs))
	zone := kvm.CoalescedZone{Addr: noMemory, Size: 0x1000}
	g.ok(g.vm.RegisterCoalescedMMIO(zone))
	var w kvm.CoalescedWrite
	if ok, err := g.cpu.NextCoalesced(&w); ok || err != nil {
		t.Fatalf("a write before any: %v, %v", w, err)
	}
	if m := g.run(kvm.ExitMMIO).MMIO(); m.PhysAddr != noMemory+0x1000 {
		t.Fatalf("%+v", *m)
	}
	for _, want := range []struct {
		addr uint64
		data string
	}{{noMemory + 0x10, "\x34\x12"}, {noMemory + 0x12, "\x56"}} {
		ok, err := g.cpu.NextCoalesced(&w)
		if !ok || err != nil || w.PhysAddr != want.addr || w.PIO != 0 || string(w.Bytes()) != want.data {
			t.Errorf("%+v, %v, %v, not %+v", w, ok, err, want)
		}
	}
	if ok, err := g.cpu.NextCoalesced(&w); ok || err != nil {
		t.Errorf("a third write: %v, %v", w, err)
	}

	g.ok(g.vm.RegisterCoalescedMMIO(kvm.CoalescedZone{Addr: 0xe9, Size: 1, PIO: true}))
	copy(g.mem[0x3000:], []byte{0xb0, 0x99, 0xe6, 0xe9, 0xe6, 0xea}) // mov $0x99, %al; out; out
	g.ok(g.cpu.SetRegs(&kvm.Regs{RIP: 0x3000, RFLAGS: 2}))
	if kvmtest.Run(t, g.cpu, limit).ExitReason == kvm.ExitMMIO {
		g.run(kvm.ExitIO) // the MMIO exit was pending
	}
	ok, err := g.cpu.NextCoalesced(&w)
	if !ok || err != nil || w.PhysAddr != 0xe9 || w.PIO != 1 || string(w.Bytes()) != "\x99" {
		t.Errorf("%+v, %v, %v for a port", w, ok, err)
	}

	g.ok(g.vm.UnregisterCoalescedMMIO(zone))
	g.ok(g.cpu.SetRegs(&kvm.Regs{RIP: entry, RFLAGS: 2}))
	if m := g.run(kvm.ExitMMIO).MMIO(); m.PhysAddr != noMemory+0x10 {
		t.Errorf("after unregistering: %+v", *m)
	}
}
