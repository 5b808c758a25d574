package kvm

import "strconv"

// Cap is a capability number of KVM_CHECK_EXTENSION and KVM_ENABLE_CAP. Its
// String is the kernel's name for it.
type Cap uint32

// The capabilities that exist on x86, in the kernel's order.
const (
	CapIRQChip                  Cap = 0
	CapHLT                      Cap = 1
	CapMMUShadowCacheControl    Cap = 2
	CapUserMemory               Cap = 3
	CapSetTSSAddr               Cap = 4
	CapVAPIC                    Cap = 6
	CapExtCPUID                 Cap = 7
	CapClocksource              Cap = 8
	CapNRVCPUs                  Cap = 9
	CapNRMemSlots               Cap = 10
	CapPIT                      Cap = 11
	CapNopIODelay               Cap = 12
	CapPVMMU                    Cap = 13
	CapMPState                  Cap = 14
	CapCoalescedMMIO            Cap = 15
	CapSyncMMU                  Cap = 16
	CapIOMMU                    Cap = 18
	CapDestroyMemoryRegionWorks Cap = 21
	CapUserNMI                  Cap = 22
	CapSetGuestDebug            Cap = 23
	CapReinjectControl          Cap = 24
	CapIRQRouting               Cap = 25
	CapIRQInjectStatus          Cap = 26
	CapAssignDevIRQ             Cap = 29
	CapJoinMemoryRegionsWorks   Cap = 30
	CapMCE                      Cap = 31
	CapIRQFD                    Cap = 32
	CapPIT2                     Cap = 33
	CapSetBootCPUID             Cap = 34
	CapPITState2                Cap = 35
	CapIOEventFD                Cap = 36
	CapSetIdentityMapAddr       Cap = 37
	CapAdjustClock              Cap = 39
	CapInternalErrorData        Cap = 40
	CapVCPUEvents               Cap = 41
	CapHyperV                   Cap = 44
	CapHyperVVAPIC              Cap = 45
	CapHyperVSpin               Cap = 46
	CapPCISegment               Cap = 47
	CapIntrShadow               Cap = 49
	CapDebugRegs                Cap = 50
	CapX86RobustSinglestep      Cap = 51
	CapEnableCap                Cap = 54
	CapXSave                    Cap = 55
	CapXCRs                     Cap = 56
	CapAsyncPF                  Cap = 59
	CapTSCControl               Cap = 60
	CapGetTSCKHz                Cap = 61
	CapMaxVCPUs                 Cap = 66
	CapOneReg                   Cap = 70
	CapTSCDeadlineTimer         Cap = 72
	CapSyncRegs                 Cap = 74
	CapPCI23                    Cap = 75
	CapKVMClockCtrl             Cap = 76
	CapSignalMSI                Cap = 77
	CapReadOnlyMem              Cap = 81
	CapIRQFDResample            Cap = 82
	CapDeviceCtrl               Cap = 89
	CapExtEmulCPUID             Cap = 95
	CapHyperVTime               Cap = 96
	CapIOAPICPolarityIgnored    Cap = 97
	CapEnableCapVM              Cap = 98
	CapIOEventFDNoLength        Cap = 100
	CapVMAttributes             Cap = 101
	CapCheckExtensionVM         Cap = 105
	CapDisableQuirks            Cap = 116
	CapX86SMM                   Cap = 117
	CapMultiAddressSpace        Cap = 118
	CapGuestDebugHWBPs          Cap = 119
	CapGuestDebugHWWPs          Cap = 120
	CapSplitIRQChip             Cap = 121
	CapIOEventFDAnyLength       Cap = 122
	CapHyperVSynIC              Cap = 123
	CapVCPUAttributes           Cap = 127
	CapMaxVCPUID                Cap = 128
	CapX2APICAPI                Cap = 129
	CapMSIDevID                 Cap = 131
	CapImmediateExit            Cap = 136
	CapX86DisableExits          Cap = 143
	CapHyperVSynIC2             Cap = 148
	CapHyperVVPIndex            Cap = 149
	CapGetMSRFeatures           Cap = 153
	CapHyperVEventFD            Cap = 154
	CapHyperVTLBFlush           Cap = 155
	CapNestedState              Cap = 157
	CapMSRPlatformInfo          Cap = 159
	CapHyperVSendIPI            Cap = 161
	CapCoalescedPIO             Cap = 162
	CapHyperVEnlightenedVMCS    Cap = 163
	CapExceptionPayload         Cap = 164
	CapManualDirtyLogProtect    Cap = 166
	CapHyperVCPUID              Cap = 167
	CapManualDirtyLogProtect2   Cap = 168
	CapPMUEventFilter           Cap = 173
	CapHyperVDirectTLBFlush     Cap = 175
	CapHaltPoll                 Cap = 182
	CapAsyncPFInt               Cap = 183
	CapLastCPU                  Cap = 184
	CapSmallerMaxPhyAddr        Cap = 185
	CapStealTime                Cap = 187
	CapX86UserSpaceMSR          Cap = 188
	CapX86MSRFilter             Cap = 189
	CapEnforcePVFeatureCPUID    Cap = 190
	CapSysHyperVCPUID           Cap = 191
	CapDirtyLogRing             Cap = 192
	CapX86BusLockExit           Cap = 193
	CapSetGuestDebug2           Cap = 195
	CapSGXAttribute             Cap = 196
	CapVMCopyEncContextFrom     Cap = 197
	CapPTPKVM                   Cap = 198
	CapHyperVEnforceCPUID       Cap = 199
	CapSregs2                   Cap = 200
	CapExitHypercall            Cap = 201
	CapBinaryStatsFD            Cap = 203
	CapExitOnEmulationFailure   Cap = 204
	CapVMMoveEncContextFrom     Cap = 206
	CapVMGPABits                Cap = 207
	CapXSave2                   Cap = 208
	CapSysAttributes            Cap = 209
	CapPMUCapability            Cap = 212
	CapDisableQuirks2           Cap = 213
	CapVMTSCControl             Cap = 214
	CapSystemEventData          Cap = 215
	CapX86TripleFaultEvent      Cap = 218
	CapX86NotifyVMExit          Cap = 219
	CapVMDisableNXHugePages     Cap = 220
	CapDirtyLogRingAcqRel       Cap = 223
	CapMemoryFaultInfo          Cap = 232
	CapMemoryAttributes         Cap = 233
	CapGuestMemFD               Cap = 234
	CapX86APICBusCyclesNS       Cap = 237
	CapPreFaultMemory           Cap = 236
	CapVMTypes                  Cap = 235
)

