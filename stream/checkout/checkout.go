package checkout

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/stream"
	"github.com/vmkit-go/vmkit/stream/cache"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
	"github.com/vmkit-go/vmkit/stream/lease"
)

// Config says what to check out, and from where.
type Config struct {
	// URL is the depot's.
	URL string
	// Manifest is the image's; empty means manifest.json.
	Manifest string
	// Cache takes the image, and the record of the checkout.
	Cache *cache.Cache
	// Holder is shown to others who want the image.
	Holder string
	// TTL is how long the lease lasts without contact; 0 means a week.
	TTL time.Duration
	// HTTP is used for requests; nil means http.DefaultClient.
	HTTP *http.Client
}

func (c *Config) complete() error {
	if c.Manifest == "" {
		c.Manifest = "manifest.json"
	}
	if c.TTL <= 0 {
		c.TTL = 7 * 24 * time.Hour
	}
	if c.Cache == nil {
		return errors.New("checkout: no cache")
	}
	if c.HTTP == nil {
		c.HTTP = http.DefaultClient
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("checkout: %q is not the URL of a depot", c.URL)
	}
	return nil
}

func (c *Config) leases() lease.Client {
	return lease.Client{URL: c.url("lease"), HTTP: c.HTTP}
}

func (c *Config) url(path ...string) string {
	u, _ := url.Parse(c.URL) // complete has parsed it
	return u.JoinPath(path...).String()
}

// Location is the URL of the image's manifest, for stream.Open.
func (c Config) Location() string {
	if c.complete() != nil {
		return ""
	}
	return c.url(c.Manifest)
}

// Checkout is an image that was checked out. It is used by one goroutine at a
// time; the lease by any.
type Checkout struct {
	cfg   Config
	rec   record
	lease *lease.Lease
}

// record is what the cache keeps of a checkout.
type record struct {
	Image image.Hash  `json:"image"`
	Lease lease.State `json:"lease"`
}

// ErrNone is wrapped by the error of Resume if the image is not checked out.
var ErrNone = errors.New("image is not checked out")

// recordFile is where the cache keeps the record.
func (c *Config) recordFile() string {
	return fmt.Sprintf("checkout-%x.json", sha256.Sum256([]byte(c.url(c.Manifest))))
}

// Out takes the lease of the image that d streams and completes it in the cache.
// If it fails, the lease is given back. The image must be the version that the
// depot has.
func Out(ctx context.Context, d *stream.Disk, cfg Config) (_ *Checkout, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	l, err := cfg.leases().Acquire(ctx, cfg.Manifest, cfg.Holder, cfg.TTL)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Release(context.WithoutCancel(ctx)))
		}
	}()
	// With the lease held, the version cannot change any more.
	now, err := image.Open(ctx, source{cfg}, cfg.Manifest, image.Config{AllowUnsigned: true})
	if err != nil {
		return nil, err
	}
	if now.ID() != d.ID() {
		return nil, fmt.Errorf("checkout: %w: the depot has %v, and not %v", stream.ErrVersion, now.ID(), d.ID())
	}
	if err := d.Complete(ctx); err != nil {
		return nil, err
	}
	co := &Checkout{cfg: cfg, lease: l, rec: record{Image: d.ID()}}
	return co, co.save()
}

// save keeps the record. It is called again when the lease was renewed.
func (co *Checkout) save() error {
	co.rec.Lease = co.lease.State()
	data, err := json.Marshal(co.rec)
	if err != nil {
		return err
	}
	return co.cfg.Cache.SetFile(co.cfg.recordFile(), data)
}

// Resume goes on with an image that was checked out earlier, by the record in the
// cache. It needs no network. The error wraps ErrNone if there is no record.
func Resume(cfg Config) (*Checkout, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	data, err := cfg.Cache.File(cfg.recordFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("checkout: %s: %w", cfg.url(cfg.Manifest), ErrNone)
	}
	if err != nil {
		return nil, err
	}
	co := &Checkout{cfg: cfg}
	if err := json.Unmarshal(data, &co.rec); err != nil {
		return nil, fmt.Errorf("checkout: record in %s: %w", cfg.Cache.Dir(), err)
	}
	co.lease = cfg.leases().Resume(co.rec.Lease)
	return co, nil
}

// ID is the version that was checked out, for stream.Config.ID.
func (co *Checkout) ID() image.Hash { return co.rec.Image }

// Lease is the lease. While there is a network, [lease.Lease.Keep] renews it,
// and says when it is revoked: then warn the guest, and stop it at the end.
func (co *Checkout) Lease() *lease.Lease { return co.lease }

// Save keeps the lease's latest end, after it was renewed, for Resume.
func (co *Checkout) Save() error { return co.save() }

// Abandon gives the lease back and forgets the checkout. What the guest wrote is
// in the overlay alone, which may be deleted: the image is as it was.
func (co *Checkout) Abandon(ctx context.Context) error {
	if err := co.lease.Release(ctx); err != nil && !errors.Is(err, lease.ErrLost) {
		return err
	}
	return co.cfg.Cache.RemoveFile(co.cfg.recordFile())
}

