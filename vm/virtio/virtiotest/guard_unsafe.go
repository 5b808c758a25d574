package virtiotest

import (
	"fmt"
	"syscall"
	"unsafe"

	"github.com/vmkit-go/vmkit/memory"
)

const guardSize = 64 << 10

// guardedMemory makes guest memory with pages on both sides that nobody can
// read or write: an access of this process next to guest memory is then a
// fault. It returns what takes the guards away again. size is at most 3 GiB, so
// that there is one region.
func guardedMemory(size uint64) (m *memory.Memory, unguard func(), err error) {
	var spare []*memory.Memory
	defer func() {
		for _, m := range spare {
			m.Close()
		}
	}()
	for range 16 {
		// Reserve a range with room for all three, and make a hole of the
		// right size in it: the kernel fills the highest hole that fits.
		at, _, errno := syscall.Syscall6(syscall.SYS_MMAP, 0, uintptr(size)+2*guardSize, syscall.PROT_NONE,
			syscall.MAP_PRIVATE|syscall.MAP_ANON, ^uintptr(0), 0)
		if errno != 0 {
			return nil, nil, errno
		}
		syscall.Syscall(syscall.SYS_MUNMAP, at+guardSize, uintptr(size), 0)
		if m, err = memory.New(memory.Config{Size: size}); err != nil {
			return nil, nil, err
		}
		if uintptr(unsafe.Pointer(unsafe.SliceData(m.Regions()[0].Host))) == at+guardSize {
			return m, func() {
				syscall.Syscall(syscall.SYS_MUNMAP, at, guardSize, 0)
				syscall.Syscall(syscall.SYS_MUNMAP, at+guardSize+uintptr(size), guardSize, 0)
			}, nil
		}
		syscall.Syscall(syscall.SYS_MUNMAP, at, guardSize, 0)
		syscall.Syscall(syscall.SYS_MUNMAP, at+guardSize+uintptr(size), guardSize, 0)
		spare = append(spare, m) // it took another hole: that one is gone now
	}
	return nil, nil, fmt.Errorf("the kernel puts guest memory nowhere near its guard pages")
}
