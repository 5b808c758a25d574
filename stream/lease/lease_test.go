package lease

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func start(t *testing.T, cfg ServerConfig) (*Server, Client) {
	t.Helper()
	if cfg.File == "" {
		cfg.File = filepath.Join(t.TempDir(), "leases")
	}
	s, err := NewServer(cfg)
	require.NoError(t, err)
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	return s, Client{URL: h.URL}
}

func TestOneHolder(t *testing.T) {
	clk := &clock{t: time.Now()}
	file := filepath.Join(t.TempDir(), "leases")
	s, c := start(t, ServerConfig{File: file, now: clk.now})
	ctx := t.Context()
	a, err := c.Acquire(ctx, "disk 1", "a", time.Minute)
	require.NoError(t, err)
	_, err = c.Acquire(ctx, "disk 1", "b", time.Minute)
	require.ErrorIs(t, err, ErrHeld)
	require.ErrorContains(t, err, ": a")
	other, err := c.Acquire(ctx, "disk 2", "b", time.Minute)
	require.NoError(t, err)
	require.NoError(t, other.Release(ctx))
	require.ErrorIs(t, other.Release(ctx), ErrLost)

	clk.advance(50 * time.Second)
	revoked, err := a.Renew(ctx)
	require.NoError(t, err)
	require.False(t, revoked)
	clk.advance(50 * time.Second)
	st := a.State()
	require.NoError(t, s.Check("disk 1", st.Token, st.Secret))
	require.ErrorIs(t, s.Check("disk 1", st.Token+1, st.Secret), ErrLost)
	require.ErrorIs(t, s.Check("disk 1", st.Token, "x"), ErrLost)
	require.ErrorIs(t, s.Check("disk 3", 0, ""), ErrLost)

	// The server restarts, and the lease expires.
	_, c = start(t, ServerConfig{File: file, now: clk.now})
	a = c.Resume(st)
	_, err = a.Renew(ctx)
	require.NoError(t, err)
	clk.advance(2 * time.Minute)
	b, err := c.Acquire(ctx, "disk 1", "b", time.Minute)
	require.NoError(t, err)
	require.Greater(t, b.State().Token, st.Token)
	_, err = a.Renew(ctx)
	require.ErrorIs(t, err, ErrLost)
}

func TestRevoke(t *testing.T) {
	s, c := start(t, ServerConfig{})
	ctx := t.Context()
	l, err := c.Acquire(ctx, "disk", "a", time.Hour)
	require.NoError(t, err)
	var mu sync.Mutex
	var warnings []time.Time
	lost := make(chan error, 1)
	require.NoError(t, s.Revoke("disk", 50*time.Millisecond))
	go func() {
		lost <- l.Keep(ctx, KeepConfig{Warn: func(end time.Time, err error) {
			mu.Lock()
			defer mu.Unlock()
			warnings = append(warnings, end)
		}})
	}()
	require.ErrorIs(t, <-lost, ErrLost)
	mu.Lock()
	defer mu.Unlock()
	require.NotEmpty(t, warnings, "there must be a warning first")
	require.ErrorIs(t, s.Revoke("disk", 0), ErrLost)
	_, err = c.Acquire(ctx, "disk", "b", time.Hour)
	require.NoError(t, err)
}

func TestKeep(t *testing.T) {
	// The server's clock stands still but for what it is told, so that a busy
	// host loses no lease.
	clk := &clock{t: time.Now()}
	s, c := start(t, ServerConfig{now: clk.now})
	ctx, cancel := context.WithCancel(t.Context())
	const ttl = 200 * time.Millisecond
	l, err := c.Acquire(ctx, "disk", "a", ttl)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- l.Keep(ctx, KeepConfig{}) }()
	for range 5 {
		clk.advance(150 * time.Millisecond)
		require.Eventually(t, func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			e := s.held("disk")
			return e != nil && e.Expires.Equal(clk.now().Add(ttl))
		}, time.Minute, time.Millisecond, "it is not renewed")
	}
	st := l.State()
	require.NoError(t, s.Check("disk", st.Token, st.Secret))
	cancel()
	require.NoError(t, <-done)
}

