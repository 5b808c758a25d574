// Package initramfs writes the archive from which Linux fills its first root
// file system: cpio in the "newc" format (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst).
//
//	var b bytes.Buffer
//	w := initramfs.NewWriter(&b)
//	err := w.HostFile("bin/busybox", "/usr/bin/busybox")
//	err = w.Symlink("bin/sh", "busybox")
//	err = w.Device("dev/console", fs.ModeCharDevice|0o600, 5, 1)
//	err = w.WriteFile("init", script, 0o755)
//	err = w.Close()
//	l := boot.Linux{Kernel: k, Initrd: bytes.NewReader(b.Bytes())}
//
// Everything belongs to root and is as old as time itself, and entries are
// numbered in their order, so that equal calls give equal archives.
package initramfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"strings"
)

var (
	// ErrName is wrapped by errors for a name or target that an archive
	// cannot hold: empty, with a NUL, longer than 4095 bytes, the name
	// that ends an archive, or below something that is no directory.
	ErrName = errors.New("initramfs: bad name")
	// ErrClosed is returned by a Writer after Close.
	ErrClosed = errors.New("initramfs: archive is closed")
)

const (
	// maxName is what Linux takes, without the NUL.
	maxName = 4095
	// trailer is the name of the entry that ends an archive.
	trailer = "TRAILER!!!"
	// align is what archives are padded to, so that others may follow.
	align = 512
)

// File types of mode fields.
const (
	typeFIFO  = 0o010000
	typeChar  = 0o020000
	typeDir   = 0o040000
	typeBlock = 0o060000
	typeFile  = 0o100000
	typeLink  = 0o120000
)

// Writer writes an archive, entry by entry. Directories above an entry come
// by themselves, with mode 0755. Names are slash-separated; they are taken
// from the root, whether or not they start with a slash. Adding a name a
// second time is an error wrapping fs.ErrExist, unless both are directories.
//
// The first error of the underlying writer stays: later calls return it. A
// Writer is not safe for concurrent use.
type Writer struct {
	w     io.Writer
	n     int64
	ino   uint32
	names map[string]bool // whether it is a directory
	err   error
}

// NewWriter returns a Writer of an archive to w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, names: map[string]bool{"": true}}
}

// Dir adds a directory.
func (w *Writer) Dir(name string, perm fs.FileMode) error {
	return w.entry(name, typeDir, perm, 0, 0, 0, nil)
}

// WriteFile adds a regular file with the given content.
func (w *Writer) WriteFile(name string, data []byte, perm fs.FileMode) error {
	return w.entry(name, typeFile, perm, 0, 0, int64(len(data)), strings.NewReader(string(data)))
}

// Copy adds a regular file of size bytes, at most 4 GiB - 1, from r. If r has
// fewer, the archive is spoiled, and the error wraps io.ErrUnexpectedEOF.
func (w *Writer) Copy(name string, r io.Reader, size int64, perm fs.FileMode) error {
	return w.entry(name, typeFile, perm, 0, 0, size, r)
}

// HostFile adds a copy of the regular file at hostPath, with its permissions.
func (w *Writer) HostFile(name, hostPath string) error {
	f, err := os.Open(hostPath)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("initramfs: %s is no regular file (%v)", hostPath, info.Mode().Type())
	}
	return w.Copy(name, f, info.Size(), info.Mode())
}

// Symlink adds a symbolic link to target, which need not exist.
func (w *Writer) Symlink(name, target string) error {
	if target == "" || len(target) > maxName || strings.IndexByte(target, 0) >= 0 {
		return fmt.Errorf("%w: target %.64q of %.64q", ErrName, target, name)
	}
	return w.entry(name, typeLink, 0o777, 0, 0, int64(len(target)), strings.NewReader(target))
}

// Device adds a device node: a character device if mode has
// fs.ModeCharDevice, a FIFO if it has fs.ModeNamedPipe, and otherwise a
// block device.
func (w *Writer) Device(name string, mode fs.FileMode, major, minor uint32) error {
	kind := uint32(typeBlock)
	switch {
	case mode&fs.ModeCharDevice != 0:
		kind = typeChar
	case mode&fs.ModeNamedPipe != 0:
		kind, major, minor = typeFIFO, 0, 0
	}
	return w.entry(name, kind, mode, major, minor, 0, nil)
}

