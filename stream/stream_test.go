package stream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/stream"
	"github.com/vmkit-go/vmkit/stream/cache"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
	"github.com/vmkit-go/vmkit/stream/profile"
)

// content is a disk with zero runs and parts that occur twice.
func content(size int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, size)
	for off := 0; off < size; {
		n := min(size-off, 4096*(1+r.IntN(100)))
		switch r.IntN(4) {
		case 0: // zero
		case 1:
			if off > n {
				copy(p[off:off+n], p[:n])
				break
			}
			fallthrough
		default:
			disktest.Fill(r, p[off:off+n])
			for i := off; i < off+n; i += 4096 { // no block like another
				copy(p[i:], fmt.Sprint("block ", i))
			}
		}
		off += n
	}
	return p
}

// published is an image in a directory.
type published struct {
	dir  string
	want []byte
	img  *image.Image
}

func publish(t testing.TB, size int, cfg image.PackConfig) *published {
	t.Helper()
	p := &published{dir: t.TempDir(), want: content(size)}
	mem, err := disk.NewMemory("source", int64(size))
	require.NoError(t, err)
	_, err = mem.WriteAt(p.want, 0)
	require.NoError(t, err)
	cfg.Dir = p.dir
	_, err = image.Pack(t.Context(), mem, cfg)
	require.NoError(t, err)
	p.img, err = image.Open(t.Context(), fetch.Dir(p.dir), "manifest.json", image.Config{AllowUnsigned: true})
	require.NoError(t, err)
	return p
}

func (p *published) location() string { return p.dir + "/manifest.json" }

// flaky is a source that counts requests, and fails or dawdles as it is told.
type flaky struct {
	image.Source
	mu       sync.Mutex
	err      error
	block    chan struct{} // if not nil, requests for packs wait for it
	requests map[string]int
	bytes    int64
}

func newFlaky(dir string) *flaky {
	return &flaky{Source: fetch.Dir(dir), requests: map[string]int{}}
}

func (f *flaky) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *flaky) count() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.requests {
		n += k
	}
	return n
}

func (f *flaky) Fetch(ctx context.Context, name string, off int64, p []byte, check func([]byte) error) error {
	f.mu.Lock()
	err, block := f.err, f.block
	f.requests[fmt.Sprintf("%s %d", name, off)]++
	f.bytes += int64(len(p))
	f.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	return f.Source.Fetch(ctx, name, off, p, check)
}

func (f *flaky) Load(ctx context.Context, name string, limit int64, check func([]byte) error) ([]byte, error) {
	f.mu.Lock()
	err := f.err
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return f.Source.Load(ctx, name, limit, check)
}

func openCache(t testing.TB, dir string) *cache.Cache {
	t.Helper()
	c, err := cache.Open(dir, cache.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func open(t testing.TB, p *published, cfg stream.Config) *stream.Disk {
	t.Helper()
	cfg.Image.AllowUnsigned = true
	d, err := stream.Open(t.Context(), p.location(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

func requireContent(t testing.TB, d disk.Backend, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := d.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, len(want), n)
	require.True(t, bytes.Equal(want, got), "wrong content")
}

func TestReads(t *testing.T) {
	p := publish(t, 5<<20+1000, image.PackConfig{})
	for name, cfg := range map[string]stream.Config{
		"memory":    {},
		"little":    {Memory: 1 << 19},
		"cache":     {Cache: openCache(t, t.TempDir())},
		"on demand": {Cache: openCache(t, t.TempDir()), NoPrefetch: true},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, p, cfg)
			require.EqualValues(t, len(p.want), d.Size())
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(uint64(w), 3))
					for range 60 {
						off := r.Int64N(d.Size())
						buf := make([]byte, 1+r.Int64N(min(300_000, d.Size()-off)))
						cut := r.IntN(len(buf))
						n, err := d.ReadVAt([][]byte{buf[:cut], nil, buf[cut:]}, off)
						if err != nil || n != len(buf) || !bytes.Equal(buf, p.want[off:][:n]) {
							t.Errorf("%d bytes at %d: %d, %v", len(buf), off, n, err)
							return
						}
					}
				})
			}
			wg.Wait()
			requireContent(t, d, p.want)
			s := d.Status()
			require.EqualValues(t, s.Chunks, s.Absent+s.Fetched+s.Prefetched+s.Used)
			require.Zero(t, s.Absent-int64(strings.Count(d.Map(s.Chunks), ".")))
		})
	}
}

