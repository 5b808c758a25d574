// Package checkout takes an image away from its server and brings what has
// become of it back.
//
// A [Depot] is the server: it publishes a directory of images, grants leases on
// them (stream/lease), and takes new versions from who holds the lease. Checking
// out fetches the whole image into a cache and takes the lease:
//
//	co, err := checkout.Out(ctx, d, checkout.Config{URL: "http://depot/", Cache: c, Holder: "laptop 7"})
//
// From then on no network is needed. The guest writes to an overlay; see
// [Checkout.Lease] for what to do when the lease is revoked. Then either
//
//	id, err := co.In(ctx, overlay, checkout.InConfig{Staging: dir})
//
// publishes the overlay as the image's next version, or [Checkout.Abandon] gives
// the lease back, and the overlay may be deleted.
package checkout

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/vmkit-go/vmkit/internal/durable"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
	"github.com/vmkit-go/vmkit/stream/lease"
)

// Headers of uploads.
const (
	headerToken  = "Lease-Token"
	headerSecret = "Lease-Secret"
	headerLease  = "Lease-Name"
	headerOffset = "Upload-Offset"
	headerSize   = "Upload-Length"
)

// DepotConfig says how a [Depot] works.
type DepotConfig struct {
	// Dir holds the published images.
	Dir string
	// Leases grants the leases. The lease of an image has the name of its
	// manifest.
	Leases *lease.Server
	// Image says which signatures a new version must have.
	Image image.Config
	// MaxFile bounds an uploaded file in bytes; 0 means 1 GiB.
	MaxFile int64
}

// Depot is the server of images that can be checked out, an http.Handler:
//
//	GET  /NAME            a published file, also in ranges
//	     /lease/NAME      the lease of an image; see lease.Server
//	HEAD /upload/NAME     how much of a file there is
//	PUT  /upload/NAME     more of it
//	PUT  /publish/NAME    a manifest, whose files must be there
//
// Uploads need a lease. What a file is called, its content must bear out.
type Depot struct {
	cfg   DepotConfig
	files http.Handler

	mu   sync.Mutex
	busy map[string]bool // uploads that are being written
}

// NewDepot checks the configuration.
func NewDepot(cfg DepotConfig) (*Depot, error) {
	if cfg.Dir == "" || cfg.Leases == nil {
		return nil, errors.New("checkout: a depot needs a directory and leases")
	}
	if cfg.MaxFile <= 0 {
		cfg.MaxFile = 1 << 30
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, partDir), 0o755); err != nil {
		return nil, err
	}
	return &Depot{cfg: cfg, files: http.FileServer(http.Dir(cfg.Dir)), busy: map[string]bool{}}, nil
}

// partDir holds files that have not come whole.
const partDir = ".partial"

// ServeHTTP implements http.Handler.
func (d *Depot) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	dir, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	var err error
	switch {
	case dir == "lease" && name != "":
		r2 := r.Clone(r.Context())
		r2.URL.Path = "/" + name
		d.cfg.Leases.ServeHTTP(w, r2)
		return
	case dir == "upload" && r.Method == http.MethodHead:
		err = d.have(w, name)
	case dir == "upload" && r.Method == http.MethodPut:
		err = d.upload(w, r, name)
	case dir == "publish" && r.Method == http.MethodPut:
		err = d.publish(r, name)
	case (r.Method == http.MethodGet || r.Method == http.MethodHead) && dir != partDir && dir != "" && name == "":
		d.files.ServeHTTP(w, r)
		return
	default:
		http.NotFound(w, r)
		return
	}
	if err == nil {
		return
	}
	code := http.StatusBadRequest
	var path *fs.PathError
	switch {
	case errors.Is(err, lease.ErrLost):
		code = http.StatusForbidden
	case errors.Is(err, errBusy), errors.Is(err, errStale):
		code = http.StatusConflict
	case errors.As(err, &path):
		code = http.StatusInternalServerError
	}
	http.Error(w, err.Error(), code)
}

var (
	errBusy  = errors.New("the file is being uploaded")
	errStale = errors.New("the image has another version by now")
)

// hashOf returns the hash that a file's name promises.
func hashOf(name string) (image.Hash, error) {
	hash, ext, _ := strings.Cut(name, ".")
	for _, r := range ext {
		if r < 'a' || r > 'z' {
			ext = ""
		}
	}
	h, err := image.ParseHash(hash)
	if err != nil || ext == "" || len(ext) > 20 {
		return h, fmt.Errorf("%.100q is not a name of an image's file", name)
	}
	return h, nil
}

// allowed checks that the request comes from who holds the lease.
func (d *Depot) allowed(r *http.Request) (name string, token uint64, secret string, err error) {
	name, secret = r.Header.Get(headerLease), r.Header.Get(headerSecret)
	token, err = strconv.ParseUint(r.Header.Get(headerToken), 10, 64)
	if err == nil {
		err = d.cfg.Leases.Check(name, token, secret)
	} else {
		err = fmt.Errorf("%w: no token", lease.ErrLost)
	}
	return name, token, secret, err
}

