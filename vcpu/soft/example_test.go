package soft_test

import (
	"fmt"
	"log"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/soft"
)

// A program of a few instructions in real mode, run to the port that it writes to.
func Example() {
	mem, err := memory.New(memory.Config{Size: 1 << 20})
	if err != nil {
		log.Fatal(err)
	}
	defer mem.Close()
	eng, err := soft.New(mem, soft.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer eng.Close()

	program := []byte{
		0xb0, 6, // mov al, 6
		0xb3, 7, // mov bl, 7
		0xf6, 0xe3, // mul bl
		0xe6, 0x80, // out 0x80, al
	}
	if err := mem.Write(0x1000, program); err != nil {
		log.Fatal(err)
	}
	cpu, err := eng.NewCPU(0)
	if err != nil {
		log.Fatal(err)
	}
	var s vcpu.State
	if err := cpu.State(&s); err != nil {
		log.Fatal(err)
	}
	s.Segments.CS.Selector, s.Segments.CS.Base = 0, 0
	s.Regs.RIP = 0x1000
	if err := cpu.SetState(&s); err != nil {
		log.Fatal(err)
	}

	// The runner runs every CPU of the machine; vcpu.Loop does so until told to stop.
	var exit vcpu.Exit
	if err := eng.Runner().Run(&exit); err != nil {
		log.Fatal(err)
	}
	fmt.Println(exit.Reason == vcpu.ExitIO, exit.Write, exit.Data[0])
	fmt.Println(eng.Instructions(), "instructions,", eng.Clock().Now(), "ns")
	// Output:
	// true true 42
	// 4 instructions, 16 ns
}

// The engine says what a CPU model needs that it has not.
func ExampleNew() {
	mem, err := memory.New(memory.Config{Size: 1 << 20})
	if err != nil {
		log.Fatal(err)
	}
	defer mem.Close()
	_, err = soft.New(mem, soft.Config{Model: vcpu.ModelV3})
	fmt.Println(err)
	// Output:
	// CPU model x86-64-v3: missing CPU features: fma, avx, f16c, avx2, xsave_avx
}
