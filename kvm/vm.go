package kvm

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// VM is a virtual machine: memory slots, interrupt chips and vCPUs. Its methods
// may be called from any goroutine. Close releases it; the machine's resources
// in the kernel live until its vCPUs are closed too.
type VM struct {
	h        handle
	mmapSize int

	mu            sync.Mutex // guards what follows
	dirtyRingSize uint32     // bytes, 0 when not enabled
	coalescedPage int        // page of the ring in a vCPU's mapping, 0 when not asked yet

	coalescedMu sync.Mutex // serializes readers of the coalesced MMIO ring
}

// Close closes the handle.
func (vm *VM) Close() error { return vm.h.close() }

// CheckExtension is KVM_CHECK_EXTENSION on the VM: 0 if this VM lacks c; otherwise
// a positive number whose meaning depends on c.
func (vm *VM) CheckExtension(c Cap) (int, error) {
	return vm.h.ioctl(&opCheckExtension, uintptr(c))
}

// EnableCap is KVM_ENABLE_CAP on the VM, with at most four arguments.
func (vm *VM) EnableCap(c Cap, args ...uint64) error { return enableCapOn(&vm.h, c, args) }

func enableCapOn(h *handle, c Cap, args []uint64) error {
	k := enableCap{cap: uint32(c)}
	if len(args) > len(k.args) {
		return invalid(opEnableCap.name, "%d arguments, of at most %d", len(args), len(k.args))
	}
	copy(k.args[:], args)
	o := op{fmt.Sprintf("%s(%v)", opEnableCap.name, c), opEnableCap.req, c}
	_, err := ioctlPtr(h, &o, &k)
	return err
}

// CreateVCPU is KVM_CREATE_VCPU. The id is also the initial APIC ID.
func (vm *VM) CreateVCPU(id int) (*VCPU, error) {
	if id < 0 {
		return nil, invalid(opCreateVCPU.name, "vCPU %d", id)
	}
	name := fmt.Sprintf("vCPU %d", id)
	fd, err := vm.h.ioctl(&opCreateVCPU, uintptr(id))
	if err != nil {
		if e, ok := err.(*Error); ok {
			e.Detail = name
		}
		return nil, err
	}
	unix.CloseOnExec(fd)
	v := &VCPU{h: handle{name: name, fd: fd, parent: &vm.h}, vm: vm, id: id}
	if err := v.mapRun(vm.mmapSize); err != nil {
		unix.Close(fd)
		return nil, err
	}
	v.h.free = v.unmap
	return v, nil
}

// SetTSSAddr is KVM_SET_TSS_ADDR: three pages of guest-physical address space below
// 4 GiB, that Intel hosts need for real mode. Before the first vCPU.
func (vm *VM) SetTSSAddr(addr uint32) error {
	_, err := vm.h.ioctl(&opSetTSSAddr, uintptr(addr))
	return err
}

// SetIdentityMapAddr is KVM_SET_IDENTITY_MAP_ADDR: one page below 4 GiB, for the same
// purpose. Before the first vCPU. 0 means 0xfffbc000.
func (vm *VM) SetIdentityMapAddr(addr uint64) error {
	_, err := ioctlPtr(&vm.h, &opSetIdentityMapAddr, &addr)
	return err
}

// SetBootCPUID is KVM_SET_BOOT_CPU_ID: the vCPU that starts as bootstrap processor, 0 by
// default. Before the first vCPU.
func (vm *VM) SetBootCPUID(id int) error {
	if id < 0 {
		return invalid(opSetBootCPUID.name, "vCPU %d", id)
	}
	_, err := vm.h.ioctl(&opSetBootCPUID, uintptr(id))
	return err
}

// GetClock is KVM_GET_CLOCK.
func (vm *VM) GetClock() (ClockData, error) {
	var c ClockData
	_, err := ioctlPtr(&vm.h, &opGetClock, &c)
	return c, err
}

// SetClock is KVM_SET_CLOCK. Of c.Flags only ClockRealtime may be set.
func (vm *VM) SetClock(c *ClockData) error {
	_, err := ioctlPtr(&vm.h, &opSetClock, c)
	return err
}
