package qcow2

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/vmkit-go/vmkit/disk"
)

// Formats of backing files that [OpenFile] opens.
const (
	FormatRaw   = "raw"
	FormatQcow2 = "qcow2"
)

// FileConfig says how [OpenFile] opens an image.
type FileConfig struct {
	// File is how the image's own file is opened. Backing files are always
	// opened for reading, unless BackingWritable is set.
	File disk.FileConfig
	// Chain lists the backing files below the image, the uppermost first.
	// With a list, what the images say about names and formats is not used.
	Chain []Layer
	// Allow, if there is no Chain, is asked for each backing file that an
	// image names: path is the name, relative to the directory of the image
	// that names it, and format what that image says, or empty. A nil Allow
	// allows none.
	Allow func(path, format string) bool
	// BackingWritable opens the first backing file for writing, for Commit.
	BackingWritable bool
	// CacheSize is that of [Config], for each image of the chain.
	CacheSize int64
}

// Layer is one file of a chain.
type Layer struct {
	Path   string
	Format string // FormatRaw or FormatQcow2
}

// File is an image opened by [OpenFile], with its chain.
type File struct {
	*Image
	below disk.Backend // closed with the image
}

// OpenFile opens the image file at path, and below it those backing files
// that cfg lists or allows. Close closes them all. An image whose backing file
// is neither is an error wrapping ErrBacking.
func OpenFile(path string, cfg FileConfig) (*File, error) {
	return openFile(path, cfg, 1)
}

func openFile(path string, cfg FileConfig, level int) (_ *File, err error) {
	if level > maxChain {
		return nil, &disk.Error{Op: "open", Name: path, Err: fmt.Errorf("chain of more than %d images", maxChain)}
	}
	file, err := disk.Open(path, cfg.File)
	if err != nil {
		return nil, err
	}
	f := &File{}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
			if f.below != nil {
				err = errors.Join(err, f.below.Close())
			}
		}
	}()
	info, err := Inspect(file)
	if err != nil {
		return nil, err
	}
	if f.below, err = cfg.openBelow(path, info, level); err != nil {
		return nil, err
	}
	f.Image, err = Open(file, Config{ReadOnly: cfg.File.ReadOnly, Backing: f.below, CacheSize: cfg.CacheSize})
	return f, err
}

// openBelow opens the backing file of the image at path.
func (cfg FileConfig) openBelow(path string, info Header, level int) (disk.Backend, error) {
	next := cfg
	next.File.ReadOnly = !cfg.BackingWritable
	next.BackingWritable = false
	var l Layer
	switch {
	case len(cfg.Chain) > 0:
		l, next.Chain, next.Allow = cfg.Chain[0], cfg.Chain[1:], nil
		if len(next.Chain) > 0 && l.Format == FormatRaw {
			return nil, openPath(path, fmt.Errorf("a raw backing file %q has none of its own", l.Path))
		}
	case info.BackingName == "":
		return nil, nil
	default:
		l = Layer{info.BackingName, info.BackingFormat}
		if !filepath.IsAbs(l.Path) {
			l.Path = filepath.Join(filepath.Dir(path), l.Path)
		}
		if cfg.Allow == nil || !cfg.Allow(l.Path, l.Format) {
			return nil, openPath(path, fmt.Errorf("%w: the image names %q", ErrBacking, info.BackingName))
		}
	}
	switch l.Format {
	case FormatRaw:
		return asBackend(disk.Open(l.Path, next.File))
	case FormatQcow2:
		return asBackend(openFile(l.Path, next, level+1))
	}
	return nil, openPath(path, fmt.Errorf("backing file %q has the format %q: want %q or %q", l.Path, l.Format, FormatRaw, FormatQcow2))
}

func openPath(path string, err error) error { return &disk.Error{Op: "open", Name: path, Err: err} }

// asBackend keeps a nil pointer from becoming a disk.
func asBackend[T disk.Backend](b T, err error) (disk.Backend, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Close closes the image and then its backing files.
func (f *File) Close() error {
	err := f.Image.Close()
	if f.below != nil {
		err = errors.Join(err, f.below.Close())
	}
	return err
}

// Header is what an image says about itself.
type Header struct {
	// Version is 2 or 3, Size the disk's size and ClusterSize that of a
	// cluster, in bytes.
	Version           int
	Size, ClusterSize int64
	// BackingName is empty if there is no backing file, BackingFormat if the
	// image does not say. Nothing that these name is to be trusted.
	BackingName, BackingFormat string
	Compression                Compression
	RefcountBits               int
	Snapshots                  int
	LazyRefcounts              bool
	// Dirty means that the image was not closed, Corrupt that whoever wrote it
	// last found it damaged.
	Dirty, Corrupt bool
}

// Inspect reads the header of the image in file, which it leaves as it is.
func Inspect(file disk.Backend) (Header, error) {
	h, err := readHeader(file)
	if err != nil {
		return Header{}, openError(file, err)
	}
	return Header{
		Version: int(h.version), Size: h.size, ClusterSize: 1 << h.clusterBits,
		BackingName: h.backing, BackingFormat: h.format, Compression: h.compression,
		RefcountBits: 1 << h.refOrder, Snapshots: h.snapshots, LazyRefcounts: h.compat&compatLazy != 0,
		Dirty: h.incompat&incompatDirty != 0, Corrupt: h.incompat&incompatCorrupt != 0,
	}, nil
}
