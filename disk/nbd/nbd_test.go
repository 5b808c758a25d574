package nbd

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
)

// bare hides what a Backend can do beyond the interface.
type bare struct{ disk.Backend }

func TestConformance(t *testing.T) {
	type variant struct {
		name    string
		network string
		file    bool
		server  func(*Server)
		client  func(*ClientConfig)
		short   bool // run with -short too
	}
	for _, v := range []variant{
		{name: "tcp", network: "tcp", short: true},
		{name: "unix", network: "unix", file: true},
		{name: "simple", network: "unix", short: true, client: func(c *ClientConfig) { c.SimpleReplies = true }},
		{name: "connections", network: "tcp", file: true, short: true, client: func(c *ClientConfig) { c.Connections = 4 }},
		{name: "tls", network: "tcp", server: func(s *Server) { s.TLS = testCertificates(t).server },
			client: func(c *ClientConfig) { c.TLS = testCertificates(t).client }},
		{name: "bare", network: "unix", server: func(s *Server) { s.Exports[0].Backend = bare{s.Exports[0].Backend} }},
		{name: "small log", network: "unix", client: func(c *ClientConfig) { c.Unflushed = 100 << 10 }},
		{name: "no log", network: "unix", client: func(c *ClientConfig) { c.Unflushed = -1 }},
		{name: "tight server", network: "unix", server: func(s *Server) { s.MaxRequests, s.MaxBytes = 2, 1 }},
	} {
		t.Run(v.name, func(t *testing.T) {
			if testing.Short() && !v.short {
				t.Skip("-short")
			}
			start := func(t *testing.T, b disk.Backend, readOnly bool) disk.Backend {
				s := &Server{Exports: []Export{{Name: "disk", Backend: b, ReadOnly: readOnly, FastZero: true}}, Log: testLog(t)}
				if v.server != nil {
					v.server(s)
				}
				cfg := serve(t, v.network, s)
				cfg.Export = "disk"
				if v.client != nil {
					v.client(&cfg)
				}
				return dial(t, cfg)
			}
			stores := map[disk.Backend]disk.Backend{}
			again := func(readOnly bool) func(*testing.T, disk.Backend) disk.Backend {
				return func(t *testing.T, b disk.Backend) disk.Backend {
					require.NoError(t, b.Close())
					return start(t, stores[b], readOnly)
				}
			}
			disktest.Run(t, disktest.Maker{
				New: func(t *testing.T, size int64) disk.Backend {
					var store disk.Backend = memory(t, size)
					if v.file {
						f, err := disk.Create(filepath.Join(t.TempDir(), "image"), size, disk.FileConfig{})
						require.NoError(t, err)
						t.Cleanup(func() { f.Close() })
						store = f
					}
					b := start(t, store, false)
					stores[b] = store
					return b
				},
				Reopen:   again(false),
				ReadOnly: again(true),
			})
		})
	}
}

func TestURI(t *testing.T) {
	for _, c := range []struct{ uri, network, address, export, back string }{
		{"nbd://host", "tcp", "host:10809", "", "nbd://host/"},
		{"nbd://host:1234/a/b%20c", "tcp", "host:1234", "a/b c", "nbd://host:1234/a/b%20c"},
		{"nbd://[::1]/x", "tcp", "[::1]:10809", "x", "nbd://[::1]/x"},
		{"nbds://host/x", "tcp", "host:10809", "x", "nbds://host/x"},
		{"nbd+unix:///x?socket=/tmp/s", "unix", "/tmp/s", "x", "nbd+unix:///x?socket=/tmp/s"},
		{"nbd+unix:///?socket=/tmp/a%20b", "unix", "/tmp/a b", "", "nbd+unix:///?socket=/tmp/a+b"},
		{"nbds+unix:///?socket=s", "unix", "s", "", "nbds+unix:///?socket=s"},
	} {
		cfg, err := ParseURI(c.uri)
		require.NoError(t, err, c.uri)
		require.True(t, IsURI(c.uri))
		require.Equal(t, []string{c.network, c.address, c.export}, []string{cfg.Network, cfg.Address, cfg.Export})
		require.Equal(t, c.back, cfg.uri())
	}
	for _, uri := range []string{
		"", "nbd://", "http://host/", "nbd://host/?socket=/tmp/s", "nbd+unix:///x", "nbd+unix://host/x?socket=s",
		"nbd://host/?x=y", "nbd://host:port:x/", "nbd://host/?tls-certificates=/tmp", "nbds://host/?tls-certificates=/nonexistent",
		"nbd://host/%zz",
	} {
		_, err := ParseURI(uri)
		require.Error(t, err, uri)
		require.Contains(t, err.Error(), "NBD URI")
	}
	for _, s := range []string{"disk.img", "/nbd", "nbd:host:1", "nbdx://h"} {
		require.False(t, IsURI(s))
	}
}

