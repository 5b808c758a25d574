package kvm

import "golang.org/x/sys/unix"

// VCPU is one virtual CPU. See the package comment for which goroutine may use it.
type VCPU struct {
	h   handle
	vm  *VM
	id  int
	run *Run

	mapping []byte // kvm_run, the PIO data and the coalesced MMIO ring
	ring    *DirtyRing
	ringMap []byte
}

// errEINTR and errEAGAIN are the errors of Run that are no failures, ready made.
var (
	errEINTR  error = unix.EINTR
	errEAGAIN error = unix.EAGAIN
)

// ID is the number that the vCPU was created with.
func (v *VCPU) ID() int { return v.id }

// VM returns the VM that the vCPU belongs to.
func (v *VCPU) VM() *VM { return v.vm }

// Close closes the vCPU and unmaps its Run page. A Run in progress is not
// interrupted; the kernel's vCPU lives until it returns.
func (v *VCPU) Close() error { return v.h.close() }

// RunData returns the page that the kernel shares with user space. It must not be
// touched after Close.
func (v *VCPU) RunData() *Run { return v.run }

// Run is KVM_RUN: it runs the guest until something needs attention, which
// RunData then tells. The caller should be locked to its thread.
//
// The errors unix.EINTR (a signal arrived or immediate exit is on) and
// unix.EAGAIN (the vCPU is an application processor that has been woken from
// waiting) are returned as they are, can be compared with == and call for
// another Run. Anything else is an *Error and final. Run allocates nothing
// unless it fails.
func (v *VCPU) Run() error {
	if !v.h.acquire() {
		return v.h.closedError(opRun.name)
	}
	_, errno := ioctl(v.h.fd, opRun.req, 0)
	v.h.release()
	switch errno {
	case 0:
		return nil
	case unix.EINTR:
		return errEINTR
	case unix.EAGAIN:
		return errEAGAIN
	}
	return &Error{Op: opRun.name, Detail: v.h.name, Errno: errno}
}

// SetImmediateExit makes the current and later calls of Run return EINTR before
// they enter the guest again, for as long as it is on. A guest that is already
// running leaves only if a signal is sent to the thread too. It may be called
// from any goroutine, and does nothing after Close.
func (v *VCPU) SetImmediateExit(on bool) {
	if v.h.acquire() {
		v.run.SetImmediateExit(on)
		v.h.release()
	}
}

// IOData returns the bytes of an ExitIO: Count times Size of them, that the guest
// wrote, or that it will read. They are valid until the next Run.
func (v *VCPU) IOData() []byte {
	io := v.run.IO()
	n := uint64(io.Size) * uint64(io.Count)
	size := uint64(len(v.mapping))
	if io.DataOffset > size || n > size-io.DataOffset {
		return nil
	}
	return v.mapping[io.DataOffset:][:n:n]
}

// EnableCap is KVM_ENABLE_CAP on the vCPU, with at most four arguments.
func (v *VCPU) EnableCap(c Cap, args ...uint64) error { return enableCapOn(&v.h, c, args) }

// Interrupt is KVM_INTERRUPT: it queues an external interrupt. Without in-kernel local
// APIC the guest must be ready for it (Run.ReadyForInterruptInjection);
// with the split irqchip it is an interrupt of the user-space PIC.
func (v *VCPU) Interrupt(vector uint8) error {
	irq := uint32(vector)
	_, err := ioctlPtr(&v.h, &opInterrupt, &irq)
	return err
}

// NMI is KVM_NMI: it queues a non-maskable interrupt.
func (v *VCPU) NMI() error {
	_, err := v.h.ioctl(&opNMI, 0)
	return err
}

// Translate is KVM_TRANSLATE: it walks the guest's page tables for a linear address.
func (v *VCPU) Translate(linear uint64) (Translation, error) {
	t := Translation{LinearAddress: linear}
	_, err := ioctlPtr(&v.h, &opTranslate, &t)
	return t, err
}

// SetGuestDebug is KVM_SET_GUEST_DEBUG: single step and breakpoints, that leave Run with
// ExitDebug.
func (v *VCPU) SetGuestDebug(d *GuestDebug) error {
	_, err := ioctlPtr(&v.h, &opSetGuestDebug, d)
	return err
}
