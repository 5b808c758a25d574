// Package durable replaces files in one step that survives a crash of the host: after
// it there is the old file or the new one, whole, and once a call has returned it is
// the new one.
//
//	err := durable.WriteFile("leases.json", 0o600, data)
package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Temporary files lie beside the files that they become, and their names begin with
// Prefix. What a crash leaves of them may be removed.
const (
	Prefix  = ".vmkit-tmp-"
	Pattern = Prefix + "*" // for os.CreateTemp
)

// WriteFile replaces the file name with one that holds data.
func WriteFile(name string, perm fs.FileMode, data []byte) error {
	return Replace(name, perm, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// Replace replaces the file name with what write writes. If write fails there is no
// trace of it.
func Replace(name string, perm fs.FileMode, write func(w io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), Pattern)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return Publish(f, name, perm)
}

// Publish closes f, a file in the folder of name, and gives it that name. If that fails
// before f has the name, f is removed.
func Publish(f *os.File, name string, perm fs.FileMode) error {
	err := f.Chmod(perm)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return SyncDir(filepath.Dir(name))
}

// SyncDir makes the names in a folder durable, where the file system can.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}
