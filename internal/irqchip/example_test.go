package irqchip_test

import (
	"fmt"
	"log"

	"github.com/vmkit-go/vmkit/internal/irqchip"
)

// A local APIC's timer interrupts its CPU at a time of the machine's own clock.
func Example() {
	var now int64 // nanoseconds
	chips, err := irqchip.New(irqchip.Config{CPUs: 1, Now: func() int64 { return now }})
	if err != nil {
		log.Fatal(err)
	}
	cpu := chips.LAPIC(0)
	cpu.Write(0xf0, 0x1ff)  // spurious-interrupt vector: enable
	cpu.Write(0x320, 0x40)  // LVT timer: one-shot, vector 0x40
	cpu.Write(0x3e0, 0xb)   // divide by 1
	cpu.Write(0x380, 1_000) // initial count
	fmt.Println("next at", chips.Next())
	now = chips.Next()
	chips.Advance(now)
	if vector, ok := cpu.Ack(); ok {
		fmt.Printf("vector %#x\n", vector)
	}
	// Output:
	// next at 1000
	// vector 0x40
}
