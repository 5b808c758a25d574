package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// HTTPConfig describes web servers that publish the same files. Only Mirrors
// is needed.
type HTTPConfig struct {
	// Mirrors are the URLs of directories with the files, the preferred one
	// first. A query is kept and sent with each file's name.
	Mirrors []string
	// Refresh, if not nil, returns the URL to use for a file at a mirror,
	// such as one that is signed and expires. It is called before the first
	// use and when the URL was refused with 401 or 403. Calls may be
	// concurrent.
	Refresh func(ctx context.Context, mirror, name string) (string, error)
	// Header is sent with every request.
	Header http.Header
	// TLS is for https; nil means the system's roots.
	TLS *tls.Config
	// DemandConns and PrefetchConns bound the connections to each host of
	// the two pools; 0 means 8 and 4.
	DemandConns, PrefetchConns int
	// Stall is the time without a byte after which an attempt is given up;
	// 0 means 10 s.
	Stall time.Duration
	// MinRate is the mean rate, in bytes per second, below which an attempt
	// is given up once it has lasted for twice Stall; 0 means 1 KiB/s.
	MinRate int64
	// Attempts bounds the requests for one range; 0 means 4. Each mirror is
	// tried at least once all the same.
	Attempts int
	// Backoff is the mean wait before the second round over the mirrors; it
	// doubles with each round up to 16 times that. 0 means 200 ms.
	Backoff time.Duration
	// MaxWhole is the size in bytes up to which a server may send a whole
	// file in place of a range; 0 means 8 MiB.
	MaxWhole int64
	// Log gets a line for each failed attempt, if not nil.
	Log *slog.Logger
}

// HTTP is a source of files from web servers. Its methods may be called
// concurrently. Fetch and Load use the demand pool.
type HTTP struct {
	Pool
	prefetch Pool
	cfg      HTTPConfig
	mirrors  []*mirror
}

// Pool is a source that uses connections of its own, so that its requests
// never queue behind those of another pool.
type Pool struct {
	h      *HTTP
	client *http.Client
}

// mirror is what is known of one server.
type mirror struct {
	base string
	url  *url.URL

	mu       sync.Mutex
	failures int       // since the last success
	until    time.Time // when to prefer it again
	stats    MirrorStats
	files    map[string]*remote
}

// remote is what is known of one file at one mirror.
type remote struct {
	url  string // from Refresh; empty is not known
	size int64  // -1 is not known
	etag string // strong, or empty
}

// maxRemotes bounds the files that are remembered for a mirror.
const maxRemotes = 1 << 17

// MirrorStats counts what a mirror did.
type MirrorStats struct {
	// Mirror is the URL, as in [HTTPConfig].
	Mirror string
	// Requests were sent, of which Failed gave no good bytes.
	Requests, Failed int64
	// Bytes of content were good.
	Bytes int64
	// LastError is the latest failure, or nil.
	LastError error
}

// NewHTTP checks the configuration; it sends nothing.
func NewHTTP(cfg HTTPConfig) (*HTTP, error) {
	if len(cfg.Mirrors) == 0 {
		return nil, errors.New("fetch: no mirrors")
	}
	for _, n := range []int64{int64(cfg.DemandConns), int64(cfg.PrefetchConns), int64(cfg.Stall), cfg.MinRate,
		int64(cfg.Attempts), int64(cfg.Backoff), cfg.MaxWhole} {
		if n < 0 {
			return nil, fmt.Errorf("fetch: negative number %d in the configuration", n)
		}
	}
	setDefault(&cfg.DemandConns, 8)
	setDefault(&cfg.PrefetchConns, 4)
	setDefault(&cfg.Stall, 10*time.Second)
	setDefault(&cfg.MinRate, 1<<10)
	setDefault(&cfg.Attempts, 4)
	setDefault(&cfg.Backoff, 200*time.Millisecond)
	setDefault(&cfg.MaxWhole, 8<<20)
	h := &HTTP{cfg: cfg}
	for _, m := range cfg.Mirrors {
		u, err := url.Parse(m)
		if err != nil {
			return nil, fmt.Errorf("fetch: mirror %q: %w", m, err)
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("fetch: mirror %q is not an http or https URL", m)
		}
		h.mirrors = append(h.mirrors, &mirror{base: m, url: u,
			stats: MirrorStats{Mirror: m}, files: map[string]*remote{}})
	}
	h.Pool = Pool{h, newClient(cfg, cfg.DemandConns)}
	h.prefetch = Pool{h, newClient(cfg, cfg.PrefetchConns)}
	return h, nil
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

func newClient(cfg HTTPConfig, conns int) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: cfg.Stall, KeepAlive: 15 * time.Second}).DialContext,
			TLSClientConfig:        cfg.TLS.Clone(),
			TLSHandshakeTimeout:    cfg.Stall,
			ForceAttemptHTTP2:      true,
			MaxConnsPerHost:        conns,
			MaxIdleConnsPerHost:    conns,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
			DisableCompression:     true,
			ReadBufferSize:         32 << 10,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) >= 5 {
				return errors.New("more than 5 redirects")
			}
			if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
				return fmt.Errorf("redirect from https to %s", r.URL.Scheme)
			}
			return nil
		},
	}
}

// Prefetch returns a source over the same mirrors with connections of its own.
func (h *HTTP) Prefetch() *Pool { return &h.prefetch }

// Stats returns counters of each mirror, in the order of the configuration.
func (h *HTTP) Stats() []MirrorStats {
	list := make([]MirrorStats, len(h.mirrors))
	for i, m := range h.mirrors {
		m.mu.Lock()
		list[i] = m.stats
		m.mu.Unlock()
	}
	return list
}

