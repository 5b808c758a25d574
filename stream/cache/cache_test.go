package cache

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/disk"
)

// chunk is the n-th chunk, and its hash.
func chunk(n int) ([]byte, [32]byte) {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	p := make([]byte, 1+r.IntN(20000))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p, sha256.Sum256(p)
}

func open(t *testing.T, dir string, cfg Config) *Cache {
	t.Helper()
	c, err := Open(dir, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// check reads chunk n whole and reports whether it is there.
func check(t *testing.T, c *Cache, n int) bool {
	t.Helper()
	want, hash := chunk(n)
	got := make([]byte, len(want))
	_, err := c.ReadAt(hash, got, 0)
	if errors.Is(err, ErrMissing) {
		return false
	}
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), "chunk %d is wrong", n)
	return true
}

func put(t *testing.T, c *Cache, n int) {
	t.Helper()
	data, hash := chunk(n)
	require.NoError(t, c.Put(hash, data))
}

func TestCache(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Config{})
	for n := range 20 {
		require.False(t, check(t, c, n))
		put(t, c, n)
		put(t, c, n)
		require.True(t, check(t, c, n))
	}
	data, hash := chunk(3)
	for _, reopened := range []bool{false, true} {
		if reopened {
			require.NoError(t, c.Close())
			c = open(t, dir, Config{})
		}
		require.True(t, c.Has(hash))
		require.Equal(t, 20, c.Stats().Chunks)
		p := make([]byte, 100)
		n, err := c.ReadAt(hash, p, 17)
		require.NoError(t, err)
		require.Equal(t, data[17:][:n], p[:n])
		n, err = c.ReadAt(hash, p, int64(len(data)-10))
		require.Equal(t, io.EOF, err)
		require.Equal(t, 10, n)
		_, err = c.ReadAt(hash, p, int64(len(data)+1))
		require.Equal(t, io.EOF, err)
		_, err = c.ReadAt(hash, p, -1)
		require.Equal(t, io.EOF, err)
		for n := range 20 {
			require.True(t, check(t, c, n))
		}
	}
	require.ErrorIs(t, c.Put(hash, nil), disk.ErrRange)
	require.ErrorIs(t, c.Put(hash, make([]byte, MaxChunk+1)), disk.ErrRange)
	require.NoError(t, c.Flush())
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
	require.ErrorIs(t, c.Flush(), os.ErrClosed)
	require.ErrorIs(t, c.Put(sha256.Sum256(nil), data), os.ErrClosed)
	_, err := c.ReadAt(hash, data, 0)
	require.ErrorIs(t, err, os.ErrClosed)
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Config{})
	_, err := Open(dir, Config{})
	require.ErrorIs(t, err, disk.ErrLocked)
	require.ErrorContains(t, err, strconv.Itoa(os.Getpid()))
	require.NoError(t, c.Close())
	open(t, dir, Config{})
}

func TestFiles(t *testing.T) {
	c := open(t, t.TempDir(), Config{})
	_, err := c.File("manifest")
	require.ErrorIs(t, err, fs.ErrNotExist)
	for _, s := range []string{"one", "another"} {
		require.NoError(t, c.SetFile("manifest", []byte(s)))
		got, err := c.File("manifest")
		require.NoError(t, err)
		require.Equal(t, s, string(got))
	}
	require.NoError(t, c.RemoveFile("manifest"))
	require.NoError(t, c.RemoveFile("manifest"))
	for _, name := range []string{"", ".", "..", "a/b", ".x", "a b", string(make([]byte, 300))} {
		require.Error(t, c.SetFile(name, nil), "%q", name)
		_, err := c.File(name)
		require.Error(t, err)
	}
}

func TestDamagedChunk(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Config{})
	for n := range 10 {
		put(t, c, n)
	}
	require.NoError(t, c.Close())
	f, err := os.OpenFile(filepath.Join(dir, "chunks"), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{1, 2, 3}, 0) // chunk 0
	require.NoError(t, err)
	st, err := f.Stat()
	require.NoError(t, err)
	require.NoError(t, f.Truncate(st.Size()-1)) // chunk 9
	require.NoError(t, f.Close())

	c = open(t, dir, Config{})
	require.False(t, check(t, c, 0))
	require.False(t, check(t, c, 9))
	require.Equal(t, 1, c.Stats().Damaged)
	for n := 1; n < 9; n++ {
		require.True(t, check(t, c, n))
	}
	put(t, c, 0)
	require.True(t, check(t, c, 0))
	require.NoError(t, c.Close())
	c = open(t, dir, Config{})
	require.True(t, check(t, c, 0), "the later record counts")
}

