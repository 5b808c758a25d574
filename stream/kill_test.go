package stream_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/stream"
	"github.com/vmkit-go/vmkit/stream/cache"
	"github.com/vmkit-go/vmkit/stream/image"
)

// childCache is set for the process that streams until it is killed.
const childCache = "VMKIT_STREAM_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childCache); dir != "" {
		if err := streamForever(dir, os.Getenv(childCache+"_FROM")); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// streamForever reads from all over the disk and checks what it gets.
func streamForever(dir, location string) error {
	want, err := os.ReadFile(filepath.Dir(location) + "/want")
	if err != nil {
		return err
	}
	c, err := cache.Open(dir, cache.Config{BatchBytes: 256 << 10, BatchTime: 2 * time.Millisecond})
	if err != nil {
		return err
	}
	d, err := stream.Open(context.Background(), location, stream.Config{Cache: c, Image: image.Config{AllowUnsigned: true}})
	if err != nil {
		return err
	}
	d.Backfill()
	fmt.Println("open")
	for {
		off := rand.Int64N(d.Size())
		p := make([]byte, 1+rand.Int64N(min(100_000, d.Size()-off)))
		n, err := d.ReadAt(p, off)
		if err != nil {
			return err
		}
		if !bytes.Equal(p, want[off:][:n]) {
			return fmt.Errorf("wrong content in %d bytes at %d", n, off)
		}
	}
}

func rounds(few int) int {
	if n, err := strconv.Atoi(os.Getenv("VMKIT_SOAK")); err == nil && n > 0 {
		return n
	}
	return few
}

// TestKill kills a process that streams, at random moments. What its cache
// holds afterwards is right, and only grows.
func TestKill(t *testing.T) {
	p := publish(t, 12<<20, image.PackConfig{})
	require.NoError(t, os.WriteFile(p.dir+"/want", p.want, 0o600))
	dir := t.TempDir()
	last := 0
	few := 200
	if testing.Short() {
		few = 10
	}
	for round := range rounds(few) {
		if round%8 == 7 {
			// A new cache now and then, so that something is left to fetch.
			require.NoError(t, os.RemoveAll(dir))
			last = 0
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childCache+"="+dir, childCache+"_FROM="+p.location())
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		s := bufio.NewScanner(out)
		require.True(t, s.Scan())
		require.Equal(t, "open", s.Text())
		time.Sleep(time.Duration(rand.IntN(40_000)) * time.Microsecond)
		cmd.Process.Kill()
		require.False(t, s.Scan(), s.Text())
		cmd.Wait()

		c, err := cache.Open(dir, cache.Config{})
		require.NoError(t, err)
		require.GreaterOrEqual(t, c.Stats().Chunks, last, "round %d: chunks were lost", round)
		last = c.Stats().Chunks
		d := open(t, p, stream.Config{Cache: c, Offline: true, FailAfter: time.Nanosecond})
		require.NoError(t, p.img.Scan(t.Context(), func(k image.Chunk) error {
			if !c.Has(k.Hash) {
				return nil
			}
			got := make([]byte, k.Len)
			if _, err := d.ReadAt(got, k.Off); err != nil {
				return err
			}
			if !bytes.Equal(got, p.want[k.Off:k.End()]) {
				return errors.New("wrong content")
			}
			return nil
		}), "round %d", round)
		require.Zero(t, c.Stats().Damaged)
		require.NoError(t, d.Close())
		require.NoError(t, c.Close())
	}
}
