package agent

import (
	"errors"
	"io/fs"

	"github.com/vmkit-go/vmkit/kvm"
)

// holdKVM keeps two idle machines, with and without interrupt chips, for as
// long as the nested host runs, and returns what keeps them.
//
// When its first machine comes or its last one goes, KVM has the kernel patch
// running code: a static key in __schedule for preemption notifiers, and some in
// its own for local APICs that are off or missing. For a moment the code then
// holds an INT3. QEMU 7.2 with several threads now and then keeps the
// translation with the INT3 after the byte is restored, and both processors
// take breakpoints for ever. With these machines, nothing is patched while
// tests run.
func holdKVM() ([]any, error) {
	sys, err := kvm.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // programs will find out by themselves
	}
	if err != nil {
		return nil, err
	}
	held := []any{sys}
	for _, chips := range []bool{true, false} {
		vm, err := sys.CreateVM(0)
		if err != nil {
			return nil, err
		}
		held = append(held, vm)
		if chips {
			if err := vm.CreateIRQChip(); err != nil {
				return nil, err
			}
		}
		cpu, err := vm.CreateVCPU(0)
		if err != nil {
			return nil, err
		}
		held = append(held, cpu)
	}
	return held, nil
}
