package thin_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/thin"
)

const (
	killStore   = "VMKIT_THIN_STORE" // set in the child: the store's path
	killDisks   = 3
	killSectors = 400
)

func TestMain(m *testing.M) {
	if path := os.Getenv(killStore); path != "" {
		if err := killChild(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// killChild works on the pool until it is killed. It says on its standard
// output what it is about to do, and when that is done, in records of 5 words:
// begin or end, disk, first sector, sectors, version (0 for zeroes).
func killChild(path string) error {
	store, err := disk.Open(path, disk.FileConfig{})
	if err != nil {
		return err
	}
	p, err := thin.Open(store, thin.Config{})
	if err != nil {
		return err
	}
	errs := make(chan error)
	for i := range uint32(killDisks) {
		d, err := p.OpenDisk(fmt.Sprint(i), thin.DiskConfig{})
		if err != nil {
			return err
		}
		go func() {
			r := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(i)))
			version := uint32(time.Now().UnixMicro())
			for {
				first := uint32(r.IntN(killSectors))
				n := 1 + uint32(r.IntN(min(killSectors-int(first), 60)))
				zero := r.IntN(4) == 0
				version++
				v := version
				if zero {
					v = 0
				}
				var rec [20]byte
				for j, w := range []uint32{0, i, first, n, v} {
					binary.LittleEndian.PutUint32(rec[4*j:], w)
				}
				os.Stdout.Write(rec[:])
				if zero {
					err = d.WriteZeroes(int64(first)*512, int64(n)*512, true)
				} else {
					b := make([]byte, n*512)
					for j := range n {
						stamp{i, first + j, v}.put(b[j*512:][:512])
					}
					_, err = d.WriteAt(b, int64(first)*512)
				}
				if err != nil {
					errs <- err
					return
				}
				rec[0] = 1
				os.Stdout.Write(rec[:])
				if r.IntN(20) == 0 {
					if err := d.Flush(); err != nil {
						errs <- err
					}
				}
			}
		}()
	}
	return <-errs
}

// A process that is killed at any moment loses nothing of what it had written,
// whatever else of the pool it was at; nor does a pool lose an extent.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pool")
	store, err := disk.Create(path, 0, disk.FileConfig{})
	require.NoError(t, err)
	// Just enough for all that can be written, so that extents change hands.
	const extents = killDisks*killSectors/8 + 2
	require.NoError(t, thin.Format(store, thin.Layout{ExtentSize: 4096, Capacity: extents * 4096, Disks: 4}))
	p, err := thin.Open(store, thin.Config{})
	require.NoError(t, err)
	var models []*model
	for i := range uint32(killDisks) {
		require.NoError(t, p.Create(fmt.Sprint(i), killSectors*512))
		models = append(models, newModel(i, killSectors))
	}
	require.NoError(t, p.Close())
	require.NoError(t, store.Close())
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	writes := 0
	few := 200
	if testing.Short() {
		few = 10
	}
	for round := range rounds(few) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killStore+"="+path)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		in := bufio.NewReader(out)
		stop := 1 + r.IntN(400) // records
		var began [killDisks][5]uint32
		for n := 0; ; n++ {
			if n == stop {
				require.NoError(t, cmd.Process.Kill())
			}
			var rec [20]byte
			if _, err := io.ReadFull(in, rec[:]); err != nil {
				break
			}
			var w [5]uint32
			for j := range w {
				w[j] = binary.LittleEndian.Uint32(rec[4*j:])
			}
			m := models[w[1]]
			if w[0] == 0 {
				began[w[1]] = w
				m.add(int64(w[2]), int64(w[3]), w[4])
				continue
			}
			writes++
			for i := w[2]; i < w[2]+w[3]; i++ {
				m.sectors[i] = []uint32{w[4]}
			}
		}
		cmd.Wait()
		require.Empty(t, stderr.String(), "round %d", round)

		store, err := disk.Open(path, disk.FileConfig{})
		require.NoError(t, err)
		p, err := thin.Open(store, thin.Config{})
		require.NoError(t, err, "round %d", round)
		require.NoError(t, p.Check(), "round %d", round)
		for i, m := range models {
			d := openDisk(t, p, fmt.Sprint(i))
			require.NoError(t, m.check(d, true), "round %d", round)
			require.NoError(t, d.Close())
		}
		require.NoError(t, p.Close())
		require.NoError(t, store.Close())
	}
	t.Logf("%d writes", writes)
	require.NotZero(t, writes)
}
