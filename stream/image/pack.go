package image

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/durable"
)

// PackConfig says how to publish a disk.
type PackConfig struct {
	// Dir is the directory to publish in; it is made if it does not exist.
	// Previous must be published there too.
	Dir string
	// Name is that of the manifest; empty means manifest.json. The manifest
	// is written last, and replaces an older one in one step.
	Name string
	// Previous is an earlier version. Its chunks are not stored again.
	Previous *Image
	// BootOrder lists the content that a boot reads, in the order in which
	// it does; chunks not of this disk are ignored. These chunks, where new,
	// go to packs of their own, in this order.
	BootOrder []Hash
	// BootProfile, if not nil, is published beside the image, for
	// [Image.BootProfile].
	BootProfile []byte
	// Label is any printable text, at most 256 bytes.
	Label string
	// Created is the time to note; zero means now.
	Created time.Time
	// Key signs the manifest, if not nil.
	Key ed25519.PrivateKey
	// Level is the effort of compression; 0 means zstd.SpeedDefault. The
	// same disk packed at the same level gives the same packs. What is in
	// BootOrder, which a guest waits for, is compressed as well as possible.
	Level zstd.EncoderLevel
	// PackSize is the size at which a pack ends and the next begins, in
	// bytes; 0 means 64 MiB.
	PackSize int64
	// Workers compress at the same time; 0 means one per CPU.
	Workers int
	// Progress, if not nil, is called from one goroutine now and then.
	Progress func(Progress)
}

// Progress is how far [Pack] is. All numbers are bytes.
type Progress struct {
	// Done of Size bytes of the disk are dealt with.
	Done, Size int64
	// Data bytes of them were not zero, and took Written bytes in new packs.
	Data, Written int64
}

// Summary is what [Pack] did. Lengths are bytes.
type Summary struct {
	// Manifest is the path of the manifest, and ID names the version.
	Manifest string
	ID       Hash
	// Size is that of the disk, of which Data lie in Chunks chunks.
	Size, Data int64
	Chunks     int
	// Unique chunks differ from one another; their content is UniqueData,
	// and they take Compressed bytes in packs.
	Unique                 int
	UniqueData, Compressed int64
	// Of these, New chunks are not in the previous version, and take
	// NewBytes in new packs, BootBytes of them in boot packs.
	New                 int
	NewBytes, BootBytes int64
	// Index is the size of the index.
	Index int64
	// Packs are referred to, of which NewPacks were written.
	Packs, NewPacks int
}

// packer is the state of one Pack.
type packer struct {
	cfg  PackConfig
	src  disk.Backend
	boot map[Hash]bool

	mu    sync.RWMutex
	known map[Hash]place // by the writer, read by workers

	entries []entry
	data    packWriter
	spool   *os.File // frames of BootOrder, in the order of the disk
	spooled int64
	sum     Summary
	scanned atomic.Int64
}

// place is where a chunk is, by a number of the pack that is mapped to the
// final one at the end.
type place struct {
	pack packID
	off  int64
	len  int
}

// packID is a pack of one of three kinds.
type packID struct {
	kind int
	n    int
}

const (
	bootPack = iota
	dataPack
	oldPack
	spoolFile // becomes bootPack
)

type entry struct {
	off  int64
	len  int
	hash Hash
}

// job is a chunk on its way from the cutter over a worker to the writer.
type job struct {
	off     int64
	content []byte
	hash    Hash
	frame   []byte // nil if the chunk is known
	err     error
	done    chan struct{}
}

