package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/qcow2"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
	"github.com/vmkit-go/vmkit/stream/profile"
)

var packCommand = command{
	name: "pack", args: "IMAGE DIR",
	about: "publish the disk IMAGE in the directory DIR",
	help: `
Any web server that answers range requests can serve DIR. With -previous, only
what the earlier version does not have is stored; both may be fetched from DIR.
With -profile (from stream record), what a boot needs comes first and together.
`,
	define: func(f *flag.FlagSet) func(context.Context, []string) error {
		name := f.String("name", "manifest.json", "`file` name of the manifest in DIR")
		var in input
		in.define(f)
		prof := f.String("profile", "", "profile `file` of what a boot reads; it is published too")
		previous := f.String("previous", "", "`manifest` in DIR of the earlier version that this one builds on")
		sign := f.String("sign", "", "sign the manifest with the private key in this `file` (from stream keygen)")
		label := f.String("label", "", "`text` to note in the manifest, such as a version")
		best := f.Bool("best", false, "compress harder: some 15 % smaller, and several times slower")
		quiet := f.Bool("q", false, "no progress")
		return func(ctx context.Context, args []string) error {
			if len(args) != 2 {
				return usage("want an image and a directory")
			}
			cfg := image.PackConfig{Dir: args[1], Name: *name, Label: *label}
			if *best {
				cfg.Level = zstd.SpeedBestCompression
			}
			if *sign != "" {
				seed, err := readKey(*sign, "private", ed25519.SeedSize)
				if err != nil {
					return err
				}
				cfg.Key = ed25519.NewKeyFromSeed(seed)
			}
			if *previous != "" {
				var err error
				// Whoever packs owns DIR, so its content needs no signature.
				cfg.Previous, err = image.Open(ctx, fetch.Dir(args[1]), filepath.Base(*previous), image.Config{AllowUnsigned: true})
				if err != nil {
					return err
				}
			}
			if *prof != "" {
				if err := bootOrder(&cfg, *prof); err != nil {
					return err
				}
			}
			src, err := in.open(args[0])
			if err != nil {
				return err
			}
			defer src.Close()
			start := time.Now()
			if !*quiet {
				cfg.Progress = packProgress(start)
			}
			sum, err := image.Pack(ctx, src, cfg)
			if !*quiet {
				fmt.Fprint(os.Stderr, "\r\x1b[K")
			}
			if err != nil {
				return err
			}
			fmt.Printf("%s: %s of content in %d chunks, %s compressed\n",
				sum.Manifest, size(sum.Data), sum.Chunks, size(sum.Compressed))
			fmt.Printf("new: %s in %d chunks (%s) and %d packs; index %s (%s); took %.1f s\n",
				size(sum.NewBytes), sum.New, share(sum.NewBytes, sum.Compressed), sum.NewPacks,
				size(sum.Index), share(sum.Index, sum.Compressed), time.Since(start).Seconds())
			return nil
		}
	},
}

// input are the flags that say what kind of file a disk is in.
type input struct {
	format string
	chain  []qcow2.Layer
}

func (in *input) define(f *flag.FlagSet) {
	f.StringVar(&in.format, "f", "raw", "`format` of IMAGE: raw or qcow2; it is never guessed")
	f.Func("backing", "`FORMAT:FILE` below a qcow2 image; repeat it for a chain, the uppermost first", func(s string) error {
		format, path, ok := strings.Cut(s, ":")
		if !ok || path == "" || format != qcow2.FormatRaw && format != qcow2.FormatQcow2 {
			return fmt.Errorf("want raw:FILE or qcow2:FILE, not %q", s)
		}
		in.chain = append(in.chain, qcow2.Layer{Path: path, Format: format})
		return nil
	})
}

func (in *input) open(path string) (disk.Backend, error) {
	switch {
	case in.format == "qcow2":
		return qcow2.OpenFile(path, qcow2.FileConfig{File: disk.FileConfig{ReadOnly: true}, Chain: in.chain})
	case in.format != "raw":
		return nil, usage("format %q: there are raw and qcow2", in.format)
	case in.chain != nil:
		return nil, usage("-backing goes with -f qcow2")
	}
	return disk.Open(path, disk.FileConfig{ReadOnly: true})
}

// bootOrder takes the order of a boot from a profile.
func bootOrder(cfg *image.PackConfig, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	p, err := profile.Read(bytes.NewReader(data), path)
	if err != nil {
		return err
	}
	for _, e := range p.Entries {
		cfg.BootOrder = append(cfg.BootOrder, e.Hash)
	}
	cfg.BootProfile = data
	return nil
}

// packProgress draws a line now and then.
func packProgress(start time.Time) func(image.Progress) {
	var last time.Time
	return func(p image.Progress) {
		if now := time.Now(); now.Sub(last) >= 200*time.Millisecond {
			last = now
			rate := float64(p.Done) / max(now.Sub(start).Seconds(), 1e-3)
			fmt.Fprintf(os.Stderr, "\r\x1b[K%s of %s, %s new, %s/s", share(p.Done, p.Size), size(p.Size), size(p.Written), size(int64(rate)))
		}
	}
}

// size writes a number of bytes for people.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v := float64(n)
	for len(units) > 1 && v >= 1024 {
		v, units = v/1024, units[1:]
	}
	if units[0] == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[0])
}

// share writes a part as a percentage.
func share(part, of int64) string {
	if of == 0 {
		return "0 %"
	}
	return fmt.Sprintf("%.3g %%", 100*float64(part)/float64(of))
}