func TestDamagedJournal(t *testing.T) {
	for name, damage := range map[string]func(j []byte) []byte{
		"record":  func(j []byte) []byte { j[headerSize+3*recordSize] ^= 1; return j },
		"torn":    func(j []byte) []byte { return j[:len(j)-10] },
		"garbage": func(j []byte) []byte { return append(j, bytes.Repeat([]byte{7}, 1000)...) },
		"swapped": func(j []byte) []byte {
			a, b := j[headerSize:][:recordSize], j[headerSize+recordSize:][:recordSize]
			for i := range a {
				a[i], b[i] = b[i], a[i]
			}
			return j
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "journal")
			c := open(t, dir, Config{})
			for n := range 10 {
				put(t, c, n)
			}
			require.NoError(t, c.Close())
			j, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, damage(j), 0o600))
			for range 2 {
				c = open(t, dir, Config{})
				there := 0
				for n := range 10 {
					if check(t, c, n) {
						there++
					}
				}
				require.GreaterOrEqual(t, there, 8)
				for n := range 12 {
					put(t, c, n)
				}
				require.NoError(t, c.Close())
			}
			c = open(t, dir, Config{})
			for n := range 12 {
				require.True(t, check(t, c, n))
			}
		})
	}
}

func TestBadHeader(t *testing.T) {
	for name, damage := range map[string]func(j []byte) []byte{
		"magic":    func(j []byte) []byte { j[0]++; return j },
		"checksum": func(j []byte) []byte { j[20]++; return j },
		"other":    func(j []byte) []byte { return bytes.Repeat([]byte("text"), 100) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "journal")
			c := open(t, dir, Config{})
			put(t, c, 1)
			require.NoError(t, c.Close())
			j, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, damage(j), 0o600))
			_, err = Open(dir, Config{})
			require.ErrorIs(t, err, ErrDamaged)
			require.ErrorContains(t, err, "offset")
			require.ErrorContains(t, err, dir)
		})
	}
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "chunks"), 0o700))
	_, err := Open(dir, Config{})
	require.Error(t, err)
}

func TestFull(t *testing.T) {
	p := newPower(1)
	now := time.Now()
	var mu sync.Mutex
	cfg := Config{open: p.open, BatchTime: time.Hour, now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }}
	c := open(t, t.TempDir(), cfg)
	put(t, c, 1)
	p.wrong["chunks"] = unix.ENOSPC
	data, hash := chunk(2)
	require.ErrorIs(t, c.Put(hash, data), ErrFull)
	require.ErrorIs(t, c.Put(hash, data), ErrFull, "not tried again at once")
	require.True(t, c.Stats().Full)
	require.True(t, check(t, c, 1))
	require.False(t, check(t, c, 2))
	mu.Lock()
	now = now.Add(retryFull)
	mu.Unlock()
	require.NoError(t, c.Put(hash, data))
	require.True(t, check(t, c, 2))
	p.wrong["journal"] = unix.ENOSPC
	require.ErrorIs(t, c.Flush(), ErrFull)
	require.True(t, check(t, c, 2))
	require.NoError(t, c.Flush(), "there is space now")
	p.cut()
	require.NoError(t, c.Close())
	c = open(t, t.TempDir(), cfg)
	require.True(t, check(t, c, 1))
	require.True(t, check(t, c, 2))

	c = open(t, t.TempDir(), Config{MaxBytes: 1 << 16})
	full := false
	for n := range 20 {
		data, hash := chunk(n)
		if err := c.Put(hash, data); err != nil {
			require.ErrorIs(t, err, ErrFull)
			full = true
		}
	}
	require.True(t, full)
	st, err := os.Stat(filepath.Join(c.Dir(), "chunks"))
	require.NoError(t, err)
	require.LessOrEqual(t, st.Size(), int64(1<<16))
}

func TestBroken(t *testing.T) {
	for _, name := range []string{"chunks", "journal"} {
		t.Run(name, func(t *testing.T) {
			p := newPower(1)
			c := open(t, t.TempDir(), Config{open: p.open, BatchTime: time.Hour})
			put(t, c, 1)
			require.NoError(t, c.Flush())
			put(t, c, 2)
			p.wrong[name] = unix.EIO
			require.ErrorIs(t, c.Flush(), ErrBroken)
			require.ErrorIs(t, c.Flush(), ErrBroken, "a failed flush stays failed")
			data, hash := chunk(3)
			require.ErrorIs(t, c.Put(hash, data), ErrBroken)
			require.True(t, check(t, c, 1))
			require.True(t, c.Stats().Broken)
			require.Equal(t, name == "journal", check(t, c, 2), "what failed to be written back may be gone")
			require.ErrorIs(t, c.Close(), ErrBroken)
		})
	}
}

