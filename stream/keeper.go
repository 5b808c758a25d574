package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/vmkit-go/vmkit/stream/cache"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
	"github.com/vmkit-go/vmkit/stream/profile"
)

// keeper is the source of an image's small files: it keeps them in the cache,
// and the index in memory, so that they are fetched once. Nothing that it keeps
// is trusted: the image checks all it reads.
type keeper struct {
	src     image.Source
	cache   *cache.Cache
	offline bool

	mu       sync.Mutex
	manifest []byte            // what Load gave last
	whole    map[string][]byte // files held in memory
}

var errOffline = errors.New("not in the cache, and the network is not to be used")

// open opens the image.
func (k *keeper) open(ctx context.Context, location, name string, cfg Config) (*image.Image, error) {
	latest := fmt.Sprintf("latest-%x.json", sha256.Sum256([]byte(location)))
	if cfg.ID != (image.Hash{}) {
		if img, err := k.kept(ctx, manifestFile(cfg.ID), name, cfg); err == nil && img.ID() == cfg.ID {
			return img, k.load(ctx, img)
		}
	}
	var img *image.Image
	var err error
	if k.offline {
		img, err = k.kept(ctx, latest, name, cfg)
	} else if img, err = image.Open(ctx, k, name, cfg.Image); err == nil {
		k.keep(latest, k.manifest)
		k.keep(manifestFile(img.ID()), k.manifest)
	} else if old, kerr := k.kept(ctx, latest, name, cfg); kerr == nil && fetch.Temporary(err) {
		img, err = old, nil
	}
	if err != nil {
		return nil, err
	}
	if cfg.ID != (image.Hash{}) && cfg.ID != img.ID() {
		return nil, fmt.Errorf("%w: want %v, found %v", ErrVersion, cfg.ID, img.ID())
	}
	return img, k.load(ctx, img)
}

func manifestFile(id image.Hash) string { return "manifest-" + id.String() + ".json" }

// kept opens the image by a manifest from the cache.
func (k *keeper) kept(ctx context.Context, file, name string, cfg Config) (*image.Image, error) {
	if k.cache == nil {
		return nil, errOffline
	}
	data, err := k.cache.File(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errOffline, err)
	}
	return image.Open(ctx, &keptSource{k, data}, name, cfg.Image)
}

// keptSource is a keeper with a manifest from the cache.
type keptSource struct {
	*keeper
	data []byte
}

func (s *keptSource) Load(ctx context.Context, name string, limit int64, check func([]byte) error) ([]byte, error) {
	if int64(len(s.data)) > limit {
		return nil, fetch.ErrTooLarge
	}
	return s.data, check(s.data)
}

// keep puts a file into the cache. What cannot be kept is fetched again.
func (k *keeper) keep(name string, data []byte) {
	if k.cache == nil {
		return
	}
	if old, err := k.cache.File(name); err == nil && bytes.Equal(old, data) {
		return
	}
	_ = k.cache.SetFile(name, data) // what cannot be kept is fetched again
}

// Load implements image.Source. It reads the manifest.
func (k *keeper) Load(ctx context.Context, name string, limit int64, check func([]byte) error) ([]byte, error) {
	if k.offline {
		return nil, errOffline
	}
	data, err := k.src.Load(ctx, name, limit, check)
	if err == nil {
		k.mu.Lock()
		k.manifest = data
		k.mu.Unlock()
	}
	return data, err
}

// load gets the whole index, unless it is too large to hold.
func (k *keeper) load(ctx context.Context, img *image.Image) error {
	x := img.Manifest().Index
	if x.Size > maxIndex || k.local(x.Name) != nil {
		return nil
	}
	if k.offline {
		return fmt.Errorf("index %s: %w", x.Name, errOffline)
	}
	data, err := k.src.Load(ctx, x.Name, x.Size, func(p []byte) error {
		if int64(len(p)) != x.Size {
			return fmt.Errorf("index %s: %d bytes, not %d", x.Name, len(p), x.Size)
		}
		return nil
	})
	if err != nil {
		return err
	}
	k.hold(x.Name, data)
	k.keep(x.Name, data)
	return nil
}

// local returns a file that is in memory, or now comes there from the cache.
func (k *keeper) local(name string) []byte {
	k.mu.Lock()
	data := k.whole[name]
	k.mu.Unlock()
	if data != nil || k.cache == nil {
		return data
	}
	data, err := k.cache.File(name)
	if err != nil {
		return nil
	}
	k.hold(name, data)
	return data
}

func (k *keeper) hold(name string, data []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.whole == nil {
		k.whole = map[string][]byte{}
	}
	k.whole[name] = data
}

// drop forgets a file that turned out to be damaged.
func (k *keeper) drop(name string) {
	k.mu.Lock()
	delete(k.whole, name)
	k.mu.Unlock()
	if k.cache != nil {
		_ = k.cache.RemoveFile(name) // it is found damaged again, at worst
	}
}

// Fetch implements image.Source. It reads the index and the profile.
func (k *keeper) Fetch(ctx context.Context, name string, off int64, p []byte, check func([]byte) error) error {
	if data := k.local(name); data != nil {
		if off >= 0 && off <= int64(len(data)) && copy(p, data[off:]) == len(p) && (check == nil || check(p) == nil) {
			return nil
		}
		k.drop(name)
	}
	if k.offline {
		return fmt.Errorf("%s: %w", name, errOffline)
	}
	return k.src.Fetch(ctx, name, off, p, check)
}

// profile returns the profile that came with the image. One that cannot be had
// is no reason not to start.
func (k *keeper) profile(ctx context.Context, img *image.Image, note func(Event)) *profile.Profile {
	ref := img.Manifest().BootProfile
	if ref == nil {
		return nil
	}
	data, err := img.BootProfile(ctx)
	if err == nil {
		k.keep(ref.Name, data)
		var p *profile.Profile
		if p, err = profile.Read(bytes.NewReader(data), ref.Name); err == nil {
			return p
		}
	}
	note(Event{Kind: ProfileUnusable, Err: err})
	return nil
}