func TestContract(t *testing.T) {
	p := publish(t, 1<<20, image.PackConfig{})
	d := open(t, p, stream.Config{})
	require.True(t, d.Info().ReadOnly)
	require.NotEmpty(t, d.Info().Name)
	buf := make([]byte, 100)
	n, err := d.ReadAt(buf, d.Size()-100)
	require.NoError(t, err)
	require.Equal(t, 100, n)
	n, err = d.ReadAt(buf, d.Size()-10)
	require.Equal(t, io.EOF, err)
	require.Equal(t, 10, n)
	require.Equal(t, p.want[len(p.want)-10:], buf[:10])
	for _, off := range []int64{d.Size(), 1 << 62} {
		n, err = d.ReadAt(buf, off)
		require.Equal(t, io.EOF, err)
		require.Zero(t, n)
	}
	requireError := func(err, want error) {
		t.Helper()
		require.ErrorIs(t, err, want)
		e, ok := errors.AsType[*disk.Error](err)
		require.True(t, ok)
		require.Equal(t, d.Info().Name, e.Name)
	}
	_, err = d.ReadAt(buf, -1)
	requireError(err, disk.ErrRange)
	_, err = d.WriteAt(buf, 0)
	requireError(err, disk.ErrReadOnly)
	_, err = d.WriteVAt([][]byte{buf}, 0)
	requireError(err, disk.ErrReadOnly)
	requireError(d.Discard(0, 512), disk.ErrReadOnly)
	requireError(d.WriteZeroes(0, 512, true), disk.ErrReadOnly)
	requireError(d.Discard(d.Size(), 1), disk.ErrRange)
	requireError(d.WriteZeroes(0, -1, true), disk.ErrRange)
	require.NoError(t, d.Flush())
	for off := int64(0); off < d.Size(); {
		e, err := d.Extent(off)
		require.NoError(t, err)
		require.Equal(t, off, e.Off)
		require.Positive(t, e.Len)
		zero := !bytes.ContainsFunc(p.want[off:off+e.Len], func(r rune) bool { return r != 0 })
		require.Equal(t, e.Zero, zero, "%+v", e)
		off += e.Len
	}
	for _, off := range []int64{-1, d.Size()} {
		_, err := d.Extent(off)
		requireError(err, disk.ErrRange)
	}
	require.NoError(t, d.Close())
	require.NoError(t, d.Close())
	_, err = d.ReadAt(buf, 0)
	requireError(err, os.ErrClosed)
	requireError(d.Flush(), os.ErrClosed)
	_, err = d.Extent(0)
	requireError(err, os.ErrClosed)
	_, err = d.WriteAt(buf, 0)
	requireError(err, os.ErrClosed)
}

func TestEmptyImage(t *testing.T) {
	p := &published{dir: t.TempDir(), want: make([]byte, 1<<20)}
	mem, err := disk.NewMemory("source", 1<<20)
	require.NoError(t, err)
	_, err = image.Pack(t.Context(), mem, image.PackConfig{Dir: p.dir})
	require.NoError(t, err)
	c := openCache(t, t.TempDir())
	for range 2 {
		d := open(t, p, stream.Config{Cache: c})
		require.NoError(t, d.Complete(t.Context()))
		requireContent(t, d, p.want)
		require.Empty(t, d.Map(10))
		require.NoError(t, d.Close())
	}
}

// TestOneFetchPerChunk has many readers ask for the same at once.
func TestOneFetchPerChunk(t *testing.T) {
	p := publish(t, 2<<20, image.PackConfig{})
	src := newFlaky(p.dir)
	c := openCache(t, t.TempDir())
	d := open(t, p, stream.Config{Source: src, NoPrefetch: true, Cache: c})
	block := make(chan struct{})
	src.mu.Lock()
	src.block = block
	clear(src.requests)
	src.mu.Unlock()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			got := make([]byte, len(p.want))
			if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, p.want) {
				t.Errorf("wrong content, or %v", err)
			}
		})
	}
	require.Eventually(t, func() bool { return src.count() > 0 }, time.Minute, time.Millisecond)
	close(block)
	wg.Wait()
	for r, n := range src.requests {
		require.Equal(t, 1, n, "%s was fetched %d times", r, n)
	}
	s := d.Status()
	require.Less(t, len(src.requests), s.Chunks, "adjacent chunks take one request")

	// Another guest with the same cache needs no network for it, once all that
	// was read is in there.
	require.NoError(t, d.Close())
	src.fail(errors.New("unplugged"))
	before := src.count()
	other, err := stream.Open(t.Context(), p.location(), stream.Config{Cache: c, Offline: true, Image: image.Config{AllowUnsigned: true}})
	require.NoError(t, err)
	defer other.Close()
	requireContent(t, other, p.want)
	require.Equal(t, before, src.count())
	require.Zero(t, other.Status().Absent)
}

