package mirror

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
)

func newJournal(t testing.TB) (*Journal, *disk.Memory) {
	b, err := disk.NewMemory("journal", JournalSize)
	require.NoError(t, err)
	j, err := OpenJournal(b)
	require.NoError(t, err)
	return j, b
}

func testRecord(size int64) record {
	return record{move: 77, phase: phaseMoving, shift: regionShift(size), Record: Record{Source: "a.img", Target: "b.img", Size: size}}
}

func TestRegions(t *testing.T) {
	for _, size := range []int64{0, 1, 1 << 20, 1<<20 + 1, 1 << 36, 1<<36 + 1, 1<<40 + 7, maxSize} {
		r := testRecord(size)
		n := r.regions()
		require.LessOrEqual(t, n, int64(maxRegions))
		require.GreaterOrEqual(t, n<<r.shift, size)
		require.LessOrEqual(t, bitsOff+(n/sectorBits+1)*sectorSize, int64(JournalSize))
	}
}

func TestJournalKeeps(t *testing.T) {
	j, b := newJournal(t)
	_, ok := j.Record()
	require.False(t, ok)
	r := testRecord(1 << 40)
	require.NoError(t, j.begin(r))
	// The bitmap of a new move has every bit set, without being written.
	set, err := j.readBits()
	require.NoError(t, err)
	require.True(t, set.all(0, r.regions()-1))

	want, all := newBitmap(r.regions()), newBitmap(r.regions())
	all.setRange(0, r.regions()-1)
	for i := int64(0); i < r.regions(); i += 1 + i%977 {
		want.set(i)
	}
	require.NoError(t, j.writeBits(r.move, want, all, true))
	require.ErrorIs(t, j.writeBits(r.move+1, want, all, true), ErrJournal)
	j, err = OpenJournal(b)
	require.NoError(t, err)
	set, err = j.readBits()
	require.NoError(t, err)
	require.Equal(t, want, set)

	// A damaged sector is all ones.
	_, err = b.WriteAt([]byte{1}, bitsOff+sectorSize+100)
	require.NoError(t, err)
	set, err = j.readBits()
	require.NoError(t, err)
	require.True(t, set.all(sectorBits, 2*sectorBits-1))
	require.Equal(t, want[:sectorBits/64], set[:sectorBits/64])

	require.NoError(t, j.moved())
	j, err = OpenJournal(b)
	require.NoError(t, err)
	got, ok := j.Record()
	require.True(t, ok)
	require.Equal(t, Record{Source: "a.img", Target: "b.img", Size: 1 << 40, Moved: true}, got)
	require.NoError(t, j.Clear())
	j, err = OpenJournal(b)
	require.NoError(t, err)
	_, ok = j.Record()
	require.False(t, ok)
}

// One damaged copy of a record does not matter, once Open has returned.
func TestJournalDamaged(t *testing.T) {
	for i := range 2 {
		j, b := newJournal(t)
		require.NoError(t, j.begin(testRecord(1<<30)))
		require.NoError(t, j.settle())
		require.NoError(t, j.moved())
		require.NoError(t, j.settle())
		_, err := b.WriteAt([]byte{0xee}, int64(i*recordSize)+recSize)
		require.NoError(t, err)
		j, err = OpenJournal(b)
		require.NoError(t, err)
		r, _ := j.Record()
		require.True(t, r.Moved)
		_, err = b.WriteAt([]byte{0xee}, int64((1-i)*recordSize)+recSize)
		require.NoError(t, err)
		j, err = OpenJournal(b)
		require.NoError(t, err)
		r, _ = j.Record()
		require.True(t, r.Moved)
	}
	_, b := newJournal(t)
	for _, off := range []int64{recSize, recordSize + recSize} {
		_, err := b.WriteAt([]byte{0xee}, off)
		require.NoError(t, err)
	}
	_, err := OpenJournal(b)
	require.ErrorIs(t, err, ErrJournal)
	require.ErrorContains(t, err, "journal")
	require.ErrorContains(t, err, "offset 4096")
	small, err := disk.NewMemory("small", 4096)
	require.NoError(t, err)
	_, err = OpenJournal(small)
	require.ErrorIs(t, err, ErrJournal)
	other, err := disk.NewMemory("other", JournalSize)
	require.NoError(t, err)
	_, err = other.WriteAt([]byte("some other file"), 0)
	require.NoError(t, err)
	_, err = OpenJournal(other)
	require.ErrorIs(t, err, ErrJournal)
}

