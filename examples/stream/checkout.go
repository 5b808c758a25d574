package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/qcow2"
	"github.com/vmkit-go/vmkit/stream"
	"github.com/vmkit-go/vmkit/stream/cache"
	"github.com/vmkit-go/vmkit/stream/checkout"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/lease"
)

// newDepot serves a directory whose images can be checked out.
func newDepot(dir, leases string, t trust) (http.Handler, error) {
	l, err := lease.NewServer(lease.ServerConfig{File: leases})
	if err != nil {
		return nil, err
	}
	return checkout.NewDepot(checkout.DepotConfig{Dir: dir, Leases: l, Image: t.config()})
}

// away are the flags of the commands about an image that is checked out.
type away struct {
	cache string
	trust trust
}

func (a *away) define(f *flag.FlagSet) {
	f.StringVar(&a.cache, "cache", "", "`directory` of the cache that has the image (default: that of vmm run)")
	a.trust.define(f)
}

// open opens the cache, for the image whose manifest is at a depot's URL.
func (a *away) open(args []string) (cfg checkout.Config, err error) {
	if len(args) != 1 {
		return cfg, usage("want the URL of one manifest")
	}
	base, name, remote, err := fetch.Split(args[0])
	if err != nil || !remote {
		return cfg, usage("%q is not the URL of a manifest", args[0])
	}
	dir := a.cache
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return cfg, err
		}
		dir = filepath.Join(user, "vmkit", "stream")
	}
	c, err := cache.Open(dir, cache.Config{})
	return checkout.Config{URL: base, Manifest: name, Cache: c}, err
}

var checkoutCommand = command{
	name: "checkout", args: "URL",
	about: "fetch all of an image and lock it on its server",
	help: `
URL is that of a manifest on a depot (stream serve -leases). From then on no
network is needed to run a guest on the image, and nobody else can publish a
newer version, until checkin, rollback or the end of the lease.
`,
	define: func(f *flag.FlagSet) func(context.Context, []string) error {
		var a away
		a.define(f)
		holder := f.String("holder", "", "`name` that others are shown (default: the host's)")
		ttl := f.Duration("ttl", 7*24*time.Hour, "how long the lease lasts without contact to the server")
		return func(ctx context.Context, args []string) (err error) {
			cfg, err := a.open(args)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, cfg.Cache.Close()) }()
			if cfg.Holder, cfg.TTL = *holder, *ttl; cfg.Holder == "" {
				if cfg.Holder, err = os.Hostname(); err != nil {
					return err
				}
			}
			if _, err := checkout.Resume(cfg); !errors.Is(err, checkout.ErrNone) {
				return errors.Join(errors.New("the image is checked out already"), err)
			}
			d, err := stream.Open(ctx, args[0], stream.Config{Cache: cfg.Cache, Image: a.trust.config(), NoPrefetch: true})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, d.Close()) }()
			co, err := checkout.Out(ctx, d, cfg)
			if err != nil {
				return err
			}
			fmt.Printf("checked out version %v; the lease ends %s unless it is renewed\n", co.ID(), co.Lease().Expires().Format(time.DateTime))
			return nil
		}
	},
}

var checkinCommand = command{
	name: "checkin", args: "URL",
	about: "publish what a guest wrote to an image that is checked out",
	help: `
The overlay (vmm run -disk URL,overlay=FILE) is cut into chunks; those that the
depot does not have are sent. It is deleted when the new version is published,
because it goes with the old one. After a failure the command can be repeated,
and goes on where it was.
`,
	define: func(f *flag.FlagSet) func(context.Context, []string) error {
		var a away
		a.define(f)
		overlay := f.String("overlay", "", "qcow2 `file` that holds what the guest wrote")
		sign := f.String("sign", "", "sign the manifest with the private key in this `file` (from stream keygen)")
		label := f.String("label", "", "`text` to note in the manifest, such as a version")
		return func(ctx context.Context, args []string) (err error) {
			if *overlay == "" {
				return usage("want -overlay")
			}
			in := checkout.InConfig{Staging: *overlay + ".staging", Label: *label}
			if *sign != "" {
				seed, err := readKey(*sign, "private", ed25519.SeedSize)
				if err != nil {
					return err
				}
				in.Key = ed25519.NewKeyFromSeed(seed)
			}
			cfg, err := a.open(args)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, cfg.Cache.Close()) }()
			co, err := checkout.Resume(cfg)
			if err != nil {
				return err
			}
			id, err := a.publish(ctx, args[0], co, cfg.Cache, *overlay, in)
			if err != nil {
				return err
			}
			fmt.Printf("published version %v\n", id)
			return removeOverlay(*overlay)
		}
	},
}

// publish checks an overlay in.
func (a *away) publish(ctx context.Context, location string, co *checkout.Checkout, c *cache.Cache, overlay string, in checkout.InConfig) (id fmt.Stringer, err error) {
	d, err := stream.Open(ctx, location, stream.Config{Cache: c, Image: a.trust.config(), ID: co.ID(), Offline: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	file, err := disk.Open(overlay, disk.FileConfig{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	img, err := qcow2.Open(file, qcow2.Config{Backing: d, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	in.Base = d.Image()
	return co.In(ctx, img, in)
}

var rollbackCommand = command{
	name: "rollback", args: "URL",
	about: "give an image back as it was, and drop what a guest wrote to it",
	define: func(f *flag.FlagSet) func(context.Context, []string) error {
		var a away
		a.define(f)
		overlay := f.String("overlay", "", "qcow2 `file` that holds what the guest wrote; it is deleted")
		return func(ctx context.Context, args []string) (err error) {
			cfg, err := a.open(args)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, cfg.Cache.Close()) }()
			co, err := checkout.Resume(cfg)
			if err != nil {
				return err
			}
			if err := co.Abandon(ctx); err != nil {
				return err
			}
			fmt.Printf("gave back version %v\n", co.ID())
			if *overlay == "" {
				return nil
			}
			return errors.Join(removeOverlay(*overlay), os.RemoveAll(*overlay+".staging"))
		}
	},
}

// removeOverlay deletes an overlay, and the note of vmm run of what it goes with.
func removeOverlay(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	if err := os.Remove(path + ".base"); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
