package fetch_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/stream/fetch"
)

// server publishes one file and does what a test tells it to.
type server struct {
	*httptest.Server
	content []byte
	etag    atomic.Value // string
	mu      sync.Mutex
	fault   http.HandlerFunc
	faults  int // requests that fault answers, -1 for all
	n       int // requests
}

func content() []byte {
	p := make([]byte, 300_000)
	disktest.Fill(rand.New(rand.NewPCG(1, 2)), p)
	return p
}

func newServer(t *testing.T) *server {
	s := &server{content: content()}
	s.etag.Store(`"one"`)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		f := s.fault
		s.n++
		if s.faults == 0 {
			f = nil
		} else if s.faults > 0 {
			s.faults--
		}
		s.mu.Unlock()
		if f != nil {
			f(w, r)
			return
		}
		s.serve(w, r)
	}))
	t.Cleanup(s.Server.Close)
	return s
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/dir/file" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", s.etag.Load().(string))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.content))
}

// fail makes the next n requests fail, or all for -1.
func (s *server) fail(n int, f http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.faults = f, n
}

func (s *server) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

func (s *server) base() string { return s.URL + "/dir" }

func source(t *testing.T, cfg fetch.HTTPConfig, servers ...*server) *fetch.HTTP {
	t.Helper()
	for _, s := range servers {
		cfg.Mirrors = append(cfg.Mirrors, s.base())
	}
	if cfg.Stall == 0 {
		cfg.Stall = time.Minute
	}
	cfg.Backoff = time.Millisecond
	h, err := fetch.NewHTTP(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { h.Close() })
	return h
}

