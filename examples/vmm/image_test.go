package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/qcow2"
)

// Guests on clones of one disk each see their own changes, and the disk stays
// as it is.
func TestClones(t *testing.T) {
	needNative(t)
	base := rootDisk(t)
	before, err := os.ReadFile(base)
	require.NoError(t, err)
	names := []string{filepath.Join(t.TempDir(), "a.qcow2"), filepath.Join(t.TempDir(), "b.qcow2")}
	r := run(t, append([]string{"clone", base}, names...)...)
	require.Equal(t, 0, r.status, "%s", r.stderr)
	for i, name := range names {
		d := fmt.Sprintf("%s,format=qcow2,backing=%s:raw", name, base)
		for round := range 2 - i { // the first one boots a second time
			r := run(t, "run", "-disk", d, "--", "sh", "-c", "cat /root/note 2>/dev/null; echo clone $0 >>/root/note; sync", fmt.Sprint(i))
			require.Equal(t, 0, r.status, "%s", r.stderr)
			require.Equal(t, strings.Repeat(fmt.Sprintf("clone %d\n", i), round), r.stdout)
		}
		file, err := disk.Open(name, disk.FileConfig{ReadOnly: true})
		require.NoError(t, err)
		report, err := qcow2.Check(file, qcow2.CheckConfig{})
		require.NoError(t, errors.Join(err, file.Close()))
		require.Empty(t, report.Problems)
	}
	after, err := os.ReadFile(base)
	require.NoError(t, err)
	require.True(t, bytes.Equal(before, after), "the base was changed")
}

func TestBadImages(t *testing.T) {
	dir := t.TempDir()
	base, clone := filepath.Join(dir, "base"), filepath.Join(dir, "clone")
	require.Equal(t, 0, run(t, "clone", "-h").status)
	oneLine(t, "no base", run(t, "clone", base, clone), "no such file")
	for _, c := range []struct{ disk, want string }{
		{base + ",format=vmdk", "vmdk"},
		{base + ",backing=x:raw", "format=qcow2"},
		{base + ",format=qcow2,backing=x", "FILE:FORMAT"},
		{base + ",rw", "unknown setting"},
	} {
		oneLine(t, c.disk, run(t, "run", "-engine", "kvm", "-disk", c.disk), c.want)
	}
}
