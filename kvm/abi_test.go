package kvm

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// abiTypes lists each structure with the C expression of its type and, in the
// order of the Go fields (blank ones left out, anonymous structures flattened), the C
// fields. A union member is given as "struct kvm_run:io": its offsets count
// from the member.
var abiTypes = []struct {
	c      string
	g      any
	fields string
}{
	{"struct kvm_regs", Regs{}, "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"},
	{"struct kvm_segment", Segment{}, "base limit selector type present dpl db s l g avl unusable"},
	{"struct kvm_dtable", DTable{}, "base limit"},
	{"struct kvm_sregs", Sregs{}, "cs ds es fs gs ss tr ldt gdt idt cr0 cr2 cr3 cr4 cr8 efer apic_base interrupt_bitmap"},
	{"struct kvm_sregs2", Sregs2{}, "cs ds es fs gs ss tr ldt gdt idt cr0 cr2 cr3 cr4 cr8 efer apic_base flags pdptrs"},
	{"struct kvm_fpu", FPU{}, "fpr fcw fsw ftwx last_opcode last_ip last_dp xmm mxcsr"},
	{"struct kvm_xsave", xsaveArea{}, ""},
	{"struct kvm_xcr", XCR{}, "xcr value"},
	{"struct kvm_xcrs", XCRs{}, "nr_xcrs flags xcrs"},
	{"struct kvm_lapic_state", LAPIC{}, "regs"},
	{"struct kvm_vcpu_events", VCPUEvents{}, "exception.injected exception.nr exception.has_error_code exception.pending exception.error_code " +
		"interrupt.injected interrupt.nr interrupt.soft interrupt.shadow nmi.injected nmi.pending nmi.masked sipi_vector flags " +
		"smi.smm smi.pending smi.smm_inside_nmi smi.latched_init triple_fault.pending exception_has_payload exception_payload"},
	{"struct kvm_debugregs", DebugRegs{}, "db dr6 dr7 flags"},
	{"struct kvm_guest_debug", GuestDebug{}, "control arch.debugreg"},
	{"struct kvm_translation", Translation{}, "linear_address physical_address valid writeable usermode"},
	{"struct kvm_cpuid_entry2", CPUIDEntry{}, "function index flags eax ebx ecx edx"},
	{"struct kvm_cpuid2", cpuidHeader{}, "nent"},
	{"struct kvm_msr_entry", MSREntry{}, "index data"},
	{"struct kvm_msrs", msrsHeader{}, "nmsrs"},
	{"struct kvm_msr_list", msrListHeader{}, "nmsrs"},
	{"struct kvm_msr_filter_range", msrFilterRange{}, "flags nmsrs base bitmap"},
	{"struct kvm_msr_filter", msrFilter{}, "flags ranges"},
	{"struct kvm_enable_cap", enableCap{}, "cap args"},
	{"struct kvm_device_attr", deviceAttr{}, "group attr addr"},
	{"struct kvm_userspace_memory_region", UserMemoryRegion{}, "slot flags guest_phys_addr memory_size userspace_addr"},
	{"struct kvm_dirty_log", dirtyLog{}, "slot dirty_bitmap"},
	{"struct kvm_clear_dirty_log", clearDirtyLog{}, "slot num_pages first_page dirty_bitmap"},
	{"struct kvm_dirty_gfn", dirtyGFN{}, "flags slot offset"},
	{"struct kvm_irqchip", IRQChip{}, "chip_id chip"},
	{"struct kvm_pic_state", PICState{}, "last_irr irr imr isr priority_add irq_base read_reg_select poll special_mask init_state " +
		"auto_eoi rotate_on_auto_eoi special_fully_nested_mode init4 elcr elcr_mask"},
	{"struct kvm_ioapic_state", IOAPICState{}, "base_address ioregsel id irr redirtbl"},
	{"struct kvm_irq_level", irqLevel{}, "irq level"},
	{"struct kvm_msi", MSI{}, "address_lo address_hi data flags devid"},
	{"struct kvm_irq_routing_entry", IRQRoutingEntry{}, "gsi type flags u"},
	{"struct kvm_irq_routing", routingHeader{}, "nr"},
	{"struct kvm_irqfd", IRQFD{}, "fd gsi flags resamplefd"},
	{"struct kvm_ioeventfd", ioEventFD{}, "datamatch addr len fd flags"},
	{"struct kvm_pit_config", pitConfig{}, "flags"},
	{"struct kvm_reinject_control", reinjectControl{}, "pit_reinject"},
	{"struct kvm_pit_channel_state", PITChannel{}, "count latched_count count_latched status_latched status read_state write_state " +
		"write_latch rw_mode mode bcd gate count_load_time"},
	{"struct kvm_pit_state2", PITState{}, "channels flags"},
	{"struct kvm_clock_data", ClockData{}, "clock flags realtime host_tsc"},
	{"struct kvm_coalesced_mmio_zone", coalescedZone{}, "addr size pio"},
	{"struct kvm_coalesced_mmio", CoalescedWrite{}, "phys_addr len pio data"},
	{"struct kvm_sync_regs", SyncRegs{}, "regs sregs events"},
	{"struct kvm_run", Run{}, "request_interrupt_window exit_reason ready_for_interrupt_injection if_flag flags cr8 apic_base hw " +
		"kvm_valid_regs kvm_dirty_regs s.regs"},
	{"struct kvm_run:io", IOExit{}, "direction size port count data_offset"},
	{"struct kvm_run:mmio", MMIOExit{}, "phys_addr data len is_write"},
	{"struct kvm_run:debug.arch", DebugExit{}, "exception pc dr6 dr7"},
	{"struct kvm_run:fail_entry", FailEntryExit{}, "hardware_entry_failure_reason cpu"},
	{"struct kvm_run:ex", ExceptionExit{}, "exception error_code"},
	{"struct kvm_run:internal", InternalErrorExit{}, "suberror ndata data"},
	{"struct kvm_run:system_event", SystemEventExit{}, "type ndata data"},
	{"struct kvm_run:eoi", EOIExit{}, "vector"},
	{"struct kvm_run:msr", MSRExit{}, "error reason index data"},
	{"struct kvm_run:hypercall", HypercallExit{}, "nr args ret longmode"},
	{"struct kvm_run:tpr_access", TPRAccessExit{}, "rip is_write"},
	{"struct kvm_run:notify", NotifyExit{}, "flags"},
}

