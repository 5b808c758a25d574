package mirror_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/mirror"
)

// childEnv makes the test binary the process that is killed: directory, seed
// and round.
const childEnv = "VMKIT_TEST_MIRROR_CHILD"

func TestMain(m *testing.M) {
	if s := os.Getenv(childEnv); s != "" {
		var seed, round uint64
		var dir string
		if _, err := fmt.Sscanf(s, "%d %d %s", &seed, &round, &dir); err != nil {
			panic(err)
		}
		fmt.Fprintln(os.Stderr, killChild(dir, seed, round))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const (
	killStripes = 3
	killSectors = 2048
	killSize    = killStripes * killSectors * sector
)

// side opens the image of that name, which it makes first if need be.
func openSide(name string, size int64) (*disk.File, error) {
	f, err := disk.Open(name, disk.FileConfig{})
	if errors.Is(err, fs.ErrNotExist) {
		return disk.Create(name, size, disk.FileConfig{})
	}
	return f, err
}

// openMirror opens the disk in dir on the side that counts.
func openMirror(dir string) (d *mirror.Disk, small disk.Backend, err error) {
	small, err = openSide(filepath.Join(dir, "journal"), mirror.JournalSize)
	if err != nil {
		return nil, nil, err
	}
	j, err := mirror.OpenJournal(small)
	if err != nil {
		return nil, nil, err
	}
	name := filepath.Join(dir, "a.img")
	if r, ok := j.Record(); ok {
		name = r.Current()
	}
	b, err := openSide(name, killSize)
	if err != nil {
		return nil, nil, err
	}
	d, err = mirror.New(b, j)
	return d, small, err
}

// otherSide opens the side to which a disk moves next.
func otherSide(d *mirror.Disk) (*disk.File, error) {
	name := d.Current().Info().Name
	next := filepath.Join(filepath.Dir(name), "b.img")
	if next == name {
		next = filepath.Join(filepath.Dir(name), "a.img")
	}
	return openSide(next, killSize)
}

// killWriters are the writers as they begin round.
func killWriters(round uint64) (ws []*writer) {
	for i := range int64(killStripes) {
		w := newWriter(i*killSectors, killSectors)
		w.sure, w.next = true, (round+1)<<32
		ws = append(ws, w)
	}
	return ws
}

// killChild moves the disk to and fro, writes all the while, and notes in a file
// how many requests of each writer have returned.
func killChild(dir string, seed, round uint64) error {
	d, _, err := openMirror(dir)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, "done"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	errs := make(chan error)
	for i, w := range killWriters(round) {
		w.d = d
		r := rand.New(rand.NewPCG(seed, round*8+uint64(i)))
		go func() {
			var p [8]byte
			for n := uint64(1); ; n++ {
				if err := w.step(r); err != nil {
					errs <- err
					return
				}
				binary.LittleEndian.PutUint64(p[:], n)
				if _, err := log.WriteAt(p[:], int64(i)*8); err != nil {
					errs <- err
					return
				}
				if n%64 == 0 { // let marks be taken back
					time.Sleep(4 * time.Millisecond)
				}
			}
		}()
	}
	go func() {
		for {
			old := d.Current()
			b, err := otherSide(d)
			if err != nil {
				errs <- err
				return
			}
			m, err := d.Start(context.Background(), b, mirror.Config{Checkpoint: 2 * time.Millisecond, CapWrites: true})
			if err == nil {
				err = m.Wait(context.Background())
			}
			if err != nil {
				errs <- err
				return
			}
			if err := old.Close(); err != nil {
				errs <- err
				return
			}
		}
	}()
	fmt.Println("up")
	return <-errs
}

// The process is killed at random moments, over and over. No write that had
// returned is lost, the journal names the right side, and a move that is resumed
// makes both sides the same.
func TestKill(t *testing.T) {
	dir := "/dev/shm"
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		dir = t.TempDir()
	}
	dir, err := os.MkdirTemp(dir, "mirror")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	const seed = 11
	r := rand.New(rand.NewPCG(seed, 1))
	may := make([][][]uint64, killStripes)
	for i, w := range killWriters(0) {
		may[i] = w.versions
	}
	moves := 0
	few := 200
	if testing.Short() {
		few = 10
	}
	for round := range uint64(rounds(t, few)) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "done"), make([]byte, 8*killStripes), 0o600))
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %s", childEnv, seed, round, dir))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = out.Read(make([]byte, 8))
		if err == nil {
			time.Sleep(time.Duration(r.IntN(30000)) * time.Microsecond)
		}
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
		require.NoError(t, err, "the child ended by itself")

		done, err := os.ReadFile(filepath.Join(dir, "done"))
		require.NoError(t, err)
		d, small, err := openMirror(dir)
		require.NoError(t, err)
		for i, w := range killWriters(round) {
			n := binary.LittleEndian.Uint64(done[i*8:])
			rw := rand.New(rand.NewPCG(seed, round*8+uint64(i)))
			w.d, w.versions = nowhere{}, may[i]
			for range n {
				require.NoError(t, w.step(rw))
			}
			for k, v := range w.versions {
				w.versions[k] = v[len(v)-1:]
			}
			require.NoError(t, w.step(rw)) // was under way
			w.check(t, d, false, "round "+strconv.FormatUint(round, 10))
			may[i] = w.versions
		}
		if round%5 == 4 {
			moves++
			old := d.Current()
			b, err := otherSide(d)
			require.NoError(t, err)
			m, err := d.Start(t.Context(), b, mirror.Config{Hold: true})
			require.NoError(t, err)
			require.Eventually(t, func() bool { return m.Progress().Phase == mirror.InStep }, time.Minute, time.Millisecond)
			same(t, content(t, d), content(t, b), "round", round)
			if moves%2 == 0 {
				m.Finish()
				require.NoError(t, m.Wait(t.Context()))
			}
			// Otherwise Close suspends it, for the next child.
			require.NoError(t, d.Close())
			require.NoError(t, b.Close())
			require.NoError(t, old.Close())
		}
		require.NoError(t, d.Close())
		require.NoError(t, small.Close())
	}
}

// nowhere is a disk that forgets.
type nowhere struct{ disk.Backend }

func (nowhere) WriteAt(p []byte, off int64) (int, error)   { return len(p), nil }
func (nowhere) WriteZeroes(off, n int64, unmap bool) error { return nil }
func (nowhere) Flush() error                               { return nil }
