package memory

import (
	"testing"

	"golang.org/x/sys/unix"
)

// checkFile makes sure that r is where it says in the memfd, and there to stay.
func checkFile(t *testing.T, r Region) {
	t.Helper()
	var b [1]byte
	if _, err := unix.Pread(r.FD, b[:], r.Offset); err != nil || b[0] != r.Host[0] {
		t.Errorf("region at %#x is not at offset %#x: %v", r.Base, r.Offset, err)
	}
	if err := unix.Ftruncate(r.FD, PageSize); err == nil {
		t.Error("the memfd can be cut short")
	}
}
