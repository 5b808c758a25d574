//go:build linux

package soft

import (
	"fmt"
	"syscall"
	"unsafe"

	"github.com/vmkit-go/vmkit/memory"
)

const guardSize = 1 << 20

// guard maps pages that nobody can read or write at an address of this process. It
// returns 0 if something is there.
func guard(at uintptr) uintptr {
	const noReplace = 0x100000 // MAP_FIXED_NOREPLACE
	got, _, errno := syscall.Syscall6(syscall.SYS_MMAP, at, guardSize, syscall.PROT_NONE,
		syscall.MAP_PRIVATE|syscall.MAP_ANON|noReplace, ^uintptr(0), 0)
	if errno != 0 || got != at {
		return 0
	}
	return at
}

// guardedMemory makes guest memory between guards: an access next to it is a fault of
// this process.
func guardedMemory(size uint64) (*memory.Memory, func(), error) {
	var spare []*memory.Memory
	defer func() {
		for _, m := range spare {
			m.Close()
		}
	}()
	for range 16 {
		m, err := memory.New(memory.Config{Size: size})
		if err != nil {
			return nil, nil, err
		}
		host := uintptr(unsafe.Pointer(unsafe.SliceData(m.Regions()[0].Host)))
		low, high := guard(host-guardSize), guard(host+uintptr(size))
		unguard := func() {
			for _, at := range []uintptr{low, high} {
				if at != 0 {
					syscall.Syscall(syscall.SYS_MUNMAP, at, guardSize, 0)
				}
			}
		}
		if low != 0 && high != 0 {
			return m, unguard, nil
		}
		unguard()
		spare = append(spare, m) // something else lies right beside it
	}
	return nil, nil, fmt.Errorf("the kernel leaves no room for guard pages beside guest memory")
}