func (d *Depot) path(name string) string { return filepath.Join(d.cfg.Dir, name) }
func (d *Depot) part(name string) string { return filepath.Join(d.cfg.Dir, partDir, name) }

// size is how much of a file there is, and whether that is all.
func (d *Depot) size(name string) (n int64, whole bool, err error) {
	st, err := os.Stat(d.path(name))
	if err == nil {
		return st.Size(), true, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		st, err = os.Stat(d.part(name))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	return st.Size(), false, nil
}

func (d *Depot) have(w http.ResponseWriter, name string) error {
	if _, err := hashOf(name); err != nil {
		return err
	}
	n, whole, err := d.size(name)
	if err != nil {
		return err
	}
	w.Header().Set(headerOffset, strconv.FormatInt(n, 10))
	if whole {
		w.Header().Set(headerSize, strconv.FormatInt(n, 10))
	}
	return nil
}

// upload appends to a file. The last part of it makes it visible, if it is what
// its name says.
func (d *Depot) upload(w http.ResponseWriter, r *http.Request, name string) error {
	hash, err := hashOf(name)
	if err != nil {
		return err
	}
	if _, _, _, err := d.allowed(r); err != nil {
		return err
	}
	off, err1 := strconv.ParseInt(r.Header.Get(headerOffset), 10, 64)
	size, err2 := strconv.ParseInt(r.Header.Get(headerSize), 10, 64)
	if err1 != nil || err2 != nil || off < 0 || size <= 0 || size > d.cfg.MaxFile || off > size {
		return fmt.Errorf("upload of %s: want an offset and a length of at most %d", name, d.cfg.MaxFile)
	}
	d.mu.Lock()
	if d.busy[name] {
		d.mu.Unlock()
		return fmt.Errorf("%s: %w", name, errBusy)
	}
	d.busy[name] = true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.busy, name)
		d.mu.Unlock()
	}()
	n, whole, err := d.size(name)
	if err != nil || whole {
		return err
	}
	if n != off {
		return fmt.Errorf("%s: %w: there are %d bytes, not %d", name, errStale, n, off)
	}
	f, err := os.OpenFile(d.part(name), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := io.Copy(io.NewOffsetWriter(f, off), io.LimitReader(r.Body, size-off+1))
	if off+got > size {
		os.Remove(d.part(name))
		return fmt.Errorf("%s: longer than %d bytes", name, size)
	}
	if err != nil || off+got < size {
		return err // what has come is kept
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, size)); err != nil {
		return err
	}
	if image.Hash(h.Sum(nil)) != hash {
		os.Remove(d.part(name))
		return fmt.Errorf("%s: its content has the hash %s", name, hex.EncodeToString(h.Sum(nil)))
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(d.part(name), d.path(name)); err != nil {
		return err
	}
	return durable.SyncDir(d.cfg.Dir)
}

// publish makes a manifest visible whose files are all there, and that follows
// the one that is.
func (d *Depot) publish(r *http.Request, name string) error {
	leased, token, secret, err := d.allowed(r)
	if err != nil {
		return err
	}
	if leased != name || filepath.Base(name) != name || name == "." || name == ".." || !strings.HasSuffix(name, ".json") {
		return fmt.Errorf("%w: %.100q is the lease of another image", lease.ErrLost, leased)
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, image.MaxManifest+1))
	if err != nil {
		return err
	}
	next, err := image.Open(r.Context(), given{fetch.Dir(d.cfg.Dir), data}, name, d.cfg.Image)
	if err != nil {
		return err
	}
	if err := d.complete(r.Context(), next); err != nil {
		return err
	}
	return d.cfg.Leases.While(name, token, secret, func() error {
		now, err := image.Open(r.Context(), fetch.Dir(d.cfg.Dir), name, d.cfg.Image)
		if err != nil {
			return err
		}
		if now.ID() == next.ID() {
			return nil // sent twice
		}
		if next.Manifest().Parent != now.ID().String() {
			return fmt.Errorf("%w: %v", errStale, now.ID())
		}
		return durable.WriteFile(d.path(name), 0o644, data)
	})
}

// given is a source with a manifest of its own.
type given struct {
	image.Source
	manifest []byte
}

func (g given) Load(_ context.Context, _ string, limit int64, check func([]byte) error) ([]byte, error) {
	if int64(len(g.manifest)) > limit {
		return nil, fetch.ErrTooLarge
	}
	return g.manifest, check(g.manifest)
}

// complete checks that the files of an image are there, and its whole index.
func (d *Depot) complete(ctx context.Context, img *image.Image) error {
	m := img.Manifest()
	files := append([]image.File{m.Index.File}, m.Packs...)
	if m.BootProfile != nil {
		files = append(files, m.BootProfile.File)
	}
	for _, f := range files {
		st, err := os.Stat(d.path(f.Name))
		if errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() != f.Size {
			return fmt.Errorf("file %s is missing", f.Name)
		}
		if err != nil {
			return err
		}
	}
	return img.Scan(ctx, func(image.Chunk) error { return nil })
}
