package wire

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	c := NewConn(&b)
	require.NoError(t, c.Write(Hello, nil))
	require.NoError(t, c.WriteJSON(Exit, ExitStatus{Code: 3}))
	big := bytes.Repeat([]byte("x"), 200_000)
	n, err := c.Writer(Stdout).Write(big)
	require.NoError(t, err)
	require.Equal(t, len(big), n)
	require.ErrorIs(t, c.Write(Tar, make([]byte, MaxPayload+1)), ErrProtocol)

	next := func() (Type, string) {
		typ, p, err := c.Read()
		require.NoError(t, err)
		return typ, string(p)
	}
	typ, p := next()
	require.Equal(t, Hello, typ)
	require.Empty(t, p)
	typ, p = next()
	require.Equal(t, Exit, typ)
	require.JSONEq(t, `{"code":3}`, p)
	var got strings.Builder
	for got.Len() < len(big) {
		typ, p = next()
		require.Equal(t, Stdout, typ)
		got.WriteString(p)
	}
	require.Equal(t, string(big), got.String())
	_, _, err = c.Read()
	require.ErrorIs(t, err, io.EOF)
}

func TestBadFrames(t *testing.T) {
	for in, want := range map[string]error{
		"O\x00\x00":             io.ErrUnexpectedEOF,
		"O\x05\x00\x00\x00abc":  io.ErrUnexpectedEOF,
		"O\x05\x00\x00\x00":     io.ErrUnexpectedEOF,
		"O\xff\xff\xff\xff":     ErrProtocol,
		"O\x01\x00\x04\x00\x00": ErrProtocol,
	} {
		_, _, err := NewConn(bytes.NewBufferString(in)).Read()
		require.ErrorIs(t, err, want, "%q", in)
	}
}

// tree lists the files below dir with their modes and content.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%v %s", fi.Mode(), strings.TrimPrefix(path, dir))
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %s", data)
		case fi.Mode()&os.ModeSymlink != 0:
			link, _ := os.Readlink(path)
			fmt.Fprintf(&b, " -> %s", link)
		}
		b.WriteByte('\n')
		return nil
	})
	require.NoError(t, err)
	return b.String()
}

func TestTar(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(from, "d/e"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(from, "d/prog"), []byte("#!"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(from, "d/e/"+strings.Repeat("n", 200)), nil, 0o644))
	require.NoError(t, os.Symlink("prog", filepath.Join(from, "d/link")))

	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	require.NoError(t, AddTree(tw, filepath.Join(from, "d"), "/x/d"))
	require.NoError(t, AddFile(tw, filepath.Join(from, "d/link"), "/x/copy"))
	require.NoError(t, tw.Close())
	require.NoError(t, Extract(bytes.NewReader(b.Bytes()), to))
	require.Equal(t, tree(t, filepath.Join(from, "d")), tree(t, filepath.Join(to, "x/d")))
	data, err := os.ReadFile(filepath.Join(to, "x/copy"))
	require.NoError(t, err)
	require.Equal(t, "#!", string(data))

	// Again, over what is there; and then in place of it.
	require.NoError(t, os.WriteFile(filepath.Join(to, "x/d/old"), nil, 0o644))
	require.NoError(t, Extract(bytes.NewReader(b.Bytes()), to))
	require.FileExists(t, filepath.Join(to, "x/d/old"))
	b.Reset()
	tw = tar.NewWriter(&b)
	require.NoError(t, Replace(tw, "/x/d"))
	require.NoError(t, tw.Close())
	require.NoError(t, Extract(&b, to))
	require.Equal(t, "drwxr-xr-x \n", tree(t, filepath.Join(to, "x/d")))
}

func TestPack(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.x", "b.x", "c.y"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
	var b bytes.Buffer
	require.NoError(t, Pack(&b, []string{filepath.Join(dir, "*.x"), filepath.Join(dir, "missing")}))
	to := t.TempDir()
	require.NoError(t, Extract(&b, to))
	require.Contains(t, tree(t, to), "a.x")
	require.NotContains(t, tree(t, to), "c.y")
	require.Error(t, Pack(io.Discard, []string{"["}))
}

// FuzzRead holds frames of any content to the bound on payloads.
func FuzzRead(f *testing.F) {
	f.Add([]byte("O\x03\x00\x00\x00abcX\x00\x00\x00\x00"))
	f.Add([]byte("O\xff\xff\xff\x7f"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := NewConn(bytes.NewBuffer(data))
		total := 0
		for {
			_, p, err := c.Read()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrProtocol) {
					t.Fatal(err)
				}
				return
			}
			total += 5 + len(p)
			if total > len(data) {
				t.Fatalf("%d bytes read of %d", total, len(data))
			}
		}
	})
}

func TestExtractStaysBelowRoot(t *testing.T) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	require.NoError(t, tw.WriteHeader(&tar.Header{Name: "../../x", Mode: 0o644, Size: 1}))
	_, err := tw.Write([]byte("y"))
	require.NoError(t, err)
	require.NoError(t, tw.Close())
	whole := b.Bytes()
	dir := t.TempDir()
	require.NoError(t, Extract(bytes.NewReader(whole), filepath.Join(dir, "root")))
	require.Contains(t, tree(t, dir), "/root/x y")
	require.NoFileExists(t, filepath.Join(dir, "x"))

	for n := range 512 {
		require.Error(t, Extract(bytes.NewReader(whole[:n+1]), t.TempDir()), "cut off at %d", n+1)
	}
	b.Reset()
	tw = tar.NewWriter(&b)
	require.NoError(t, tw.WriteHeader(&tar.Header{Name: "fifo", Typeflag: tar.TypeFifo}))
	require.NoError(t, tw.Close())
	require.ErrorIs(t, Extract(&b, t.TempDir()), ErrProtocol)
}