func TestConcurrent(t *testing.T) {
	c := open(t, t.TempDir(), Config{BatchBytes: 100 << 10, BatchTime: time.Millisecond})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 0))
			for range 300 {
				n := r.IntN(50)
				want, hash := chunk(n)
				got := make([]byte, len(want))
				if _, err := c.ReadAt(hash, got, 0); err == nil {
					if !bytes.Equal(want, got) {
						t.Errorf("chunk %d is wrong", n)
					}
				} else if err := c.Put(hash, want); err != nil && !errors.Is(err, os.ErrClosed) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, c.Flush())
	require.Equal(t, 50, c.Stats().Chunks)
}

func rounds(few int) int {
	if n, err := strconv.Atoi(os.Getenv("VMKIT_SOAK")); err == nil && n > 0 {
		return n
	}
	return few
}

// TestPowerCut cuts the power before a random write or sync, again and again
// in the same cache. What Flush promised must be there, and nothing be wrong.
func TestPowerCut(t *testing.T) {
	for round := range rounds(200) {
		p := newPower(uint64(round))
		promised := map[int]bool{}
		for life := range 4 {
			if life < 3 {
				p.left = p.r.IntN(40)
			}
			c, err := Open(t.TempDir(), Config{open: p.open, BatchTime: time.Hour})
			if err == nil {
				for n := range promised {
					require.True(t, check(t, c, n), "round %d, life %d: chunk %d is lost", round, life, n)
				}
				put := map[int]bool{}
				for range 15 {
					n := p.r.IntN(60)
					data, hash := chunk(n)
					if c.Put(hash, data) != nil {
						break
					}
					put[n] = true
					if p.r.IntN(4) == 0 && c.Flush() == nil {
						for n := range put {
							promised[n] = true
						}
					}
				}
				for n := range 60 {
					check(t, c, n)
				}
				if c.Close() == nil {
					for n := range put {
						promised[n] = true
					}
				}
			} else {
				require.ErrorIs(t, err, errCut, "round %d, life %d", round, life)
			}
			p.cut()
		}
	}
}

// FuzzJournal opens caches with arbitrary journals. Whatever they say, no
// wrong byte comes out, and the cache goes on working.
func FuzzJournal(f *testing.F) {
	p := newPower(0)
	c, err := Open(f.TempDir(), Config{open: p.open})
	require.NoError(f, err)
	for n := range 3 {
		data, hash := chunk(n)
		require.NoError(f, c.Put(hash, data))
	}
	require.NoError(f, c.Close())
	good := p.files["journal"].content
	f.Add(good)
	f.Add(good[:headerSize])
	f.Add(good[:headerSize+recordSize+5])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, j []byte) {
		if len(j) > headerSize {
			// Right checksums let the fuzzer's records through.
			fix := journal{}
			j = bytes.Clone(j)
			copy(j, good[:headerSize])
			copy(fix.id[:], j[16:])
			for n := 0; headerSize+(n+1)*recordSize <= len(j); n++ {
				r := j[headerSize+n*recordSize:][:recordSize]
				if n%2 == 0 {
					c := fix.crc(int64(n), r[:44])
					r[44], r[45], r[46], r[47] = byte(c), byte(c>>8), byte(c>>16), byte(c>>24)
				}
			}
		}
		q := newPower(0)
		q.files["journal"] = &cutFile{p: q, name: "journal", content: j}
		q.files["chunks"] = &cutFile{p: q, name: "chunks", content: bytes.Clone(p.files["chunks"].content)}
		c, err := Open(t.TempDir(), Config{open: q.open, BatchTime: time.Hour})
		if err != nil {
			require.ErrorIs(t, err, ErrDamaged)
			return
		}
		defer c.Close()
		for n := range 4 {
			check(t, c, n)
			put(t, c, n)
			require.True(t, check(t, c, n))
		}
	})
}

func Example() {
	dir, err := os.MkdirTemp("", "cache")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	c, err := Open(dir, Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	data := []byte("part of a disk")
	hash := sha256.Sum256(data)
	if err := c.Put(hash, data); err != nil {
		fmt.Println(err)
	}
	p := make([]byte, 4)
	n, err := c.ReadAt(hash, p, 10)
	fmt.Printf("%s %v\n", p[:n], err)
	// Output: disk <nil>
}
