package kvm

import "unsafe"

// Ioctl numbers are made as in include/uapi/asm-generic/ioctl.h, from the
// direction, the size of the argument, KVM's type byte and the ordinal.
const (
	kvmIO = 0xae << 8

	dirWrite = 1 << 30 // the kernel reads the argument
	dirRead  = 2 << 30 // the kernel writes the argument
)

func sized[T any](dir uintptr) uintptr {
	var t T
	return dir | unsafe.Sizeof(t)<<16 | kvmIO
}

func ior[T any](nr uintptr) uintptr  { return sized[T](dirRead) | nr }
func iow[T any](nr uintptr) uintptr  { return sized[T](dirWrite) | nr }
func iowr[T any](nr uintptr) uintptr { return sized[T](dirRead|dirWrite) | nr }

// Every ioctl that the package uses.
var (
	opGetAPIVersion          = op{"KVM_GET_API_VERSION", kvmIO, noCap}
	opCreateVM               = op{"KVM_CREATE_VM", kvmIO | 0x01, noCap}
	opGetMSRIndexList        = op{"KVM_GET_MSR_INDEX_LIST", iowr[msrListHeader](0x02), noCap}
	opCheckExtension         = op{"KVM_CHECK_EXTENSION", kvmIO | 0x03, noCap}
	opGetVCPUMmapSize        = op{"KVM_GET_VCPU_MMAP_SIZE", kvmIO | 0x04, noCap}
	opGetSupportedCPUID      = op{"KVM_GET_SUPPORTED_CPUID", iowr[cpuidHeader](0x05), CapExtCPUID}
	opGetEmulatedCPUID       = op{"KVM_GET_EMULATED_CPUID", iowr[cpuidHeader](0x09), CapExtEmulCPUID}
	opGetMSRFeatureIndexList = op{"KVM_GET_MSR_FEATURE_INDEX_LIST", iowr[msrListHeader](0x0a), CapGetMSRFeatures}

	opCreateVCPU              = op{"KVM_CREATE_VCPU", kvmIO | 0x41, noCap}
	opGetDirtyLog             = op{"KVM_GET_DIRTY_LOG", iow[dirtyLog](0x42), noCap}
	opSetUserMemoryRegion     = op{"KVM_SET_USER_MEMORY_REGION", iow[UserMemoryRegion](0x46), CapUserMemory}
	opSetTSSAddr              = op{"KVM_SET_TSS_ADDR", kvmIO | 0x47, CapSetTSSAddr}
	opSetIdentityMapAddr      = op{"KVM_SET_IDENTITY_MAP_ADDR", iow[uint64](0x48), CapSetIdentityMapAddr}
	opCreateIRQChip           = op{"KVM_CREATE_IRQCHIP", kvmIO | 0x60, CapIRQChip}
	opIRQLine                 = op{"KVM_IRQ_LINE", iow[irqLevel](0x61), CapIRQChip}
	opGetIRQChip              = op{"KVM_GET_IRQCHIP", iowr[IRQChip](0x62), CapIRQChip}
	opSetIRQChip              = op{"KVM_SET_IRQCHIP", ior[IRQChip](0x63), CapIRQChip}
	opIRQLineStatus           = op{"KVM_IRQ_LINE_STATUS", iowr[irqLevel](0x67), CapIRQInjectStatus}
	opRegisterCoalescedMMIO   = op{"KVM_REGISTER_COALESCED_MMIO", iow[coalescedZone](0x67), CapCoalescedMMIO}
	opUnregisterCoalescedMMIO = op{"KVM_UNREGISTER_COALESCED_MMIO", iow[coalescedZone](0x68), CapCoalescedMMIO}
	opSetGSIRouting           = op{"KVM_SET_GSI_ROUTING", iow[routingHeader](0x6a), CapIRQRouting}
	opReinjectControl         = op{"KVM_REINJECT_CONTROL", kvmIO | 0x71, CapReinjectControl}
	opIRQFD                   = op{"KVM_IRQFD", iow[IRQFD](0x76), CapIRQFD}
	opCreatePIT2              = op{"KVM_CREATE_PIT2", iow[pitConfig](0x77), CapPIT2}
	opSetBootCPUID            = op{"KVM_SET_BOOT_CPU_ID", kvmIO | 0x78, CapSetBootCPUID}
	opIOEventFD               = op{"KVM_IOEVENTFD", iow[ioEventFD](0x79), CapIOEventFD}
	opSetClock                = op{"KVM_SET_CLOCK", iow[ClockData](0x7b), CapAdjustClock}
	opGetClock                = op{"KVM_GET_CLOCK", ior[ClockData](0x7c), CapAdjustClock}
	opGetPIT2                 = op{"KVM_GET_PIT2", ior[PITState](0x9f), CapPITState2}
	opSetPIT2                 = op{"KVM_SET_PIT2", iow[PITState](0xa0), CapPITState2}
	opSignalMSI               = op{"KVM_SIGNAL_MSI", iow[MSI](0xa5), CapSignalMSI}
	opClearDirtyLog           = op{"KVM_CLEAR_DIRTY_LOG", iowr[clearDirtyLog](0xc0), CapManualDirtyLogProtect2}
	opSetMSRFilter            = op{"KVM_X86_SET_MSR_FILTER", iow[msrFilter](0xc6), CapX86MSRFilter}
	opResetDirtyRings         = op{"KVM_RESET_DIRTY_RINGS", kvmIO | 0xc7, noCap}
	opEnableCap               = op{"KVM_ENABLE_CAP", iow[enableCap](0xa3), noCap}

	opRun           = op{"KVM_RUN", kvmIO | 0x80, noCap}
	opGetRegs       = op{"KVM_GET_REGS", ior[Regs](0x81), noCap}
	opSetRegs       = op{"KVM_SET_REGS", iow[Regs](0x82), noCap}
	opGetSregs      = op{"KVM_GET_SREGS", ior[Sregs](0x83), noCap}
	opSetSregs      = op{"KVM_SET_SREGS", iow[Sregs](0x84), noCap}
	opTranslate     = op{"KVM_TRANSLATE", iowr[Translation](0x85), noCap}
	opInterrupt     = op{"KVM_INTERRUPT", iow[uint32](0x86), noCap}
	opGetMSRs       = op{"KVM_GET_MSRS", iowr[msrsHeader](0x88), noCap}
	opSetMSRs       = op{"KVM_SET_MSRS", iow[msrsHeader](0x89), noCap}
	opSetSignalMask = op{"KVM_SET_SIGNAL_MASK", iow[uint32](0x8b), noCap}
	opGetFPU        = op{"KVM_GET_FPU", ior[FPU](0x8c), noCap}
	opSetFPU        = op{"KVM_SET_FPU", iow[FPU](0x8d), noCap}
	opGetLAPIC      = op{"KVM_GET_LAPIC", ior[LAPIC](0x8e), CapIRQChip}
	opSetLAPIC      = op{"KVM_SET_LAPIC", iow[LAPIC](0x8f), CapIRQChip}
	opSetCPUID2     = op{"KVM_SET_CPUID2", iow[cpuidHeader](0x90), CapExtCPUID}
	opGetCPUID2     = op{"KVM_GET_CPUID2", iowr[cpuidHeader](0x91), CapExtCPUID}
	opGetMPState    = op{"KVM_GET_MP_STATE", ior[uint32](0x98), CapMPState}
	opSetMPState    = op{"KVM_SET_MP_STATE", iow[uint32](0x99), CapMPState}
	opNMI           = op{"KVM_NMI", kvmIO | 0x9a, CapUserNMI}
	opSetGuestDebug = op{"KVM_SET_GUEST_DEBUG", iow[GuestDebug](0x9b), CapSetGuestDebug}
	opGetVCPUEvents = op{"KVM_GET_VCPU_EVENTS", ior[VCPUEvents](0x9f), CapVCPUEvents}
	opSetVCPUEvents = op{"KVM_SET_VCPU_EVENTS", iow[VCPUEvents](0xa0), CapVCPUEvents}
	opGetDebugRegs  = op{"KVM_GET_DEBUGREGS", ior[DebugRegs](0xa1), CapDebugRegs}
	opSetDebugRegs  = op{"KVM_SET_DEBUGREGS", iow[DebugRegs](0xa2), CapDebugRegs}
	opSetTSCKHz     = op{"KVM_SET_TSC_KHZ", kvmIO | 0xa2, CapTSCControl}
	opGetTSCKHz     = op{"KVM_GET_TSC_KHZ", kvmIO | 0xa3, CapGetTSCKHz}
	opGetXSave      = op{"KVM_GET_XSAVE", ior[xsaveArea](0xa4), CapXSave}
	opSetXSave      = op{"KVM_SET_XSAVE", iow[xsaveArea](0xa5), CapXSave}
	opGetXCRs       = op{"KVM_GET_XCRS", ior[XCRs](0xa6), CapXCRs}
	opSetXCRs       = op{"KVM_SET_XCRS", iow[XCRs](0xa7), CapXCRs}
	opKVMClockCtrl  = op{"KVM_KVMCLOCK_CTRL", kvmIO | 0xad, CapKVMClockCtrl}
	opGetSregs2     = op{"KVM_GET_SREGS2", ior[Sregs2](0xcc), CapSregs2}
	opSetSregs2     = op{"KVM_SET_SREGS2", iow[Sregs2](0xcd), CapSregs2}
	opGetXSave2     = op{"KVM_GET_XSAVE2", ior[xsaveArea](0xcf), CapXSave2}
	opSetDeviceAttr = op{"KVM_SET_DEVICE_ATTR", iow[deviceAttr](0xe1), CapVCPUAttributes}
	opGetDeviceAttr = op{"KVM_GET_DEVICE_ATTR", iow[deviceAttr](0xe2), CapVCPUAttributes}
)