func TestURICertificates(t *testing.T) {
	certs := testCertificates(t)
	m := memory(t, 1<<20)
	s := &Server{Exports: []Export{{Backend: m}}, TLS: certs.server}
	cfg := serve(t, "tcp", s)
	cfg, err := ParseURI("nbds://" + cfg.Address + "/?tls-certificates=" + certs.dir)
	require.NoError(t, err)
	c := dial(t, cfg)
	require.EqualValues(t, 1<<20, c.Size())
	require.Contains(t, c.Info().Name, "nbds://")
}

func TestList(t *testing.T) {
	a, b := memory(t, 1<<20), memory(t, 2<<20)
	s := &Server{Exports: []Export{{Name: "a", Description: "the first", Backend: a}, {Name: "b", Backend: b, ReadOnly: true}}}
	cfg := serve(t, "unix", s)
	list, err := List(context.Background(), cfg)
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, "a", list[0].Name)
	require.Equal(t, "the first", list[0].Description)
	require.EqualValues(t, 1<<20, list[0].Size)
	require.True(t, list[0].Flush && list[0].FUA && list[0].Trim && list[0].WriteZeroes && list[0].MultiConn)
	require.Equal(t, "b", list[1].Name)
	require.True(t, list[1].ReadOnly)
	require.False(t, list[1].Trim)

	c := dial(t, cfg)
	require.EqualValues(t, 1<<20, c.Size(), "the first export is the default")
	require.Equal(t, "a", c.Export().Name)

	cfg.Export = "c"
	_, err = Dial(context.Background(), cfg)
	require.ErrorContains(t, err, `no such export`)
	require.ErrorContains(t, err, `there is no export \"c\"`)
}

// A read that crosses holes is put together from chunks.
func TestSparseRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	f, err := disk.Create(path, 4<<20, disk.FileConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	want := make([]byte, 4<<20)
	for off := 0; off < len(want); off += 100 << 10 {
		for i := range 5000 {
			want[off+i] = byte(off>>10) | 1
		}
	}
	for off := 0; off < len(want); off += 100 << 10 {
		_, err := f.WriteAt(want[off:][:5000], int64(off))
		require.NoError(t, err)
	}
	cfg := serve(t, "unix", &Server{Exports: []Export{{Backend: f}}, Log: testLog(t)})
	c := dial(t, cfg)
	for _, r := range [][2]int{{0, 4 << 20}, {1234, 3 << 20}, {50 << 10, 200 << 10}, {6 << 10, 80 << 10}} {
		got := make([]byte, r[1])
		for i := range got {
			got[i] = 0xee
		}
		n, err := c.ReadAt(got, int64(r[0]))
		if err == io.EOF {
			got = got[:n]
			err = nil
		}
		require.NoError(t, err)
		require.True(t, string(want[r[0]:][:len(got)]) == string(got))
	}
	e, err := c.Extent(50 << 10)
	require.NoError(t, err)
	require.True(t, e.Zero && !e.Allocated, "%+v", e)
	require.LessOrEqual(t, e.Len, int64(50<<10))
	_ = os.Remove(path)
}
