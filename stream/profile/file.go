package profile

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/vmkit-go/vmkit/internal/durable"
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
// file is replaced in one step, durably.
func AddToFile(path string, p *Profile) error {
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
	return durable.Replace(path, 0o644, func(w io.Writer) error {
		_, err := p.WriteTo(w)
		return err
	})
}
