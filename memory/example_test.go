package memory_test

import (
	"fmt"
	"log"

	"github.com/vmkit-go/vmkit/memory"
)

func Example() {
	m, err := memory.New(memory.Config{Size: 4 << 30})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	for _, r := range m.Regions() {
		fmt.Printf("RAM at %#x, %d MiB\n", r.Base, r.Size>>20)
	}
	err = m.PutUint32(0xc0000000, 1)
	fmt.Println(err)
	// Output:
	// RAM at 0x0, 3072 MiB
	// RAM at 0x100000000, 1024 MiB
	// address 0xc0000000, length 0x4: outside guest memory
}

// A migration sends the pages of each round until few are left.
func ExampleMemory_CollectDirty() {
	m, err := memory.New(memory.Config{Size: 1 << 20})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	if err := m.StartDirty(); err != nil {
		log.Fatal(err)
	}
	if err := m.Write(0x2800, make([]byte, 0x1000)); err != nil {
		log.Fatal(err)
	}
	var round memory.Bitmap
	if err := m.CollectDirty(&round); err != nil {
		log.Fatal(err)
	}
	for gpa, n := range round.Runs() {
		fmt.Printf("send %#x, %#x bytes\n", gpa, n)
	}
	// Output:
	// send 0x2000, 0x2000 bytes
}
