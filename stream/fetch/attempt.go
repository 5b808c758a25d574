package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// attempt is the work on one Fetch or Load.
type attempt struct {
	pool  *Pool
	name  string
	off   int64
	buf   []byte
	n     int64 // len(buf), or -1 for the whole file
	limit int64 // of a whole file
	check func([]byte) error

	shown string // URL of the last request, without its query
	retry time.Duration
}

// try asks one mirror, twice if its URL has to be refreshed, and notes how it
// went.
func (a *attempt) try(ctx context.Context, m *mirror) ([]byte, error) {
	a.retry = 0
	a.shown = m.base
	data, err := a.once(ctx, m)
	if errors.Is(err, ErrForbidden) && a.pool.h.cfg.Refresh != nil {
		m.know(a.name, func(f *remote) { f.url = "" })
		data, err = a.once(ctx, m)
	}
	if err == nil {
		m.good(int64(len(data)))
	} else if ctx.Err() == nil {
		m.bad(err, a.retry)
	}
	return data, err
}

// address returns the URL of the file at a mirror.
func (a *attempt) address(ctx context.Context, m *mirror, known string) (string, error) {
	if known != "" {
		return known, nil
	}
	if refresh := a.pool.h.cfg.Refresh; refresh != nil {
		s, err := refresh(ctx, m.base, a.name)
		if err != nil {
			return "", fmt.Errorf("refresh the URL: %w", err)
		}
		m.know(a.name, func(f *remote) { f.url = s })
		return s, nil
	}
	return m.url.JoinPath(url.PathEscape(a.name)).String(), nil
}

// once sends one request.
func (a *attempt) once(ctx context.Context, m *mirror) ([]byte, error) {
	cfg := &a.pool.h.cfg
	known := m.file(a.name)
	addr, err := a.address(ctx, m, known.url)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The watchdog is fed with each piece that arrives.
	dog := time.AfterFunc(cfg.Stall, func() {
		cancel(fmt.Errorf("%w: nothing for %v", ErrStall, cfg.Stall))
	})
	defer dog.Stop()
	most := 2*cfg.Stall + time.Duration(float64(max(a.n, a.limit))/float64(cfg.MinRate)*float64(time.Second))
	slow := time.AfterFunc(most, func() {
		cancel(fmt.Errorf("%w: less than %d B/s", ErrStall, cfg.MinRate))
	})
	defer slow.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, addr, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, stripURL(err))
	}
	a.shown = showURL(req.URL)
	for k, v := range cfg.Header {
		req.Header[k] = v
	}
	req.Header.Set("Accept-Encoding", "identity")
	if a.n >= 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(a.off, 10)+"-"+strconv.FormatInt(a.off+a.n-1, 10))
		if known.etag != "" {
			req.Header.Set("If-Range", known.etag)
		}
	}
	resp, err := a.pool.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, stripURL(err)
	}
	// Closing reads no further: a connection with bytes left is dropped.
	defer resp.Body.Close()
	dog.Reset(cfg.Stall)
	data, err := a.answer(resp, m, known, watched{resp.Body, dog, cfg.Stall})
	if err != nil && ctx.Err() != nil && !errors.Is(err, ErrContent) {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
	}
	return data, err
}

// watched feeds a watchdog.
type watched struct {
	r    io.Reader
	dog  *time.Timer
	wait time.Duration
}

func (w watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if n > 0 {
		w.dog.Reset(w.wait)
	}
	return n, err
}