// checker accepts the true bytes only.
func checker(off int64) func([]byte) error {
	want := content()
	return func(p []byte) error {
		if !bytes.Equal(p, want[off:][:len(p)]) {
			return errors.New("not the right bytes")
		}
		return nil
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// partial answers with a given range header and body.
func partial(contentRange string, length int, body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if contentRange != "" {
			w.Header().Set("Content-Range", contentRange)
		}
		if length >= 0 {
			w.Header().Set("Content-Length", fmt.Sprint(length))
		}
		w.WriteHeader(http.StatusPartialContent)
		w.Write(body)
		if length < 0 {
			w.(http.Flusher).Flush()
		}
	}
}

// stall sends n bytes of a good answer and then nothing.
func stall(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if n > 0 {
			w.Header().Set("Content-Range", "bytes 1000-5999/300000")
			w.Header().Set("Content-Length", "5000")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(make([]byte, n))
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
	}
}

func TestFaults(t *testing.T) {
	const off, n = 1000, 5000
	good := content()[off:][:n]
	wrong := bytes.Clone(good)
	wrong[77] ^= 1
	for _, c := range []struct {
		name   string
		fault  http.HandlerFunc
		want   error
		lasts  bool // not Temporary
		change func(*fetch.HTTPConfig)
	}{
		{"wrong bytes", partial("bytes 1000-5999/300000", n, wrong), fetch.ErrContent, true, nil},
		{"short body", partial("bytes 1000-5999/300000", n, good[:100]), fetch.ErrShort, false, nil},
		{"short body, chunked", partial("bytes 1000-5999/300000", -1, good[:100]), fetch.ErrShort, false, nil},
		{"short range", partial("bytes 1000-1999/300000", 1000, good[:1000]), fetch.ErrShort, false, nil},
		{"other range", partial("bytes 0-4999/300000", n, good), fetch.ErrProtocol, true, nil},
		{"longer range", partial("bytes 1000-6999/300000", n+1000, good), fetch.ErrProtocol, true, nil},
		{"longer body", partial("bytes 1000-5999/300000", -1, content()), fetch.ErrProtocol, true, nil},
		{"no range header", partial("", n, good), fetch.ErrProtocol, true, nil},
		{"range of words", partial("bytes a-b/c", n, good), fetch.ErrProtocol, true, nil},
		{"range backwards", partial("bytes 5999-1000/300000", n, good), fetch.ErrProtocol, true, nil},
		{"range past the end", partial("bytes 1000-5999/3000", n, good), fetch.ErrProtocol, true, nil},
		{"range overflow", partial("bytes 1000-99999999999999999999/300000", n, good), fetch.ErrProtocol, true, nil},
		{"wrong length", partial("bytes 1000-5999/300000", n+1, good), fetch.ErrProtocol, true, nil},
		{"gzip", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			partial("bytes 1000-5999/300000", n, good)(w, r)
		}, fetch.ErrProtocol, true, nil},
		{"whole file, too large", func(w http.ResponseWriter, _ *http.Request) { w.Write(content()) }, fetch.ErrNoRange, true,
			func(c *fetch.HTTPConfig) { c.MaxWhole = 200_000 }},
		{"whole file, of unknown size", func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			w.Write(content())
		}, fetch.ErrNoRange, true, nil},
		{"whole file, too short", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "3000")
			w.Write(content()[:3000])
		}, fetch.ErrShort, false, nil},
		{"whole file, cut off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "300000")
			w.Write(content()[:3000])
		}, fetch.ErrShort, false, nil},
		{"no content", status(204), fetch.ErrProtocol, true, nil},
		{"not modified", status(304), fetch.ErrProtocol, true, nil},
		{"bad request", status(400), fetch.ErrProtocol, true, nil},
		{"unauthorized", status(401), fetch.ErrForbidden, true, nil},
		{"forbidden", status(403), fetch.ErrForbidden, true, nil},
		{"not found", status(404), fetch.ErrNotFound, true, nil},
		{"gone", status(410), fetch.ErrNotFound, true, nil},
		{"not satisfiable", status(416), fetch.ErrRange, true, nil},
		{"too many", status(429), fetch.ErrServer, false, nil},
		{"internal error", status(500), fetch.ErrServer, false, nil},
		{"unavailable", status(503), fetch.ErrServer, false, nil},
		{"redirects without end", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/dir/file", http.StatusFound)
		}, nil, false, nil},
		{"hangs up", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, nil, false, nil},
		{"stalls before the header", stall(0), fetch.ErrStall, false, func(c *fetch.HTTPConfig) { c.Stall = 50 * time.Millisecond }},
		{"stalls in the body", stall(2000), fetch.ErrStall, false, func(c *fetch.HTTPConfig) { c.Stall = 50 * time.Millisecond }},
		{"drips", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 1000-5999/300000")
			w.Header().Set("Content-Length", "5000")
			w.WriteHeader(http.StatusPartialContent)
			for i := range n {
				w.Write(good[i:][:1])
				w.(http.Flusher).Flush()
				select {
				case <-time.After(5 * time.Millisecond):
				case <-r.Context().Done():
					return
				}
			}
		}, fetch.ErrStall, false, func(c *fetch.HTTPConfig) { c.Stall, c.MinRate = 50*time.Millisecond, 1<<20 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var cfg fetch.HTTPConfig
			if c.change != nil {
				c.change(&cfg)
			}
			a, b := newServer(t), newServer(t)
			get := func(h *fetch.HTTP) error {
				p := make([]byte, n)
				err := h.Fetch(t.Context(), "file", off, p, checker(off))
				if err == nil {
					require.Equal(t, good, p)
				}
				return err
			}
			// On and on: a clear error.
			cfg.Attempts = 2
			a.fail(-1, c.fault)
			err := get(source(t, cfg, a))
			require.Error(t, err)
			if c.want != nil {
				require.ErrorIs(t, err, c.want)
			}
			fe, ok := errors.AsType[*fetch.Error](err)
			require.True(t, ok, "%T", err)
			require.Empty(t, cmp.Diff(fetch.Error{URL: a.base() + "/file", Off: off, Len: n, Attempts: 2, Err: fe.Err}, *fe,
				cmp.Comparer(func(x, y error) bool { return x == y })))
			require.Contains(t, err.Error(), "5000 bytes at offset 1000")
			require.Equal(t, !c.lasts, fetch.Temporary(err), "%v", err)

			// Once: tried again. On a busy host a good server may seem to
			// stall too.
			cfg.Attempts = 200
			a.fail(1, c.fault)
			require.NoError(t, get(source(t, cfg, a)))

			// With another mirror: that is asked, and then preferred.
			cfg.Attempts = 2
			cfg.Stall *= 40
			a.fail(-1, c.fault)
			h := source(t, cfg, a, b)
			begin := time.Now()
			require.NoError(t, get(h))
			require.Equal(t, []string{b.base(), a.base()}, fetch.Order(h, begin.Add(time.Second)), "the bad mirror would be asked first again")
			require.Equal(t, []string{a.base(), b.base()}, fetch.Order(h, time.Now().Add(time.Hour)))
			st := h.Stats()
			require.EqualValues(t, 1, st[0].Failed)
			require.Error(t, st[0].LastError)
			require.Equal(t, fetch.MirrorStats{Mirror: b.base(), Requests: 1, Bytes: n}, st[1])
		})
	}
}

