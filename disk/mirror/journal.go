package mirror

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/vmkit-go/vmkit/disk"
)

// JournalSize is the least size in bytes of a disk for a [Journal].
const JournalSize = 64 << 10

// Layout of a journal: two copies of the record, then a bitmap with a bit for
// each region of the disk, in sectors that are each written whole or not at
// all. A sector that is damaged or belongs to another move counts as all ones.
const (
	recordSize = 4096
	bitsOff    = 2 * recordSize
	sectorSize = 512
	sectorHead = 16 // move, index, checksum
	sectorBits = (sectorSize - sectorHead) * 8

	maxRegions  = 1 << 16
	maxSize     = 1 << 46 // bytes of a disk; more would need too much memory
	minRegion   = 20      // log2 of bytes
	maxName     = 1900
	journalTag  = "vmkitmir"
	journalVers = 1
)

// Offsets in a record. One without names fits the first sector, which is
// written whole or not at all.
const (
	recTag     = 0
	recCRC     = 8 // of the record with this field zero
	recVersion = 12
	recSeq     = 16
	recMove    = 24
	recSize    = 32
	recPhase   = 40
	recShift   = 44
	recSource  = 48 // lengths
	recTarget  = 50
	recNames   = 64
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type phase uint32

const (
	phaseNone phase = iota
	phaseMoving
	phaseMoved
)

// Record is what a journal says of the last move.
type Record struct {
	// Source and Target are the names of the two sides, from disk.Info.
	Source, Target string
	// Size is that of the disk in bytes.
	Size int64
	// Moved means that the move is finished and Target counts. Otherwise
	// the move was interrupted and Source counts.
	Moved bool
}

// Current is the name of the side that counts.
func (r Record) Current() string {
	if r.Moved {
		return r.Target
	}
	return r.Source
}

// record is a record as it is stored.
type record struct {
	seq   uint64
	move  uint64 // chosen at random for each move
	phase phase
	shift uint // log2 of the size of a region in bytes
	Record
}

// Journal makes moves survive crashes. It holds one move at a time, the last.
// Its methods may be called concurrently.
type Journal struct {
	b disk.Backend

	mu     sync.Mutex
	rec    record
	behind bool // the second copy is older than the first
}

// OpenJournal returns the journal on b, at least JournalSize bytes, and makes
// one if b is blank. The caller closes b after the Disk that uses the journal.
// Anything else than zeroes or a journal is an error wrapping ErrJournal.
func OpenJournal(b disk.Backend) (*Journal, error) {
	j := &Journal{b: b}
	if b.Size() < JournalSize {
		return nil, fmt.Errorf("%s: %w: %d bytes, want %d", j.name(), ErrJournal, b.Size(), int64(JournalSize))
	}
	var p [2 * recordSize]byte
	if _, err := b.ReadAt(p[:], 0); err != nil {
		return nil, err
	}
	var recs [2]record
	var errs [2]error
	for i := range recs {
		recs[i], errs[i] = parseRecord(p[i*recordSize:][:recordSize])
	}
	newest := 0
	switch {
	case errs[0] == nil && errs[1] == nil:
		if recs[1].seq > recs[0].seq {
			newest = 1
		}
	case errs[0] == nil:
	case errs[1] == nil:
		newest = 1
	case isZero(p[:]): // blank
	default:
		return nil, fmt.Errorf("%s: %w: offset 0: %w; offset %d: %w", j.name(), ErrJournal, errs[0], recordSize, errs[1])
	}
	// Both copies are made good, so that one of them always is: a record is
	// written to the first, and when that is durable to the second.
	j.rec = recs[newest]
	if errs[0] != nil || errs[1] != nil || recs[0].seq != recs[1].seq {
		j.rec.seq++
		for i := range recs {
			if err := j.put((newest + 1 + i) % 2); err != nil {
				return nil, err
			}
		}
	}
	return j, nil
}

func (j *Journal) name() string { return j.b.Info().Name }

// Record returns what the journal says, or false if it holds no move.
func (j *Journal) Record() (Record, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.rec.Record, j.rec.phase != phaseNone
}

// Clear forgets the move, durably. After a finished one, the caller first makes
// sure that it will open the target itself.
func (j *Journal) Clear() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.commit(record{})
}

// begin records the start of a move.
func (j *Journal) begin(r record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.commit(r)
}

// again makes the record durable once more, with a higher number.
func (j *Journal) again() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.commit(j.rec)
}

// moved records that the target counts.
func (j *Journal) moved() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := j.rec
	r.phase, r.Moved = phaseMoved, true
	return j.commit(r)
}

// commit makes r durable. When it returns an error, a crash may bring up r or
// the record before it. The caller holds mu.
func (j *Journal) commit(r record) error {
	if j.behind {
		if err := j.put(1); err != nil {
			return err
		}
		j.behind = false
	}
	old := j.rec
	r.seq = old.seq + 1
	j.rec = r
	if err := j.put(0); err != nil {
		j.rec = old
		j.rec.seq++ // whatever comes next counts more than what failed
		return err
	}
	j.behind = true
	return nil
}

// settle brings the second copy up to date.
func (j *Journal) settle() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.behind {
		return nil
	}
	err := j.put(1)
	j.behind = err != nil
	return err
}

// put makes copy i of the record durable.
func (j *Journal) put(i int) error {
	p, err := j.rec.encode()
	if err != nil {
		return fmt.Errorf("%s: %w: %w", j.name(), ErrJournal, err)
	}
	if _, err := j.b.WriteAt(p, int64(i*recordSize)); err != nil {
		return err
	}
	return j.b.Flush()
}