// abiOps lists every op of ops_unsafe.go, which TestABI makes sure of.
var abiOps = map[string]*op{
	"opGetAPIVersion": &opGetAPIVersion, "opCreateVM": &opCreateVM, "opGetMSRIndexList": &opGetMSRIndexList,
	"opCheckExtension": &opCheckExtension, "opGetVCPUMmapSize": &opGetVCPUMmapSize,
	"opGetSupportedCPUID": &opGetSupportedCPUID, "opGetEmulatedCPUID": &opGetEmulatedCPUID,
	"opGetMSRFeatureIndexList": &opGetMSRFeatureIndexList, "opCreateVCPU": &opCreateVCPU,
	"opGetDirtyLog": &opGetDirtyLog, "opSetUserMemoryRegion": &opSetUserMemoryRegion, "opSetTSSAddr": &opSetTSSAddr,
	"opSetIdentityMapAddr": &opSetIdentityMapAddr, "opCreateIRQChip": &opCreateIRQChip, "opIRQLine": &opIRQLine,
	"opGetIRQChip": &opGetIRQChip, "opSetIRQChip": &opSetIRQChip, "opIRQLineStatus": &opIRQLineStatus,
	"opRegisterCoalescedMMIO": &opRegisterCoalescedMMIO, "opUnregisterCoalescedMMIO": &opUnregisterCoalescedMMIO,
	"opSetGSIRouting": &opSetGSIRouting, "opReinjectControl": &opReinjectControl, "opIRQFD": &opIRQFD,
	"opCreatePIT2": &opCreatePIT2, "opSetBootCPUID": &opSetBootCPUID, "opIOEventFD": &opIOEventFD,
	"opSetClock": &opSetClock, "opGetClock": &opGetClock, "opGetPIT2": &opGetPIT2, "opSetPIT2": &opSetPIT2,
	"opSignalMSI": &opSignalMSI, "opClearDirtyLog": &opClearDirtyLog, "opSetMSRFilter": &opSetMSRFilter,
	"opResetDirtyRings": &opResetDirtyRings, "opEnableCap": &opEnableCap, "opRun": &opRun, "opGetRegs": &opGetRegs,
	"opSetRegs": &opSetRegs, "opGetSregs": &opGetSregs, "opSetSregs": &opSetSregs, "opTranslate": &opTranslate,
	"opInterrupt": &opInterrupt, "opGetMSRs": &opGetMSRs, "opSetMSRs": &opSetMSRs, "opSetSignalMask": &opSetSignalMask,
	"opGetFPU": &opGetFPU, "opSetFPU": &opSetFPU, "opGetLAPIC": &opGetLAPIC, "opSetLAPIC": &opSetLAPIC,
	"opSetCPUID2": &opSetCPUID2, "opGetCPUID2": &opGetCPUID2, "opGetMPState": &opGetMPState,
	"opSetMPState": &opSetMPState, "opNMI": &opNMI, "opSetGuestDebug": &opSetGuestDebug,
	"opGetVCPUEvents": &opGetVCPUEvents, "opSetVCPUEvents": &opSetVCPUEvents, "opGetDebugRegs": &opGetDebugRegs,
	"opSetDebugRegs": &opSetDebugRegs, "opSetTSCKHz": &opSetTSCKHz, "opGetTSCKHz": &opGetTSCKHz,
	"opGetXSave": &opGetXSave, "opSetXSave": &opSetXSave, "opGetXCRs": &opGetXCRs, "opSetXCRs": &opSetXCRs,
	"opKVMClockCtrl": &opKVMClockCtrl, "opGetSregs2": &opGetSregs2, "opSetSregs2": &opSetSregs2,
	"opGetXSave2": &opGetXSave2, "opSetDeviceAttr": &opSetDeviceAttr, "opGetDeviceAttr": &opGetDeviceAttr,
}