// events collects a disk's events.
type events struct {
	mu   sync.Mutex
	list []stream.Event
}

func (e *events) add(ev stream.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, ev)
}

func (e *events) count(k stream.EventKind) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.list {
		if ev.Kind == k {
			n++
		}
	}
	return n
}

func (e *events) wait(t *testing.T, k stream.EventKind, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return e.count(k) >= n }, time.Minute, time.Millisecond, "no event %v", k)
}

func TestOutageWaits(t *testing.T) {
	p := publish(t, 2<<20, image.PackConfig{})
	for name, cause := range map[string]error{
		"unplugged": errors.New("unplugged"),
		"lasting":   &fetch.Error{URL: "x", Err: fetch.ErrNotFound},
		"server":    &fetch.Error{URL: "x", Err: fetch.ErrServer},
	} {
		t.Run(name, func(t *testing.T) {
			var ev events
			src := newFlaky(p.dir)
			begin := time.Now()
			d := open(t, p, stream.Config{Source: src, Events: ev.add, RetryMin: time.Millisecond, RetryMax: 10 * time.Millisecond})
			src.fail(cause)
			done := make(chan error, 8)
			for range cap(done) {
				go func() {
					got := make([]byte, len(p.want))
					_, err := d.ReadAt(got, 0)
					if err == nil && !bytes.Equal(got, p.want) {
						err = errors.New("wrong content")
					}
					done <- err
				}()
			}
			ev.wait(t, stream.Unavailable, 1)
			time.Sleep(50 * time.Millisecond)
			require.Empty(t, done)
			src.fail(nil)
			for range cap(done) {
				require.NoError(t, <-done)
			}
			ev.wait(t, stream.Available, 1)
			// An attempt at reading ahead may have failed after the others
			// worked.
			require.Eventually(t, func() bool { return d.Status().Unavailable == "" }, time.Minute, time.Millisecond)
			// Attempts are spaced out, whoever makes them.
			rounds := 10 + int(time.Since(begin)/(5*time.Millisecond))
			require.Less(t, src.count(), rounds*p.img.Chunks())
		})
	}
}

func TestOutageFails(t *testing.T) {
	p := publish(t, 1<<20, image.PackConfig{})
	src := newFlaky(p.dir)
	cause := errors.New("unplugged")
	d := open(t, p, stream.Config{Source: src, FailAfter: 30 * time.Millisecond, RetryMin: time.Millisecond, NoPrefetch: true})
	src.fail(cause)
	for range 2 {
		_, err := d.ReadAt(make([]byte, len(p.want)), 0)
		require.ErrorIs(t, err, disk.ErrUnavailable)
		require.ErrorIs(t, err, cause)
	}
	src.fail(nil)
	// A read may join an attempt that began before.
	for {
		_, err := d.ReadAt(make([]byte, len(p.want)), 0)
		if err == nil {
			break
		}
		require.ErrorIs(t, err, disk.ErrUnavailable)
	}
	requireContent(t, d, p.want)
}

// An outage that only reading ahead has met ends by itself, whether or not the
// guest asks for something.
func TestOutageOfPrefetch(t *testing.T) {
	p := publish(t, 2<<20, image.PackConfig{})
	var ev events
	ahead := newFlaky(p.dir)
	d := open(t, p, stream.Config{Source: newFlaky(p.dir), Prefetch: ahead, Events: ev.add, RetryMin: time.Millisecond})
	ahead.fail(errors.New("unplugged"))
	_, err := d.ReadAt(make([]byte, 1<<20), 0)
	require.NoError(t, err)
	ev.wait(t, stream.Unavailable, 1)
	ahead.fail(nil)
	ev.wait(t, stream.Available, 1)
}

func TestCloseEndsWaiting(t *testing.T) {
	p := publish(t, 1<<20, image.PackConfig{})
	src := newFlaky(p.dir)
	d := open(t, p, stream.Config{Source: src})
	src.fail(errors.New("unplugged"))
	done := make(chan error, 4)
	for range cap(done) {
		go func() {
			_, err := d.ReadAt(make([]byte, len(p.want)), 0)
			done <- err
		}()
	}
	require.Eventually(t, func() bool { return src.count() > 0 }, time.Minute, time.Millisecond)
	require.NoError(t, d.Close())
	for range cap(done) {
		require.ErrorIs(t, <-done, os.ErrClosed)
	}
}

