// Package cpio writes archives in the "newc" format of the Linux initramfs
// (Documentation/driver-api/early-userspace/buffer-format.rst):
//
//	w := cpio.NewWriter(f)
//	err := w.File("init", 0o755, image)
//	err = w.Close()
//
// The directories above an entry are added by themselves. Owner and times are
// zero, so that the same entries give the same archive.
package cpio

import (
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
)

const (
	typeDir  = 0o040000
	typeFile = 0o100000
	typeLink = 0o120000
	typeChar = 0o020000
)

// Writer writes one archive. It is not safe for concurrent use. The first
// error stays: later calls return it.
type Writer struct {
	w    io.Writer
	ino  uint32
	dirs map[string]bool
	err  error
}

// NewWriter returns a Writer that writes to w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, dirs: map[string]bool{".": true}}
}

// File adds a regular file with the given permission bits.
func (w *Writer) File(name string, perm uint32, data []byte) error {
	return w.Copy(name, perm, strings.NewReader(string(data)), int64(len(data)))
}

// Copy adds a regular file of exactly size bytes, read from r.
func (w *Writer) Copy(name string, perm uint32, r io.Reader, size int64) error {
	if size < 0 || size > math.MaxUint32 {
		return w.fail(fmt.Errorf("cpio: %s: size %d does not fit the format", name, size))
	}
	if err := w.header(name, typeFile|perm&0o7777, uint32(size), 0, 0); err != nil {
		return err
	}
	n, err := io.CopyN(w.w, r, size)
	if err != nil {
		return w.fail(fmt.Errorf("cpio: %s: %d of %d bytes: %w", name, n, size, err))
	}
	return w.pad(size)
}

// Dir adds a directory, unless it is there already.
func (w *Writer) Dir(name string, perm uint32) error {
	name = clean(name)
	if w.dirs[name] {
		return w.err
	}
	if err := w.header(name, typeDir|perm&0o7777, 0, 0, 0); err != nil {
		return err
	}
	w.dirs[name] = true
	return nil
}

// Symlink adds a symbolic link to target.
func (w *Writer) Symlink(name, target string) error {
	if err := w.header(name, typeLink|0o777, uint32(len(target)), 0, 0); err != nil {
		return err
	}
	return w.write(target + zeros(len(target)))
}

// CharDevice adds a character device node.
func (w *Writer) CharDevice(name string, perm, major, minor uint32) error {
	return w.header(name, typeChar|perm&0o7777, 0, major, minor)
}

// Close writes the trailer. It does not close the underlying writer.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	if err := w.entry("TRAILER!!!", 0, 0, 0, 0, 0); err != nil {
		return err
	}
	w.err = errors.New("cpio: archive is closed")
	return nil
}

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (w *Writer) header(name string, mode, size, major, minor uint32) error {
	if w.err != nil {
		return w.err
	}
	name = clean(name)
	if name == "" || len(name) > 4095 || strings.Contains(name, "\x00") {
		return w.fail(fmt.Errorf("cpio: bad entry name %q", name))
	}
	if dir := path.Dir(name); !w.dirs[dir] {
		if err := w.Dir(dir, 0o755); err != nil {
			return err
		}
	}
	w.ino++
	return w.entry(name, mode, size, major, minor, w.ino)
}

func (w *Writer) entry(name string, mode, size, major, minor, ino uint32) error {
	// 13 fields of 8 hexadecimal digits after the magic number.
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		ino, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0) + name + "\x00"
	return w.write(head + zeros(len(head)))
}

func (w *Writer) pad(n int64) error { return w.write(zeros(int(n & 3))) }

// zeros returns the bytes that fill n up to a multiple of 4.
func zeros(n int) string { return "\x00\x00\x00"[:-n&3] }

func (w *Writer) write(s string) error {
	if w.err != nil {
		return w.err
	}
	if _, err := io.WriteString(w.w, s); err != nil {
		return w.fail(fmt.Errorf("cpio: %w", err))
	}
	return nil
}

func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	return err
}