// abiConsts are the other numbers.
var abiConsts = map[string]uint64{
	"KVM_API_VERSION":         APIVersion,
	"KVM_EXIT_IO_IN":          uint64(IOIn),
	"KVM_EXIT_IO_OUT":         uint64(IOOut),
	"KVM_MEM_LOG_DIRTY_PAGES": uint64(MemLogDirtyPages), "KVM_MEM_READONLY": uint64(MemReadOnly),
	"KVM_RUN_X86_SMM": uint64(RunFlagSMM), "KVM_RUN_X86_BUS_LOCK": uint64(RunFlagBusLock),
	"KVM_SYNC_X86_REGS": SyncRegsRegs, "KVM_SYNC_X86_SREGS": SyncRegsSregs, "KVM_SYNC_X86_EVENTS": SyncRegsEvents,
	"KVM_INTERNAL_ERROR_EMULATION":              uint64(InternalErrorEmulation),
	"KVM_INTERNAL_ERROR_SIMUL_EX":               uint64(InternalErrorSimulEx),
	"KVM_INTERNAL_ERROR_DELIVERY_EV":            uint64(InternalErrorDeliveryEV),
	"KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON": uint64(InternalErrorUnexpectedExitReason),
	"KVM_SYSTEM_EVENT_SHUTDOWN":                 uint64(SystemEventShutdown),
	"KVM_SYSTEM_EVENT_RESET":                    uint64(SystemEventReset),
	"KVM_SYSTEM_EVENT_CRASH":                    uint64(SystemEventCrash),
	"KVM_MSR_EXIT_REASON_INVAL":                 uint64(MSRExitInval),
	"KVM_MSR_EXIT_REASON_UNKNOWN":               uint64(MSRExitUnknown),
	"KVM_MSR_EXIT_REASON_FILTER":                uint64(MSRExitFilter),
	"KVM_MSR_FILTER_READ":                       uint64(MSRFilterRead),
	"KVM_MSR_FILTER_WRITE":                      uint64(MSRFilterWrite),
	"KVM_MSR_FILTER_MAX_RANGES":                 MaxMSRFilterRanges,
	"KVM_MSR_FILTER_MAX_BITMAP_SIZE":            maxMSRFilterBitmap,
	"KVM_MSR_FILTER_DEFAULT_DENY":               1,
	"KVM_SREGS2_FLAGS_PDPTRS_VALID":             Sregs2PDPTRsValid,
	"KVM_MAX_XCRS":                              MaxXCRs,
	"KVM_MP_STATE_RUNNABLE":                     uint64(MPStateRunnable),
	"KVM_MP_STATE_UNINITIALIZED":                uint64(MPStateUninitialized),
	"KVM_MP_STATE_INIT_RECEIVED":                uint64(MPStateInitReceived),
	"KVM_MP_STATE_HALTED":                       uint64(MPStateHalted),
	"KVM_MP_STATE_SIPI_RECEIVED":                uint64(MPStateSIPIReceived),
	"KVM_MP_STATE_AP_RESET_HOLD":                uint64(MPStateAPResetHold),
	"KVM_VCPUEVENT_VALID_NMI_PENDING":           uint64(EventValidNMIPending),
	"KVM_VCPUEVENT_VALID_SIPI_VECTOR":           uint64(EventValidSIPIVector),
	"KVM_VCPUEVENT_VALID_SHADOW":                uint64(EventValidShadow),
	"KVM_VCPUEVENT_VALID_SMM":                   uint64(EventValidSMM),
	"KVM_VCPUEVENT_VALID_PAYLOAD":               uint64(EventValidPayload),
	"KVM_VCPUEVENT_VALID_TRIPLE_FAULT":          uint64(EventValidTripleFault),
	"KVM_X86_SHADOW_INT_MOV_SS":                 uint64(ShadowMovSS),
	"KVM_X86_SHADOW_INT_STI":                    uint64(ShadowSTI),
	"KVM_GUESTDBG_ENABLE":                       uint64(GuestDebugEnable),
	"KVM_GUESTDBG_SINGLESTEP":                   uint64(GuestDebugSingleStep),
	"KVM_GUESTDBG_USE_SW_BP":                    uint64(GuestDebugUseSWBP),
	"KVM_GUESTDBG_USE_HW_BP":                    uint64(GuestDebugUseHWBP),
	"KVM_GUESTDBG_INJECT_DB":                    uint64(GuestDebugInjectDB),
	"KVM_GUESTDBG_INJECT_BP":                    uint64(GuestDebugInjectBP),
	"KVM_GUESTDBG_BLOCKIRQ":                     uint64(GuestDebugBlockIRQ),
	"KVM_CPUID_FLAG_SIGNIFCANT_INDEX":           CPUIDSignificantIndex,
	"KVM_IRQCHIP_PIC_MASTER":                    uint64(ChipPICMaster),
	"KVM_IRQCHIP_PIC_SLAVE":                     uint64(ChipPICSlave),
	"KVM_IRQCHIP_IOAPIC":                        uint64(ChipIOAPIC),
	"KVM_IOAPIC_NUM_PINS":                       IOAPICPins,
	"KVM_MSI_VALID_DEVID":                       MSIValidDevID,
	"KVM_IRQ_ROUTING_IRQCHIP":                   uint64(RoutingIRQChip),
	"KVM_IRQ_ROUTING_MSI":                       uint64(RoutingMSI),
	"KVM_IRQFD_FLAG_DEASSIGN":                   uint64(IRQFDDeassign),
	"KVM_IRQFD_FLAG_RESAMPLE":                   uint64(IRQFDResample),
	"KVM_IOEVENTFD_FLAG_DATAMATCH":              uint64(IOEventFDDatamatch),
	"KVM_IOEVENTFD_FLAG_PIO":                    uint64(IOEventFDPIO),
	"KVM_IOEVENTFD_FLAG_DEASSIGN":               uint64(IOEventFDDeassign),
	"KVM_PIT_SPEAKER_DUMMY":                     PITSpeakerDummy,
	"KVM_PIT_FLAGS_HPET_LEGACY":                 uint64(PITHPETLegacy),
	"KVM_PIT_FLAGS_SPEAKER_DATA_ON":             uint64(PITSpeakerDataOn),
	"KVM_CLOCK_TSC_STABLE":                      uint64(ClockTSCStable),
	"KVM_CLOCK_REALTIME":                        uint64(ClockRealtime),
	"KVM_CLOCK_HOST_TSC":                        uint64(ClockHostTSC),
	"KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE":       DirtyManualProtect,
	"KVM_DIRTY_LOG_INITIALLY_SET":               DirtyInitiallySet,
	"KVM_DIRTY_GFN_F_DIRTY":                     dirtyGFNDirty,
	"KVM_DIRTY_GFN_F_RESET":                     dirtyGFNReset,
	"KVM_DIRTY_LOG_PAGE_OFFSET":                 dirtyRingPage,
	"KVM_VCPU_TSC_CTRL":                         tscControl,
	"KVM_VCPU_TSC_OFFSET":                       tscOffset,
}

