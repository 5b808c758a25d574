//go:build !linux

package memory

import "testing"

// checkFile makes sure that r has no file.
func checkFile(t *testing.T, r Region) {
	t.Helper()
	if r.FD != -1 {
		t.Errorf("region at %#x has descriptor %d", r.Base, r.FD)
	}
}
