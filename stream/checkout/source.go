package checkout

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/vmkit-go/vmkit/stream/fetch"
)

// source reads a depot's files with the client of a Config.
type source struct{ cfg Config }

func (s source) get(ctx context.Context, name, bytesRange string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.cfg.url(name), nil)
	if err != nil {
		return nil, err
	}
	want := http.StatusOK
	if bytesRange != "" {
		req.Header.Set("Range", bytesRange)
		want = http.StatusPartialContent
	}
	resp, err := s.cfg.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		return nil, fmt.Errorf("%s: status %d", name, resp.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: %w", name, fetch.ErrTooLarge)
	}
	return data, err
}

// Load implements image.Source.
func (s source) Load(ctx context.Context, name string, limit int64, check func([]byte) error) ([]byte, error) {
	data, err := s.get(ctx, name, "", limit)
	if err == nil && check != nil {
		err = check(data)
	}
	return data, err
}

// Fetch implements image.Source.
func (s source) Fetch(ctx context.Context, name string, off int64, p []byte, check func([]byte) error) error {
	if len(p) == 0 {
		// No range header asks for no bytes.
		return check(p)
	}
	data, err := s.get(ctx, name, fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1), int64(len(p)))
	if err != nil {
		return err
	}
	if copy(p, data) < len(p) {
		return fmt.Errorf("%s: %w", name, fetch.ErrShort)
	}
	if check != nil {
		return check(p)
	}
	return nil
}
