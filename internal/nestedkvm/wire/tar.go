package wire

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// paxReplace marks an entry whose old tree is removed first.
const paxReplace = "VMKIT.replace"

// Extract unpacks a tar stream below root. Existing files are replaced, and so
// that a running program does not stand in the way they are removed first.
func Extract(r io.Reader, root string) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(root, filepath.Join("/", h.Name))
		if h.PAXRecords[paxReplace] != "" {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeReg:
			err = extractFile(path, fs.FileMode(h.Mode).Perm(), tr)
		case tar.TypeSymlink:
			if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
				_ = os.Remove(path)
				err = os.Symlink(h.Linkname, path)
			}
		default:
			err = fmt.Errorf("%w: tar entry %s of type %q", ErrProtocol, h.Name, h.Typeflag)
		}
		if err != nil {
			return err
		}
	}
}

func extractFile(path string, perm fs.FileMode, r io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Chmod(perm)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// Pack writes what matches the patterns as a tar stream with absolute names.
func Pack(w io.Writer, patterns []string) error {
	tw := tar.NewWriter(w)
	for _, pat := range patterns {
		found, err := filepath.Glob(pat)
		if err != nil {
			return fmt.Errorf("%q: %w", pat, err)
		}
		for _, path := range found {
			if err := AddTree(tw, path, path); err != nil {
				return err
			}
		}
	}
	return tw.Close()
}

// Replace adds an entry for a directory that Extract empties if it is there.
func Replace(tw *tar.Writer, name string) error {
	return tw.WriteHeader(&tar.Header{
		Typeflag: tar.TypeDir, Name: strings.Trim(name, "/") + "/", Mode: 0o755,
		Format: tar.FormatPAX, PAXRecords: map[string]string{paxReplace: "1"},
	})
}

// AddTree adds the file or the tree at path to a tar stream, as name. What is
// neither a file, a directory nor a symbolic link is left out.
func AddTree(tw *tar.Writer, path, name string) error {
	return filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(path, p)
		if err != nil {
			return err
		}
		return addEntry(tw, p, filepath.Join(name, rel))
	})
}

// AddFile adds the file that path leads to, symbolic links followed, as name.
func AddFile(tw *tar.Writer, path, name string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	return addEntry(tw, real, name)
}

func addEntry(tw *tar.Writer, path, name string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	h := &tar.Header{
		Name:   strings.TrimPrefix(name, "/"),
		Mode:   int64(fi.Mode().Perm()),
		Format: tar.FormatPAX,
	}
	switch {
	case fi.IsDir():
		h.Typeflag = tar.TypeDir
		h.Name += "/"
		return tw.WriteHeader(h)
	case fi.Mode()&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(path); err != nil {
			return err
		}
		return tw.WriteHeader(h)
	case !fi.Mode().IsRegular():
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err = f.Stat(); err != nil {
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, fi.Size()
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	// A file that grows meanwhile must not run past its header.
	n, err := io.Copy(tw, io.LimitReader(f, h.Size))
	if err == nil && n < h.Size {
		err = fmt.Errorf("%s shrank while it was read", path)
	}
	return err
}
