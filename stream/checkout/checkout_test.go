package checkout_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/disk/qcow2"
	"github.com/vmkit-go/vmkit/stream"
	"github.com/vmkit-go/vmkit/stream/cache"
	"github.com/vmkit-go/vmkit/stream/checkout"
	"github.com/vmkit-go/vmkit/stream/image"
	"github.com/vmkit-go/vmkit/stream/lease"
)

const size = 8 << 20

// world is a depot with an image, and a client's machine.
type world struct {
	t      *testing.T
	dir    string
	want   []byte
	leases *lease.Server
	server *httptest.Server
	cut    atomic.Int64 // uploads that are cut off
	sent   atomic.Int64 // bytes of uploads
	cache  *cache.Cache
	cfg    checkout.Config
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), want: make([]byte, size)}
	disktest.Fill(rand.New(rand.NewPCG(1, 1)), w.want[:size/2])
	for i := 0; i < size/2; i += 4096 {
		w.want[i], w.want[i+1] = byte(i>>12), byte(i>>20)
	}
	mem, err := disk.NewMemory("source", size)
	require.NoError(t, err)
	_, err = mem.WriteAt(w.want, 0)
	require.NoError(t, err)
	_, err = image.Pack(t.Context(), mem, image.PackConfig{Dir: w.dir})
	require.NoError(t, err)
	w.leases, err = lease.NewServer(lease.ServerConfig{File: filepath.Join(t.TempDir(), "leases")})
	require.NoError(t, err)
	depot, err := checkout.NewDepot(checkout.DepotConfig{Dir: w.dir, Leases: w.leases, Image: image.Config{AllowUnsigned: true}})
	require.NoError(t, err)
	w.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			w.sent.Add(max(r.ContentLength, 0))
			if strings.HasPrefix(r.URL.Path, "/upload/") && w.cut.Add(-1) >= 0 {
				r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, r.ContentLength/2), broken{}))
			}
		}
		depot.ServeHTTP(rw, r)
	}))
	t.Cleanup(w.server.Close)
	w.cache, err = cache.Open(t.TempDir(), cache.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { w.cache.Close() })
	w.cfg = checkout.Config{URL: w.server.URL, Cache: w.cache, Holder: "test"}
	return w
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func (w *world) open(cfg stream.Config) *stream.Disk {
	w.t.Helper()
	cfg.Cache, cfg.Image.AllowUnsigned = w.cache, true
	d, err := stream.Open(w.t.Context(), w.cfg.Location(), cfg)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { d.Close() })
	return d
}

// write puts an overlay on d and changes some of it.
func (w *world) write(d *stream.Disk) (*qcow2.Image, []byte) {
	w.t.Helper()
	file, err := disk.Create(filepath.Join(w.t.TempDir(), "overlay"), 0, disk.FileConfig{})
	require.NoError(w.t, err)
	w.t.Cleanup(func() { file.Close() })
	require.NoError(w.t, qcow2.Create(file, qcow2.CreateConfig{Size: size, BackingName: "image", BackingFormat: "raw"}))
	o, err := qcow2.Open(file, qcow2.Config{Backing: d})
	require.NoError(w.t, err)
	w.t.Cleanup(func() { o.Close() })
	want := bytes.Clone(w.want)
	p := make([]byte, 100_000)
	disktest.Fill(rand.New(rand.NewPCG(7, 7)), p)
	for _, off := range []int64{1 << 20, 6<<20 + 512} {
		_, err = o.WriteAt(p, off)
		require.NoError(w.t, err)
		copy(want[off:], p)
	}
	require.NoError(w.t, o.Flush())
	return o, want
}

func requireContent(t *testing.T, d disk.Backend, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	_, err := d.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), "wrong content")
}

func TestOutAndIn(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	d := w.open(stream.Config{})
	co, err := checkout.Out(ctx, d, w.cfg)
	require.NoError(t, err)
	require.Equal(t, d.ID(), co.ID())
	other := w.cfg
	other.Holder = "other"
	_, err = checkout.Out(ctx, d, other)
	require.ErrorIs(t, err, lease.ErrHeld)
	require.NoError(t, d.Close())

	// Offline, in another process say.
	co, err = checkout.Resume(w.cfg)
	require.NoError(t, err)
	d = w.open(stream.Config{ID: co.ID(), Offline: true})
	overlay, want := w.write(d)
	requireContent(t, overlay, want)

	// Back again, over a network that breaks now and then.
	staging := filepath.Join(t.TempDir(), "staging")
	w.cut.Store(3)
	var id image.Hash
	tries := 0
	for ; ; tries++ {
		require.Less(t, tries, 10)
		id, err = co.In(ctx, overlay, checkout.InConfig{Base: d.Image(), Staging: staging, Label: "2"})
		if err == nil {
			break
		}
	}
	require.Equal(t, 3, tries)
	require.Less(t, w.sent.Load(), int64(2_000_000), "only what has changed is sent")
	require.NoDirExists(t, staging)
	_, err = checkout.Resume(w.cfg)
	require.ErrorIs(t, err, checkout.ErrNone)

	next := w.open(stream.Config{})
	require.Equal(t, id, next.ID())
	require.Equal(t, "2", next.Image().Manifest().Label)
	requireContent(t, next, want)
	// The old version is still what the old overlay belongs to.
	requireContent(t, w.open(stream.Config{ID: d.ID()}), w.want)

	// The lease is free again.
	co, err = checkout.Out(ctx, next, other)
	require.NoError(t, err)
	require.NoError(t, co.Abandon(ctx))
}

