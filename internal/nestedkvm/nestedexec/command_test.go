package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

func TestTestOutputs(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{nil, nil},
		{[]string{"-test.v", "-test.run=X"}, nil},
		{[]string{"-test.coverprofile=/o/c.out", "-test.timeout=10m"}, []string{"/o/c.out"}},
		{[]string{"--test.cpuprofile", "cpu.out"}, []string{"/pkg/cpu.out"}},
		{[]string{"-test.outputdir=/o", "-test.memprofile=m", "-test.trace=/t"}, []string{"/o/m", "/t"}},
		{[]string{"-test.gocoverdir=/cov"}, []string{"/cov"}},
		{[]string{"-test.coverprofile"}, nil},
		{[]string{"test.coverprofile", "x"}, nil},
	} {
		want := append([]string{"/pkg/testdata/fuzz"}, tc.want...)
		if diff := cmp.Diff(want, testOutputs("/pkg", tc.args)); diff != "" {
			t.Errorf("%q: %s", tc.args, diff)
		}
	}
}

func TestExtract(t *testing.T) {
	dir := t.TempDir()
	stream := func(name, data string) *tar.Reader {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o640, Size: int64(len(data))}))
		_, err := w.Write([]byte(data))
		require.NoError(t, err)
		require.NoError(t, w.Close())
		return tar.NewReader(&b)
	}
	patterns := []string{filepath.Join(dir, "out"), filepath.Join(dir, "*.prof")}
	for _, name := range []string{"out/a/b", "out", "x.prof"} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.RemoveAll(filepath.Join(dir, "out")))
		require.NoError(t, extract(stream(path, name), patterns))
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, name, string(data))
	}
	for _, name := range []string{"outer", "y.profile", "../x", "out/../y"} {
		err := extract(stream(dir+"/"+name, "evil"), patterns)
		require.ErrorContains(t, err, "not asked for", name)
		require.NoFileExists(t, filepath.Join(dir, name))
	}
}

func TestLocalProgram(t *testing.T) {
	exe, err := os.Executable()
	require.NoError(t, err)
	path, ok := localProgram(exe)
	require.True(t, ok)
	require.Equal(t, exe, path)
	for _, name := range []string{"sh", "/bin/sh", "/usr/bin/env", "/no/such/file"} {
		_, ok := localProgram(name)
		require.False(t, ok, name)
	}
}

func TestListen(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	l, err := listen(sock)
	require.NoError(t, err)
	_, err = listen(sock)
	require.ErrorContains(t, err, "served already")
	l.(interface{ SetUnlinkOnClose(bool) }).SetUnlinkOnClose(false)
	l.Close()
	l, err = listen(sock) // of a process that was killed
	require.NoError(t, err)
	l.Close()
}
