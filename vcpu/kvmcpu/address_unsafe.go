package kvmcpu

import "unsafe"

// hostAddress is where guest memory is mapped in this process, for the kernel.
func hostAddress(p []byte) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p))))
}
