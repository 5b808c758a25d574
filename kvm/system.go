package kvm

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// DevicePath is where Open looks.
const DevicePath = "/dev/kvm"

// APIVersion is the only version of the interface that this package speaks,
// and the only one that Linux has had since 2007.
const APIVersion = 12

// System is a handle on /dev/kvm. Its methods may be called from any goroutine.
type System struct {
	h        handle
	mmapSize int
	probes   probes
}

// Open opens /dev/kvm. Its errors wrap fs.ErrNotExist and fs.ErrPermission
// where those are the cause, and [ErrUnsupported] where the host's processor is
// not an amd64.
func Open() (*System, error) { return OpenPath(DevicePath) }

// OpenPath opens a KVM device elsewhere.
func OpenPath(path string) (*System, error) {
	var fd int
	for {
		var err error
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return nil, &Error{Op: "open", Detail: path, Errno: err.(unix.Errno)}
		}
	}
	s := &System{h: handle{name: path, fd: fd}}
	if runtime.GOARCH != "amd64" {
		// It may well be a KVM, but one for guests of its own kind.
		s.h.close()
		return nil, fmt.Errorf("kvm: %s: x86-64 guests need an amd64 processor, and this one is %s: %w", path, runtime.GOARCH, ErrUnsupported)
	}
	v, err := s.APIVersion()
	if err == nil && v != APIVersion {
		err = fmt.Errorf("kvm: %s speaks API version %d, not %d: %w", path, v, APIVersion, ErrUnsupported)
	}
	if err == nil {
		s.mmapSize, err = s.VCPUMmapSize()
	}
	if err != nil {
		s.h.close()
		return nil, err
	}
	return s, nil
}

// Close closes the handle. VMs made from it live on.
func (s *System) Close() error { return s.h.close() }

// APIVersion is KVM_GET_API_VERSION.
func (s *System) APIVersion() (int, error) { return s.h.ioctl(&opGetAPIVersion, 0) }

// CheckExtension is KVM_CHECK_EXTENSION: 0 if the host lacks c; otherwise a
// positive number whose meaning depends on c. The answer of VM.CheckExtension
// is the more exact one.
func (s *System) CheckExtension(c Cap) (int, error) {
	return s.h.ioctl(&opCheckExtension, uintptr(c))
}

// VCPUMmapSize is KVM_GET_VCPU_MMAP_SIZE: the bytes that a vCPU shares with
// user space.
func (s *System) VCPUMmapSize() (int, error) { return s.h.ioctl(&opGetVCPUMmapSize, 0) }

// CreateVM is KVM_CREATE_VM. On x86 the type is 0, except for confidential
// machines.
func (s *System) CreateVM(vmType int) (*VM, error) {
	if vmType < 0 {
		return nil, invalid(opCreateVM.name, "type %d", vmType)
	}
	fd, err := s.h.ioctl(&opCreateVM, uintptr(vmType))
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd) // KVM sets this itself
	vm := &VM{h: handle{name: "VM", fd: fd, parent: &s.h}, mmapSize: s.mmapSize}
	return vm, nil
}

// SupportedCPUID is KVM_GET_SUPPORTED_CPUID: what VCPU.SetCPUID2 can be given on this
// host.
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) { return getCPUID(&s.h, &opGetSupportedCPUID) }

// EmulatedCPUID is KVM_GET_EMULATED_CPUID: features that KVM emulates, slowly,
// beside those of SupportedCPUID.
func (s *System) EmulatedCPUID() ([]CPUIDEntry, error) { return getCPUID(&s.h, &opGetEmulatedCPUID) }

// MSRIndexList is KVM_GET_MSR_INDEX_LIST: the MSRs that make up a guest's state.
func (s *System) MSRIndexList() ([]uint32, error) { return getMSRList(&s.h, &opGetMSRIndexList) }

// MSRFeatureIndexList is KVM_GET_MSR_FEATURE_INDEX_LIST: the MSRs that describe
// features of this host, for FeatureMSRs.
func (s *System) MSRFeatureIndexList() ([]uint32, error) {
	return getMSRList(&s.h, &opGetMSRFeatureIndexList)
}

// FeatureMSRs is KVM_GET_MSRS on /dev/kvm: it fills in the Data of entries.
// It returns how many of them it filled; the error names the one that failed.
func (s *System) FeatureMSRs(entries []MSREntry) (int, error) {
	return doMSRs(&s.h, &opGetMSRs, entries, true)
}