// Pack publishes the disk src, of which it reads everything, and leaves the
// files of other versions in the directory alone. The disk must not change
// meanwhile. Nothing is visible until all is on stable storage; what a cut-off
// Pack leaves is found again under the same name by the next. One Pack works in
// a directory at a time; another fails with an error wrapping [disk.ErrLocked].
func Pack(ctx context.Context, src disk.Backend, cfg PackConfig) (sum Summary, err error) {
	if cfg.Name == "" {
		cfg.Name = "manifest.json"
	}
	if filepath.Base(cfg.Name) != cfg.Name || cfg.Name == ".." || cfg.Name == "." {
		return sum, fmt.Errorf("image: manifest name %q is not a file name", cfg.Name)
	}
	if src.Size() > MaxSize {
		return sum, fmt.Errorf("image: disk %s of %d bytes: the most is %d", src.Info().Name, src.Size(), int64(MaxSize))
	}
	if len(cfg.BootProfile) > MaxProfile {
		return sum, fmt.Errorf("image: profile of %d bytes: the most is %d", len(cfg.BootProfile), MaxProfile)
	}
	if cfg.Created.IsZero() {
		cfg.Created = time.Now()
	}
	cfg.Created = cfg.Created.UTC().Truncate(time.Second)
	if cfg.Level == 0 {
		cfg.Level = zstd.SpeedDefault
	}
	if cfg.PackSize <= 0 {
		cfg.PackSize = 64 << 20
	}
	cfg.PackSize = min(cfg.PackSize, maxPackSize-MaxFrame)
	if cfg.Workers <= 0 {
		cfg.Workers = runtime.GOMAXPROCS(0)
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return sum, err
	}
	unlock, err := lockDir(cfg.Dir)
	if err != nil {
		return sum, err
	}
	defer unlock()
	p := &packer{cfg: cfg, src: src, boot: map[Hash]bool{}, known: map[Hash]place{}}
	p.data = packWriter{dir: cfg.Dir, limit: cfg.PackSize}
	for _, h := range cfg.BootOrder {
		p.boot[h] = true
	}
	defer p.data.abort()
	if cfg.Previous != nil {
		err := cfg.Previous.Scan(ctx, func(c Chunk) error {
			if _, ok := p.known[c.Hash]; !ok {
				p.known[c.Hash] = place{packID{oldPack, c.Pack}, c.PackOff, c.PackLen}
			}
			return nil
		})
		if err != nil {
			return sum, fmt.Errorf("read the previous version: %w", err)
		}
	}
	if p.spool, err = os.CreateTemp(cfg.Dir, durable.Pattern); err != nil {
		return sum, err
	}
	defer p.spool.Close()
	if err := os.Remove(p.spool.Name()); err != nil {
		return sum, err
	}
	if err := p.run(ctx); err != nil {
		return sum, err
	}
	if err := p.finish(); err != nil {
		return sum, err
	}
	return p.sum, nil
}

func (p *packer) encoder(level zstd.EncoderLevel) (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true), zstd.WithEncoderConcurrency(p.cfg.Workers), zstd.WithWindowSize(MaxChunk))
}

// run cuts, compresses and writes.
func (p *packer) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	enc, err := p.encoder(p.cfg.Level)
	if err != nil {
		return err
	}
	defer enc.Close()
	best, err := p.encoder(zstd.SpeedBestCompression)
	if err != nil {
		return err
	}
	defer best.Close()

	ahead := 4 * p.cfg.Workers
	work := make(chan *job, ahead)    // to the workers
	ordered := make(chan *job, ahead) // to the writer
	free := make(chan []byte, 2*ahead)
	var wg sync.WaitGroup
	for range p.cfg.Workers {
		wg.Go(func() {
			for j := range work {
				j.hash = sha256.Sum256(j.content)
				p.mu.RLock()
				_, ok := p.known[j.hash]
				p.mu.RUnlock()
				if !ok {
					enc := enc
					if p.boot[j.hash] {
						enc = best
					}
					j.frame = enc.EncodeAll(j.content, make([]byte, 0, len(j.content)/2))
					if len(j.frame) > MaxFrame {
						j.err = fmt.Errorf("chunk at %d takes %d compressed bytes", j.off, len(j.frame))
					}
				}
				close(j.done)
			}
		})
	}
	wg.Go(func() {
		for j := range ordered {
			<-j.done
			if ctx.Err() == nil {
				if err := p.write(j); err != nil {
					cancel(err)
				}
			}
			select {
			case free <- j.content[:0]:
			default:
			}
		}
	})
	buffer := func() []byte {
		select {
		case b := <-free:
			return b
		default:
			return make([]byte, 0, MaxChunk)
		}
	}
	c := &cutter{buf: buffer(), emit: func(off int64, content []byte) ([]byte, error) {
		j := &job{off: off, content: content, done: make(chan struct{})}
		select {
		case ordered <- j:
		case <-ctx.Done():
			return content[:0], context.Cause(ctx)
		}
		work <- j // cannot block for long: the workers never wait
		return buffer(), nil
	}}
	err = p.read(ctx, c)
	close(work)
	close(ordered)
	wg.Wait()
	if err == nil {
		err = context.Cause(ctx)
	}
	return err
}

