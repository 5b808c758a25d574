package image_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
)

// mischief serves a directory and spoils a part of the answers in every way.
type mischief struct {
	dir  string
	odds int // one answer in odds is spoiled; 1 is every one

	mu sync.Mutex
	r  *rand.Rand
}

func (m *mischief) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	kind, at := -1, m.r.Int()
	if m.r.IntN(m.odds) == 0 {
		kind = m.r.IntN(7)
	}
	m.mu.Unlock()
	file := filepath.Join(m.dir, path.Base(r.URL.Path))
	switch kind {
	case 0:
		w.WriteHeader([]int{403, 404, 416, 500, 503}[at%5])
		return
	case 1:
		panic(http.ErrAbortHandler)
	case 2:
		r.Header.Del("Range") // the whole file for a range
	}
	rec := httptest.NewRecorder()
	http.ServeFile(rec, r, file)
	body := rec.Body.Bytes()
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	switch {
	case kind == 3 && len(body) > 0:
		body[at%len(body)] ^= 1 << (at % 8)
	case kind == 4:
		w.Header().Set("Content-Range", "bytes 0-0/1")
	case kind == 5 && len(body) > 0:
		clear(body[at%len(body):])
	}
	w.WriteHeader(rec.Code)
	if kind == 6 && len(body) > 0 {
		body = body[:at%len(body)]
	}
	w.Write(body)
}

// TestServers reads a whole disk from servers of which some are out of their
// minds: with a good one among them the content is right, and with none there
// is an error that says what and where, but never a wrong byte.
func TestServers(t *testing.T) {
	content := sparse(rand.New(rand.NewPCG(11, 1)), 3<<20)
	dir := t.TempDir()
	pack(t, content, image.PackConfig{Dir: dir, PackSize: 300 << 10})
	for name, odds := range map[string][]int{
		"good": {1 << 30}, "mad, good": {1, 1 << 30}, "often, often": {2, 2}, "mad, mad": {1, 1}, "seldom": {20},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := fetch.HTTPConfig{Backoff: time.Millisecond, Attempts: 10, Stall: time.Minute}
			for i, o := range odds {
				s := httptest.NewServer(&mischief{dir: dir, odds: o, r: rand.New(rand.NewPCG(uint64(i), 9))})
				defer s.Close()
				cfg.Mirrors = append(cfg.Mirrors, s.URL)
			}
			src, err := fetch.NewHTTP(cfg)
			require.NoError(t, err)
			defer src.Close()
			img, err := image.Open(t.Context(), src, "manifest.json", image.Config{AllowUnsigned: true})
			got := make([]byte, len(content))
			if err == nil {
				_, err = img.Reader(t.Context()).ReadAt(got, 0)
			}
			if err != nil {
				require.NotContains(t, name, "good", "%v", err)
				fe, ok := errors.AsType[*fetch.Error](err)
				require.True(t, ok, "%T: %v", err, err)
				require.Contains(t, fe.URL, "http://127.0.0.1:")
				return
			}
			require.True(t, bytes.Equal(content, got), "wrong content")
		})
	}
}

func BenchmarkPack(b *testing.B) {
	content := sparse(rand.New(rand.NewPCG(1, 1)), 64<<20)
	m := memory(b, content)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		_, err := image.Pack(b.Context(), m, image.PackConfig{Dir: b.TempDir()})
		require.NoError(b, err)
	}
}

func BenchmarkDecode(b *testing.B) {
	// Programs compress about like this one.
	content, err := os.ReadFile(os.Args[0])
	require.NoError(b, err)
	dir := b.TempDir()
	img, _ := pack(b, content[:4<<20], image.PackConfig{Dir: dir})
	var chunks []image.Chunk
	var frames [][]byte
	data := int64(0)
	require.NoError(b, img.Scan(b.Context(), func(c image.Chunk) error {
		frame := make([]byte, c.PackLen)
		chunks, frames, data = append(chunks, c), append(frames, frame), data+int64(c.Len)
		return fetch.Dir(dir).Fetch(b.Context(), img.Pack(c.Pack).Name, c.PackOff, frame, nil)
	}))
	dst := make([]byte, image.MaxChunk)
	b.SetBytes(data)
	b.ReportAllocs()
	for b.Loop() {
		for i, c := range chunks {
			if err := image.Decode(dst[:c.Len], c, frames[i]); err != nil {
				b.Fatal(err)
			}
		}
	}
}
