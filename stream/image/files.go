package image

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/durable"
)

// packWriter writes packs and names them.
type packWriter struct {
	dir   string
	limit int64
	done  []File

	f    *os.File
	sum  hash.Hash
	size int64
}

// add appends a frame and returns where it is.
func (w *packWriter) add(frame []byte) (pack int, off int64, err error) {
	if w.f != nil && w.size > 0 && w.size+int64(len(frame)) > w.limit {
		if err := w.close(); err != nil {
			return 0, 0, err
		}
	}
	if w.f == nil {
		if w.f, err = os.CreateTemp(w.dir, durable.Pattern); err != nil {
			return 0, 0, err
		}
		w.sum, w.size = sha256.New(), 0
	}
	if _, err := w.f.Write(frame); err != nil {
		return 0, 0, err
	}
	w.sum.Write(frame)
	off = w.size
	w.size += int64(len(frame))
	return len(w.done), off, nil
}

// close ends the pack under way, if any.
func (w *packWriter) close() error {
	if w.f == nil {
		return nil
	}
	name := fmt.Sprintf("%x", w.sum.Sum(nil)) + packSuffix
	if err := durable.Publish(w.f, filepath.Join(w.dir, name), 0o644); err != nil {
		return err
	}
	w.f = nil
	w.done = append(w.done, File{name, w.size})
	return nil
}

// abort removes the pack under way, if any.
func (w *packWriter) abort() {
	if w.f != nil {
		w.f.Close()
		os.Remove(w.f.Name())
		w.f = nil
	}
}

// lockDir makes this the only Pack in a directory, and removes what an earlier
// one that was killed had under way.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: another program packs there", disk.ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	names, err := d.Readdirnames(-1)
	for _, name := range names {
		if err == nil && strings.HasPrefix(name, durable.Prefix) {
			err = os.Remove(filepath.Join(dir, name))
		}
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return func() {
		// A process that is just being started may have a copy of the
		// descriptor, which keeps the lock over a close.
		_ = unix.Flock(int(d.Fd()), unix.LOCK_UN)
		d.Close()
	}, nil
}
