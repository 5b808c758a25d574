package disk

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/internal/buffers"
)

const (
	memChunk   = 64 << 10 // unit of allocation
	memLeaf    = 512      // chunks in a leaf: 32 MiB
	memStripes = 64       // locks over the chunks
)

// Memory is a disk in the host's memory. Only what was written takes space,
// and zeroing or discarding whole 64 KiB chunks gives it back. Nothing
// survives the process; Flush only checks that the disk is open.
type Memory struct {
	name   string
	size   atomic.Int64
	closed atomic.Bool

	// mu is held for writing while the size, and with it root, changes.
	mu      sync.RWMutex
	root    []atomic.Pointer[memTable]
	stripes [memStripes]sync.RWMutex
}

// memTable holds the chunks of 32 MiB; a nil one reads as zeroes. Each entry
// is guarded by the stripe of its chunk.
type memTable [memLeaf]*[memChunk]byte

// NewMemory returns an empty disk of size bytes that calls itself name in
// errors. The size is at most 64 TiB.
func NewMemory(name string, size int64) (*Memory, error) {
	m := &Memory{name: name}
	if err := m.Resize(size); err != nil {
		return nil, err
	}
	return m, nil
}

// Size is the number of bytes.
func (m *Memory) Size() int64 { return m.size.Load() }

// Info describes the disk.
func (m *Memory) Info() Info {
	return Info{Name: m.name, BlockSize: 4096, OptimalIO: memChunk, DiscardUnit: memChunk}
}

// ReadAt implements io.ReaderAt.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	bufs := [1][]byte{p}
	return m.ReadVAt(bufs[:], off)
}

// WriteAt implements io.WriterAt.
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	bufs := [1][]byte{p}
	return m.WriteVAt(bufs[:], off)
}

// TryReadVAt is ReadVAt, which never waits.
func (m *Memory) TryReadVAt(bufs [][]byte, off int64) (int, error) { return m.ReadVAt(bufs, off) }

// TryWriteVAt is WriteVAt, which never waits.
func (m *Memory) TryWriteVAt(bufs [][]byte, off int64) (int, error) { return m.WriteVAt(bufs, off) }

// ReadVAt implements [Vectored].
func (m *Memory) ReadVAt(bufs [][]byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	want := buffers.Len(bufs)
	if m.closed.Load() {
		return 0, &Error{"read", m.name, off, want, os.ErrClosed}
	}
	if off < 0 {
		return 0, &Error{"read", m.name, off, want, ErrRange}
	}
	end := m.size.Load()
	done := 0
	for _, p := range bufs {
		for len(p) > 0 {
			n := m.piece(off, end, len(p))
			if n <= 0 {
				return done, io.EOF
			}
			m.readChunk(p[:n], off)
			p, off, done = p[n:], off+int64(n), done+n
		}
	}
	return done, nil
}

// WriteVAt implements [Vectored].
func (m *Memory) WriteVAt(bufs [][]byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	want := buffers.Len(bufs)
	if err := m.check("write", off, want); err != nil {
		return 0, err
	}
	done := 0
	for _, p := range bufs {
		for len(p) > 0 {
			n := m.piece(off, m.size.Load(), len(p))
			m.writeChunk(p[:n], off)
			p, off, done = p[n:], off+int64(n), done+n
		}
	}
	return done, nil
}

// Flush checks that the disk is open.
func (m *Memory) Flush() error {
	if m.closed.Load() {
		return &Error{"flush", m.name, 0, 0, os.ErrClosed}
	}
	return nil
}

// Discard gives back the chunks that lie wholly in the range and leaves the
// rest of it.
func (m *Memory) Discard(off, n int64) error { return m.zero("discard", off, n, false) }

// WriteZeroes implements [Backend]; whole chunks are given back.
func (m *Memory) WriteZeroes(off, n int64, mayUnmap bool) error {
	return m.zero("write zeroes", off, n, true)
}