func (r record) encode() ([]byte, error) {
	if len(r.Source) > maxName || len(r.Target) > maxName {
		return nil, fmt.Errorf("a name has more than %d bytes", maxName)
	}
	p := make([]byte, recordSize)
	le := binary.LittleEndian
	copy(p[recTag:], journalTag)
	le.PutUint32(p[recVersion:], journalVers)
	le.PutUint64(p[recSeq:], r.seq)
	le.PutUint64(p[recMove:], r.move)
	le.PutUint64(p[recSize:], uint64(r.Size))
	le.PutUint32(p[recPhase:], uint32(r.phase))
	le.PutUint32(p[recShift:], uint32(r.shift))
	le.PutUint16(p[recSource:], uint16(len(r.Source)))
	le.PutUint16(p[recTarget:], uint16(len(r.Target)))
	copy(p[recNames:], r.Source)
	copy(p[recNames+len(r.Source):], r.Target)
	putSum(p)
	return p, nil
}

func putSum(p []byte) {
	clear(p[recCRC:][:4])
	binary.LittleEndian.PutUint32(p[recCRC:], crc32.Checksum(p, castagnoli))
}

func parseRecord(b []byte) (r record, err error) {
	p := bytes.Clone(b)
	le := binary.LittleEndian
	if string(p[recTag:][:len(journalTag)]) != journalTag {
		return r, fmt.Errorf("no journal of a mirror")
	}
	sum := le.Uint32(p[recCRC:])
	le.PutUint32(p[recCRC:], 0)
	if got := crc32.Checksum(p, castagnoli); got != sum {
		return r, fmt.Errorf("checksum is %#x, want %#x", got, sum)
	}
	if v := le.Uint32(p[recVersion:]); v != journalVers {
		return r, fmt.Errorf("version %d is not known", v)
	}
	size, shift := le.Uint64(p[recSize:]), le.Uint32(p[recShift:])
	source, target := int(le.Uint16(p[recSource:])), int(le.Uint16(p[recTarget:]))
	r.phase = phase(le.Uint32(p[recPhase:]))
	switch {
	case r.phase > phaseMoved:
		return record{}, fmt.Errorf("phase %d is not known", r.phase)
	case source > maxName || target > maxName:
		return record{}, fmt.Errorf("names of %d and %d bytes", source, target)
	case r.phase != phaseNone && (size > maxSize || shift != uint32(regionShift(int64(size)))):
		return record{}, fmt.Errorf("size %d with regions of 1<<%d bytes", size, shift)
	}
	r.seq, r.move = le.Uint64(p[recSeq:]), le.Uint64(p[recMove:])
	if r.phase != phaseNone {
		r.Size, r.shift, r.Moved = int64(size), uint(shift), r.phase == phaseMoved
		r.Source = string(p[recNames:][:source])
		r.Target = string(p[recNames+source:][:target])
	}
	return r, nil
}

// regionShift is log2 of the size of a region of a disk of size bytes.
func regionShift(size int64) uint {
	shift := uint(minRegion)
	for size>>shift >= maxRegions {
		shift++
	}
	return shift
}

// regions is the number of regions of r's disk, less than maxRegions + 1.
func (r record) regions() int64 { return (r.Size + 1<<r.shift - 1) >> r.shift }

// writeBits writes the sectors of move's bitmap in which a bit of changed is
// set, with the content of set, and makes them durable if flush is set.
func (j *Journal) writeBits(move uint64, set, changed bitmap, flush bool) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.rec.phase != phaseMoving || j.rec.move != move {
		return fmt.Errorf("%s: %w: it holds another move", j.name(), ErrJournal)
	}
	n := j.rec.regions()
	for at := changed.next(0); at >= 0 && at < n; {
		index := at / sectorBits
		var p [sectorSize]byte
		binary.LittleEndian.PutUint64(p[:], j.rec.move)
		binary.LittleEndian.PutUint32(p[8:], uint32(index))
		for i := index * sectorBits; i < min(n, (index+1)*sectorBits); i++ {
			if set.has(i) {
				k := i - index*sectorBits
				p[sectorHead+k/8] |= 1 << (k % 8)
			}
		}
		binary.LittleEndian.PutUint32(p[12:], crc32.Checksum(p[:], castagnoli))
		if _, err := j.b.WriteAt(p[:], bitsOff+index*sectorSize); err != nil {
			return err
		}
		at = changed.next((index + 1) * sectorBits)
	}
	if flush {
		return j.b.Flush()
	}
	return nil
}

// readBits returns the regions in which the two sides may differ.
func (j *Journal) readBits() (bitmap, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := j.rec.regions()
	set := newBitmap(n)
	for first := int64(0); first < n; first += sectorBits {
		var p [sectorSize]byte
		index := first / sectorBits
		if _, err := j.b.ReadAt(p[:], bitsOff+index*sectorSize); err != nil {
			return nil, err
		}
		sum := binary.LittleEndian.Uint32(p[12:])
		clear(p[12:16])
		ok := crc32.Checksum(p[:], castagnoli) == sum && binary.LittleEndian.Uint64(p[:]) == j.rec.move &&
			binary.LittleEndian.Uint32(p[8:]) == uint32(index)
		for k := range min(n-first, sectorBits) {
			if !ok || p[sectorHead+k/8]>>(k%8)&1 != 0 {
				set.set(first + k)
			}
		}
	}
	return set, nil
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