// Wherever the power is cut, the journal holds what was committed last or what
// was being committed, and marks that were durable stay set.
func TestJournalPowerCuts(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 3))
		v := disktest.NewVolatile("journal", JournalSize)
		var may []record // what may be found
		now := record{}
		rec := testRecord(1 << 33)
		sure := newBitmap(rec.regions()) // marks that must be found
		for boot := range 4 {
			j, err := OpenJournal(v)
			require.NoError(t, err, "seed %d boot %d", seed, boot)
			if boot > 0 {
				ok := false
				for _, m := range may {
					ok = ok || j.rec.Record == m.Record && j.rec.phase == m.phase && j.rec.move == m.move
				}
				require.True(t, ok, "seed %d boot %d: %+v, may be %+v", seed, boot, j.rec, may)
				if j.rec.phase == phaseMoving && j.rec.move == rec.move {
					set, err := j.readBits()
					require.NoError(t, err)
					for i := sure.next(0); i >= 0; i = sure.next(i + 1) {
						require.True(t, set.has(i), "seed %d boot %d: mark %d is lost", seed, boot, i)
					}
				}
				now = j.rec
			}
			v.CutAfter(r.IntN(40))
			for {
				next := record{}
				switch k := r.IntN(8); {
				case k == 0:
					rec.move = r.Uint64()
					rec.Target = string(bytes.Repeat([]byte{'x'}, r.IntN(maxName)))
					clear(sure)
					next = rec
					err = j.begin(rec)
				case k == 1 && now.phase == phaseMoving:
					next = now
					next.phase, next.Moved = phaseMoved, true
					err = j.moved()
				case k == 2:
					err = j.Clear()
				case k < 4:
					next = now
					err = j.settle()
				default:
					next = now
					if now.phase != phaseMoving || now.move != rec.move {
						continue
					}
					set, changed := newBitmap(rec.regions()), newBitmap(rec.regions())
					for range 20 {
						set.set(r.Int64N(rec.regions()))
					}
					changed.setRange(0, rec.regions()-1)
					if err = j.writeBits(rec.move, set, changed, true); err == nil {
						copy(sure, set)
					} else {
						for i := range sure { // both old and new may be there
							sure[i] &= set[i]
						}
					}
				}
				if err != nil {
					require.True(t, errors.Is(err, disktest.ErrPowerCut), "%v", err)
					may = []record{now, next}
					break
				}
				now = next
			}
			v = v.Reboot(r)
		}
	}
}

// Whatever a journal holds, opening it ends, with a record that makes sense or
// an error.
func FuzzJournal(f *testing.F) {
	enc := func(r record) []byte {
		p, err := r.encode()
		require.NoError(f, err)
		return p
	}
	r := testRecord(1 << 40)
	f.Add(enc(r), enc(record{}), []byte{1}, true)
	r.phase, r.seq = phaseMoved, 9
	f.Add(enc(r), enc(r), []byte{}, true)
	f.Add([]byte(journalTag), []byte{}, make([]byte, sectorSize), false)
	f.Fuzz(func(t *testing.T, one, two, marks []byte, sum bool) {
		b, err := disk.NewMemory("journal", JournalSize)
		require.NoError(t, err)
		for i, p := range [][]byte{one, two} {
			p = append(bytes.Clone(p[:min(len(p), recordSize)]), make([]byte, recordSize-min(len(p), recordSize))...)
			if sum {
				putSum(p)
			}
			_, err := b.WriteAt(p, int64(i*recordSize))
			require.NoError(t, err)
		}
		_, err = b.WriteAt(marks[:min(len(marks), JournalSize-bitsOff)], bitsOff)
		require.NoError(t, err)
		j, err := OpenJournal(b)
		if err != nil {
			require.ErrorIs(t, err, ErrJournal)
			return
		}
		rec, ok := j.Record()
		if !ok {
			return
		}
		require.LessOrEqual(t, len(rec.Source)+len(rec.Target), 2*maxName)
		require.GreaterOrEqual(t, rec.Size, int64(0))
		set, err := j.readBits()
		require.NoError(t, err)
		require.LessOrEqual(t, len(set), maxRegions/64)
		// It reads the same again.
		k, err := OpenJournal(b)
		require.NoError(t, err)
		require.Equal(t, j.rec, k.rec)
	})
}