// read shows the disk to the cutter.
func (p *packer) read(ctx context.Context, c *cutter) error {
	const step = 1 << 20
	buf := make([]byte, step)
	size := p.src.Size()
	mapper, _ := p.src.(disk.Mapper)
	known := int64(0) // the end of the extent that is being read
	for off := int64(0); off < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if mapper != nil && off >= known {
			e, err := mapper.Extent(off)
			if err != nil {
				return err
			}
			end := min(e.Off+e.Len, size)
			if end <= off {
				return fmt.Errorf("disk %s: extent of %d bytes at %d", p.src.Info().Name, e.Len, off)
			}
			known = end
			// Blocks are looked at as a whole.
			if whole := end / BlockSize * BlockSize; e.Zero && (whole > off || end == size) {
				if end == size {
					whole = end
				}
				if err := c.zero(blocks(whole - off)); err != nil {
					return err
				}
				off = whole
				p.scanned.Store(off)
				continue
			}
		}
		n := min(step, size-off)
		if mapper != nil && known-off < n {
			n = min(blocks(max(known-off, 1))*BlockSize, size-off)
		}
		got, err := p.src.ReadAt(buf[:n], off)
		if err != nil && (err != io.EOF || int64(got) < n) {
			return fmt.Errorf("read the disk: %w", err)
		}
		for i := int64(0); i < n; i += BlockSize {
			if err := c.block(off+i, buf[i:min(i+BlockSize, n)]); err != nil {
				return err
			}
		}
		off += n
		p.scanned.Store(off)
	}
	return c.flush()
}

// write takes a chunk, in the order of the disk.
func (p *packer) write(j *job) error {
	if j.err != nil {
		return j.err
	}
	p.entries = append(p.entries, entry{j.off, len(j.content), j.hash})
	p.sum.Data += int64(len(j.content))
	if _, ok := p.known[j.hash]; !ok {
		at := place{packID{spoolFile, 0}, p.spooled, len(j.frame)}
		var err error
		if p.boot[j.hash] {
			_, err = p.spool.Write(j.frame)
			p.spooled += int64(len(j.frame))
		} else {
			at.pack.kind = dataPack
			at.pack.n, at.off, err = p.data.add(j.frame)
		}
		if err != nil {
			return err
		}
		p.sum.New++
		p.sum.NewBytes += int64(len(j.frame))
		p.mu.Lock()
		p.known[j.hash] = at
		p.mu.Unlock()
	}
	if p.cfg.Progress != nil && len(p.entries)%64 == 0 {
		p.report()
	}
	return nil
}

func (p *packer) report() {
	p.cfg.Progress(Progress{p.scanned.Load(), p.src.Size(), p.sum.Data, p.sum.NewBytes})
}