type cField struct {
	name   string
	offset uintptr
}

// flatten lists the fields of t with their offsets, looking into anonymous
// structures.
func flatten(t reflect.Type, prefix string, base uintptr) (list []cField) {
	if t.Kind() != reflect.Struct {
		return nil
	}
	for f := range t.Fields() {
		switch {
		case f.Name == "_":
		case f.Type.Kind() == reflect.Struct && f.Type.Name() == "":
			list = append(list, flatten(f.Type, prefix+f.Name+".", base+f.Offset)...)
		default:
			list = append(list, cField{prefix + f.Name, base + f.Offset})
		}
	}
	return list
}

// TestABI compares sizes, offsets and numbers with those that the C compiler finds
// in the kernel's headers. Numbers newer than the headers are passed over.
func TestABI(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skipf("comparing with the kernel's headers needs a C compiler: %v", err)
	}
	if _, err := os.Stat("/usr/include/linux/kvm.h"); err != nil {
		t.Skipf("comparing with the kernel's headers needs linux-libc-dev: %v", err)
	}

	want := map[string]uint64{}
	var c strings.Builder
	c.WriteString("#include <linux/kvm.h>\n#include <stddef.h>\n#include <stdio.h>\n" +
		"#define PAGE_SIZE 4096\n#define P(n, v) printf(\"%s %llu\\n\", n, (unsigned long long)(v))\nint main(void) {\n")
	for _, a := range abiTypes {
		typ := reflect.TypeOf(a.g)
		// Go rounds the size up to alignment as C does.
		size := a.c + " size"
		want[size] = uint64(typ.Size())
		ctype, member, isMember := strings.Cut(a.c, ":")
		if isMember {
			fmt.Fprintf(&c, "P(%q, sizeof(((%s *)0)->%s));\n", size, ctype, member)
		} else {
			fmt.Fprintf(&c, "P(%q, sizeof(%s));\n", size, ctype)
		}
		goFields := flatten(typ, "", 0)
		cFields := strings.Fields(a.fields)
		if len(goFields) != len(cFields) {
			t.Errorf("%s: %d fields in Go, %d in C", a.c, len(goFields), len(cFields))
			continue
		}
		for i, f := range goFields {
			key := a.c + "." + cFields[i] + "=" + f.name
			want[key] = uint64(f.offset)
			if isMember {
				fmt.Fprintf(&c, "P(%q, offsetof(%s, %s.%s) - offsetof(%[2]s, %[3]s));\n", key, ctype, member, cFields[i])
			} else {
				fmt.Fprintf(&c, "P(%q, offsetof(%s, %s));\n", key, ctype, cFields[i])
			}
		}
	}
	number := func(name string, v uint64) {
		want[name] = v
		fmt.Fprintf(&c, "#ifdef %s\nP(%q, %[1]s);\n#endif\n", name, name)
	}
	for _, o := range abiOps {
		number(o.name, uint64(o.req))
	}
	for name, v := range abiConsts {
		number(name, v)
	}
	for cap := range capNames {
		number(cap.String(), uint64(cap))
	}
	for r, name := range exitNames {
		if name != "" {
			number(ExitReason(r).String(), uint64(r))
		}
	}
	number("KVM_COALESCED_MMIO_MAX", coalescedMax)
	c.WriteString("return 0; }\n")

	dir := t.TempDir()
	src, bin := filepath.Join(dir, "abi.c"), filepath.Join(dir, "abi")
	if err := os.WriteFile(src, []byte(c.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(cc, "-o", bin, src).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); seen++ {
		i := strings.LastIndexByte(lines.Text(), ' ')
		key := lines.Text()[:i]
		got, err := strconv.ParseUint(lines.Text()[i+1:], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if want[key] != got {
			t.Errorf("%s: the headers say %d (%#x), Go %d (%#x)", key, got, got, want[key], want[key])
		}
		delete(want, key)
	}
	for key := range want {
		t.Logf("not in these headers: %s", key)
	}
	if len(want) > 20 {
		t.Errorf("%d of %d numbers were not in the headers", len(want), seen+len(want))
	}
}

// TestABIOps makes sure that abiOps is complete.
func TestABIOps(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "ops_unsafe.go", nil, 0)
	if os.IsNotExist(err) {
		t.Skip("the package's source is not here")
	}
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ast.Inspect(file, func(node ast.Node) bool {
		if spec, ok := node.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "op") {
			n++
			if abiOps[spec.Names[0].Name] == nil {
				t.Errorf("%s is not compared with the headers", spec.Names[0].Name)
			}
		}
		return true
	})
	if n != len(abiOps) {
		t.Errorf("ops_unsafe.go has %d ioctls, abiOps %d", n, len(abiOps))
	}
	names := map[string]string{}
	for v, o := range abiOps {
		if other := names[o.name]; other != "" {
			t.Errorf("%s and %s are both named %s", v, other, o.name)
		}
		names[o.name] = v
	}
}