func TestWholeForRange(t *testing.T) {
	s := newServer(t)
	s.fail(-1, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "300000")
		w.Write(content())
	})
	p := make([]byte, 100)
	require.NoError(t, source(t, fetch.HTTPConfig{}, s).Fetch(t.Context(), "file", 299_900, p, checker(299_900)))
}

func TestLoad(t *testing.T) {
	s := newServer(t)
	h := source(t, fetch.HTTPConfig{}, s)
	p, err := h.Load(t.Context(), "file", 300_000, checker(0))
	require.NoError(t, err)
	require.Equal(t, content(), p)
	_, err = h.Load(t.Context(), "file", 299_999, nil)
	require.ErrorIs(t, err, fetch.ErrTooLarge)
	s.fail(-1, func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush() // no length
		w.Write(content())
	})
	_, err = h.Load(t.Context(), "file", 299_999, nil)
	require.ErrorIs(t, err, fetch.ErrTooLarge)
	_, err = h.Load(t.Context(), "file", 300_000, nil)
	require.NoError(t, err)
	s.fail(-1, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "300000")
		w.Write(content()[:5])
	})
	_, err = h.Load(t.Context(), "file", 300_000, nil)
	require.ErrorIs(t, err, fetch.ErrShort)
	require.ErrorContains(t, err, "whole file")
	s.fail(-1, partial("bytes 0-4/300000", 5, content()[:5]))
	_, err = h.Load(t.Context(), "file", 300_000, nil)
	require.ErrorIs(t, err, fetch.ErrProtocol)
	s.fail(1, func(w http.ResponseWriter, _ *http.Request) { w.Write(content()[1:]) })
	_, err = h.Load(t.Context(), "file", 300_000, func(p []byte) error { return checker(0)(p) })
	require.NoError(t, err)
}

// A file that is replaced while it is read is noticed, and then read anew.
func TestChangedFile(t *testing.T) {
	s := newServer(t)
	h := source(t, fetch.HTTPConfig{Attempts: 1}, s)
	p := make([]byte, 100)
	require.NoError(t, h.Fetch(t.Context(), "file", 0, p, nil))
	s.etag.Store(`"two"`)
	require.ErrorIs(t, h.Fetch(t.Context(), "file", 0, p, nil), fetch.ErrChanged)
	require.NoError(t, h.Fetch(t.Context(), "file", 0, p, nil))
	s.etag.Store(`W/"three"`) // weak: says nothing
	require.NoError(t, h.Fetch(t.Context(), "file", 0, p, nil))
	s.content = s.content[:200_000]
	require.ErrorIs(t, h.Fetch(t.Context(), "file", 0, p, nil), fetch.ErrChanged)
	require.NoError(t, h.Fetch(t.Context(), "file", 0, p, nil))
}

