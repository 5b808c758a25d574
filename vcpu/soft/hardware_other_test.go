//go:build !linux

package soft

import "testing"

// hostPages are for Linux alone.
func hostPages(t *testing.T) (code, state []byte) {
	t.Helper()
	t.Skip("code is executed on the host's processor on Linux alone")
	return nil, nil
}
