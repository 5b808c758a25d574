package cache

import (
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"sync"
)

// power is a computer whose files lose at a power cut what was not synced:
// each 512-byte sector of each later write is kept or not, at random, and the
// size is one that the file has had since.
type power struct {
	mu    sync.Mutex
	r     *rand.Rand
	files map[string]*cutFile
	left  int // writes and syncs until the cut; negative: none
	off   bool
	// wrong, if not nil, is the error of the next write or sync of a file.
	wrong map[string]error
}

var errCut = errors.New("power cut")

func newPower(seed uint64) *power {
	return &power{r: rand.New(rand.NewPCG(seed, 7)), files: map[string]*cutFile{}, left: -1, wrong: map[string]error{}}
}

type cutFile struct {
	p       *power
	name    string
	content []byte // as the running system sees it
	durable []byte
	writes  []cutWrite // since the last sync; data nil: a truncation
}

type cutWrite struct {
	off  int64
	data []byte
	cut  bool
}

func (p *power) open(path string) (file, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := filepath.Base(path)
	if p.files[name] == nil {
		p.files[name] = &cutFile{p: p, name: name}
	}
	return p.files[name], nil
}

// step is one operation that a cut can come before. The caller holds mu.
func (f *cutFile) step() error {
	p := f.p
	if p.left == 0 {
		p.off = true
	}
	p.left--
	if p.off {
		return errCut
	}
	if err := p.wrong[f.name]; err != nil {
		delete(p.wrong, f.name)
		return err
	}
	return nil
}

func apply(b []byte, off int64, data []byte) []byte {
	if n := off + int64(len(data)); n > int64(len(b)) {
		b = append(b, make([]byte, n-int64(len(b)))...)
	}
	copy(b[off:], data)
	return b
}

func (f *cutFile) WriteAt(b []byte, off int64) (int, error) {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	if err := f.step(); err != nil {
		return 0, err
	}
	f.content = apply(f.content, off, b)
	f.writes = append(f.writes, cutWrite{off: off, data: append([]byte{}, b...)})
	return len(b), nil
}

func (f *cutFile) ReadAt(b []byte, off int64) (int, error) {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	if off >= int64(len(f.content)) {
		return 0, io.EOF
	}
	n := copy(b, f.content[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *cutFile) Truncate(size int64) error {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	if err := f.step(); err != nil {
		return err
	}
	f.content = resize(f.content, size)
	f.writes = append(f.writes, cutWrite{off: size, cut: true})
	return nil
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

func (f *cutFile) Sync() error {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	if err := f.step(); err != nil {
		return err
	}
	f.durable, f.writes = append([]byte{}, f.content...), nil
	return nil
}

func (f *cutFile) Size() (int64, error) {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	return int64(len(f.content)), nil
}

func (f *cutFile) Close() error { return nil }

// cut turns the power off and on.
func (p *power) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.files {
		b := append([]byte{}, f.durable...)
		for _, w := range f.writes {
			if w.cut {
				if p.r.IntN(2) == 0 {
					b = resize(b, w.off)
				}
				continue
			}
			for i := 0; i < len(w.data); i += 512 {
				if p.r.IntN(2) == 0 {
					b = apply(b, w.off+int64(i), w.data[i:min(i+512, len(w.data))])
				}
			}
		}
		f.content, f.durable, f.writes = b, append([]byte{}, b...), nil
	}
	p.off, p.left, p.wrong = false, -1, map[string]error{}
}
