// Package lease lets one guest at a time change a published image. A server
// grants leases over HTTP; each grant has a fencing token that is larger than
// all before it, which whoever stores changes compares, so that a holder who
// lost the lease without knowing can do no harm.
//
//	s, err := lease.NewServer(lease.ServerConfig{File: "leases.json"})
//	go http.ListenAndServe(":8001", s)
//
//	c := lease.Client{URL: "http://host:8001/"}
//	l, err := c.Acquire(ctx, "appliance", "laptop 7", time.Hour)
//	go l.Keep(ctx, lease.KeepConfig{Warn: warnGuest})
//
// A holder may go offline for as long as the lease lasts. Revoking one gives the
// holder a time of grace.
package lease

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/vmkit-go/vmkit/internal/durable"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrHeld is wrapped by the error for a lease that somebody else has.
	ErrHeld = errors.New("lease is held by another")
	// ErrLost is wrapped by the error for a lease that has expired, was
	// revoked or was released.
	ErrLost = errors.New("lease is lost")
)

// Limits of a server.
const (
	maxName    = 200
	maxHolder  = 200
	maxLeases  = 1 << 16
	maxRequest = 4 << 10
	maxState   = 64 << 20
)

// ServerConfig says how a [Server] works.
type ServerConfig struct {
	// File keeps the leases, so that they, and the order of tokens, survive
	// the server.
	File string
	// MaxTTL bounds how long a lease lasts without being renewed, 0 means 30
	// days.
	MaxTTL time.Duration
	// Admin is a secret with which leases can be revoked over HTTP, as the
	// bearer token of the request. Empty: not over HTTP.
	Admin string

	now func() time.Time
}

// Server grants leases. It is an http.Handler; its methods may be called
// concurrently.
type Server struct {
	cfg ServerConfig
	mu  sync.Mutex
	set map[string]*entry
}

// entry is the lease of one name. One that is not held stays for its token.
type entry struct {
	Token   uint64    `json:"token"`
	Secret  string    `json:"secret"` // empty: not held
	Holder  string    `json:"holder"`
	Expires time.Time `json:"expires"`
	Revoked bool      `json:"revoked"` // Expires is the end of the grace
}

// request is what a client sends with POST to the lease's name.
type request struct {
	Op     string `json:"op"` // acquire, renew, release, revoke
	Holder string `json:"holder,omitempty"`
	Token  uint64 `json:"token,omitempty"`
	Secret string `json:"secret,omitempty"`
	Millis int64  `json:"millis,omitempty"` // how long
}

// reply is the answer; times are relative, so that clocks need not agree.
type reply struct {
	Token   uint64 `json:"token,omitempty"`
	Secret  string `json:"secret,omitempty"`
	Holder  string `json:"holder,omitempty"`
	Millis  int64  `json:"millis,omitempty"` // until the end
	Revoked bool   `json:"revoked,omitempty"`
	Error   string `json:"error,omitempty"`
}

// NewServer reads the leases granted earlier from the file, if it is there.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.File == "" {
		return nil, errors.New("lease: no file to keep leases in")
	}
	if cfg.MaxTTL <= 0 {
		cfg.MaxTTL = 30 * 24 * time.Hour
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	s := &Server{cfg: cfg, set: map[string]*entry{}}
	f, err := os.Open(cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	defer f.Close()
	d := json.NewDecoder(io.LimitReader(f, maxState))
	d.DisallowUnknownFields()
	if err := d.Decode(&s.set); err != nil {
		// Without it tokens would be given out twice.
		return nil, fmt.Errorf("lease: %s: offset %d: %w", cfg.File, d.InputOffset(), err)
	}
	for name, e := range s.set {
		if e == nil || checkText("name", name, maxName) != nil {
			return nil, fmt.Errorf("lease: %s: bad entry %q", cfg.File, name)
		}
	}
	return s, nil
}

func checkText(what, s string, limit int) error {
	if s == "" || len(s) > limit || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("bad %s", what)
	}
	return nil
}

// save makes the leases durable. The caller holds mu.
func (s *Server) save() error {
	data, err := json.Marshal(s.set)
	if err != nil {
		return err
	}
	return durable.WriteFile(s.cfg.File, 0o600, data)
}

// change replaces the entry of a name once that is durable. The caller holds
// mu.
func (s *Server) change(name string, e entry) error {
	old, had := s.set[name]
	s.set[name] = &e
	if err := s.save(); err != nil {
		if s.set[name] = old; !had {
			delete(s.set, name)
		}
		return fmt.Errorf("lease: %w", err)
	}
	return nil
}

// held returns the entry of a name if somebody holds it now. The caller holds
// mu.
func (s *Server) held(name string) *entry {
	e := s.set[name]
	if e == nil || e.Secret == "" || !s.cfg.now().Before(e.Expires) {
		return nil
	}
	return e
}

