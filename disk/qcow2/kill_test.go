package qcow2_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/disk/qcow2"
)

// Environment of the child that writes until it is killed.
const (
	childImage = "VMKIT_QCOW2_CHILD"
	childSeed  = "VMKIT_QCOW2_SEED"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childImage); path != "" {
		fmt.Fprintln(os.Stderr, writeUntilKilled(path))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const (
	killBlock   = 4096
	killBlocks  = 2048
	killWriters = 4
)

// fillBlock makes the content that block has after write number seq.
func fillBlock(p []byte, block int, seq uint64) {
	binary.LittleEndian.PutUint64(p, seq)
	disktest.Fill(rand.New(rand.NewPCG(uint64(block), seq)), p[8:])
}

// writeUntilKilled writes to the image at path, each writer to blocks of its
// own. It says on standard output what it is about to do ("i": block, number of
// the write or 0 for a discard), and what a flush has covered ("f").
func writeUntilKilled(path string) error {
	seed, err := strconv.ParseUint(os.Getenv(childSeed), 10, 64)
	if err != nil {
		return err
	}
	im, err := qcow2.OpenFile(path, qcow2.FileConfig{Allow: func(string, string) bool { return true }})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	say := func(p []byte) { // one system call: all of it or nothing
		mu.Lock()
		defer mu.Unlock()
		os.Stdout.Write(p)
	}
	say([]byte("open\n"))
	errs := make(chan error)
	for w := range killWriters {
		go func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			last := map[int]uint64{}
			p := make([]byte, killBlock)
			for n := uint64(1); ; n++ {
				b := r.IntN(killBlocks/killWriters)*killWriters + w
				seq := seed<<32 | n
				if r.IntN(10) == 0 {
					seq = 0
				}
				say(fmt.Appendf(nil, "i %d %d\n", b, seq))
				var err error
				if seq == 0 {
					err = im.WriteZeroes(int64(b)*killBlock, killBlock, true)
				} else {
					fillBlock(p, b, seq)
					_, err = im.WriteAt(p, int64(b)*killBlock)
				}
				last[b] = seq
				if err == nil && r.IntN(20) == 0 {
					if err = im.Flush(); err == nil {
						var out []byte
						for b, seq := range last {
							out = fmt.Appendf(out, "f %d %d\n", b, seq)
						}
						say(out)
						clear(last)
					}
				}
				if err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	return <-errs
}

// killed is what a block may hold: what was flushed last, or what was tried
// since.
type killed struct {
	flushed uint64
	tried   []uint64
}

// A process that is killed at any moment leaves an image in which nothing but
// leaks is wrong, with every flushed write; opening it gives the leaks back.
func TestKill(t *testing.T) {
	var blocks []killed
	var path string
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	few := 200
	if testing.Short() {
		few = 10
	}
	for round := range rounds(t, few) {
		lazy := round/6%3 == 2
		if round%6 == 0 {
			blocks = make([]killed, killBlocks)
			path = filepath.Join(dir, fmt.Sprint("image", round))
			file, err := disk.Create(path, 0, disk.FileConfig{})
			require.NoError(t, err)
			cc := qcow2.CreateConfig{
				Size: killBlocks * killBlock, ClusterSize: []int64{4096, 64 << 10}[round/6%2], LazyRefcounts: lazy,
			}
			if round/6%4 < 2 {
				// What was never written reads as the base, write number 1.
				p := make([]byte, cc.Size)
				for b := range blocks {
					fillBlock(p[b*killBlock:][:killBlock], b, 1)
					blocks[b].flushed = 1
				}
				writeFile(t, base, p)
				cc.BackingName, cc.BackingFormat = "base", "raw"
			}
			require.NoError(t, qcow2.Create(file, cc))
			require.NoError(t, file.Close())
		}
		kill(t, path, uint64(round+2), time.Duration(r.Int64N(int64(60*time.Millisecond))), blocks)
		out, err := qemuImg(t, "check", "-f", "qcow2", path)
		if exit := (*exec.ExitError)(nil); err != nil && !lazy && (!errors.As(err, &exit) || exit.ExitCode() != 3) {
			t.Fatalf("round %d: qemu-img check: %v\n%s", round, err, out)
		}
		f := openPath(t, path)
		got := content(t, f)
		require.NoError(t, f.Close())
		requireQEMU(t, "check", "-f", "qcow2", path)
		p := make([]byte, killBlock)
		for b := range blocks {
			have := got[b*killBlock:][:killBlock]
			seq := binary.LittleEndian.Uint64(have)
			clear(p)
			if seq != 0 {
				fillBlock(p, b, seq)
			}
			if !bytes.Equal(p, have) {
				t.Fatalf("round %d: block %d holds a mixture of writes", round, b)
			}
			ok := seq == blocks[b].flushed
			for _, s := range blocks[b].tried {
				ok = ok || s == seq
			}
			if !ok {
				t.Fatalf("round %d: block %d holds write %#x; flushed was %#x, tried since: %#x",
					round, b, seq, blocks[b].flushed, blocks[b].tried)
			}
			blocks[b] = killed{flushed: seq} // Close has flushed
		}
	}
}

// kill runs a child for some time after it has opened the image, and notes
// what it did.
func kill(t *testing.T, path string, seed uint64, after time.Duration, blocks []killed) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childImage+"="+path, fmt.Sprint(childSeed, "=", seed))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	opened := false
	for lines.Scan() {
		var kind string
		var b int
		var seq uint64
		if lines.Text() == "open" {
			opened = true
			time.AfterFunc(after, func() { cmd.Process.Kill() })
			continue
		}
		// The last line may be cut short.
		if n, _ := fmt.Sscanf(lines.Text(), "%s %d %d", &kind, &b, &seq); n < 3 {
			continue
		}
		switch kind {
		case "i":
			blocks[b].tried = append(blocks[b].tried, seq)
		case "f":
			// The writer has tried nothing since.
			blocks[b] = killed{flushed: seq}
		}
	}
	err = cmd.Wait()
	require.True(t, opened, "the child said nothing: %v %s", err, stderr.String())
	require.Empty(t, stderr.String(), "the child failed")
}
