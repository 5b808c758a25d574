package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vmkit-go/vmkit/stream/image"
)

var inspectCommand = command{
	name: "inspect", args: "MANIFEST",
	about: "show what a published image holds",
	help: `
MANIFEST is a URL, a path, or a directory with manifest.json in it. The manifest
and the index are fetched and verified, packs only with -verify.
`,
	define: func(f *flag.FlagSet) func(context.Context, []string) error {
		var t trust
		t.define(f)
		verify := f.Bool("verify", false, "fetch and verify every chunk")
		asJSON := f.Bool("json", false, "print the figures as JSON")
		width := f.Int("width", 64, "`columns` of the map of the disk; 0 leaves it out")
		return func(ctx context.Context, args []string) error {
			if len(args) != 1 {
				return usage("want one manifest")
			}
			if *width < 0 || *width > 1000 {
				return usage("a map of %d columns", *width)
			}
			img, err := openImage(ctx, args[0], t)
			if err != nil {
				return err
			}
			r, err := inspect(ctx, img)
			if err != nil {
				return err
			}
			if *verify {
				if err := verifyAll(ctx, img); err != nil {
					return err
				}
				r.Verified = true
			}
			if *asJSON {
				enc := json.NewEncoder(os.Stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(r)
			}
			r.print(os.Stdout)
			if *width > 0 {
				printMap(os.Stdout, r.chunks, img.Size(), *width)
			}
			return nil
		}
	},
}

// report is what inspect found; lengths are in bytes.
type report struct {
	ID      string    `json:"id"`
	Label   string    `json:"label"`
	Created time.Time `json:"created"`
	Parent  string    `json:"parent,omitempty"`
	Signer  string    `json:"signer,omitempty"`

	Size       int64 `json:"size"`
	Data       int64 `json:"data"`
	Chunks     int   `json:"chunks"`
	Unique     int   `json:"unique"`
	UniqueData int64 `json:"uniqueData"`
	Compressed int64 `json:"compressed"`
	Index      int64 `json:"index"`
	// PackBytes are all bytes of the packs, also those of other versions.
	Packs     int   `json:"packs"`
	PackBytes int64 `json:"packBytes"`
	Profile   bool  `json:"bootProfile"`
	Verified  bool  `json:"verified"`

	chunks []mapped
}

// mapped is what the map needs of a chunk.
type mapped struct {
	off, end int64
	again    bool // the content was there before
}

func inspect(ctx context.Context, img *image.Image) (*report, error) {
	m := img.Manifest()
	r := &report{ID: img.ID().String(), Label: m.Label, Created: m.Created, Parent: m.Parent,
		Size: m.Size, Data: m.Index.Data, Chunks: m.Index.Chunks, Index: m.Index.Size,
		Packs: len(m.Packs), Profile: m.BootProfile != nil}
	if key := img.Signer(); key != nil {
		r.Signer = fmt.Sprintf("%x", []byte(key))
	}
	for _, p := range m.Packs {
		r.PackBytes += p.Size
	}
	seen := make(map[image.Hash]bool, img.Chunks())
	err := img.Scan(ctx, func(c image.Chunk) error {
		r.chunks = append(r.chunks, mapped{c.Off, c.End(), seen[c.Hash]})
		if !seen[c.Hash] {
			seen[c.Hash] = true
			r.Unique++
			r.UniqueData += int64(c.Len)
			r.Compressed += int64(c.PackLen)
		}
		return nil
	})
	return r, err
}

// verifyAll reads every chunk.
func verifyAll(ctx context.Context, img *image.Image) error {
	dst, scratch := make([]byte, image.MaxChunk), make([]byte, image.MaxFrame)
	var last time.Time
	err := img.Scan(ctx, func(c image.Chunk) error {
		if now := time.Now(); now.Sub(last) > 200*time.Millisecond {
			last = now
			fmt.Fprintf(os.Stderr, "\r\x1b[Kverifying chunk %d of %d", c.N+1, img.Chunks())
		}
		return img.ReadChunk(ctx, c, dst[:c.Len], scratch)
	})
	fmt.Fprint(os.Stderr, "\r\x1b[K")
	return err
}

func (r *report) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("id", "%s", r.ID)
	if r.Label != "" {
		row("label", "%s", r.Label)
	}
	row("created", "%s", r.Created.Format(time.RFC3339))
	if r.Parent != "" {
		row("parent", "%s", r.Parent)
	}
	if r.Signer != "" {
		row("signed by", "%s", r.Signer)
	} else {
		row("signed by", "none of the given keys")
	}
	row("size", "%s, of which %s (%s) is content", size(r.Size), size(r.Data), share(r.Data, r.Size))
	row("chunks", "%d, mean %s", r.Chunks, size(r.Data/int64(max(r.Chunks, 1))))
	row("repeated", "%s of the content (%s), in %d chunks", size(r.Data-r.UniqueData), share(r.Data-r.UniqueData, r.Data), r.Chunks-r.Unique)
	row("compressed", "%s (%s of the unique content)", size(r.Compressed), share(r.Compressed, r.UniqueData))
	row("packs", "%d of %s, of which %s is used", r.Packs, size(r.PackBytes), share(r.Compressed, r.PackBytes))
	row("index", "%s (%s of compressed, %s of content)", size(r.Index), share(r.Index, r.Compressed), share(r.Index, r.Data))
	profile := "none"
	if r.Profile {
		profile = "published with the image"
	}
	row("profile", "%s", profile)
	if r.Verified {
		row("verified", "every chunk")
	}
	w.Flush()
}

// printMap draws the disk, a line per 1/16 of it: how full each cell is, and
// whether with content that is elsewhere too.
func printMap(out io.Writer, chunks []mapped, total int64, width int) {
	const lines = 16
	cells := int64(lines * width)
	if total == 0 {
		return
	}
	per := (total + cells - 1) / cells
	unique, again := make([]int64, cells), make([]int64, cells)
	for _, c := range chunks {
		to := unique
		if c.again {
			to = again
		}
		for off := c.off; off < c.end; {
			end := min(c.end, (off/per+1)*per)
			to[off/per] += end - off
			off = end
		}
	}
	fmt.Fprintf(out, "\nmap of the disk, %s per character: # full, + part, . zero; = mostly repeated\n", size(per))
	var line strings.Builder
	for i := range cells {
		if i*per >= total {
			break
		}
		switch full := unique[i] + again[i]; {
		case full == 0:
			line.WriteByte('.')
		case again[i] > unique[i]:
			line.WriteByte('=')
		case full*10 >= per*9:
			line.WriteByte('#')
		default:
			line.WriteByte('+')
		}
		if (i+1)%int64(width) == 0 {
			fmt.Fprintln(out, line.String())
			line.Reset()
		}
	}
	if line.Len() > 0 {
		fmt.Fprintln(out, line.String())
	}
}
