package lease

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// Client talks to a [Server].
type Client struct {
	// URL is where the server is.
	URL string
	// HTTP is used for requests; nil means http.DefaultClient.
	HTTP *http.Client
}

// Lease is a lease that was granted. Its methods may be called concurrently.
type Lease struct {
	client Client
	state  State

	mu      sync.Mutex
	expires time.Time
	revoked bool
}

// State is what a program keeps of a lease to go on with it later, in another
// process. Whoever has it holds the lease.
type State struct {
	Name   string `json:"name"`
	Token  uint64 `json:"token"`
	Secret string `json:"secret"`
	// TTL is how long the lease lasts from each renewal.
	TTL time.Duration `json:"ttl"`
	// Expires is by this machine's clock.
	Expires time.Time `json:"expires"`
}

// requestTime bounds one request.
const requestTime = 10 * time.Second

func (c Client) do(ctx context.Context, name string, q request) (r reply, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	body, err := json.Marshal(q)
	if err != nil {
		return r, err
	}
	base, err := url.Parse(c.URL)
	if err != nil {
		return r, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base.JoinPath(url.PathEscape(name)).String(), bytes.NewReader(body))
	if err != nil {
		return r, err
	}
	h := c.HTTP
	if h == nil {
		h = http.DefaultClient
	}
	resp, err := h.Do(req)
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	derr := json.NewDecoder(io.LimitReader(resp.Body, maxRequest)).Decode(&r)
	switch {
	case resp.StatusCode == http.StatusOK && derr == nil:
		return r, nil
	case resp.StatusCode == http.StatusConflict:
		return r, fmt.Errorf("%w: %.200s", ErrHeld, r.Holder)
	case resp.StatusCode == http.StatusGone:
		return r, ErrLost
	case derr != nil:
		return r, fmt.Errorf("status %d, and no answer: %w", resp.StatusCode, derr)
	}
	return r, fmt.Errorf("status %d: %.200s", resp.StatusCode, r.Error)
}

// Acquire asks for the lease of a name, for a holder that is shown to others.
// The server may grant less time than ttl. The error wraps ErrHeld if somebody
// else has it.
func (c Client) Acquire(ctx context.Context, name, holder string, ttl time.Duration) (*Lease, error) {
	// The time counts from before the request, to be on the safe side.
	now := time.Now()
	r, err := c.do(ctx, name, request{Op: "acquire", Holder: holder, Millis: ttl.Milliseconds()})
	if err == nil && (r.Token == 0 || r.Secret == "" || r.Millis <= 0) {
		err = errors.New("the server's answer makes no sense")
	}
	if err != nil {
		return nil, fmt.Errorf("lease %s: acquire: %w", name, err)
	}
	granted := min(time.Duration(min(r.Millis, 1<<40))*time.Millisecond, ttl)
	return &Lease{
		client: c, expires: now.Add(granted),
		state: State{Name: name, Token: r.Token, Secret: r.Secret, TTL: granted},
	}, nil
}

// Resume goes on with a lease from its State.
func (c Client) Resume(s State) *Lease {
	return &Lease{client: c, state: s, expires: s.Expires}
}

// State returns what Resume takes.
func (l *Lease) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.state
	s.Expires = l.expires.Round(0)
	return s
}

// Expires is when the lease ends if it is not renewed.
func (l *Lease) Expires() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.expires
}

// Renew makes the lease last for its whole time again, unless it was revoked:
// then revoked is true, and the lease ends with the time of grace. The error
// wraps ErrLost if it has ended.
func (l *Lease) Renew(ctx context.Context) (revoked bool, err error) {
	now := time.Now()
	s := l.state
	r, err := l.client.do(ctx, s.Name, request{Op: "renew", Token: s.Token, Secret: s.Secret, Millis: s.TTL.Milliseconds()})
	if err != nil {
		return false, fmt.Errorf("lease %s: renew: %w", s.Name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expires = now.Add(time.Duration(min(max(r.Millis, 0), 1<<40)) * time.Millisecond)
	l.revoked = r.Revoked
	return r.Revoked, nil
}

// Release gives the lease back.
func (l *Lease) Release(ctx context.Context) error {
	s := l.state
	if _, err := l.client.do(ctx, s.Name, request{Op: "release", Token: s.Token, Secret: s.Secret}); err != nil {
		return fmt.Errorf("lease %s: release: %w", s.Name, err)
	}
	return nil
}

// KeepConfig says what to do about a lease that ends.
type KeepConfig struct {
	// Warn, if not nil, is called once it is foreseeable that the lease ends
	// at a time: it was revoked, or cannot be renewed. It is called again if
	// that changes; a zero time means that there is no danger any more.
	Warn func(end time.Time, err error)
	// LastWords is the least time between a warning and the end. The server
	// may have given the lease to another by then, and takes no changes from
	// this holder: the time is for the guest. 0 means none.
	LastWords time.Duration
}

// Keep renews the lease until ctx ends, and then returns nil; or until the
// lease is lost, and then returns an error that wraps ErrLost: the guest must
// stop now.
func (l *Lease) Keep(ctx context.Context, cfg KeepConfig) error {
	var warned time.Time // of the end that was foretold
	warn := func(end time.Time, err error) {
		if cfg.Warn != nil && !end.Equal(warned) {
			cfg.Warn(end, err)
		}
		warned = end
	}
	for {
		revoked, err := l.Renew(ctx)
		if ctx.Err() != nil {
			return nil
		}
		now, end := time.Now(), l.Expires()
		left := end.Sub(now)
		switch {
		case err == nil && !revoked:
			if !warned.IsZero() {
				warn(time.Time{}, nil)
			}
		case revoked:
			warn(end, fmt.Errorf("lease %s was revoked", l.state.Name))
		case errors.Is(err, ErrLost) || left <= 0:
			if warned.IsZero() || cfg.LastWords > 0 && warned.Before(now) {
				end = now.Add(cfg.LastWords)
				warn(end, err)
			} else {
				end = warned
			}
			return l.lose(ctx, end, err)
		case left < l.state.TTL/3:
			warn(end, err)
		}
		// Often enough that a few failures do no harm.
		t := time.NewTimer(min(max(left/3, 10*time.Millisecond), max(l.state.TTL/3, 10*time.Millisecond)))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

// lose waits for the end that was foretold.
func (l *Lease) lose(ctx context.Context, end time.Time, err error) error {
	t := time.NewTimer(time.Until(end))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return nil
	}
	if errors.Is(err, ErrLost) {
		return err
	}
	return fmt.Errorf("lease %s: %w: it has expired: %w", l.state.Name, ErrLost, err)
}