// Close closes idle connections. Requests may still be made after it.
func (h *HTTP) Close() error {
	h.client.CloseIdleConnections()
	h.prefetch.client.CloseIdleConnections()
	return nil
}

// Fetch reads len(p) bytes at off of the file name into p, and calls check, if
// not nil, with them. Whatever goes wrong at one mirror is tried at the next,
// and after all mirrors again after a pause, up to the configured number of
// attempts. The last error is returned as an [*Error]; if ctx ends, it wraps the
// context's error.
func (p *Pool) Fetch(ctx context.Context, name string, off int64, buf []byte, check func([]byte) error) error {
	if off < 0 {
		return &Error{URL: name, Off: off, Len: int64(len(buf)), Err: ErrRange}
	}
	if len(buf) == 0 {
		// No range header asks for no bytes.
		if err := verify(check, buf); err != nil {
			return &Error{URL: name, Off: off, Err: err}
		}
		return nil
	}
	a := attempt{pool: p, name: name, off: off, buf: buf, n: int64(len(buf)), check: check}
	_, err := a.run(ctx)
	return err
}

// Load reads the whole file name, of at most limit bytes, as Fetch does.
func (p *Pool) Load(ctx context.Context, name string, limit int64, check func([]byte) error) ([]byte, error) {
	a := attempt{pool: p, name: name, n: -1, limit: limit, check: check}
	return a.run(ctx)
}

// order returns the mirrors, those in good health first.
func (h *HTTP) order(now time.Time) []*mirror {
	list := make([]*mirror, 0, len(h.mirrors))
	var ill []*mirror
	for _, m := range h.mirrors {
		m.mu.Lock()
		good := !now.Before(m.until)
		m.mu.Unlock()
		if good {
			list = append(list, m)
		} else {
			ill = append(ill, m)
		}
	}
	return append(list, ill...)
}

// run tries until an attempt works.
func (a *attempt) run(ctx context.Context) ([]byte, error) {
	h := a.pool.h
	most := max(h.cfg.Attempts, len(h.mirrors))
	tries := 0
	for round := 0; ; round++ {
		var last, hope *Error
		for _, m := range h.order(time.Now()) {
			data, err := a.try(ctx, m)
			tries++
			if err == nil {
				return data, nil
			}
			last = &Error{URL: a.shown, Off: a.off, Len: a.n, Attempts: tries, Err: err}
			if ctx.Err() != nil {
				last.Err = context.Cause(ctx)
				return nil, last
			}
			if Temporary(last) {
				hope = last
			}
			if h.cfg.Log != nil {
				h.cfg.Log.Warn("fetch failed", "error", last, "mirror", m.base)
			}
			if tries == most {
				break
			}
		}
		if hope != nil {
			// One mirror's good prospects count for more than the other's verdict.
			last = hope
		}
		if tries == most || hope == nil && round > 0 {
			return nil, last
		}
		wait := h.cfg.Backoff << min(round, 4)
		wait = wait/2 + rand.N(wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			last.Err = context.Cause(ctx)
			return nil, last
		}
	}
}

// Temporary reports whether the same request may work later without anybody
// changing what is published: a server or network out of order, rather than a
// file that is missing or wrong.
func Temporary(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	for _, lasting := range []error{ErrContent, ErrNoRange, ErrForbidden, ErrNotFound, ErrRange, ErrTooLarge, ErrProtocol} {
		if errors.Is(err, lasting) {
			return false
		}
	}
	return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// good notes a success of n bytes.
func (m *mirror) good(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures, m.until = 0, time.Time{}
	m.stats.Requests++
	m.stats.Bytes += n
}

// bad notes a failure. A mirror that fails is asked last for a while, which
// grows with the number of failures in a row.
func (m *mirror) bad(err error, atLeast time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures++
	m.stats.Requests++
	m.stats.Failed++
	m.stats.LastError = err
	wait := min(time.Second<<min(m.failures, 6), time.Minute)
	m.until = time.Now().Add(max(wait, min(atLeast, 5*time.Minute)))
}

// file returns what is known of a file.
func (m *mirror) file(name string) remote {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.files[name]; f != nil {
		return *f
	}
	return remote{size: -1}
}

// know changes what is known of a file.
func (m *mirror) know(name string, fn func(*remote)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.files[name]
	if f == nil {
		if len(m.files) >= maxRemotes {
			clear(m.files)
		}
		f = &remote{size: -1}
		m.files[name] = f
	}
	fn(f)
}

// Split splits the URL or path of a file into the place and the file's name:
// a mirror for [HTTPConfig], or a directory for [Dir] if remote is false.
func Split(location string) (base, name string, remote bool, err error) {
	if !strings.HasPrefix(location, "http://") && !strings.HasPrefix(location, "https://") {
		if strings.Contains(location, "://") {
			return "", "", false, fmt.Errorf("fetch: %q is neither a path nor an http or https URL", location)
		}
		i := strings.LastIndexByte(location, '/')
		if base, name = location[:i+1], location[i+1:]; base == "" {
			base = "."
		}
	} else {
		u, err := url.Parse(location)
		if err != nil {
			return "", "", true, fmt.Errorf("fetch: %w", err)
		}
		i := strings.LastIndexByte(u.Path, '/')
		name, u.Path, u.RawPath = u.Path[i+1:], u.Path[:i+1], ""
		base, remote = u.String(), true
	}
	if name == "" {
		return "", "", remote, fmt.Errorf("fetch: %q names no file", location)
	}
	return base, name, remote, nil
}
