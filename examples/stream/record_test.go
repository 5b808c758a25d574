package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/stream/profile"
)

// TestRecord has qemu-io stand for a guest.
func TestRecord(t *testing.T) {
	dir := t.TempDir()
	raw, public, out := filepath.Join(dir, "raw"), filepath.Join(dir, "public"), filepath.Join(dir, "boot.profile")
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(i * i / 4093)
	}
	require.NoError(t, os.WriteFile(raw, data, 0o644))
	ctx := t.Context()
	require.Zero(t, run(ctx, []string{"pack", raw, public}))
	for range 2 {
		require.Zero(t, run(ctx, []string{"record", "-o", out, public, "--",
			"qemu-io", "-f", "raw", "-c", "read 1M 4k", "-c", "write 3M 4k", "-c", "read 0 4k", "{}"}))
	}
	p, err := profile.ReadFile(out)
	require.NoError(t, err)
	require.Equal(t, 2, p.Runs)
	require.Len(t, p.Entries, 2)
	for _, e := range p.Entries {
		require.Equal(t, 2, e.Seen)
		require.Equal(t, "boot", e.Phase)
	}
	require.Equal(t, 1, run(ctx, []string{"record", "-o", out, "-until", "never", public, "--", "true"}))
	require.Equal(t, 2, run(ctx, []string{"record", public}))
	require.Equal(t, 1, run(ctx, []string{"record", "-o", out, filepath.Join(dir, "none.json"), "--", "true"}))
	require.Equal(t, 1, run(ctx, []string{"record", "-o", out, public, "--", "false"}))
	p, err = profile.ReadFile(out)
	require.NoError(t, err)
	require.Equal(t, 2, p.Runs, "failed runs do not count")
}
