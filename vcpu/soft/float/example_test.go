package float_test

import (
	"fmt"
	"math"

	"github.com/vmkit-go/vmkit/vcpu/soft/float"
)

// A third, in 53 bits of precision, and what became of the flags.
func ExampleX87_Div() {
	env := float.X87{CW: 0x27F}
	third, ok := env.Div(float.One, float.FromInt64(3))
	bits, _ := env.Store64(third)
	fmt.Println(math.Float64frombits(bits), ok, env.SW&float.PE != 0)
	// Output: 0.3333333333333333 true true
}

// A division by zero that the program wants to hear of: nothing is written.
func ExampleMXCSR_End() {
	m := float.DefaultMXCSR &^ (float.ZE << 7)
	element := m.Begin()
	element.Div64(math.Float64bits(1), math.Float64bits(0))
	fmt.Println(m.End(element), m&float.ZE != 0)
	// Output: true true
}