// InConfig says how to check in.
type InConfig struct {
	// Base is the image that was checked out.
	Base *image.Image
	// Staging is a directory for what is to be sent. Kept after a failure, it
	// lets the next attempt go on.
	Staging string
	// Label and Key are as in image.PackConfig.
	Label string
	Key   ed25519.PrivateKey
	// Progress, if not nil, is called with the bytes that were sent, and those
	// that there are to send.
	Progress func(sent, total int64)
}

// In publishes the content of a disk, an overlay over the image that was checked
// out, as the image's next version, and gives the lease back. Only chunks that
// the image does not have are sent; files that the depot has are not sent again,
// and one that was cut off goes on where it ended, so that In may be repeated
// after a failure. The disk must not change meanwhile.
func (co *Checkout) In(ctx context.Context, overlay disk.Backend, in InConfig) (id image.Hash, err error) {
	if in.Base == nil || in.Base.ID() != co.rec.Image {
		return id, fmt.Errorf("checkout: %w: the base must be %v", stream.ErrVersion, co.rec.Image)
	}
	if _, err := co.lease.Renew(ctx); err != nil {
		return id, err
	}
	sum, err := image.Pack(ctx, overlay, image.PackConfig{
		Dir: in.Staging, Name: co.cfg.Manifest, Previous: in.Base, Label: in.Label, Key: in.Key,
	})
	if err != nil {
		return id, err
	}
	manifest, err := os.ReadFile(sum.Manifest)
	if err != nil {
		return id, err
	}
	next, err := image.Open(ctx, given{fetch.Dir(in.Staging), manifest}, co.cfg.Manifest, image.Config{AllowUnsigned: true})
	if err != nil {
		return id, err
	}
	if err := co.send(ctx, in, next); err != nil {
		return id, err
	}
	if err := co.put(ctx, co.cfg.url("publish", co.cfg.Manifest), manifest, nil); err != nil {
		return id, fmt.Errorf("checkout: publish: %w", err)
	}
	if err := co.Abandon(ctx); err != nil {
		return next.ID(), err
	}
	return next.ID(), os.RemoveAll(in.Staging)
}

// send uploads the files of a version that are not those of the one before.
func (co *Checkout) send(ctx context.Context, in InConfig, next *image.Image) error {
	m := next.Manifest()
	var files []image.File
	var total, sent int64
	for _, f := range append([]image.File{m.Index.File}, m.Packs...) {
		if !slices.Contains(in.Base.Manifest().Packs, f) {
			files = append(files, f)
			total += f.Size
		}
	}
	for _, f := range files {
		if err := co.upload(ctx, in.Staging, f, func(n int64) {
			if in.Progress != nil {
				in.Progress(sent+n, total)
			}
		}); err != nil {
			return fmt.Errorf("checkout: upload %s: %w", f.Name, err)
		}
		sent += f.Size
	}
	return nil
}

// uploadPart is what one request carries.
const uploadPart = 4 << 20

func (co *Checkout) upload(ctx context.Context, dir string, f image.File, progress func(int64)) error {
	target := co.cfg.url("upload", f.Name)
	off, whole, err := co.have(ctx, target)
	if err != nil {
		return err
	}
	file, err := os.Open(filepath.Join(dir, f.Name))
	if err != nil {
		return err
	}
	defer file.Close()
	for !whole {
		if off >= f.Size {
			return fmt.Errorf("the depot has %d bytes of %d", off, f.Size)
		}
		part := make([]byte, min(uploadPart, f.Size-off))
		if _, err := file.ReadAt(part, off); err != nil {
			return err
		}
		if err := co.put(ctx, target, part, map[string]string{
			headerOffset: strconv.FormatInt(off, 10), headerSize: strconv.FormatInt(f.Size, 10),
		}); err != nil {
			return err
		}
		off += int64(len(part))
		whole = off == f.Size
		progress(off)
	}
	return nil
}

// have asks how much of a file the depot has.
func (co *Checkout) have(ctx context.Context, target string) (off int64, whole bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, target, nil)
	if err != nil {
		return 0, false, err
	}
	resp, err := co.cfg.HTTP.Do(req)
	if err != nil {
		return 0, false, err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, false, fmt.Errorf("status %d", resp.StatusCode)
	}
	if off, err = strconv.ParseInt(resp.Header.Get(headerOffset), 10, 64); err != nil || off < 0 {
		return 0, false, fmt.Errorf("not the answer of a depot: offset %.20q", resp.Header.Get(headerOffset))
	}
	return off, resp.Header.Get(headerSize) != "", nil
}

func (co *Checkout) put(ctx context.Context, target string, body []byte, header map[string]string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, target, bytes.NewReader(body))
	if err != nil {
		return err
	}
	s := co.lease.State()
	req.Header.Set(headerLease, s.Name)
	req.Header.Set(headerToken, strconv.FormatUint(s.Token, 10))
	req.Header.Set(headerSecret, s.Secret)
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := co.cfg.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusForbidden:
		return fmt.Errorf("%w: %s", lease.ErrLost, text)
	case http.StatusConflict:
		return fmt.Errorf("%w: %s", stream.ErrVersion, text)
	}
	return fmt.Errorf("status %d: %s", resp.StatusCode, text)
}
