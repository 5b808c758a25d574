package stream

import (
	"container/list"
	"sync"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/stream/image"
)

// state is what has become of a chunk.
type state uint32

const (
	absent     state = iota // has not come yet, as far as is known
	prefetched              // is there, and was not read
	fetched                 // came because it was read
	used                    // was there when it was read
	states
)

// chunkMap has the state of each chunk. It is what the user is shown; whether
// a chunk is there is for the cache to say.
type chunkMap struct {
	s     []atomic.Uint32
	count [states]atomic.Int64
}

func (m *chunkMap) init(n int) {
	m.s = make([]atomic.Uint32, n)
	m.count[absent].Store(int64(n))
}

func (m *chunkMap) get(n int) state { return state(m.s[n].Load()) }

func (m *chunkMap) set(n int, to state) {
	if old := state(m.s[n].Swap(uint32(to))); old != to {
		m.count[old].Add(-1)
		m.count[to].Add(1)
	}
}

// use notes that a chunk was read, which was there. It reports whether that is
// news.
func (m *chunkMap) use(n int) bool {
	old := m.s[n].Load()
	if s := state(old); s != absent && s != prefetched || !m.s[n].CompareAndSwap(old, uint32(used)) {
		return false
	}
	m.count[old].Add(-1)
	m.count[used].Add(1)
	return true
}

// memory keeps the chunks that no cache takes: those used last, in a bounded
// number of bytes.
type memory struct {
	mu    sync.Mutex
	limit int64
	bytes int64
	index map[image.Hash]*list.Element
	order list.List // of *kept, the last used in front
}

type kept struct {
	hash image.Hash
	data []byte
}

func newMemory(limit int64) *memory {
	return &memory{limit: limit, index: map[image.Hash]*list.Element{}}
}

func (m *memory) has(h image.Hash) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.index[h] != nil
}

// get returns a chunk, which must not be changed.
func (m *memory) get(h image.Hash) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.index[h]
	if e == nil {
		return nil
	}
	m.order.MoveToFront(e)
	return e.Value.(*kept).data
}

func (m *memory) put(h image.Hash, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.index[h] != nil {
		return
	}
	m.index[h] = m.order.PushFront(&kept{h, data})
	m.bytes += int64(len(data))
	for m.bytes > m.limit && m.order.Len() > 1 {
		k := m.order.Remove(m.order.Back()).(*kept)
		delete(m.index, k.hash)
		m.bytes -= int64(len(k.data))
	}
}

// room reports whether what is prefetched would stay a while.
func (m *memory) room() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes < m.limit/2
}
