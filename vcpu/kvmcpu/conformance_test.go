package kvmcpu

import (
	"os"
	"strings"
	"testing"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/cputest"
)

// emulator are the tests that a KVM on QEMU's emulated processor fails, as the
// nested host is one: what is wrong there is QEMU's.
var emulator = map[string]string{
	"exceptions/lock where it must not be":                                 "QEMU runs LOCK MOV",
	"exceptions/int n without the privilege":                               "QEMU's error codes count 16 bytes a gate twice",
	"exceptions/int n beyond the table":                                    "as above",
	"exceptions/gate not present":                                          "as above, and RIP is after the instruction",
	"exceptions/gate to no code":                                           "RIP is after the instruction",
	"exceptions/gate to absent code":                                       "RIP is after the instruction",
	"exceptions/a fault changes nothing, and the instruction starts again": "a locked operation reads first",
	"exceptions/not canonical on the stack is #SS":                         "QEMU raises #GP",
	"exceptions/jump to what is not canonical":                             "QEMU faults at the target",
	"exceptions/alignment check":                                           "QEMU has none",
	"exceptions/a fault in delivering a fault is a double fault":           "KVM merges #GP and #NP only for what it injects itself",
	"exceptions/x87 exceptions wait for the next instruction":              "QEMU raises no x87 exceptions",
	"exceptions/SSE exceptions":                                            "QEMU raises no SSE exceptions",
	"exceptions/reserved bits of MXCSR":                                    "QEMU takes them",
	"exceptions/ports by permission map":                                   "QEMU's ports at CPL 3 are KVM's to intercept",
	"paging/reserved bit":                                                  "QEMU leaves P out of the error code",
	"paging/reserved bit in a store at CPL 3":                              "as above",
	"paging/large page with a reserved bit":                                "as above",
	"paging/NX is reserved without EFER.NXE":                               "as above",
	"segments/bases count for FS and GS alone":                             "QEMU adds the base of ES",
	"segments/32-bit limits":                                               "QEMU checks no limits",
	"segments/32-bit limit of the stack":                                   "QEMU checks no limits",
	"segments/expand-down":                                                 "QEMU checks no limits",
	"segments/32-bit null segment":                                         "QEMU checks no limits",
	"segments/32-bit read-only and unreadable":                             "QEMU checks no rights",
	"segments/code limit":                                                  "QEMU checks no limits",
	"transfers/syscall and sysret":                                         "QEMU loses the carry flag in SYSCALL",
	"transfers/rdfsbase and wrgsbase":                                      "QEMU takes bases that are not canonical",
	"system/writes to control registers that fault":                        "QEMU's and KVM's checks of reserved bits differ",
	"system/MSRs with addresses must be canonical":                         "KVM lets the hardware check FS and GS bases, and QEMU does not",
	"system/what xsetbv writes is in the state":                            "QEMU lets XSETBV pass by KVM, which puts XCR0 back",
	"system/fxrstor checks MXCSR and alignment":                            "QEMU takes reserved bits",
	"debug/a breakpoint on code is a fault":                                "QEMU has no breakpoints in a guest of SVM",
	"debug/a breakpoint on data is a trap":                                 "as above",
	"debug/a breakpoint on reads and writes of 8 bytes":                    "as above",
	"debug/general detect":                                                 "as above",
	"debug/icebp":                                                          "QEMU has no ICEBP",
	"float/stack overflow and underflow":                                   "QEMU has no x87 stack faults",
	"float/MMX shares the x87 registers":                                   "QEMU leaves the exponents",
	"code/a store to the next instruction":                                 "QEMU goes on with what it has translated",
	"modes/real mode exceptions push no error code":                        "QEMU checks no limits",
	"modes/32-bit interrupt from CPL 3 by the TSS":                         "QEMU aborts: a busy TSS from VMRUN is none to it",
	"modes/32-bit iret to CPL 3 and back":                                  "as above",
}

// TestConformance runs the suite that every engine has to pass.
func TestConformance(t *testing.T) {
	sys := kvmtest.Open(t)
	kvmtest.NeedNative(t, sys)
	cfg := cputest.Config{
		New: func(t testing.TB, mem *memory.Memory) vcpu.Engine {
			eng, err := New(mem, Config{KVM: sys, Chips: ChipsNone})
			must(t, err)
			return eng
		},
	}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	must(t, err)
	if strings.Contains(string(cpuinfo), "QEMU TCG") {
		cfg.Known = emulator
	}
	cputest.Run(t, cfg)
}
