package kvmcpu

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkit-go/vmkit/internal/irqchip"
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/kvm"
)

// userChips are the interrupt chips of ChipsUser. Their clock is the host's
// monotonic one, and one timer wakes them when they next do something.
//
// Accesses come from the CPUs' threads (serve), interrupts from any goroutine
// and the timer. All of them tell a CPU of news through wake.
type userChips struct {
	*irqchip.Chips
	e     *Engine
	begin time.Time
	cpus  []atomic.Pointer[CPU] // by index, nil until one is made

	mu     sync.Mutex
	timer  *time.Timer
	due    int64 // when timer fires
	closed bool
}

// setUpUserChips makes the chips, and KVM leave the MSRs to them that are theirs.
// It lets x2APIC's through by itself, because it has no local APIC.
func (e *Engine) setUpUserChips() error {
	if err := e.vm.EnableUserSpaceMSR(kvm.MSRExitInval | kvm.MSRExitFilter); err != nil {
		return err
	}
	var filter kvm.MSRFilter
	for _, m := range [...]uint32{msrAPICBase, msrTSCDeadline} {
		filter.Ranges = append(filter.Ranges, kvm.MSRFilterRange{
			Flags: kvm.MSRFilterRead | kvm.MSRFilterWrite, Base: m, Count: 1, Bitmap: make([]byte, 1),
		})
	}
	if err := e.vm.SetMSRFilter(filter); err != nil {
		return err
	}
	u := &userChips{e: e, begin: time.Now(), cpus: make([]atomic.Pointer[CPU], e.cpus), due: irqchip.Never}
	var err error
	u.Chips, err = irqchip.New(irqchip.Config{CPUs: e.cpus, Now: u.now, TSCTime: u.tscTime, Reinject: true, Wake: u.wake})
	if err != nil {
		return err
	}
	u.timer = time.AfterFunc(time.Hour, u.expire)
	u.timer.Stop()
	e.user = u
	u.retime()
	return nil
}

// now is the chips' clock.
func (u *userChips) now() int64 { return int64(time.Since(u.begin)) }

// tscTime is when a CPU's TSC reaches a value. It is asked for on the thread of that
// CPU, or while that does not run. A guest that sets its TSC keeps the time
// of a deadline that it has set before.
func (u *userChips) tscTime(cpu int, tsc uint64) int64 {
	c := u.cpus[cpu].Load()
	khz, err := c.v.TSCKHz()
	if err != nil || khz <= 0 {
		return irqchip.Never
	}
	read := &c.local.tsc
	if _, err := c.v.GetMSRs(read[:]); err != nil {
		return irqchip.Never
	}
	now := u.now()
	if tsc <= read[0].Data {
		return now
	}
	// In float64 a wait of an hour is exact to a nanosecond.
	wait := float64(tsc-read[0].Data) / float64(khz) * 1e6
	if wait > 1<<60 {
		return irqchip.Never
	}
	return now + int64(wait) + 1
}

// wake tells a CPU of news. The chips are locked.
func (u *userChips) wake(cpu int) {
	if c := u.cpus[cpu].Load(); c != nil {
		c.poke()
	}
}

// expire lets happen what is due.
func (u *userChips) expire() {
	u.mu.Lock()
	u.due = irqchip.Never
	u.mu.Unlock()
	u.Advance(u.now())
	u.retime()
}

// retime sets the timer for what the chips do next. It follows every access to them.
func (u *userChips) retime() {
	u.mu.Lock()
	defer u.mu.Unlock()
	next := u.Next()
	if next == u.due || u.closed {
		return
	}
	u.due = next
	if next == irqchip.Never {
		u.timer.Stop()
		return
	}
	u.timer.Reset(time.Duration(max(next-u.now(), 0)))
}

func (u *userChips) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	u.timer.Stop()
}

// port serves a port access, if it is one to the chips. p are count values of size
// bytes.
func (u *userChips) port(port uint16, size uint8, write bool, p []byte) bool {
	ports := u.Ports()
	if !ports.HandlesPort(port) {
		return false
	}
	for i := range p {
		q := port + uint16(i%int(size))
		if write {
			ports.WritePort(q, p[i])
		} else {
			p[i] = ports.ReadPort(q)
		}
	}
	return true
}

// memory serves an access to memory, if it is one to registers of the chips that cpu
// sees. These have 32 bits, at multiples of 16: narrower reads give a part,
// narrower writes do nothing.
func (u *userChips) memory(cpu int, addr uint64, write bool, p []byte) bool {
	apic := u.LAPIC(cpu)
	at, on := apic.Page()
	off := uint32(addr & (irqchip.PageSize - 1))
	page := addr - uint64(off)
	local := on && page == at
	if !local && page != platform.IOAPICBase {
		return false
	}
	reg := off &^ 3
	switch {
	case write && (off != reg || len(p) < 4):
	case write && local:
		apic.Write(reg, binary.LittleEndian.Uint32(p))
	case write:
		u.WriteIOAPIC(uint64(reg), binary.LittleEndian.Uint32(p))
	default:
		var v uint64
		if local {
			v = uint64(apic.Read(reg))
		} else {
			v = uint64(u.ReadIOAPIC(uint64(reg)))
		}
		v >>= 8 * (off & 3)
		for i := range p {
			p[i] = byte(v >> (8 * i))
		}
	}
	return true
}

// writeMSR serves a write to an MSR of the local APIC, and returns false for #GP.
func (u *userChips) writeMSR(cpu int, index uint32, v uint64) bool {
	l := u.LAPIC(cpu)
	if index != msrAPICBase {
		return l.WriteMSR(index, v)
	}
	// KVM knows the width of addresses, and its CPUID shows whether the local
	// APIC is on.
	k := u.cpus[cpu].Load().v
	old := l.Base()
	if _, err := k.SetMSRs([]kvm.MSREntry{{Index: index, Data: v}}); err != nil {
		return false
	}
	if !l.SetBase(v) {
		_, _ = k.SetMSRs([]kvm.MSREntry{{Index: index, Data: old}}) // it had that before
		return false
	}
	return true
}
