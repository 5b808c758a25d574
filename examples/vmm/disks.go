package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/nbd"
)

// openDisk opens a disk that is not streamed: an image file, or an export of an
// NBD server, for which the guest waits while it is away.
func openDisk(ctx context.Context, d diskOption) (disk.Backend, error) {
	if !nbd.IsURI(d.path) {
		return d.open()
	}
	cfg, err := nbd.ParseURI(d.path)
	if err != nil {
		return nil, err
	}
	cfg.ReadOnly, cfg.Timeout = d.readOnly, -1
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	c, err := nbd.Dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// checkDisk says why a disk cannot be used, before somebody else finds out.
func checkDisk(d diskOption) error {
	switch {
	case d.stream != nil:
		return nil // opening it is the only way to tell
	case nbd.IsURI(d.path):
		_, err := nbd.ParseURI(d.path)
		return err
	}
	image, err := d.open()
	if err != nil {
		return err // it names the disk
	}
	return image.Close()
}

// relay hands an NBD disk, or one in an image that QEMU is not to open, on to the nested host, and returns where it is there
// and what ends it.
func relay(ctx context.Context, d diskOption) (uri string, end func() error, err error) {
	b, err := openDisk(ctx, d)
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "vmm-nbd-")
	if err != nil {
		return "", nil, errors.Join(err, b.Close())
	}
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return "", nil, errors.Join(err, b.Close(), os.RemoveAll(dir))
	}
	s := &nbd.Server{Exports: []nbd.Export{{Name: "disk", Backend: b, ReadOnly: d.readOnly}}}
	go s.Serve(l)
	return "nbd+unix:///disk?socket=" + socket, func() error {
		return errors.Join(s.Close(), b.Close(), os.RemoveAll(dir))
	}, nil
}
