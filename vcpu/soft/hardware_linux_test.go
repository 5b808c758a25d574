package soft

import (
	"testing"

	"golang.org/x/sys/unix"
)

// hostPages are a page of memory that the host can execute, and one for data.
func hostPages(t *testing.T) (code, state []byte) {
	t.Helper()
	code, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Skipf("no memory to execute code in: %v", err)
	}
	state, err = unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Munmap(code)
		_ = unix.Munmap(state)
	})
	return code, state
}
