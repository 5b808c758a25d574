package lapic

import (
	"encoding/binary"
	"fmt"

	"github.com/vmkit-go/vmkit/vcpu"
)

// PageSize is the length of the register page.
const PageSize = 4096

// The page has what KVM_GET_LAPIC gives and KVM_SET_LAPIC takes: each register
// at its offset, the ID in xAPIC form, the current count. Two things that KVM
// does not have are where it ignores them:
const (
	// pageErrors, after the error status register, has the errors that have
	// happened since it was written. KVM keeps these bytes and shows them to
	// nobody.
	pageErrors = regESR*pageRegStep + 4
	// versionStopped is a reserved bit of the version register, which KVM sets
	// anew on a load. It says that the timer has an initial count and does not
	// count: it has expired, and its interrupt was delivered. KVM cannot tell
	// that from a timer whose interrupt it owes; it would send one more.
	versionStopped = 1 << 30
)

// Save puts the registers into page, which has PageSize bytes.
func (a *APIC) Save(page []byte) {
	now := a.settle()
	clear(page)
	put := func(reg int, v uint32) { binary.LittleEndian.PutUint32(page[reg*pageRegStep:], v) }
	for reg := range uint32(regCount) {
		if v, ok := a.get(reg); ok {
			put(int(reg), v)
		}
	}
	binary.LittleEndian.PutUint32(page[pageErrors:], a.errs)
	if t := &a.timer; t.counting {
		put(regCurrent, t.count(now))
	} else if t.initial != 0 {
		put(regVersion, version|versionStopped)
	}
}

// Load takes the registers from a page, which it checks. IA32_APIC_BASE is to be
// loaded before, the TSC deadline after. A count that goes on does so from now.
// Bits that a register does not have are dropped. Non-maskable interrupts, INIT
// and start-up interrupts that have arrived are forgotten: they travel
// elsewhere.
func (a *APIC) Load(page []byte) error {
	if len(page) != PageSize {
		return fmt.Errorf("%w: local APIC page of %d bytes, want %d", vcpu.ErrState, len(page), PageSize)
	}
	get := func(reg int) uint32 { return binary.LittleEndian.Uint32(page[reg*pageRegStep:]) }
	id := uint8(get(regID) >> 24)
	if a.x2() && id != a.cfg.ID {
		return fmt.Errorf("%w: local APIC ID %d in x2APIC mode, want %d", vcpu.ErrState, id, a.cfg.ID)
	}
	a.Reset()
	a.init, a.sipi = false, false
	a.id = id
	a.tpr = uint8(get(regTPR))
	if !a.x2() {
		a.ldr = get(regLDR) & 0xff000000
	}
	a.dfr = get(regDFR) | 0x0fffffff
	a.svr = get(regSVR) & svrWritable
	a.esr = get(regESR) & 0xff
	a.errs = binary.LittleEndian.Uint32(page[pageErrors:]) & 0xff
	a.icr, a.icrHigh = get(regICR)&icrWritable, get(regICRHigh)
	if !a.x2() {
		a.icrHigh &= 0xff000000
	}
	for i := range 8 {
		a.isr[i], a.tmr[i], a.irr[i] = get(regISR+i), get(regTMR+i), get(regIRR+i)
	}
	const illegal = 1<<firstVector - 1
	a.isr[0] &^= illegal
	a.tmr[0] &^= illegal
	a.irr[0] &^= illegal
	a.updatePPR()
	for i := range a.lvt {
		a.lvt[i] = get(regLVT+i) & a.lvtMasked(i)
	}
	a.setDivide(get(regDivide))
	a.loadTimer(get(regInitial), get(regCurrent), get(regVersion)&versionStopped != 0)
	return nil
}

func (a *APIC) loadTimer(initial, current uint32, stopped bool) {
	t := &a.timer
	if !a.on() || a.timerMode()&modeDeadline != 0 {
		a.schedule()
		return
	}
	t.initial = initial
	current = min(current, initial)
	now := a.cfg.Now()
	switch {
	case initial == 0 || stopped && current == 0:
	case current != 0:
		t.start(current, now)
	case a.timerMode() == modePeriodic:
		t.start(initial, now)
	default:
		// It expired while the CPU did not run, and the interrupt is due.
		a.local(lvtTimer)
	}
	a.schedule()
}
