package image_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
)

// TestMain lets the test binary be a program that publishes a disk.
func TestMain(m *testing.M) {
	if dir := os.Getenv("IMAGE_TEST_PACK"); dir != "" {
		if err := packChild(dir, os.Getenv("IMAGE_TEST_SEED")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func killContent(seed string) []byte {
	n, _ := strconv.ParseUint(seed, 10, 64)
	base := sparse(rand.New(rand.NewPCG(1, 1)), 6<<20)
	copy(base[n%5<<20:], sparse(rand.New(rand.NewPCG(n, 2)), 1<<20))
	return base
}

func packChild(dir, seed string) error {
	content := killContent(seed)
	m, err := disk.NewMemory("child", int64(len(content)))
	if err != nil {
		return err
	}
	if _, err := m.WriteAt(content, 0); err != nil {
		return err
	}
	cfg := image.PackConfig{Dir: dir, Label: seed, PackSize: 512 << 10}
	cfg.Previous, err = image.Open(context.Background(), fetch.Dir(dir), "manifest.json", image.Config{AllowUnsigned: true})
	if err != nil && !errors.Is(err, fetch.ErrNotFound) {
		return err
	}
	if err != nil {
		cfg.Previous = nil
	}
	_, err = image.Pack(context.Background(), m, cfg)
	return err
}

// TestKill kills programs that publish version after version over one another.
// Whenever there is a manifest, all of its version is there.
func TestKill(t *testing.T) {
	rounds := 15
	if s := os.Getenv("VMKIT_SOAK"); s != "" {
		var err error
		rounds, err = strconv.Atoi(s)
		require.NoError(t, err, "VMKIT_SOAK")
	} else if testing.Short() {
		rounds = 3
	}
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	span, killed := 100*time.Millisecond, 0
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		var msg strings.Builder
		cmd.Stderr = &msg
		cmd.Env = append(os.Environ(), "IMAGE_TEST_PACK="+dir, "IMAGE_TEST_SEED="+strconv.Itoa(round))
		start := time.Now()
		require.NoError(t, cmd.Start())
		timer := time.AfterFunc(rand.N(span), func() { cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		if err != nil {
			require.Empty(t, msg.String())
			killed++
		} else {
			// Keep the kills within what a whole run takes here.
			span = max(time.Since(start), time.Millisecond)
		}
		if err != nil && r.IntN(3) == 0 {
			span = min(2*span, time.Minute)
		}
		img, err := image.Open(t.Context(), fetch.Dir(dir), "manifest.json", image.Config{AllowUnsigned: true})
		if errors.Is(err, fetch.ErrNotFound) {
			continue
		}
		require.NoError(t, err)
		requireContent(t, img, killContent(img.Manifest().Label))
	}
	t.Logf("%d of %d were killed", killed, rounds)

	// A last one cleans up.
	require.NoError(t, packChild(dir, "777"))
	img, err := image.Open(t.Context(), fetch.Dir(dir), "manifest.json", image.Config{AllowUnsigned: true})
	require.NoError(t, err)
	requireContent(t, img, killContent("777"))
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		require.False(t, strings.HasPrefix(filepath.Base(path), "."), "%s stays", path)
		return err
	}))
}

// Two at once in a directory would remove one another's files.
func TestPackLock(t *testing.T) {
	dir := t.TempDir()
	b := memory(t, sparse(rand.New(rand.NewPCG(1, 1)), 4<<20))
	inner := errors.New("not called")
	_, err := image.Pack(t.Context(), b, image.PackConfig{Dir: dir, Progress: func(image.Progress) {
		_, inner = image.Pack(t.Context(), b, image.PackConfig{Dir: dir})
	}})
	require.NoError(t, err)
	require.ErrorIs(t, inner, disk.ErrLocked)
	require.ErrorContains(t, inner, dir)
}
