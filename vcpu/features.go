package vcpu

import "fmt"

// featureWord is one register of a leaf whose bits are features that must not
// be missing. Names are those of Linux's /proc/cpuinfo where it has one.
type featureWord struct {
	function, index uint32
	reg             byte   // 'a', 'b', 'c' or 'd'
	label           string // for bits without a name
	ignore          uint32 // bits that are not features, or change at run time
	names           [32]string
}

func (w *featureWord) of(c CPUID) uint32 {
	l, _ := c.Get(w.function, w.index)
	switch w.reg {
	case 'a':
		return l.EAX
	case 'b':
		return l.EBX
	case 'c':
		return l.ECX
	}
	return l.EDX
}

func (w *featureWord) name(bit int) string {
	if n := w.names[bit]; n != "" {
		return n
	}
	return fmt.Sprintf("%s bit %d", w.label, bit)
}

// missingFeatures names each feature bit that need has and have has not.
func missingFeatures(need, have CPUID) []string {
	var out []string
	seen := map[string]bool{}
	for i := range featureWords {
		w := &featureWords[i]
		lack := w.of(need) &^ w.of(have) &^ w.ignore
		for bit := range 32 {
			if lack>>bit&1 == 0 {
				continue
			}
			if n := w.name(bit); !seen[n] { // AMD repeats some
				seen[n] = true
				out = append(out, n)
			}
		}
	}
	return out
}

var base1EDX = [32]string{
	"fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce",
	"cx8", "apic", "", "sep", "mtrr", "pge", "mca", "cmov",
	"pat", "pse36", "pn", "clflush", "", "dts", "acpi", "mmx",
	"fxsr", "sse", "sse2", "ss", "ht", "tm", "ia64", "pbe",
}

