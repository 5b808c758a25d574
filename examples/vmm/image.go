package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/qcow2"
)

// addImage reads a -disk flag that names an image file:
// FILE[,ro][,format=raw|qcow2][,backing=FILE:FORMAT]...
func (o *options) addImage(s string) error {
	words := strings.Split(s, ",")
	d := diskOption{path: words[0], format: qcow2.FormatRaw}
	for _, w := range words[1:] {
		switch k, v, _ := strings.Cut(w, "="); k {
		case "ro":
			d.readOnly = true
		case "format":
			if v != qcow2.FormatRaw && v != qcow2.FormatQcow2 {
				return fmt.Errorf("format %q: want %s or %s", v, qcow2.FormatRaw, qcow2.FormatQcow2)
			}
			d.format = v
		case "backing":
			i := strings.LastIndexByte(v, ':')
			if i < 0 {
				return fmt.Errorf("backing %q: want FILE:FORMAT", v)
			}
			d.chain = append(d.chain, qcow2.Layer{Path: v[:i], Format: v[i+1:]})
		default:
			return fmt.Errorf("unknown setting %q", w)
		}
	}
	if d.path == "" {
		return errors.New("want a file name")
	}
	if len(d.chain) > 0 && d.format == qcow2.FormatRaw {
		return errors.New("a raw disk has no backing file; say format=qcow2")
	}
	o.disks = append(o.disks, d)
	return nil
}

// open opens the image file of a disk, and the backing files that the user
// named. What the images say about formats and names does not count.
func (d diskOption) open() (disk.Backend, error) {
	file := disk.FileConfig{ReadOnly: d.readOnly}
	if d.format == qcow2.FormatQcow2 {
		image, err := qcow2.OpenFile(d.path, qcow2.FileConfig{File: file, Chain: d.chain})
		if err != nil {
			return nil, err
		}
		return image, nil
	}
	image, err := disk.Open(d.path, file)
	if err != nil {
		return nil, err
	}
	return image, nil
}

// cloneCommand makes linked clones of a disk.
func cloneCommand(_ context.Context, args []string) error {
	fs := newFlags("clone")
	format := fs.String("format", qcow2.FormatRaw, "`format` of BASE: raw or qcow2")
	rest, err := parseFlags(fs, args, "[-format F] BASE CLONE...")
	if err != nil {
		return err
	}
	if len(rest) < 2 {
		return usageError("usage: vmm clone [-format F] BASE CLONE...")
	}
	base, err := filepath.Abs(rest[0])
	if err != nil {
		return err
	}
	size, err := diskSize(base, *format)
	if err != nil {
		return err
	}
	cfg := qcow2.CreateConfig{Size: size, BackingName: base, BackingFormat: *format}
	errs := make([]error, len(rest)-1)
	var wg sync.WaitGroup
	for i, path := range rest[1:] {
		wg.Go(func() { errs[i] = makeClone(path, cfg) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// diskSize is the size of the disk in an image file.
func diskSize(path, format string) (int64, error) {
	if format != qcow2.FormatRaw && format != qcow2.FormatQcow2 {
		return 0, usageError(fmt.Sprintf("-format %s: want %s or %s", format, qcow2.FormatRaw, qcow2.FormatQcow2))
	}
	file, err := disk.Open(path, disk.FileConfig{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer file.Close()
	if format == qcow2.FormatRaw {
		return file.Size(), nil
	}
	info, err := qcow2.Inspect(file)
	return info.Size, err
}

func makeClone(path string, cfg qcow2.CreateConfig) (err error) {
	file, err := disk.Create(path, 0, disk.FileConfig{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := qcow2.Create(file, cfg); err != nil {
		return err
	}
	return file.Flush()
}