func TestRollback(t *testing.T) {
	w := newWorld(t)
	d := w.open(stream.Config{})
	co, err := checkout.Out(t.Context(), d, w.cfg)
	require.NoError(t, err)
	w.write(d)
	require.NoError(t, co.Abandon(t.Context()))
	require.NoError(t, co.Abandon(t.Context()))
	_, err = checkout.Resume(w.cfg)
	require.ErrorIs(t, err, checkout.ErrNone)
	requireContent(t, w.open(stream.Config{}), w.want)
}

// TestRevoked checks that a holder who lost the lease is warned, and changes
// nothing.
func TestRevoked(t *testing.T) {
	w := newWorld(t)
	d := w.open(stream.Config{})
	co, err := checkout.Out(t.Context(), d, w.cfg)
	require.NoError(t, err)
	overlay, _ := w.write(d)
	require.NoError(t, w.leases.Revoke("manifest.json", 20*time.Millisecond))
	warned := false
	err = co.Lease().Keep(t.Context(), lease.KeepConfig{Warn: func(time.Time, error) { warned = true }, LastWords: time.Millisecond})
	require.ErrorIs(t, err, lease.ErrLost)
	require.True(t, warned)
	_, err = co.In(t.Context(), overlay, checkout.InConfig{Base: d.Image(), Staging: t.TempDir()})
	require.ErrorIs(t, err, lease.ErrLost)
	requireContent(t, w.open(stream.Config{}), w.want)
}

func TestOutdated(t *testing.T) {
	w := newWorld(t)
	d := w.open(stream.Config{})
	mem, err := disk.NewMemory("source", size)
	require.NoError(t, err)
	_, err = image.Pack(t.Context(), mem, image.PackConfig{Dir: w.dir, Previous: d.Image()})
	require.NoError(t, err)
	_, err = checkout.Out(t.Context(), d, w.cfg)
	require.ErrorIs(t, err, stream.ErrVersion)
	// The lease was given back.
	_, err = checkout.Out(t.Context(), w.open(stream.Config{}), w.cfg)
	require.NoError(t, err)
}

// TestDepotRefuses sends what no client of ours would.
func TestDepotRefuses(t *testing.T) {
	w := newWorld(t)
	l, err := lease.Client{URL: w.server.URL + "/lease"}.Acquire(context.Background(), "manifest.json", "a", time.Hour)
	require.NoError(t, err)
	st := l.State()
	before, err := os.ReadFile(filepath.Join(w.dir, "manifest.json"))
	require.NoError(t, err)
	zero := strings.Repeat("0", 64) + ".pack"
	for name, c := range map[string]struct {
		method, path, body, secret, off, length string
		code                                    int
	}{
		"wrong secret":   {"PUT", "/upload/" + zero, "x", "x", "0", "1", 403},
		"wrong hash":     {"PUT", "/upload/" + zero, "x", st.Secret, "0", "1", 400},
		"too long":       {"PUT", "/upload/" + zero, "xy", st.Secret, "0", "1", 400},
		"huge":           {"PUT", "/upload/" + zero, "x", st.Secret, "0", "9999999999999", 400},
		"past the end":   {"PUT", "/upload/" + zero, "x", st.Secret, "5", "4", 400},
		"gap":            {"PUT", "/upload/" + zero, "x", st.Secret, "5", "10", 409},
		"negative":       {"PUT", "/upload/" + zero, "x", st.Secret, "-1", "10", 400},
		"no hash":        {"PUT", "/upload/manifest.json", "x", st.Secret, "0", "1", 400},
		"another dir":    {"PUT", "/upload/..%2f" + zero, "x", st.Secret, "0", "1", 400},
		"no manifest":    {"PUT", "/publish/manifest.json", "x", st.Secret, "", "", 400},
		"other manifest": {"PUT", "/publish/other.json", string(before), st.Secret, "", "", 403},
		"same manifest":  {"PUT", "/publish/manifest.json", string(before), st.Secret, "", "", 200},
		"partial":        {"GET", "/.partial/x", "", "", "", "", 404},
		"post":           {"POST", "/upload/" + zero, "", "", "", "", 404},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequest(c.method, w.server.URL+c.path, strings.NewReader(c.body))
			require.NoError(t, err)
			req.Header.Set("Lease-Name", st.Name)
			req.Header.Set("Lease-Token", "1")
			req.Header.Set("Lease-Secret", c.secret)
			req.Header.Set("Upload-Offset", c.off)
			req.Header.Set("Upload-Length", c.length)
			resp, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			require.Equal(t, c.code, resp.StatusCode, "%s", text)
		})
	}
	after, err := os.ReadFile(filepath.Join(w.dir, "manifest.json"))
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestBadConfig(t *testing.T) {
	c, err := cache.Open(t.TempDir(), cache.Config{})
	require.NoError(t, err)
	defer c.Close()
	for _, cfg := range []checkout.Config{{}, {Cache: c}, {Cache: c, URL: "ftp://x"}, {URL: "http://x"}} {
		_, err := checkout.Resume(cfg)
		require.Error(t, err)
	}
	require.NoError(t, c.SetFile("x", nil))
	_, err = checkout.NewDepot(checkout.DepotConfig{})
	require.Error(t, err)
}
