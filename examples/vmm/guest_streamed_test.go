package main

import (
	"crypto/ed25519"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/stream/checkout"
	"github.com/vmkit-go/vmkit/stream/image"
	"github.com/vmkit-go/vmkit/stream/lease"
	"github.com/vmkit-go/vmkit/stream/profile"
)

// depot serves two images: a root disk, and 16 MiB that nothing compresses, of
// which all after the first 2 MiB of its pack can be had when open is set.
type depot struct {
	url    string
	key    string // file with the public key of both
	sum    string // MD5 of the second image
	open   atomic.Bool
	leases *lease.Server
}

func newDepot(t *testing.T) *depot {
	d := &depot{key: filepath.Join(t.TempDir(), "key")}
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(d.key, []byte("vmkit-ed25519-public "+base64.StdEncoding.EncodeToString(public)+"\n"), 0o600))
	dir := t.TempDir()
	pack := func(name, path string) {
		src, err := disk.Open(path, disk.FileConfig{ReadOnly: true})
		require.NoError(t, err)
		defer src.Close()
		_, err = image.Pack(t.Context(), src, image.PackConfig{Dir: filepath.Join(dir, name), Key: private})
		require.NoError(t, err)
	}
	pack("root", rootDisk(t))
	noise := make([]byte, 16<<20)
	disktest.Fill(rand.New(rand.NewPCG(5, 5)), noise)
	d.sum = fmt.Sprintf("%x", md5.Sum(noise))
	path := filepath.Join(t.TempDir(), "data")
	require.NoError(t, os.WriteFile(path, noise, 0o600))
	pack("data", path)

	d.leases, err = lease.NewServer(lease.ServerConfig{File: filepath.Join(t.TempDir(), "leases")})
	require.NoError(t, err)
	mux := http.NewServeMux()
	for _, name := range []string{"root", "data"} {
		h, err := checkout.NewDepot(checkout.DepotConfig{Dir: filepath.Join(dir, name), Leases: d.leases})
		require.NoError(t, err)
		mux.Handle("/"+name+"/", http.StripPrefix("/"+name, h))
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
		if n, _ := strconv.Atoi(first); n > 2<<20 && strings.HasPrefix(r.URL.Path, "/data/") && !d.open.Load() {
			http.Error(w, "the store is away", http.StatusServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	d.url = s.URL
	return d
}

func (d *depot) manifest(name string) string { return d.url + "/" + name + "/manifest.json" }

// A guest on a streamed root disk waits while what it reads cannot be had, and
// goes on afterwards. What it wrote is in the overlay and there the next time;
// what it needed was recorded.
func TestStreamedGuest(t *testing.T) {
	needNative(t)
	d := newDepot(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	root := d.manifest("root") + ",cache=" + at("cache") + ",key=" + d.key + ",overlay=" + at("overlay")

	cmd := command(t, "run", "-disk", root+",record="+at("profile"), "-disk", d.manifest("data")+",ro,cache="+at("cache")+",key="+d.key, "--",
		"sh", "-c", "echo kept >/root/note; sync; echo started; md5sum </dev/vdb; exit 3")
	var stdout, stderr transcript
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Start())
	stdout.await(t, "started\n")
	stderr.await(t, "the guest waits for its disk")
	time.Sleep(2 * time.Second) // and goes on waiting
	require.Equal(t, "started\n", stdout.String())
	d.open.Store(true)
	err := cmd.Wait()
	require.Equal(t, 3, cmd.ProcessState.ExitCode(), "%v: %s", err, &stderr)
	require.Equal(t, "started\n"+d.sum+"  -\n", stdout.String())
	require.Contains(t, stderr.String(), "the guest goes on")

	p, err := profile.ReadFile(at("profile"))
	require.NoError(t, err)
	require.NotEmpty(t, p.Entries)
	require.Equal(t, 1, p.Runs)

	// With fail=, a request fails in the guest when its time is over.
	d.open.Store(false)
	r := run(t, "run", "-disk", root, "-disk", d.manifest("data")+",ro,fail=1s,cache="+at("empty")+",key="+d.key, "--",
		"sh", "-c", "cat /root/note; md5sum </dev/vdb 2>/dev/null || echo failed")
	require.Equal(t, "kept\nfailed\n", r.stdout, r.stderr)

	// Neither another key nor an image that is not signed is accepted.
	other := newDepot(t)
	oneLine(t, "key", run(t, "run", "-disk", d.manifest("root")+",cache="+at("new")+",key="+other.key, "--", "true"), "sign")
}

// A lease that is revoked stops the guest, after a warning, and one that is not
// is given back at the end.
func TestLeasedGuest(t *testing.T) {
	needNative(t)
	d := newDepot(t)
	root := d.manifest("root") + ",key=" + d.key + ",lease=3s,cache=" + filepath.Join(t.TempDir(), "cache")
	cmd := command(t, "run", "-disk", root, "--", "sh", "-c", "trap 'echo told; exit 9' TERM; echo started; while :; do sleep 1; done")
	var stdout, stderr transcript
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Start())
	stdout.await(t, "started\n")
	oneLine(t, "held", run(t, "run", "-disk", root+"2", "--", "true"), "held")
	require.NoError(t, d.leases.Revoke("manifest.json", 2*time.Second))
	stderr.await(t, "the guest will be stopped in")
	require.Error(t, cmd.Wait())
	require.Contains(t, stdout.String(), "told\n")
	require.Contains(t, stderr.String(), "the guest was stopped")

	r := run(t, "run", "-disk", root, "--", "true")
	require.Zero(t, r.status, r.stderr)
	resp, err := http.Get(d.url + "/root/lease/manifest.json")
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NotContains(t, string(text), "vmm", "the lease was not given back")
}
