package main

import (
	"bytes"
	"context"
	"flag"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk/nbd"
)

func TestServeAndInfo(t *testing.T) {
	dir, err := os.MkdirTemp("", "nbd")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	image, socket := filepath.Join(dir, "disk.img"), filepath.Join(dir, "s")
	require.NoError(t, os.WriteFile(image, make([]byte, 1<<20), 0o600))

	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"serve", "-socket", socket, image}, w, io.Discard)
		w.Close()
	}()
	line := make([]byte, 200)
	n, err := r.Read(line)
	require.NoError(t, err, "%v", ended)
	require.Equal(t, "serving disk.img, 1048576 bytes, at "+socket+"\n", string(line[:n]))

	uri := "nbd+unix:///?socket=" + url.QueryEscape(socket)
	var out bytes.Buffer
	require.NoError(t, run(ctx, []string{"info", uri}, &out, io.Discard))
	require.Contains(t, out.String(), `"disk.img"  1048576  1/4096/33554432  read,write,flush,fua,trim,zero,fast-zero,cache,sparse,multi-conn`)

	cfg, err := nbd.ParseURI(uri)
	require.NoError(t, err)
	c, err := nbd.Dial(ctx, cfg)
	require.NoError(t, err)
	_, err = c.WriteAt([]byte("hello"), 1000)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	cancel()
	require.NoError(t, <-ended)
	data, err := os.ReadFile(image)
	require.NoError(t, err)
	require.Equal(t, "hello", string(data[1000:1005]))
}

func TestUsage(t *testing.T) {
	var out bytes.Buffer
	for _, args := range [][]string{{"-h"}, {"serve", "-h"}, {"info", "-h"}} {
		out.Reset()
		if err := run(context.Background(), args, &out, io.Discard); err != nil {
			require.ErrorIs(t, err, flag.ErrHelp)
		}
		require.Contains(t, out.String(), "usage:")
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "want serve or info"},
		{[]string{"frobnicate"}, `unknown command "frobnicate"`},
		{[]string{"serve"}, "want a file"},
		{[]string{"serve", "-x"}, "nbd serve -h"},
		{[]string{"serve", "/nonexistent/file"}, "/nonexistent/file: open: no such file"},
		{[]string{"serve", "-tls", "/nonexistent", "/dev/null"}, "TLS:"},
		{[]string{"info"}, "want one URI"},
		{[]string{"info", "disk.img"}, `NBD URI "disk.img"`},
		{[]string{"info", "nbd+unix:///?socket=/nonexistent"}, "no such file"},
	} {
		err := run(context.Background(), c.args, io.Discard, io.Discard)
		require.ErrorContains(t, err, c.want)
		require.False(t, strings.Contains(err.Error(), "\n"))
	}
}
