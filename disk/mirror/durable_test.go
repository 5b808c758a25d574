package mirror

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
)

const regionSize = 1 << minRegion

// gated is a disk whose flushes wait for a word, if asked to.
type gated struct {
	disk.Backend
	gate chan chan struct{}
}

func (g gated) Flush() error {
	select {
	case c := <-g.gate:
		c <- struct{}{} // it is flushing
		<-c
	default:
	}
	return g.Backend.Flush()
}

// startInStep returns a disk in step with target that makes no checkpoint by
// itself.
func startInStep(t *testing.T, source, target disk.Backend, j *Journal) (*Disk, *Move) {
	d, err := New(source, j)
	require.NoError(t, err)
	v, err := d.Start(t.Context(), target, Config{Hold: true, Checkpoint: time.Hour})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return v.Progress().Phase == InStep }, time.Minute, time.Millisecond)
	return d, v
}

// settled waits until no change is on its way to the target.
func settled(t *testing.T, v *Move) {
	require.Eventually(t, func() bool { return v.Progress().Left == 0 }, time.Minute, time.Millisecond)
}

// A mark is taken back only when both sides have on their medium what was
// changed, or a power cut would leave them different where nothing is marked.
func TestCheckpointFlushesBothSides(t *testing.T) {
	for seed := range uint64(12) { // of what the power cut leaves
		j, _ := newJournal(t)
		const size = 4 * regionSize
		a, b := disktest.NewVolatile("a", size), disktest.NewVolatile("b", size)
		d, v := startInStep(t, a, b, j)
		p := bytes.Repeat([]byte{7}, 64<<10)
		_, err := d.WriteAt(p, regionSize)
		require.NoError(t, err)
		settled(t, v)
		for range 2 { // the first sees that the region was changed
			require.NoError(t, v.m.checkpoint(t.Context()))
		}
		set, err := j.readBits()
		require.NoError(t, err)
		require.False(t, set.has(1), "the mark was not taken back")
		a.Cut()
		b.Cut()
		require.NoError(t, d.Close())
		r := rand.New(rand.NewPCG(seed, 1))
		for _, v := range []*disktest.Volatile{a.Reboot(r), b.Reboot(r)} {
			q := make([]byte, len(p))
			_, err := v.ReadAt(q, regionSize)
			require.NoError(t, err)
			require.True(t, bytes.Equal(p, q), "seed %d: %s lost what was changed, and nothing is marked", seed, v.Info().Name)
		}
	}
}

// A region that is changed while a checkpoint flushes stays marked.
func TestUnmarkSparesWhatIsChanged(t *testing.T) {
	j, _ := newJournal(t)
	const size = 4 * regionSize
	source, err := disk.NewMemory("a", size)
	require.NoError(t, err)
	target, err := disk.NewMemory("b", size)
	require.NoError(t, err)
	g := gated{target, make(chan chan struct{}, 1)}
	d, v := startInStep(t, source, g, j)
	word := make(chan struct{})
	g.gate <- word
	done := make(chan error, 1)
	go func() { done <- v.m.checkpoint(t.Context()) }()
	select {
	case <-word:
	case err := <-done:
		require.Fail(t, "the checkpoint did not flush the target", err)
	}
	_, err = d.WriteAt([]byte{1}, regionSize)
	require.NoError(t, err)
	word <- struct{}{}
	require.NoError(t, <-done)
	set, err := j.readBits()
	require.NoError(t, err)
	require.True(t, set.has(1), "the mark of a region that was changed was taken back")
	require.False(t, set.has(0), "no mark was taken back")
	require.NoError(t, d.Close())
}

// stuck is a journal's disk that fails from one moment on.
type stuck struct {
	disk.Backend
	fails bool
}

func (s *stuck) WriteAt(p []byte, off int64) (int, error) {
	if s.fails {
		return 0, errors.New("no answer")
	}
	return s.Backend.WriteAt(p, off)
}

// A journal that could not be cleared when its move was given up, and comes back
// with what it held, is not believed: the source says so.
func TestJournalComesBack(t *testing.T) {
	const size = 4 * regionSize
	name := filepath.Join(t.TempDir(), "a.img")
	source, err := disk.Create(name, size, disk.FileConfig{})
	require.NoError(t, err)
	target, err := disk.NewMemory("b", size)
	require.NoError(t, err)
	small, err := disk.NewMemory("journal", JournalSize)
	require.NoError(t, err)
	s := &stuck{Backend: small}
	j, err := OpenJournal(s)
	require.NoError(t, err)
	d, v := startInStep(t, source, target, j)
	for range 2 {
		require.NoError(t, v.m.checkpoint(t.Context()))
	}
	s.fails = true
	v.m.cfg.Patience = 50 * time.Millisecond
	v.Cancel()
	err = v.Wait(t.Context())
	require.ErrorIs(t, err, ErrCanceled)
	require.ErrorIs(t, err, ErrJournal)
	require.ErrorContains(t, err, "the source says")
	// No mark covers this.
	_, err = d.WriteAt([]byte{9}, 2*regionSize)
	require.NoError(t, err)
	require.NoError(t, d.Close())

	s.fails = false
	j, err = OpenJournal(s)
	require.NoError(t, err)
	rec, ok := j.Record()
	require.True(t, ok)
	require.False(t, rec.Moved)
	source, err = disk.Open(name, disk.FileConfig{})
	require.NoError(t, err)
	d, err = New(source, j)
	require.NoError(t, err)
	_, ok = j.Record()
	require.False(t, ok, "the journal still holds the move")
	v, err = d.Start(t.Context(), target, Config{})
	require.NoError(t, err)
	require.NoError(t, v.Wait(t.Context()))
	p := make([]byte, 1)
	_, err = target.ReadAt(p, 2*regionSize)
	require.NoError(t, err)
	require.EqualValues(t, 9, p[0])
	require.NoError(t, d.Close())
}

// Where the source keeps no notes, the error says that the journal must not be
// used.
func TestJournalLost(t *testing.T) {
	const size = 4 * regionSize
	source, err := disk.NewMemory("a", size)
	require.NoError(t, err)
	target, err := disk.NewMemory("b", size)
	require.NoError(t, err)
	small, err := disk.NewMemory("journal", JournalSize)
	require.NoError(t, err)
	s := &stuck{Backend: small}
	j, err := OpenJournal(s)
	require.NoError(t, err)
	d, v := startInStep(t, source, target, j)
	s.fails = true
	v.m.cfg.Patience = 50 * time.Millisecond
	v.Cancel()
	err = v.Wait(t.Context())
	require.ErrorIs(t, err, ErrJournal)
	require.ErrorContains(t, err, "must not be used")
	require.NoError(t, d.Close())
}
