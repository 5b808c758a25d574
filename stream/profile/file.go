package profile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// ReadFile reads the profile in a file.
func ReadFile(path string) (*Profile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Read(f, path)
}

// AddToFile merges p with the profile in a file, which need not be there. The
// file is replaced in one step.
func AddToFile(path string, p *Profile) (err error) {
	old, err := ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		old, err = &Profile{}, nil
	}
	if err != nil {
		return err
	}
	if p, err = Merge(old, p); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".profile-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = p.WriteTo(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