// TestServerAway checks that a lease ends by the holder's own clock when the
// server cannot be asked.
func TestServerAway(t *testing.T) {
	s, err := NewServer(ServerConfig{File: filepath.Join(t.TempDir(), "leases")})
	require.NoError(t, err)
	h := httptest.NewServer(s)
	l, err := Client{URL: h.URL}.Acquire(t.Context(), "disk", "a", 300*time.Millisecond)
	require.NoError(t, err)
	h.Close()
	warned := false
	err = l.Keep(t.Context(), KeepConfig{Warn: func(end time.Time, err error) { warned = true }, LastWords: time.Millisecond})
	require.ErrorIs(t, err, ErrLost)
	require.True(t, warned)
}

func TestRequests(t *testing.T) {
	_, c := start(t, ServerConfig{Admin: "secret"})
	_, err := c.Acquire(t.Context(), "disk", "a", time.Hour)
	require.NoError(t, err)
	for _, q := range []struct {
		method, path, body, auth string
		code                     int
	}{
		{"GET", "/disk", "", "", 200},
		{"GET", "/", "", "", 400},
		{"PUT", "/disk", "", "", 405},
		{"POST", "/disk", "{", "", 400},
		{"POST", "/disk", `{"op":"steal"}`, "", 400},
		{"POST", "/disk", `{"op":"acquire","holder":"b","extra":1}`, "", 400},
		{"POST", "/new", `{"op":"acquire"}`, "", 400},
		{"POST", "/new", `{"op":"acquire","holder":"` + strings.Repeat("x", 300) + `"}`, "", 400},
		{"POST", "/" + strings.Repeat("x", 300), `{"op":"acquire","holder":"b"}`, "", 400},
		{"POST", "/disk", strings.Repeat(" ", 10000) + `{}`, "", 400},
		{"POST", "/disk", `{"op":"acquire","holder":"b","millis":-5}`, "", 409},
		{"POST", "/disk", `{"op":"renew","token":1,"secret":"x"}`, "", 410},
		{"POST", "/disk", `{"op":"release","token":1,"secret":""}`, "", 410},
		{"POST", "/disk", `{"op":"revoke"}`, "", 403},
		{"POST", "/disk", `{"op":"revoke"}`, "Bearer wrong", 403},
		{"POST", "/disk", `{"op":"revoke"}`, "Bearer secret", 200},
		{"POST", "/disk", `{"op":"revoke"}`, "Bearer secret", 410},
	} {
		req, err := http.NewRequest(q.method, c.URL+q.path, strings.NewReader(q.body))
		require.NoError(t, err)
		req.Header.Set("Authorization", q.auth)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, q.code, resp.StatusCode, "%+v", q)
	}
}

func TestBadState(t *testing.T) {
	for _, text := range []string{"", "{", "[]", `{"a":null}`, `{"a":{"token":-1}}`, `{"a":{"what":1}}`} {
		file := filepath.Join(t.TempDir(), "leases")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		_, err := NewServer(ServerConfig{File: file})
		require.ErrorContains(t, err, file, "%q", text)
	}
	s, c := start(t, ServerConfig{File: filepath.Join(t.TempDir(), "gone", "leases")})
	_, err := c.Acquire(t.Context(), "disk", "a", time.Hour)
	require.Error(t, err, "a lease that is not durable is not granted")
	require.Empty(t, s.set)
}

// TestBadServer checks that a client survives nonsense.
func TestBadServer(t *testing.T) {
	for _, body := range []string{"", "{}", "[]", `{"token":1}`, strings.Repeat("x", 10000), `{"token":1,"secret":"s","millis":-1}`} {
		h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, body) }))
		_, err := Client{URL: h.URL}.Acquire(t.Context(), "disk", "a", time.Hour)
		require.Error(t, err, "%q", body)
		require.False(t, errors.Is(err, ErrHeld))
		h.Close()
	}
}

func Example() {
	dir, err := os.MkdirTemp("", "lease")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	s, err := NewServer(ServerConfig{File: filepath.Join(dir, "leases")})
	if err != nil {
		fmt.Println(err)
		return
	}
	h := httptest.NewServer(s)
	defer h.Close()

	c := Client{URL: h.URL}
	l, err := c.Acquire(context.Background(), "appliance", "laptop 7", time.Hour)
	fmt.Println(l.State().Token, err)
	_, err = c.Acquire(context.Background(), "appliance", "laptop 8", time.Hour)
	fmt.Println(err)
	// Output:
	// 1 <nil>
	// lease appliance: acquire: lease is held by another: laptop 7
}