// record makes a profile of every third chunk.
func record(t *testing.T, p *published) *profile.Profile {
	prof := &profile.Profile{Runs: 1}
	seen := map[image.Hash]bool{}
	require.NoError(t, p.img.Scan(t.Context(), func(c image.Chunk) error {
		if c.N%3 == 0 && !seen[c.Hash] {
			seen[c.Hash] = true
			prof.Entries = append(prof.Entries, profile.Entry{
				Hash: c.Hash, At: time.Duration(1000-c.N) * time.Millisecond, Seen: 1, Phase: "boot",
			})
		}
		return nil
	}))
	slices.Reverse(prof.Entries)
	return prof
}

func TestProfileComesFirst(t *testing.T) {
	p := publish(t, 8<<20, image.PackConfig{})
	prof := record(t, p)
	var ev events
	src := newFlaky(p.dir)
	d := open(t, p, stream.Config{Source: src, Profile: prof, Events: ev.add, Cache: openCache(t, t.TempDir()), NoBackfill: true})
	ev.wait(t, stream.ProfileDone, 1)
	s := d.Status()
	require.Equal(t, len(prof.Entries), s.Planned)
	require.Zero(t, s.PlannedLeft)
	require.GreaterOrEqual(t, s.Prefetched, int64(len(prof.Entries)))
	require.Positive(t, s.Absent, "only what the profile names")
	wait, known := d.Ready()
	require.True(t, known)
	require.Zero(t, wait)
	n := src.count()
	layout := stream.Layout(t.Context(), d.Image())
	for off := int64(0); off < d.Size(); {
		hash, end, zero, err := layout(off)
		require.NoError(t, err)
		for _, e := range prof.Entries {
			if e.Hash == hash && !zero {
				buf := make([]byte, end-off)
				_, err := d.ReadAt(buf, off)
				require.NoError(t, err)
				require.True(t, bytes.Equal(p.want[off:end], buf))
			}
		}
		off = end
	}
	require.Equal(t, n, src.count())

	// Then the rest, when it is asked for.
	require.Zero(t, ev.count(stream.Completed))
	d.Backfill()
	ev.wait(t, stream.Completed, 1)
	require.Zero(t, d.Status().Absent)
	n = src.count()
	requireContent(t, d, p.want)
	require.Equal(t, n, src.count())
}

func TestBootProfileOfTheImage(t *testing.T) {
	p := publish(t, 2<<20, image.PackConfig{})
	prof := record(t, p)
	var text bytes.Buffer
	_, err := prof.WriteTo(&text)
	require.NoError(t, err)
	for name, data := range map[string][]byte{"good": text.Bytes(), "bad": []byte("no profile")} {
		t.Run(name, func(t *testing.T) {
			p := publish(t, 2<<20, image.PackConfig{BootProfile: data})
			var ev events
			d := open(t, p, stream.Config{Events: ev.add, NoBackfill: true, Cache: openCache(t, t.TempDir())})
			if name == "good" {
				ev.wait(t, stream.ProfileDone, 1)
			} else {
				ev.wait(t, stream.ProfileUnusable, 1)
			}
			requireContent(t, d, p.want)
		})
	}
}

func TestComplete(t *testing.T) {
	p := publish(t, 4<<20, image.PackConfig{})
	dir := t.TempDir()
	src := newFlaky(p.dir)
	c := openCache(t, dir)
	d := open(t, p, stream.Config{Source: src, Cache: c, RetryMin: time.Millisecond})
	src.fail(errors.New("unplugged"))
	time.AfterFunc(50*time.Millisecond, func() { src.fail(nil) })
	require.NoError(t, d.Complete(t.Context()))
	id := d.ID()
	require.NoError(t, d.Close())
	require.NoError(t, c.Close())
	require.NoError(t, os.RemoveAll(p.dir), "the server is gone for good")

	c = openCache(t, dir)
	for _, cfg := range []stream.Config{{Offline: true}, {ID: id}} {
		cfg.Cache = c
		d = open(t, p, cfg)
		require.Equal(t, id, d.ID())
		requireContent(t, d, p.want)
		require.NoError(t, d.Complete(t.Context()))
		require.NoError(t, d.Close())
	}
	_, err := stream.Open(t.Context(), p.location(), stream.Config{Offline: true, Cache: openCache(t, t.TempDir()), Image: image.Config{AllowUnsigned: true}})
	require.Error(t, err)
}

