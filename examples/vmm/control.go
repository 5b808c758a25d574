package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// serveControl answers vmm save on a Unix socket: POST /save?dir=D saves the
// guest with the function and ends it.
func serveControl(path string, save func(dir string) error) (io.Closer, error) {
	// A socket left by a killed vmm is in the way; one that still answers is
	// another guest's.
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("control socket %s belongs to a running vmm", path)
	} else if errors.Is(err, unix.ECONNREFUSED) {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("control socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /save", func(w http.ResponseWriter, r *http.Request) {
		if err := save(r.FormValue("dir")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go s.Serve(l)
	return controlServer{s}, nil
}

// controlServer closes after the answer under way has been sent.
type controlServer struct{ s *http.Server }

func (c controlServer) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return c.s.Shutdown(ctx)
}

func saveCommand(ctx context.Context, args []string) error {
	fs := newFlags("save")
	control := fs.String("control", "", "the `socket` that the guest's vmm was started with")
	rest, err := parseFlags(fs, args, "-control SOCKET DIR")
	if err != nil {
		return err
	}
	if *control == "" || len(rest) != 1 {
		return usageError("usage: vmm save -control SOCKET DIR")
	}
	dir, err := filepath.Abs(rest[0])
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", *control)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, "POST", "http://vmm/save", nil)
	if err != nil {
		return err
	}
	q := req.URL.Query()
	q.Set("dir", dir)
	req.URL.RawQuery = q.Encode()
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("save: %s", text)
	}
	fmt.Fprintf(os.Stderr, "vmm: saved to %s; go on with: vmm load %s\n", dir, rest[0])
	return nil
}