// own returns the entry if the caller holds it.
func (s *Server) own(name string, token uint64, secret string) (*entry, error) {
	e := s.held(name)
	if e == nil || e.Token != token || subtle.ConstantTimeCompare([]byte(e.Secret), []byte(secret)) != 1 {
		return nil, fmt.Errorf("%w: %s", ErrLost, name)
	}
	return e, nil
}

// Check returns an error that wraps ErrLost unless the lease with this token
// and secret is held now. Who stores changes calls it around storing them.
func (s *Server) Check(name string, token uint64, secret string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.own(name, token, secret)
	return err
}

// While calls fn if the lease with this token and secret is held, and grants
// none before fn has returned.
func (s *Server) While(name string, token uint64, secret string, fn func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.own(name, token, secret); err != nil {
		return err
	}
	return fn()
}

// Revoke ends a lease after a time of grace, of which the holder learns when it
// renews it next.
func (s *Server) Revoke(name string, grace time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.held(name)
	if e == nil {
		return fmt.Errorf("%w: nobody holds %s", ErrLost, name)
	}
	n := *e
	n.Revoked = true
	if end := s.cfg.now().Add(max(grace, 0)); end.Before(n.Expires) {
		n.Expires = end
	}
	return s.change(name, n)
}

// do answers a request.
func (s *Server) do(name string, q request) (r reply, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.now()
	until := now.Add(min(time.Duration(min(max(q.Millis, 0), 1<<40))*time.Millisecond, s.cfg.MaxTTL))
	switch q.Op {
	case "acquire":
		if err := checkText("holder", q.Holder, maxHolder); err != nil {
			return r, err
		}
		if e := s.held(name); e != nil {
			return reply{Holder: e.Holder, Millis: e.Expires.Sub(now).Milliseconds()}, fmt.Errorf("%w: %s", ErrHeld, e.Holder)
		}
		var token uint64
		if old := s.set[name]; old != nil {
			token = old.Token
		} else if len(s.set) >= maxLeases {
			return r, errors.New("too many leases")
		}
		e := entry{Token: token + 1, Secret: rand.Text(), Holder: q.Holder, Expires: until}
		if err := s.change(name, e); err != nil {
			return r, err
		}
		return reply{Token: e.Token, Secret: e.Secret, Millis: until.Sub(now).Milliseconds()}, nil
	case "renew":
		e, err := s.own(name, q.Token, q.Secret)
		if err != nil {
			return r, err
		}
		n := *e
		if !n.Revoked && until.After(n.Expires) {
			n.Expires = until
			if err := s.change(name, n); err != nil {
				return r, err
			}
		}
		return reply{Token: n.Token, Millis: n.Expires.Sub(now).Milliseconds(), Revoked: n.Revoked}, nil
	case "release":
		e, err := s.own(name, q.Token, q.Secret)
		if err != nil {
			return r, err
		}
		return r, s.change(name, entry{Token: e.Token})
	}
	return r, fmt.Errorf("unknown operation %.20q", q.Op)
}

// ServeHTTP answers GET of a lease's name with who holds it, and POST with what
// the request asks for.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	if err := checkText("name", name, maxName); err != nil {
		answer(w, http.StatusBadRequest, reply{Error: err.Error()})
		return
	}
	switch r.Method {
	case http.MethodGet:
		s.mu.Lock()
		var out reply
		if e := s.held(name); e != nil {
			out = reply{Token: e.Token, Holder: e.Holder, Revoked: e.Revoked, Millis: e.Expires.Sub(s.cfg.now()).Milliseconds()}
		}
		s.mu.Unlock()
		answer(w, http.StatusOK, out)
		return
	case http.MethodPost:
	default:
		w.Header().Set("Allow", "GET, POST")
		answer(w, http.StatusMethodNotAllowed, reply{Error: "only GET and POST"})
		return
	}
	var q request
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		answer(w, http.StatusBadRequest, reply{Error: "not a request: " + err.Error()})
		return
	}
	var out reply
	var err error
	if q.Op == "revoke" {
		given := []byte(r.Header.Get("Authorization"))
		if s.cfg.Admin == "" || subtle.ConstantTimeCompare(given, []byte("Bearer "+s.cfg.Admin)) != 1 {
			answer(w, http.StatusForbidden, reply{Error: "not allowed"})
			return
		}
		err = s.Revoke(name, time.Duration(min(max(q.Millis, 0), 1<<40))*time.Millisecond)
	} else {
		out, err = s.do(name, q)
	}
	code := http.StatusOK
	var path *fs.PathError
	switch {
	case err == nil:
	case errors.Is(err, ErrHeld):
		code = http.StatusConflict
	case errors.Is(err, ErrLost):
		code = http.StatusGone
	case errors.As(err, &path):
		code = http.StatusInternalServerError
	default:
		code = http.StatusBadRequest
	}
	if err != nil {
		out.Error = err.Error()
	}
	answer(w, code, out)
}

func answer(w http.ResponseWriter, code int, r reply) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(r) // the client has gone
}
