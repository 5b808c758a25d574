package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/qcow2"
)

// writeOverlay makes an overlay, as vmm run does, with some bytes in it.
func writeOverlay(t *testing.T, path string, p []byte, off int64) {
	t.Helper()
	below, err := disk.NewMemory("below", 8<<20) // not looked at
	require.NoError(t, err)
	file, err := disk.Create(path, 0, disk.FileConfig{})
	require.NoError(t, err)
	require.NoError(t, qcow2.Create(file, qcow2.CreateConfig{Size: 8 << 20, ClusterSize: 4096, BackingName: "image", BackingFormat: "raw"}))
	img, err := qcow2.Open(file, qcow2.Config{Backing: below})
	require.NoError(t, err)
	_, err = img.WriteAt(p, off)
	require.NoError(t, err)
	require.NoError(t, img.Close())
	require.NoError(t, file.Close())
	require.NoError(t, os.WriteFile(path+".base", []byte("a version\n"), 0o644))
}

// An image goes out, is locked, and comes back with what was written, or as it
// was.
func TestCheckout(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	rawDisk(t, at("disk"), 1)
	succeed(t, "keygen", at("me"))
	succeed(t, "pack", "-q", "-sign", at("me.key"), at("disk"), at("pub"))
	url := serve(t, at("pub"), "-leases", at("leases"), "-key", at("me.pub")) + "manifest.json"
	mine := func(command string, flags ...string) []string {
		return append(append([]string{command, "-cache", at("cache"), "-key", at("me.pub")}, flags...), url)
	}
	fails := func(want string, args ...string) {
		t.Helper()
		status, out, msg := invoke(t, args...)
		require.Equal(t, 1, status, out)
		require.Contains(t, msg, want)
	}

	fails("not checked out", mine("rollback")...)
	require.Contains(t, succeed(t, mine("checkout", "-holder", "alice")...), "checked out version")
	fails("checked out already", mine("checkout")...)
	fails("alice", "checkout", "-cache", at("other"), "-key", at("me.pub"), url)

	// Given back, the image is as it was.
	writeOverlay(t, at("overlay"), []byte("nobody wants this"), 1<<20)
	require.Contains(t, succeed(t, mine("rollback", "-overlay", at("overlay"))...), "gave back")
	require.NoFileExists(t, at("overlay"))
	require.NoFileExists(t, at("overlay.base"))

	// Published, it is what was written over what there was.
	succeed(t, mine("checkout")...)
	p := bytes.Repeat([]byte("new"), 5000)
	writeOverlay(t, at("overlay"), p, 5<<20)
	fails("signature", mine("checkin", "-overlay", at("overlay"))...) // the depot wants one
	require.FileExists(t, at("overlay"))
	require.Contains(t, succeed(t, mine("checkin", "-overlay", at("overlay"), "-sign", at("me.key"), "-label", "two")...), "published version")
	require.NoFileExists(t, at("overlay"))
	want, err := os.ReadFile(at("disk"))
	require.NoError(t, err)
	copy(want[5<<20:], p)
	img, err := openImage(t.Context(), url, trust{unsigned: true})
	require.NoError(t, err)
	require.Equal(t, "two", img.Manifest().Label)
	got := make([]byte, len(want))
	_, err = img.Reader(t.Context()).ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	succeed(t, "checkout", "-cache", at("other"), "-key", at("me.pub"), url)
}