func TestIncompleteOffline(t *testing.T) {
	p := publish(t, 1<<20, image.PackConfig{})
	c := openCache(t, t.TempDir())
	d := open(t, p, stream.Config{Cache: c, NoPrefetch: true})
	_, err := d.ReadAt(make([]byte, 4096), 0)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	d = open(t, p, stream.Config{Cache: c, Offline: true, FailAfter: time.Millisecond})
	_, err = d.ReadAt(make([]byte, len(p.want)), 0)
	require.ErrorIs(t, err, disk.ErrUnavailable)
	require.Error(t, d.Complete(t.Context()))
}

func TestOtherVersion(t *testing.T) {
	p := publish(t, 1<<20, image.PackConfig{})
	_, err := stream.Open(t.Context(), p.location(), stream.Config{ID: image.Hash{1}, Image: image.Config{AllowUnsigned: true}})
	require.ErrorIs(t, err, stream.ErrVersion)
}

func TestFullCache(t *testing.T) {
	p := publish(t, 4<<20, image.PackConfig{})
	c, err := cache.Open(t.TempDir(), cache.Config{MaxBytes: 1 << 20})
	require.NoError(t, err)
	defer c.Close()
	var ev events
	d := open(t, p, stream.Config{Cache: c, Events: ev.add})
	requireContent(t, d, p.want)
	requireContent(t, d, p.want)
	ev.wait(t, stream.Uncached, 1)
	require.ErrorContains(t, d.Complete(t.Context()), "takes no more")
}

func TestDamagedCache(t *testing.T) {
	p := publish(t, 1<<20, image.PackConfig{})
	dir := t.TempDir()
	c := openCache(t, dir)
	d := open(t, p, stream.Config{Cache: c})
	require.NoError(t, d.Complete(t.Context()))
	require.NoError(t, d.Close())
	require.NoError(t, c.Close())
	f, err := os.OpenFile(dir+"/chunks", os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(make([]byte, 100_000), 50_000)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	index := dir + "/files/" + p.img.Manifest().Index.Name
	data, err := os.ReadFile(index)
	require.NoError(t, err)
	data[len(data)/2] ^= 1
	require.NoError(t, os.WriteFile(index, data, 0o600))
	c = openCache(t, dir)
	d = open(t, p, stream.Config{Cache: c})
	requireContent(t, d, p.want)
	require.Positive(t, c.Stats().Damaged)
	require.Positive(t, d.Status().DemandBytes)
}

// Whoever has read content finds it in the status, at once.
func TestStatusAfterRead(t *testing.T) {
	p := publish(t, 1<<20, image.PackConfig{})
	for range 100 {
		d := open(t, p, stream.Config{NoPrefetch: true})
		requireContent(t, d, p.want)
		s := d.Status()
		require.EqualValues(t, s.Chunks, s.Fetched)
		require.Positive(t, s.DemandBytes)
		require.NoError(t, d.Close())
	}
}

func TestStatusOverHTTP(t *testing.T) {
	p := publish(t, 1<<20, image.PackConfig{})
	d := open(t, p, stream.Config{NoPrefetch: true})
	requireContent(t, d, p.want)
	for path, code := range map[string]int{"/": 200, "/?map=10": 200, "/?map=-1": 400, "/?map=x": 400, "/?map=999999": 400} {
		w := httptest.NewRecorder()
		d.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		require.Equal(t, code, w.Code, path)
		if code != 200 {
			continue
		}
		var s stream.Status
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &s))
		require.Equal(t, d.ID(), s.ID)
		require.Equal(t, p.img.Chunks(), s.Chunks)
		require.Positive(t, s.Fetched)
		require.Positive(t, s.DemandBytes)
		if path == "/?map=10" {
			require.Equal(t, "**********", s.Map)
		}
	}
	w := httptest.NewRecorder()
	d.ServeHTTP(w, httptest.NewRequest("POST", "/", nil))
	require.Equal(t, 405, w.Code)
}

func Example() {
	dir, err := os.MkdirTemp("", "stream")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	src, _ := disk.NewMemory("appliance", 1<<20)
	src.WriteAt([]byte("an appliance"), 4096)
	ctx := context.Background()
	if _, err := image.Pack(ctx, src, image.PackConfig{Dir: dir + "/public"}); err != nil {
		fmt.Println(err)
		return
	}

	c, err := cache.Open(dir+"/cache", cache.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	d, err := stream.Open(ctx, dir+"/public/manifest.json", stream.Config{
		Cache: c,
		Image: image.Config{AllowUnsigned: true},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	p := make([]byte, 12)
	n, err := d.ReadAt(p, 4096)
	fmt.Printf("%s %v\n", p[:n], err)
	// Output: an appliance <nil>
}
