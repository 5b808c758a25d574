package kvmtest

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Memory maps size bytes for a guest until the test ends. It returns them and their
// address, for kvm.UserMemoryRegion.
func Memory(t testing.TB, size int) ([]byte, uint64) {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem, uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
}