// finish writes the boot packs, the index and the manifest.
func (p *packer) finish() error {
	if err := p.data.close(); err != nil {
		return err
	}
	boot := packWriter{dir: p.cfg.Dir, limit: p.cfg.PackSize}
	defer boot.abort()
	frame := make([]byte, MaxFrame)
	for _, h := range p.cfg.BootOrder {
		at, ok := p.known[h]
		if !ok || at.pack.kind != spoolFile {
			continue
		}
		if _, err := p.spool.ReadAt(frame[:at.len], at.off); err != nil {
			return err
		}
		n, off, err := boot.add(frame[:at.len])
		if err != nil {
			return err
		}
		p.known[h] = place{packID{bootPack, n}, off, at.len}
		p.sum.BootBytes += int64(at.len)
	}
	if err := boot.close(); err != nil {
		return err
	}

	packs, number := p.packTable(boot.done)
	var w pageWriter
	for i, e := range p.entries {
		at := p.known[e.hash]
		w.add(Chunk{N: i, Off: e.off, Len: e.len, Hash: e.hash,
			Pack: number[at.pack], PackOff: at.off, PackLen: at.len})
	}
	file, dir := w.finish()
	hash := sha256.Sum256(file)
	index := File{Name: Hash(hash).String() + indexSuffix, Size: int64(len(file))}
	if err := durable.WriteFile(filepath.Join(p.cfg.Dir, index.Name), 0o644, file); err != nil {
		return err
	}
	m := &Manifest{
		Format: formatName, Version: formatVersion,
		Size: p.src.Size(), Label: p.cfg.Label, Created: p.cfg.Created,
		Chunking:    Chunking{cutName, MinChunk, AvgChunk, MaxChunk},
		Compression: frameName,
		Index: IndexRef{File: index, Chunks: len(p.entries), Data: p.sum.Data,
			Directory: int64(len(dir)), Root: sha256.Sum256(dir)},
		Packs: packs,
	}
	if p.cfg.Previous != nil {
		m.Parent = p.cfg.Previous.ID().String()
	}
	if p.cfg.BootProfile != nil {
		h := Hash(sha256.Sum256(p.cfg.BootProfile))
		m.BootProfile = &FileRef{File{h.String() + profileSuffix, int64(len(p.cfg.BootProfile))}, h}
		if err := durable.WriteFile(filepath.Join(p.cfg.Dir, m.BootProfile.Name), 0o644, p.cfg.BootProfile); err != nil {
			return err
		}
	}
	sealed, id, err := seal(m, p.cfg.Key)
	if err != nil {
		return err
	}
	// Everything that the manifest names is durable before it appears.
	if err := durable.WriteFile(filepath.Join(p.cfg.Dir, p.cfg.Name), 0o644, sealed); err != nil {
		return err
	}
	p.sum.Manifest, p.sum.ID = filepath.Join(p.cfg.Dir, p.cfg.Name), id
	p.sum.Size, p.sum.Chunks, p.sum.Index = p.src.Size(), len(p.entries), index.Size
	p.sum.Packs, p.sum.NewPacks = len(packs), len(boot.done)+len(p.data.done)
	if p.cfg.Progress != nil {
		p.report()
	}
	return nil
}

// packTable lists the packs that entries refer to: boot packs, new ones in the
// order of the disk, and those of the previous version. It also counts unique
// chunks.
func (p *packer) packTable(boot []File) (packs []File, number map[packID]int) {
	used := map[packID]bool{}
	seen := make(map[Hash]bool, len(p.entries))
	for _, e := range p.entries {
		if seen[e.hash] {
			continue
		}
		seen[e.hash] = true
		at := p.known[e.hash]
		used[at.pack] = true
		p.sum.Unique++
		p.sum.UniqueData += int64(e.len)
		p.sum.Compressed += int64(at.len)
	}
	number = map[packID]int{}
	packs = []File{}
	byName := map[string]int{}
	add := func(id packID, f File) {
		if !used[id] {
			return
		}
		// A pack of new frames can equal an older one.
		n, ok := byName[f.Name]
		if !ok {
			n = len(packs)
			byName[f.Name] = n
			packs = append(packs, f)
		}
		number[id] = n
	}
	for i, f := range boot {
		add(packID{bootPack, i}, f)
	}
	for i, f := range p.data.done {
		add(packID{dataPack, i}, f)
	}
	if p.cfg.Previous != nil {
		for i := range p.cfg.Previous.Packs() {
			add(packID{oldPack, i}, p.cfg.Previous.Pack(i))
		}
	}
	return slices.Clip(packs), number
}