// AddFS adds the directories, regular files and, if fsys is a
// fs.ReadLinkFS, symbolic links of fsys below dir, as os.CopyFS does.
// Other kinds of file are an error.
func (w *Writer) AddFS(dir string, fsys fs.FS) error {
	return fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		to := path.Join(dir, name)
		switch info.Mode().Type() {
		case fs.ModeDir:
			if clean(to) == "" {
				return nil
			}
			return w.Dir(to, info.Mode())
		case 0:
			f, err := fsys.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			return w.Copy(to, f, info.Size(), info.Mode())
		case fs.ModeSymlink:
			target, err := fs.ReadLink(fsys, name)
			if err != nil {
				return err
			}
			return w.Symlink(to, target)
		}
		return fmt.Errorf("initramfs: %s is no file, directory or link (%v)", name, info.Mode().Type())
	})
}

// Close ends the archive and pads it to a multiple of 512 bytes, so that
// another may follow. It does not close the underlying writer.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	w.header(trailer, 0, 0, 0, 0, 0)
	w.pad(align)
	if w.err != nil {
		return w.err
	}
	w.err = ErrClosed
	return nil
}

// Join copies archives one after the other, compressed or not, to w, with the
// padding that Linux wants between them. What comes later wins where names
// agree.
func Join(w io.Writer, archives ...io.Reader) error {
	for i, a := range archives {
		n, err := io.Copy(w, a)
		if err == nil {
			_, err = w.Write(make([]byte, -n&(align-1)))
		}
		if err != nil {
			return fmt.Errorf("initramfs: archive %d: %w", i, err)
		}
	}
	return nil
}

func clean(name string) string { return path.Clean("/" + name)[1:] }

// entry adds one entry of size bytes from r.
func (w *Writer) entry(name string, kind uint32, mode fs.FileMode, major, minor uint32, size int64, r io.Reader) error {
	if w.err != nil {
		return w.err
	}
	full := name
	name = clean(name)
	if len(name) > maxName || name == "" || name == trailer || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%w: %.64q", ErrName, full)
	}
	if size < 0 || size > math.MaxUint32 {
		return fmt.Errorf("initramfs: %s: %d bytes: an entry holds at most 4 GiB - 1", name, size)
	}
	if isDir, ok := w.names[name]; ok {
		if isDir && kind == typeDir {
			return nil
		}
		return fmt.Errorf("initramfs: %s: %w", name, fs.ErrExist)
	}
	if err := w.parents(name); err != nil {
		return err
	}
	w.names[name] = kind == typeDir
	w.ino++
	w.header(name, kind|modeBits(mode), uint32(size), major, minor, w.ino)
	if w.err == nil && size > 0 {
		n, err := io.CopyN(w.w, r, size)
		w.n += n
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			w.err = fmt.Errorf("initramfs: %s: %d of %d bytes: %w", name, n, size, err)
		}
		w.pad(4)
	}
	return w.err
}

// parents adds the directories above name.
func (w *Writer) parents(name string) error {
	for i := 0; i < len(name); i++ {
		if name[i] != '/' {
			continue
		}
		isDir, ok := w.names[name[:i]]
		if !ok {
			if err := w.Dir(name[:i], 0o755); err != nil {
				return err
			}
		} else if !isDir {
			return fmt.Errorf("%w: %.64q is below a file", ErrName, name)
		}
	}
	return nil
}

func modeBits(mode fs.FileMode) uint32 {
	m := uint32(mode.Perm())
	if mode&fs.ModeSetuid != 0 {
		m |= 0o4000
	}
	if mode&fs.ModeSetgid != 0 {
		m |= 0o2000
	}
	if mode&fs.ModeSticky != 0 {
		m |= 0o1000
	}
	return m
}

// header writes an entry's header and name: a magic number and 13 fields of 8
// hexadecimal digits.
func (w *Writer) header(name string, mode, size, major, minor, ino uint32) {
	b := make([]byte, 0, 128+len(name))
	b = append(b, "070701"...)
	for _, v := range [...]uint32{
		ino, mode,
		0, 0, // owner
		1, // links
		0, // modification time
		size,
		0, 0, // device that holds the file
		major, minor,
		uint32(len(name) + 1),
		0, // checksum, unused in this format
	} {
		b = fmt.Appendf(b, "%08x", v)
	}
	b = append(b, name...)
	w.write(append(b, 0))
	w.pad(4)
}

func (w *Writer) pad(to int64) { w.write(make([]byte, -w.n&(to-1))) }

func (w *Writer) write(b []byte) {
	if w.err != nil {
		return
	}
	n, err := w.w.Write(b)
	w.n += int64(n)
	if err != nil {
		w.err = fmt.Errorf("initramfs: %w", err)
	}
}
