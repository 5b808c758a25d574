package decode_test

import (
	"fmt"
	"log"

	"github.com/vmkit-go/vmkit/vcpu/soft/decode"
)

func ExampleDecode() {
	code := []byte{0x48, 0x8b, 0x44, 0x8b, 0x10} // mov rax, [rbx+rcx*4+0x10]
	var in decode.Inst
	n, err := decode.Decode(code, decode.Mode64, &in)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d bytes, opcode %#x, operands of %d bytes\n", n, in.Op, in.OpSize)
	fmt.Printf("register %d, memory at register %d + register %d<<%d + %#x\n", in.Reg, in.Base, in.Index, in.Scale, in.Disp)
	_, err = decode.Decode(code[:3], decode.Mode64, &in)
	fmt.Println(err)
	// Output:
	// 5 bytes, opcode 0x8b, operands of 8 bytes
	// register 0, memory at register 3 + register 1<<2 + 0x10
	// instruction is cut off
}