// answer takes the response apart.
func (a *attempt) answer(resp *http.Response, m *mirror, known remote, body io.Reader) ([]byte, error) {
	if err := a.status(resp); err != nil {
		return nil, err
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, fmt.Errorf("%w: content encoding %.40q", ErrProtocol, enc)
	}
	if a.n < 0 {
		return a.whole(resp, body)
	}
	etag := resp.Header.Get("ETag")
	if strings.HasPrefix(etag, "W/") || len(etag) > 200 {
		etag = ""
	}
	skip, size := int64(0), resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		first, last, total, err := contentRange(resp.Header.Get("Content-Range"))
		switch {
		case err != nil:
			return nil, err
		case first != a.off || last > a.off+a.n-1:
			return nil, fmt.Errorf("%w: bytes %d to %d for %d to %d", ErrProtocol, first, last, a.off, a.off+a.n-1)
		case last < a.off+a.n-1:
			return nil, fmt.Errorf("%w: bytes %d to %d for %d to %d", ErrShort, first, last, a.off, a.off+a.n-1)
		case resp.ContentLength >= 0 && resp.ContentLength != a.n:
			return nil, fmt.Errorf("%w: length %d for a range of %d", ErrProtocol, resp.ContentLength, a.n)
		}
		size = total
	}
	if size >= 0 && known.size >= 0 && size != known.size || etag != "" && known.etag != "" && etag != known.etag {
		// What is known may be what is wrong: start anew with the next.
		m.know(a.name, func(f *remote) { f.size, f.etag = -1, "" })
		return nil, fmt.Errorf("%w: size %d and ETag %.40q, earlier %d and %.40q", ErrChanged, size, etag, known.size, known.etag)
	}
	if resp.StatusCode == http.StatusOK {
		if size < 0 || size > a.pool.h.cfg.MaxWhole {
			return nil, fmt.Errorf("%w: status 200 with a length of %d", ErrNoRange, size)
		}
		if size < a.off+a.n {
			return nil, fmt.Errorf("%w: the whole file has %d bytes", ErrShort, size)
		}
		skip = a.off
	}
	if skip > 0 {
		if n, err := io.CopyN(io.Discard, body, skip); err != nil {
			return nil, a.cutOff(n, skip+a.n, err)
		}
	}
	if n, err := io.ReadFull(body, a.buf); err != nil {
		return nil, a.cutOff(skip+int64(n), skip+a.n, err)
	}
	if resp.StatusCode == http.StatusPartialContent {
		// This also lets the connection be used again.
		var one [1]byte
		if n, _ := io.ReadFull(body, one[:]); n > 0 {
			return nil, fmt.Errorf("%w: more bytes than asked for", ErrProtocol)
		}
	}
	if err := verify(a.check, a.buf); err != nil {
		m.know(a.name, func(f *remote) { f.size, f.etag = -1, "" })
		return nil, err
	}
	if size != known.size || etag != known.etag {
		m.know(a.name, func(f *remote) { f.size, f.etag = size, etag })
	}
	return a.buf, nil
}

// whole reads a whole file.
func (a *attempt) whole(resp *http.Response, body io.Reader) ([]byte, error) {
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: status %d for a whole file", ErrProtocol, resp.StatusCode)
	}
	if resp.ContentLength > a.limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, resp.ContentLength, a.limit)
	}
	p, err := io.ReadAll(io.LimitReader(body, a.limit+1))
	if err != nil {
		return nil, a.cutOff(int64(len(p)), resp.ContentLength, err)
	}
	if int64(len(p)) > a.limit {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, a.limit)
	}
	if err := verify(a.check, p); err != nil {
		return nil, err
	}
	return p, nil
}

func (a *attempt) cutOff(got, want int64, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %d of %d bytes", ErrShort, got, want)
	}
	return fmt.Errorf("after %d of %d bytes: %w", got, want, err)
}

// status gives each status that is not a success its error.
func (a *attempt) status(resp *http.Response) error {
	cause := ErrProtocol
	switch s := resp.StatusCode; {
	case s == http.StatusOK || s == http.StatusPartialContent && a.n >= 0:
		return nil
	case s == http.StatusUnauthorized || s == http.StatusForbidden:
		cause = ErrForbidden
	case s == http.StatusNotFound || s == http.StatusGone:
		cause = ErrNotFound
	case s == http.StatusRequestedRangeNotSatisfiable:
		cause = ErrRange
	case s >= 500 || s == http.StatusTooManyRequests || s == http.StatusRequestTimeout:
		cause = ErrServer
		if n, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16); err == nil {
			a.retry = time.Duration(n) * time.Second
		}
	}
	return fmt.Errorf("%w: status %d", cause, resp.StatusCode)
}

// contentRange parses "bytes first-last/total"; total is -1 for "*".
func contentRange(s string) (first, last, total int64, err error) {
	bad := fmt.Errorf("%w: content range %.60q", ErrProtocol, s)
	rest, ok := strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, 0, 0, bad
	}
	span, size, ok := strings.Cut(rest, "/")
	from, to, ok2 := strings.Cut(span, "-")
	if !ok || !ok2 {
		return 0, 0, 0, bad
	}
	a, err1 := strconv.ParseUint(from, 10, 63)
	b, err2 := strconv.ParseUint(to, 10, 63)
	if err1 != nil || err2 != nil || a > b {
		return 0, 0, 0, bad
	}
	total = -1
	if size != "*" {
		n, err := strconv.ParseUint(size, 10, 63)
		if err != nil || n <= b {
			return 0, 0, 0, bad
		}
		total = int64(n)
	}
	return int64(a), int64(b), total, nil
}

// showURL is u without what may be secret.
func showURL(u *url.URL) string {
	return u.Scheme + "://" + u.Host + u.EscapedPath()
}

// stripURL removes the URL, which [Error] has too and without its query.
func stripURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}
