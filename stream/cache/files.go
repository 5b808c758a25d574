package cache

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/durable"
)

// filesDir holds the small files beside the chunks.
const filesDir = "files"

// MaxFile is the largest size of a file that a cache keeps beside its chunks.
const MaxFile = 256 << 20

// SetFile keeps a small file, such as an image's manifest or index, under a
// name. It is durable when SetFile returns, and replaces an older one at once
// or, after a crash, not at all. Names are those of files: letters, digits,
// dots, hyphens and underscores, not beginning with a dot.
func (c *Cache) SetFile(name string, data []byte) error {
	path, err := c.filePath(name)
	if err != nil {
		return err
	}
	if len(data) > MaxFile {
		return fmt.Errorf("cache %s: file %s: %d bytes: want at most %d", c.dir, name, len(data), MaxFile)
	}
	return durable.WriteFile(path, 0o600, data)
}

// File returns the file kept under a name. The error wraps fs.ErrNotExist if
// there is none. The content is as the disk gave it: check it.
func (c *Cache) File(name string) ([]byte, error) {
	path, err := c.filePath(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err == nil && len(data) > MaxFile {
		err = fmt.Errorf("%s: larger than %d bytes", path, MaxFile)
	}
	return data, err
}

// RemoveFile forgets the file kept under a name, if there is one.
func (c *Cache) RemoveFile(name string) error {
	path, err := c.filePath(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

func (c *Cache) filePath(name string) (string, error) {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
	}
	if name == "" || len(name) > 200 || name[0] == '.' || strings.ContainsFunc(name, bad) {
		return "", fmt.Errorf("cache %s: %.40q cannot name a file", c.dir, name)
	}
	return filepath.Join(c.dir, filesDir, name), nil
}

// osFile is a file of the host.
type osFile struct{ *os.File }

func openFile(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	return osFile{f}, nil
}

func (f osFile) Size() (int64, error) { return f.Seek(0, io.SeekEnd) }

func (f osFile) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}

// lockDir keeps others from the directory until unlockDir, or until the process
// ends in whatever way.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		var pid [20]byte
		n, _ := f.ReadAt(pid[:], 0)
		err = fmt.Errorf("%w by process %q: guests in one process share a cache, processes do not", disk.ErrLocked, pid[:n])
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(fmt.Append(nil, os.Getpid()), 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// unlockDir gives the lock back even if a process that is just being started
// has a copy of the file's descriptor.
func unlockDir(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}