var featureWords = []featureWord{
	{function: 1, reg: 'd', label: "CPUID 1 EDX", ignore: 1 << 28, names: base1EDX},
	{function: 1, reg: 'c', label: "CPUID 1 ECX", ignore: 1 << 27, names: [32]string{
		"sse3", "pclmulqdq", "dtes64", "monitor", "ds_cpl", "vmx", "smx", "est",
		"tm2", "ssse3", "cid", "sdbg", "fma", "cx16", "xtpr", "pdcm",
		"", "pcid", "dca", "sse4_1", "sse4_2", "x2apic", "movbe", "popcnt",
		"tsc_deadline_timer", "aes", "xsave", "osxsave", "avx", "f16c", "rdrand", "hypervisor",
	}},
	{function: 6, reg: 'a', label: "CPUID 6 EAX", names: [32]string{2: "arat"}},
	{function: 7, reg: 'b', label: "CPUID 7.0 EBX", names: [32]string{
		"fsgsbase", "tsc_adjust", "sgx", "bmi1", "hle", "avx2", "fdp_excptn_only", "smep",
		"bmi2", "erms", "invpcid", "rtm", "cqm", "zero_fcs_fds", "mpx", "rdt_a",
		"avx512f", "avx512dq", "rdseed", "adx", "smap", "avx512ifma", "", "clflushopt",
		"clwb", "intel_pt", "avx512pf", "avx512er", "avx512cd", "sha_ni", "avx512bw", "avx512vl",
	}},
	{function: 7, reg: 'c', label: "CPUID 7.0 ECX", ignore: 1<<4 | 0x3e0000, names: [32]string{
		"prefetchwt1", "avx512vbmi", "umip", "pku", "ospke", "waitpkg", "avx512_vbmi2", "shstk",
		"gfni", "vaes", "vpclmulqdq", "avx512_vnni", "avx512_bitalg", "tme", "avx512_vpopcntdq", "",
		"la57", "", "", "", "", "", "rdpid", "kl",
		"bus_lock_detect", "cldemote", "", "movdiri", "movdir64b", "enqcmd", "sgx_lc", "pks",
	}},
	{function: 7, reg: 'd', label: "CPUID 7.0 EDX", names: [32]string{
		"", "sgx_keys", "avx512_4vnniw", "avx512_4fmaps", "fsrm", "uintr", "", "",
		"avx512_vp2intersect", "srbds_ctrl", "md_clear", "rtm_always_abort", "", "rtm_force_abort", "serialize", "hybrid",
		"tsxldtrk", "", "pconfig", "arch_lbr", "ibt", "", "amx_bf16", "avx512_fp16",
		"amx_tile", "amx_int8", "spec_ctrl", "stibp", "flush_l1d", "arch_capabilities", "core_capabilities", "ssbd",
	}},
	{function: 7, index: 1, reg: 'a', label: "CPUID 7.1 EAX", names: [32]string{
		0: "sha512", 1: "sm3", 2: "sm4", 4: "avx_vnni", 5: "avx512_bf16", 6: "lass", 7: "cmpccxadd",
		10: "fzrm", 11: "fsrs", 12: "fsrc", 17: "fred", 18: "lkgs", 19: "wrmsrns", 21: "amx_fp16", 22: "hreset", 23: "avx_ifma", 26: "lam",
	}},
	{function: 7, index: 1, reg: 'd', label: "CPUID 7.1 EDX", names: [32]string{
		4: "avx_vnni_int8", 5: "avx_ne_convert", 8: "amx_complex", 10: "avx_vnni_int16", 14: "prefetchi", 19: "avx10",
	}},
	{function: 7, index: 2, reg: 'd', label: "CPUID 7.2 EDX", names: [32]string{
		"intel_psfd", "ipred_ctrl", "rrsba_ctrl", "ddpd_u", "bhi_ctrl", "mcdt_no",
	}},
	{function: 0xd, reg: 'a', label: "XCR0", names: [32]string{
		"xsave_x87", "xsave_sse", "xsave_avx", "xsave_bndregs", "xsave_bndcsr", "xsave_opmask", "xsave_zmm_hi256", "xsave_hi16_zmm",
		9: "xsave_pkru", 17: "xsave_tilecfg", 18: "xsave_tiledata",
	}},
	{function: 0xd, index: 1, reg: 'a', label: "CPUID 0xd.1 EAX", names: [32]string{"xsaveopt", "xsavec", "xgetbv1", "xsaves", "xfd"}},
	{function: 0xd, index: 1, reg: 'c', label: "IA32_XSS"},
	{function: 0x40000001, reg: 'a', label: "KVM feature", names: [32]string{
		0: "kvm_clocksource", 1: "kvm_nop_io_delay", 2: "kvm_mmu_op", 3: "kvm_clocksource2", 4: "kvm_async_pf", 5: "kvm_steal_time",
		6: "kvm_pv_eoi", 7: "kvm_pv_unhalt", 9: "kvm_pv_tlb_flush", 10: "kvm_async_pf_vmexit", 11: "kvm_pv_send_ipi",
		12: "kvm_poll_control", 13: "kvm_pv_sched_yield", 14: "kvm_async_pf_int", 15: "kvm_msi_ext_dest_id",
		16: "kvm_hc_map_gpa_range", 17: "kvm_migration_control", 24: "kvm_clocksource_stable",
	}},
	{function: 0x80000001, reg: 'd', label: "CPUID 0x80000001 EDX", names: func() [32]string {
		n := base1EDX // AMD repeats these
		n[11], n[19], n[20], n[22], n[25] = "syscall", "mp", "nx", "mmxext", "fxsr_opt"
		n[26], n[27], n[28], n[29], n[30], n[31] = "pdpe1gb", "rdtscp", "", "lm", "3dnowext", "3dnow"
		return n
	}()},
	{function: 0x80000001, reg: 'c', label: "CPUID 0x80000001 ECX", ignore: 1 << 1, names: [32]string{
		"lahf_lm", "cmp_legacy", "svm", "extapic", "cr8_legacy", "lzcnt", "sse4a", "misalignsse",
		"3dnowprefetch", "osvw", "ibs", "xop", "skinit", "wdt", "", "lwp",
		"fma4", "tce", "", "nodeid_msr", "", "tbm", "topoext", "perfctr_core",
		"perfctr_nb", "", "bpext", "ptsc", "perfctr_llc", "mwaitx",
	}},
	{function: 0x80000007, reg: 'd', label: "CPUID 0x80000007 EDX", names: [32]string{8: "constant_tsc"}},
	{function: 0x80000008, reg: 'b', label: "CPUID 0x80000008 EBX", names: [32]string{
		0: "clzero", 1: "irperf", 2: "xsaveerptr", 4: "rdpru", 9: "wbnoinvd", 12: "ibpb", 14: "ibrs", 15: "amd_stibp", 17: "stibp_always_on",
		24: "amd_ssbd", 25: "virt_ssbd", 26: "amd_ssb_no", 28: "amd_psfd", 29: "btc_no", 30: "ibpb_ret",
	}},
	{function: 0x8000000a, reg: 'd', label: "SVM feature"},
	{function: 0x80000021, reg: 'a', label: "CPUID 0x80000021 EAX", names: [32]string{
		0: "no_nested_data_bp", 2: "lfence_rdtsc", 6: "null_sel_clr_base", 8: "autoibrs", 9: "no_smm_ctl_msr", 27: "sbpb", 28: "ibpb_brtype", 29: "srso_no",
	}},
}
