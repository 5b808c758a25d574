package vcpu_test

import (
	"fmt"

	"github.com/vmkit-go/vmkit/vcpu"
)

// A guest that was given AVX cannot move to a host without it.
func ExampleMissing() {
	guest := vcpu.CPUID{
		{Function: 1, ECX: 1<<28 | 1<<20}, // AVX, SSE4.2
		{Function: 7, Indexed: true, EBX: 1 << 5},
	}
	host := vcpu.CPUID{{Function: 1, ECX: 1 << 20}}
	fmt.Println(vcpu.Missing(guest, host))
	// Output: [avx avx2]
}

func ExampleParseModel() {
	m, err := vcpu.ParseModel("x86-64-v3")
	fmt.Println(m, err)
	_, err = vcpu.ParseModel("pentium")
	fmt.Println(err)
	// Output:
	// x86-64-v3 <nil>
	// unknown CPU model "pentium": have host, x86-64-v1, x86-64-v2, x86-64-v3
}