func TestRefresh(t *testing.T) {
	s := newServer(t)
	var valid atomic.Int64
	valid.Store(1)
	s.fail(-1, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("token") != fmt.Sprint(valid.Load()) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		s.serve(w, r)
	})
	calls := 0
	var fail error
	h := source(t, fetch.HTTPConfig{Attempts: 1, Refresh: func(_ context.Context, mirror, name string) (string, error) {
		require.Equal(t, s.base(), mirror)
		require.Equal(t, "file", name)
		calls++
		return fmt.Sprintf("%s/%s?token=%d", mirror, name, valid.Load()), fail
	}}, s)
	p := make([]byte, 100)
	for range 3 {
		require.NoError(t, h.Fetch(t.Context(), "file", 5, p, checker(5)))
	}
	require.Equal(t, 1, calls)
	valid.Store(2)
	require.NoError(t, h.Fetch(t.Context(), "file", 5, p, checker(5)))
	require.Equal(t, 2, calls)
	require.Zero(t, h.Stats()[0].Failed, "an expired URL is no failure of the mirror")
	// A URL that is refused also when fresh.
	s.fail(-1, status(http.StatusForbidden))
	err := h.Fetch(t.Context(), "file", 5, p, checker(5))
	require.ErrorIs(t, err, fetch.ErrForbidden)
	require.NotContains(t, err.Error(), "token", "the error shows the secret part of a URL")
	fail = errors.New("no ticket")
	require.ErrorIs(t, h.Fetch(t.Context(), "file", 5, p, nil), fail)
}

// The caller's context ends waits of every kind.
func TestCancel(t *testing.T) {
	for name, fault := range map[string]http.HandlerFunc{
		"header": stall(0), "body": stall(100), "backoff": status(500),
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.fail(-1, fault)
			h, err := fetch.NewHTTP(fetch.HTTPConfig{Mirrors: []string{s.base()}, Backoff: time.Hour})
			require.NoError(t, err)
			why := errors.New("enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
			err = h.Fetch(ctx, "file", 1000, make([]byte, 5000), nil)
			require.ErrorIs(t, err, why)
		})
	}
}

// Demand goes on while all of prefetch's connections are held.
func TestPools(t *testing.T) {
	s := newServer(t)
	h := source(t, fetch.HTTPConfig{PrefetchConns: 2}, s)
	s.fail(5, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() { h.Prefetch().Fetch(ctx, "file", 0, make([]byte, 10), nil) })
	}
	for s.requests() < 2 {
		time.Sleep(time.Millisecond)
	}
	s.fail(0, nil)
	for range 20 {
		require.NoError(t, h.Fetch(t.Context(), "file", 7, make([]byte, 10), checker(7)))
	}
	cancel()
	wg.Wait()
}

func TestTLSAndHeader(t *testing.T) {
	s := newServer(t)
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/down/file":
			http.Redirect(w, r, s.base()+"/file", http.StatusFound)
		case r.Header.Get("Authorization") != "Bearer x" || r.URL.RawQuery != "sig=1":
			w.WriteHeader(http.StatusUnauthorized)
		default:
			s.serve(w, r)
		}
	}))
	defer secure.Close()
	cfg := fetch.HTTPConfig{Mirrors: []string{secure.URL + "/dir?sig=1"}, Attempts: 1,
		Header: http.Header{"Authorization": {"Bearer x"}},
		TLS:    secure.Client().Transport.(*http.Transport).TLSClientConfig}
	h, err := fetch.NewHTTP(cfg)
	require.NoError(t, err)
	require.NoError(t, h.Fetch(t.Context(), "file", 7, make([]byte, 10), checker(7)))
	cfg.Mirrors[0] = secure.URL + "/down"
	h, err = fetch.NewHTTP(cfg)
	require.NoError(t, err)
	require.ErrorContains(t, h.Fetch(t.Context(), "file", 7, make([]byte, 10), nil), "redirect from https to http")
	cfg.TLS = nil
	h, err = fetch.NewHTTP(cfg)
	require.NoError(t, err)
	require.ErrorContains(t, h.Fetch(t.Context(), "file", 7, make([]byte, 10), nil), "certificate")
}

func TestNewHTTPErrors(t *testing.T) {
	for _, c := range []fetch.HTTPConfig{
		{},
		{Mirrors: []string{"ftp://x/"}},
		{Mirrors: []string{"/dir"}},
		{Mirrors: []string{"http://"}},
		{Mirrors: []string{"http://a b/"}},
		{Mirrors: []string{"http://a/"}, Stall: -1},
	} {
		_, err := fetch.NewHTTP(c)
		require.Error(t, err, "%+v", c)
	}
}