// noCap marks what needs no capability.
const noCap Cap = 1<<32 - 1

func (c Cap) String() string {
	if s, ok := capNames[c]; ok {
		return "KVM_CAP_" + s
	}
	return "KVM_CAP(" + strconv.FormatUint(uint64(c), 10) + ")"
}

var capNames = map[Cap]string{
	CapHLT:                      "HLT",
	CapIRQChip:                  "IRQCHIP",
	CapMMUShadowCacheControl:    "MMU_SHADOW_CACHE_CONTROL",
	CapUserMemory:               "USER_MEMORY",
	CapSetTSSAddr:               "SET_TSS_ADDR",
	CapVAPIC:                    "VAPIC",
	CapExtCPUID:                 "EXT_CPUID",
	CapClocksource:              "CLOCKSOURCE",
	CapNRVCPUs:                  "NR_VCPUS",
	CapNRMemSlots:               "NR_MEMSLOTS",
	CapPIT:                      "PIT",
	CapNopIODelay:               "NOP_IO_DELAY",
	CapPVMMU:                    "PV_MMU",
	CapMPState:                  "MP_STATE",
	CapCoalescedMMIO:            "COALESCED_MMIO",
	CapSyncMMU:                  "SYNC_MMU",
	CapIOMMU:                    "IOMMU",
	CapDestroyMemoryRegionWorks: "DESTROY_MEMORY_REGION_WORKS",
	CapUserNMI:                  "USER_NMI",
	CapSetGuestDebug:            "SET_GUEST_DEBUG",
	CapReinjectControl:          "REINJECT_CONTROL",
	CapIRQRouting:               "IRQ_ROUTING",
	CapIRQInjectStatus:          "IRQ_INJECT_STATUS",
	CapAssignDevIRQ:             "ASSIGN_DEV_IRQ",
	CapJoinMemoryRegionsWorks:   "JOIN_MEMORY_REGIONS_WORKS",
	CapMCE:                      "MCE",
	CapIRQFD:                    "IRQFD",
	CapPIT2:                     "PIT2",
	CapSetBootCPUID:             "SET_BOOT_CPU_ID",
	CapPITState2:                "PIT_STATE2",
	CapIOEventFD:                "IOEVENTFD",
	CapSetIdentityMapAddr:       "SET_IDENTITY_MAP_ADDR",
	CapAdjustClock:              "ADJUST_CLOCK",
	CapInternalErrorData:        "INTERNAL_ERROR_DATA",
	CapVCPUEvents:               "VCPU_EVENTS",
	CapHyperV:                   "HYPERV",
	CapHyperVVAPIC:              "HYPERV_VAPIC",
	CapHyperVSpin:               "HYPERV_SPIN",
	CapPCISegment:               "PCI_SEGMENT",
	CapIntrShadow:               "INTR_SHADOW",
	CapDebugRegs:                "DEBUGREGS",
	CapX86RobustSinglestep:      "X86_ROBUST_SINGLESTEP",
	CapEnableCap:                "ENABLE_CAP",
	CapXSave:                    "XSAVE",
	CapXCRs:                     "XCRS",
	CapAsyncPF:                  "ASYNC_PF",
	CapTSCControl:               "TSC_CONTROL",
	CapGetTSCKHz:                "GET_TSC_KHZ",
	CapMaxVCPUs:                 "MAX_VCPUS",
	CapOneReg:                   "ONE_REG",
	CapTSCDeadlineTimer:         "TSC_DEADLINE_TIMER",
	CapSyncRegs:                 "SYNC_REGS",
	CapPCI23:                    "PCI_2_3",
	CapKVMClockCtrl:             "KVMCLOCK_CTRL",
	CapSignalMSI:                "SIGNAL_MSI",
	CapReadOnlyMem:              "READONLY_MEM",
	CapIRQFDResample:            "IRQFD_RESAMPLE",
	CapDeviceCtrl:               "DEVICE_CTRL",
	CapExtEmulCPUID:             "EXT_EMUL_CPUID",
	CapHyperVTime:               "HYPERV_TIME",
	CapIOAPICPolarityIgnored:    "IOAPIC_POLARITY_IGNORED",
	CapEnableCapVM:              "ENABLE_CAP_VM",
	CapIOEventFDNoLength:        "IOEVENTFD_NO_LENGTH",
	CapVMAttributes:             "VM_ATTRIBUTES",
	CapCheckExtensionVM:         "CHECK_EXTENSION_VM",
	CapDisableQuirks:            "DISABLE_QUIRKS",
	CapX86SMM:                   "X86_SMM",
	CapMultiAddressSpace:        "MULTI_ADDRESS_SPACE",
	CapGuestDebugHWBPs:          "GUEST_DEBUG_HW_BPS",
	CapGuestDebugHWWPs:          "GUEST_DEBUG_HW_WPS",
	CapSplitIRQChip:             "SPLIT_IRQCHIP",
	CapIOEventFDAnyLength:       "IOEVENTFD_ANY_LENGTH",
	CapHyperVSynIC:              "HYPERV_SYNIC",
	CapVCPUAttributes:           "VCPU_ATTRIBUTES",
	CapMaxVCPUID:                "MAX_VCPU_ID",
	CapX2APICAPI:                "X2APIC_API",
	CapMSIDevID:                 "MSI_DEVID",
	CapImmediateExit:            "IMMEDIATE_EXIT",
	CapX86DisableExits:          "X86_DISABLE_EXITS",
	CapHyperVSynIC2:             "HYPERV_SYNIC2",
	CapHyperVVPIndex:            "HYPERV_VP_INDEX",
	CapGetMSRFeatures:           "GET_MSR_FEATURES",
	CapHyperVEventFD:            "HYPERV_EVENTFD",
	CapHyperVTLBFlush:           "HYPERV_TLBFLUSH",
	CapNestedState:              "NESTED_STATE",
	CapMSRPlatformInfo:          "MSR_PLATFORM_INFO",
	CapHyperVSendIPI:            "HYPERV_SEND_IPI",
	CapCoalescedPIO:             "COALESCED_PIO",
	CapHyperVEnlightenedVMCS:    "HYPERV_ENLIGHTENED_VMCS",
	CapExceptionPayload:         "EXCEPTION_PAYLOAD",
	CapManualDirtyLogProtect:    "MANUAL_DIRTY_LOG_PROTECT",
	CapHyperVCPUID:              "HYPERV_CPUID",
	CapManualDirtyLogProtect2:   "MANUAL_DIRTY_LOG_PROTECT2",
	CapPMUEventFilter:           "PMU_EVENT_FILTER",
	CapHyperVDirectTLBFlush:     "HYPERV_DIRECT_TLBFLUSH",
	CapHaltPoll:                 "HALT_POLL",
	CapAsyncPFInt:               "ASYNC_PF_INT",
	CapLastCPU:                  "LAST_CPU",
	CapSmallerMaxPhyAddr:        "SMALLER_MAXPHYADDR",
	CapStealTime:                "STEAL_TIME",
	CapX86UserSpaceMSR:          "X86_USER_SPACE_MSR",
	CapX86MSRFilter:             "X86_MSR_FILTER",
	CapEnforcePVFeatureCPUID:    "ENFORCE_PV_FEATURE_CPUID",
	CapSysHyperVCPUID:           "SYS_HYPERV_CPUID",
	CapDirtyLogRing:             "DIRTY_LOG_RING",
	CapX86BusLockExit:           "X86_BUS_LOCK_EXIT",
	CapSetGuestDebug2:           "SET_GUEST_DEBUG2",
	CapSGXAttribute:             "SGX_ATTRIBUTE",
	CapVMCopyEncContextFrom:     "VM_COPY_ENC_CONTEXT_FROM",
	CapPTPKVM:                   "PTP_KVM",
	CapHyperVEnforceCPUID:       "HYPERV_ENFORCE_CPUID",
	CapSregs2:                   "SREGS2",
	CapExitHypercall:            "EXIT_HYPERCALL",
	CapBinaryStatsFD:            "BINARY_STATS_FD",
	CapExitOnEmulationFailure:   "EXIT_ON_EMULATION_FAILURE",
	CapVMMoveEncContextFrom:     "VM_MOVE_ENC_CONTEXT_FROM",
	CapVMGPABits:                "VM_GPA_BITS",
	CapXSave2:                   "XSAVE2",
	CapSysAttributes:            "SYS_ATTRIBUTES",
	CapPMUCapability:            "PMU_CAPABILITY",
	CapDisableQuirks2:           "DISABLE_QUIRKS2",
	CapVMTSCControl:             "VM_TSC_CONTROL",
	CapSystemEventData:          "SYSTEM_EVENT_DATA",
	CapX86TripleFaultEvent:      "X86_TRIPLE_FAULT_EVENT",
	CapX86NotifyVMExit:          "X86_NOTIFY_VMEXIT",
	CapVMDisableNXHugePages:     "VM_DISABLE_NX_HUGE_PAGES",
	CapDirtyLogRingAcqRel:       "DIRTY_LOG_RING_ACQ_REL",
	CapMemoryFaultInfo:          "MEMORY_FAULT_INFO",
	CapMemoryAttributes:         "MEMORY_ATTRIBUTES",
	CapGuestMemFD:               "GUEST_MEMFD",
	CapX86APICBusCyclesNS:       "X86_APIC_BUS_CYCLES_NS",
	CapPreFaultMemory:           "PRE_FAULT_MEMORY",
	CapVMTypes:                  "VM_TYPES",
}