func (m *Memory) zero(op string, off, n int64, edges bool) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.check(op, off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		t := m.table(off)
		k := m.piece(off, end, memChunk)
		if t == nil {
			// Skip to the next table at once.
			off = min(end, (off/(memChunk*memLeaf)+1)*memChunk*memLeaf)
			continue
		}
		s := m.lock(off)
		s.Lock()
		c := &t[off/memChunk%memLeaf]
		switch {
		case k == memChunk:
			*c = nil
		case edges && *c != nil:
			clear((*c)[off%memChunk:][:k])
		}
		s.Unlock()
		off += int64(k)
	}
	return nil
}

// Resize implements [Resizer].
func (m *Memory) Resize(size int64) error {
	if size < 0 || size > 1<<46 {
		return &Error{"resize", m.name, 0, size, ErrRange}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed.Load() {
		return &Error{"resize", m.name, 0, size, os.ErrClosed}
	}
	if old := m.size.Load(); size < old {
		// What lies past the new end must be gone if the disk grows again.
		if k := int(size % memChunk); k != 0 {
			if t := m.table(size); t != nil {
				if c := t[size/memChunk%memLeaf]; c != nil {
					clear(c[k:])
				}
			}
		}
		first := (size + memChunk - 1) / memChunk
		for i := first; i < min((old+memChunk-1)/memChunk, (first+memLeaf-1)/memLeaf*memLeaf); i++ {
			if t := m.table(i * memChunk); t != nil {
				t[i%memLeaf] = nil
			}
		}
	}
	root := make([]atomic.Pointer[memTable], (size+memChunk*memLeaf-1)/(memChunk*memLeaf))
	for i := range min(len(root), len(m.root)) {
		root[i].Store(m.root[i].Load())
	}
	m.root = root
	m.size.Store(size)
	return nil
}

// Extent implements [Mapper].
func (m *Memory) Extent(off int64) (Extent, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.check("map", off, 1); err != nil {
		return Extent{}, err
	}
	size := m.size.Load()
	e := Extent{Off: off}
	for at := off; at < size; {
		has, next := false, (at/(memChunk*memLeaf)+1)*memChunk*memLeaf
		if t := m.table(at); t != nil {
			s := m.lock(at)
			s.RLock()
			has, next = t[at/memChunk%memLeaf] != nil, (at/memChunk+1)*memChunk
			s.RUnlock()
		}
		if at == off {
			e.Allocated, e.Zero = has, !has
		} else if has != e.Allocated {
			break
		}
		at = min(next, size)
		e.Len = at - off
	}
	return e, nil
}

// Close frees the content.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed.Store(true)
	m.root = nil
	return nil
}

// check is for requests that must lie within the disk. The caller holds mu.
func (m *Memory) check(op string, off, n int64) error {
	switch {
	case m.closed.Load():
		return &Error{op, m.name, off, n, os.ErrClosed}
	case !inside(off, n, m.size.Load()):
		return &Error{op, m.name, off, n, fmt.Errorf("%w: size is %d", ErrRange, m.size.Load())}
	}
	return nil
}

// piece is how many of n bytes at off lie in off's chunk and before end.
func (m *Memory) piece(off, end int64, n int) int {
	return int(min(int64(n), memChunk-off%memChunk, end-off))
}

func (m *Memory) table(off int64) *memTable { return m.root[off/(memChunk*memLeaf)].Load() }

func (m *Memory) lock(off int64) *sync.RWMutex { return &m.stripes[off/memChunk%memStripes] }

func (m *Memory) readChunk(p []byte, off int64) {
	s := m.lock(off)
	s.RLock()
	defer s.RUnlock()
	if t := m.table(off); t != nil {
		if c := t[off/memChunk%memLeaf]; c != nil {
			copy(p, c[off%memChunk:])
			return
		}
	}
	clear(p)
}

func (m *Memory) writeChunk(p []byte, off int64) {
	s := m.lock(off)
	s.Lock()
	defer s.Unlock()
	t := m.table(off)
	if t == nil {
		// Writers under other stripes may be doing the same.
		e := &m.root[off/(memChunk*memLeaf)]
		e.CompareAndSwap(nil, new(memTable))
		t = e.Load()
	}
	c := &t[off/memChunk%memLeaf]
	if *c == nil {
		*c = new([memChunk]byte)
	}
	copy((*c)[off%memChunk:], p)
}
