package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/stream/profile"
)

// TestMain lets the test binary be the program.
func TestMain(m *testing.M) {
	if os.Getenv("STREAM_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func program(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), "STREAM_TEST_MAIN=1")
	return cmd
}

// invoke runs the program and returns its exit status and output.
func invoke(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd := program(t.Context(), args...)
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	cmd.Run()
	return cmd.ProcessState.ExitCode(), out.String(), msg.String()
}

func succeed(t *testing.T, args ...string) string {
	t.Helper()
	status, out, msg := invoke(t, args...)
	require.Zero(t, status, "%v: %s", args, msg)
	return out
}

func rawDisk(t *testing.T, path string, seed uint64) {
	t.Helper()
	p := make([]byte, 8<<20)
	disktest.Fill(rand.New(rand.NewPCG(1, 1)), p[1<<20:4<<20])
	disktest.Fill(rand.New(rand.NewPCG(seed, 1)), p[6<<20:7<<20])
	require.NoError(t, os.WriteFile(path, p, 0o644))
}

func TestPackServeInspect(t *testing.T) {
	dir := t.TempDir()
	pub, v1, v2 := filepath.Join(dir, "pub"), filepath.Join(dir, "1.raw"), filepath.Join(dir, "2.raw")
	rawDisk(t, v1, 1)
	rawDisk(t, v2, 2)
	key := filepath.Join(dir, "me")
	succeed(t, "keygen", key)
	other := filepath.Join(dir, "other")
	succeed(t, "keygen", other)
	out := succeed(t, "pack", "-sign", key+".key", "-label", "one", "-name", "v1.json", v1, pub)
	require.Contains(t, out, "v1.json: 4.0 MiB of content")
	out = succeed(t, "pack", "-q", "-sign", key+".key", "-previous", "v1.json", v2, pub)
	require.Contains(t, out, "1 packs")

	url := serve(t, pub, "-delay", "1ms", "-rate", "100MB")
	out = succeed(t, "inspect", "-key", key+".pub", "-verify", url+"manifest.json")
	for _, want := range []string{"parent", "signed by", "every chunk", "2 of", "map of the disk"} {
		require.Contains(t, out, want)
	}
	require.NotContains(t, out, "none of the given keys")
	out = succeed(t, "inspect", "-json", filepath.Join(pub, "v1.json"))
	var r report
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	require.Equal(t, "one", r.Label)
	require.EqualValues(t, 8<<20, r.Size)
	require.EqualValues(t, 4<<20, r.Data)

	status, _, msg := invoke(t, "inspect", "-key", other+".pub", url+"manifest.json")
	require.Equal(t, 1, status)
	require.Contains(t, msg, "no accepted signature")
	require.Equal(t, 1, strings.Count(msg, "\n"), msg)
	succeed(t, "inspect", "-key", other+".pub", "-unsigned", pub)

	// A damaged pack is found.
	packs, err := filepath.Glob(filepath.Join(pub, "*.pack"))
	require.NoError(t, err)
	for _, p := range packs {
		data, err := os.ReadFile(p)
		require.NoError(t, err)
		data[len(data)/2] ^= 1
		require.NoError(t, os.WriteFile(p, data, 0o644))
	}
	status, _, msg = invoke(t, "inspect", "-verify", pub)
	require.Equal(t, 1, status)
	require.Contains(t, msg, "damaged")
	require.Contains(t, msg, ".pack")
}

// A qcow2 image over a raw one gives the same version as the raw disk that
// qemu-img makes of it; and a profile decides on the first pack.
func TestFormatsAndProfile(t *testing.T) {
	dir := t.TempDir()
	base, top, flat := filepath.Join(dir, "base.raw"), filepath.Join(dir, "top.qcow2"), filepath.Join(dir, "flat.raw")
	rawDisk(t, base, 1)
	for _, args := range [][]string{
		{"create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top},
	} {
		out, err := exec.Command("qemu-img", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	out, err := exec.Command("qemu-io", "-c", "write -P 7 2M 300k", top).CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, flat).CombinedOutput()
	require.NoError(t, err, "%s", out)

	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	succeed(t, "pack", "-q", "-f", "qcow2", "-backing", "raw:"+base, top, a)
	succeed(t, "pack", "-q", flat, b)
	packs := func(dir string) []string {
		list, err := filepath.Glob(filepath.Join(dir, "*.pack"))
		require.NoError(t, err)
		for i := range list {
			list[i] = filepath.Base(list[i])
		}
		return list
	}
	require.Equal(t, packs(b), packs(a))
	status, _, msg := invoke(t, "pack", "-q", "-f", "qcow2", top, filepath.Join(dir, "c"))
	require.Equal(t, 1, status)
	require.Contains(t, msg, "base.raw", "a backing file that nobody named was opened")

	img, err := openImage(t.Context(), b, trust{})
	require.NoError(t, err)
	c, err := img.Chunk(t.Context(), img.Chunks()-1)
	require.NoError(t, err)
	p := profile.Profile{Runs: 1, Entries: []profile.Entry{{Hash: c.Hash, At: time.Second, Seen: 1, Phase: "boot"}}}
	file := filepath.Join(dir, "profile")
	w, err := os.Create(file)
	require.NoError(t, err)
	_, err = p.WriteTo(w)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	succeed(t, "pack", "-q", "-profile", file, flat, b)
	require.Contains(t, succeed(t, "inspect", b), "published with the image")
	img, err = openImage(t.Context(), b, trust{})
	require.NoError(t, err)
	c, err = img.Chunk(t.Context(), img.Chunks()-1)
	require.NoError(t, err)
	require.Zero(t, c.Pack)
	require.Zero(t, c.PackOff)
	require.EqualValues(t, c.PackLen, img.Pack(0).Size)
}

// serve starts the server and returns its URL.
func serve(t *testing.T, dir string, flags ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := program(ctx, append(append([]string{"serve", "-listen", "127.0.0.1:0"}, flags...), dir)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		require.Zero(t, cmd.ProcessState.ExitCode(), "the server's status after an interrupt")
	})
	var url string
	line := make([]byte, 1000)
	n, err := out.Read(line)
	require.NoError(t, err)
	_, url, _ = strings.Cut(string(line[:n]), " on ")
	go io.Copy(io.Discard, out)
	return strings.TrimSpace(url)
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{nil, 2, "usage: stream COMMAND"},
		{[]string{"frob"}, 2, `no command "frob"`},
		{[]string{"pack"}, 2, "want an image and a directory"},
		{[]string{"pack", "-x"}, 2, "stream pack: bad usage: flag provided but not defined: -x; stream pack -h explains\n"},
		{[]string{"pack", "/no/such/disk", dir}, 1, "/no/such/disk"},
		{[]string{"pack", "-sign", "/no/key", "/no/such/disk", dir}, 1, "/no/key"},
		{[]string{"pack", "-previous", "no.json", "/no/such/disk", dir}, 1, "no.json"},
		{[]string{"pack", "-f", "vmdk", "/no/such/disk", dir}, 2, "vmdk"},
		{[]string{"pack", "-backing", "raw:/x", "/no/such/disk", dir}, 2, "-f qcow2"},
		{[]string{"pack", "-backing", "x", "/no/such/disk", dir}, 2, "want raw:FILE"},
		{[]string{"pack", "-profile", "/no/profile", "/no/such/disk", dir}, 1, "/no/profile"},
		{[]string{"pack", "-profile", os.Args[0], "/no/such/disk", dir}, 1, "not a valid profile"},
		{[]string{"serve", "/no/such/dir"}, 1, "not a directory"},
		{[]string{"serve", "-rate", "fast", dir}, 2, "bad rate"},
		{[]string{"inspect", dir}, 1, "manifest.json"},
		{[]string{"inspect", "ftp://x/y"}, 1, "neither a path nor"},
		{[]string{"inspect", "-width", "-1", dir}, 2, "columns"},
		{[]string{"keygen"}, 2, "want one name"},
		{[]string{"keygen", "/no/such/dir/key"}, 1, "/no/such/dir"},
	} {
		status, _, msg := invoke(t, c.args...)
		require.Equal(t, c.status, status, "%v: %s", c.args, msg)
		require.Contains(t, msg, c.want, "%v", c.args)
	}
	require.Contains(t, succeed(t, "-h"), "pack")
	for _, c := range commands {
		out := succeed(t, c.name, "-h")
		require.Contains(t, out, "usage: stream "+c.name)
		require.Contains(t, out, c.about)
	}
}

func TestParseRate(t *testing.T) {
	for s, want := range map[string]int64{"25Mbit": 3125000, "8kbit": 1000, "3MB": 3e6, "1.5GB": 15e8, "100B": 100, "80bit": 10, "1Gbit": 125e6} {
		n, err := parseRate(s)
		require.NoError(t, err, s)
		require.Equal(t, want, n, s)
	}
	for _, s := range []string{"", "5", "Mbit", "-1MB", "0B", "1bit", "1e30GB", "NaNMB", "x"} {
		_, err := parseRate(s)
		require.Error(t, err, s)
	}
}

func TestReserve(t *testing.T) {
	l, now := link{rate: 1000}, time.Unix(100, 0)
	require.Equal(t, time.Second, l.reserve(now, 1000))
	require.Equal(t, 3*time.Second, l.reserve(now, 2000), "connections share the link")
	require.Equal(t, 2*time.Second, l.reserve(now.Add(2*time.Second), 1000))
	require.Equal(t, time.Second/2, l.reserve(now.Add(time.Hour), 500), "an idle link saves nothing up")
}

func TestLink(t *testing.T) {
	dir := t.TempDir()
	content := make([]byte, 200_000)
	disktest.Fill(rand.New(rand.NewPCG(1, 1)), content)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), content, 0o644))
	url := serve(t, dir, "-rate", "4MB", "-delay", "1ms")
	type reply struct {
		p   []byte
		err error
	}
	replies := make(chan reply, 2)
	for range cap(replies) {
		go func() {
			resp, err := http.Get(url + "f")
			if err != nil {
				replies <- reply{nil, err}
				return
			}
			defer resp.Body.Close()
			p, err := io.ReadAll(resp.Body)
			replies <- reply{p, err}
		}()
	}
	for range cap(replies) {
		r := <-replies
		require.NoError(t, r.err)
		require.True(t, bytes.Equal(content, r.p))
	}
}

func TestMap(t *testing.T) {
	var out bytes.Buffer
	printMap(&out, []mapped{{0, 100, false}, {100, 110, false}, {300, 400, true}}, 1600, 1)
	require.Equal(t, "\nmap of the disk, 100 B per character: # full, + part, . zero; = mostly repeated\n"+
		"#\n+\n.\n=\n"+strings.Repeat(".\n", 12), out.String())
	out.Reset()
	printMap(&out, nil, 0, 64)
	require.Empty(t, out.String())
}