func TestEmptyRange(t *testing.T) {
	h, err := fetch.NewHTTP(fetch.HTTPConfig{Mirrors: []string{"http://127.0.0.1:1/"}})
	require.NoError(t, err)
	require.NoError(t, h.Fetch(t.Context(), "file", 0, nil, nil), "no bytes need no server")
	require.ErrorIs(t, h.Fetch(t.Context(), "file", -1, make([]byte, 1), nil), fetch.ErrRange)
	err = h.Fetch(t.Context(), "file", 0, nil, func([]byte) error { return io.ErrNoProgress })
	require.ErrorIs(t, err, io.ErrNoProgress)
}

func TestDir(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), content(), 0o644))
	d := fetch.Dir(dir)
	p := make([]byte, 100)
	require.NoError(t, d.Fetch(t.Context(), "file", 50, p, checker(50)))
	whole, err := d.Load(t.Context(), "file", 300_000, nil)
	require.NoError(t, err)
	require.Equal(t, content(), whole)
	_, err = d.Load(t.Context(), "file", 299_999, nil)
	require.ErrorIs(t, err, fetch.ErrTooLarge)
	err = d.Fetch(t.Context(), "file", 299_950, p, nil)
	require.ErrorIs(t, err, fetch.ErrShort)
	require.ErrorContains(t, err, "100 bytes at offset 299950")
	require.ErrorIs(t, d.Fetch(t.Context(), "file", 51, p, checker(50)), fetch.ErrContent)
	require.ErrorIs(t, d.Fetch(t.Context(), "none", 0, p, nil), fetch.ErrNotFound)
	require.ErrorIs(t, d.Fetch(t.Context(), "../file", 0, p, nil), fetch.ErrNotFound)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, d.Fetch(ctx, "file", 0, p, nil), context.Canceled)
}

func TestSplit(t *testing.T) {
	for in, want := range map[string][3]string{
		"https://h/a/b/m.json?x=1": {"https://h/a/b/?x=1", "m.json", "true"},
		"http://h/m.json":          {"http://h/", "m.json", "true"},
		"dir/m.json":               {"dir/", "m.json", "false"},
		"m.json":                   {".", "m.json", "false"},
		"/m.json":                  {"/", "m.json", "false"},
	} {
		base, name, remote, err := fetch.Split(in)
		require.NoError(t, err)
		require.Equal(t, want, [3]string{base, name, fmt.Sprint(remote)})
	}
	for _, in := range []string{"https://h/a/", "http://h", "dir/", "", "ftp://x/y", "http://a b/c"} {
		_, _, _, err := fetch.Split(in)
		require.Error(t, err, in)
	}
}

// FuzzAnswer has a server answer anything.
func FuzzAnswer(f *testing.F) {
	f.Add("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 1000-1009/300000\r\nContent-Length: 10\r\n\r\n0123456789")
	f.Add("HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + strings.Repeat("x", 2000))
	f.Add("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 1000-/\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n")
	f.Add("HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n")
	f.Fuzz(func(t *testing.T, answer string) {
		h, err := fetch.NewHTTP(fetch.HTTPConfig{Mirrors: []string{"http://unused.invalid/"}, Attempts: 1, Stall: time.Second})
		require.NoError(t, err)
		fetch.SetTransport(h, rawAnswer(answer))
		p := make([]byte, 10)
		called := false
		err = h.Fetch(t.Context(), "file", 1000, p, func([]byte) error { called = true; return nil })
		if err == nil && !called {
			t.Fatal("bytes that were not checked")
		}
		if got, err := h.Load(t.Context(), "file", 1<<16, nil); err == nil && !strings.HasSuffix(answer, string(got)) &&
			!strings.Contains(strings.ToLower(answer), "chunked") && !strings.Contains(strings.ToLower(answer), "content-length") {
			t.Fatalf("%q out of nothing", got)
		}
	})
}

// rawAnswer is a transport whose server always sends these bytes.
type rawAnswer string

func (a rawAnswer) RoundTrip(r *http.Request) (*http.Response, error) {
	return http.ReadResponse(bufio.NewReader(strings.NewReader(string(a))), r)
}
