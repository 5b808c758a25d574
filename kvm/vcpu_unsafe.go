package kvm

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SetSignalMask is KVM_SET_SIGNAL_MASK: the signals that are blocked while the guest runs, in
// place of the thread's own mask; nil removes it. Only signals 1 to 64 exist.
// Beware: Go's runtime preempts by SIGURG, which should stay unblocked.
func (v *VCPU) SetSignalMask(mask *unix.Sigset_t) error {
	if mask == nil {
		_, err := v.h.ioctl(&opSetSignalMask, 0)
		return err
	}
	// struct kvm_signal_mask: the length, directly followed by the set.
	k := struct {
		length uint32
		set    [2]uint32
	}{length: 8}
	k.set[0], k.set[1] = uint32(mask.Val[0]), uint32(mask.Val[0]>>32)
	_, err := ioctlPtr(&v.h, &opSetSignalMask, &k)
	return err
}

// tscControl and tscOffset are KVM_VCPU_TSC_CTRL and KVM_VCPU_TSC_OFFSET.
const (
	tscControl = 0
	tscOffset  = 0
)

// TSCOffset is the guest's TSC minus the host's (KVM_GET_DEVICE_ATTR, KVM_VCPU_TSC_OFFSET).
// If the guest's frequency differs, the host's is scaled first. Unlike the MSR it tells
// the TSC without the time between reading and using it.
func (v *VCPU) TSCOffset() (uint64, error) {
	var offset uint64
	err := v.tscAttr(&opGetDeviceAttr, &offset)
	return offset, err
}

// SetTSCOffset is the reverse of TSCOffset.
func (v *VCPU) SetTSCOffset(offset uint64) error { return v.tscAttr(&opSetDeviceAttr, &offset) }

func (v *VCPU) tscAttr(o *op, offset *uint64) error {
	var pin runtime.Pinner
	pin.Pin(offset) // the kernel gets its address as a number
	defer pin.Unpin()
	a := deviceAttr{group: tscControl, attr: tscOffset, addr: uint64(uintptr(unsafe.Pointer(offset)))}
	_, err := ioctlPtr(&v.h, o, &a)
	return err
}
