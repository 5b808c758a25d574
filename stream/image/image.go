package image

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"
)

// Config says how to open an image.
type Config struct {
	// Keys are the keys of which one must have signed the manifest.
	Keys []ed25519.PublicKey
	// AllowUnsigned accepts a manifest that none of Keys has signed. A wrong
	// signature by one of Keys is an error all the same.
	AllowUnsigned bool
	// IndexMemory bounds the decoded pages kept, in bytes. 0 means 64 MiB,
	// enough for some 50 GiB of content.
	IndexMemory int
}

// Image is a published image, open for reading. Its methods may be called
// concurrently. It holds no resources that need closing.
type Image struct {
	name     string
	src      Source
	manifest Manifest
	id       Hash
	signer   ed25519.PublicKey
	pages    []pageRef

	mu    sync.Mutex
	cache map[int][]Chunk // decoded pages by number
	keep  int             // pages at most in cache
	busy  map[int]chan struct{}
}

const (
	// chunkMemory is about what a decoded entry takes.
	chunkMemory = 88
	pageMemory  = pageSize / minEntry * chunkMemory
	// groupPages are fetched at once: a page more costs less time than
	// another round trip.
	groupPages = 16
	scanPages  = 128
)

// Open reads the manifest called name, and the directory of the index, from
// src.
func Open(ctx context.Context, src Source, name string, cfg Config) (*Image, error) {
	img := &Image{name: name, src: src, cache: map[int][]Chunk{}, busy: map[int]chan struct{}{}}
	if img.keep = cfg.IndexMemory / pageMemory; cfg.IndexMemory == 0 {
		img.keep = (64 << 20) / pageMemory
	}
	img.keep = max(img.keep, 2*groupPages)
	parse := func(p []byte) error {
		m, id, by, err := parseManifest(p, cfg)
		if err != nil {
			return &Error{Name: name, Err: err}
		}
		img.manifest, img.id, img.signer = *m, id, by
		return nil
	}
	if _, err := src.Load(ctx, name, MaxManifest, parse); err != nil {
		return nil, err
	}
	x := img.manifest.Index
	dir := make([]byte, x.Directory)
	at := x.Size - x.Directory
	if err := src.Fetch(ctx, x.Name, at, dir, func(p []byte) error {
		return checkHash(x.Name, at, p, x.Root)
	}); err != nil {
		return nil, err
	}
	pages, off, err := parseDirectory(dir, at, x.Chunks, blocks(img.manifest.Size))
	if err != nil {
		return nil, &Error{Name: x.Name, Off: at + int64(off), Err: err}
	}
	img.pages = pages
	return img, nil
}

// checkHash compares p, which is at off of a file, with its hash.
func checkHash(name string, off int64, p []byte, want Hash) error {
	if got := Hash(sha256.Sum256(p)); got != want {
		return &Error{Name: name, Off: off, Err: fmt.Errorf("%w: SHA-256 of %d bytes is %v, not %v", ErrDamaged, len(p), got, want)}
	}
	return nil
}

// Name is the name of the manifest.
func (m *Image) Name() string { return m.name }

// Size is the size of the disk in bytes.
func (m *Image) Size() int64 { return m.manifest.Size }

// ID is the SHA-256 of the manifest without its signatures. It names this
// version: all content follows from it.
func (m *Image) ID() Hash { return m.id }

// Signer is the key that signed the manifest, of those in [Config], or nil.
func (m *Image) Signer() ed25519.PublicKey { return m.signer }

// Manifest returns the manifest. Its slices belong to the image.
func (m *Image) Manifest() Manifest { return m.manifest }

// Chunks is the number of chunks.
func (m *Image) Chunks() int { return m.manifest.Index.Chunks }

// Packs is the number of packs.
func (m *Image) Packs() int { return len(m.manifest.Packs) }

// Pack returns the file of pack n, in [0, Packs).
func (m *Image) Pack(n int) File { return m.manifest.Packs[n] }

// Chunk returns chunk n, which is an error outside [0, Chunks). It may have to
// fetch a page of the index.
func (m *Image) Chunk(ctx context.Context, n int) (Chunk, error) {
	if n < 0 || n >= m.Chunks() {
		return Chunk{}, fmt.Errorf("image %s: chunk %d of %d", m.name, n, m.Chunks())
	}
	i := sort.Search(len(m.pages), func(i int) bool { return m.pages[i].end > n })
	list, err := m.page(ctx, i)
	if err != nil {
		return Chunk{}, err
	}
	return list[n-m.pages[i].first], nil
}

// Find returns the number of the first chunk that ends after off, in bytes from
// 0: the one that holds off, or else the next one, before which the disk is
// zero. After the last chunk that is Chunks. It may have to fetch a page of the
// index.
func (m *Image) Find(ctx context.Context, off int64) (int, error) {
	at := off / BlockSize
	i := sort.Search(len(m.pages), func(i int) bool { return m.pages[i].stop > at })
	if i == len(m.pages) {
		return m.Chunks(), nil
	}
	list, err := m.page(ctx, i)
	if err != nil {
		return 0, err
	}
	return m.pages[i].first + sort.Search(len(list), func(j int) bool { return list[j].End() > off }), nil
}

// Resolve returns for each hash the number of the first chunk with that
// content, or -1. It reads the whole index.
func (m *Image) Resolve(ctx context.Context, hashes []Hash) ([]int, error) {
	found := make(map[Hash]int, len(hashes))
	for _, h := range hashes {
		found[h] = -1
	}
	if err := m.Scan(ctx, func(c Chunk) error {
		if n, ok := found[c.Hash]; ok && n < 0 {
			found[c.Hash] = c.N
		}
		return nil
	}); err != nil {
		return nil, err
	}
	list := make([]int, len(hashes))
	for i, h := range hashes {
		list[i] = found[h]
	}
	return list, nil
}

// Scan calls fn with every chunk, in order, until it returns an error. It reads
// the whole index, in few requests.
func (m *Image) Scan(ctx context.Context, fn func(Chunk) error) error {
	data := int64(0)
	for i := range m.pages {
		list, err := m.pageGroup(ctx, i, scanPages)
		if err != nil {
			return err
		}
		for _, c := range list {
			data += int64(c.Len)
			if err := fn(c); err != nil {
				return err
			}
		}
	}
	if x := m.manifest.Index; data != x.Data {
		return &Error{Name: x.Name, Err: fmt.Errorf("%w: chunks of %d bytes: the manifest has %d", ErrInvalid, data, x.Data)}
	}
	return nil
}

// BootProfile returns the profile that the image was packed with, or nil.
func (m *Image) BootProfile(ctx context.Context) ([]byte, error) {
	ref := m.manifest.BootProfile
	if ref == nil {
		return nil, nil
	}
	p := make([]byte, ref.Size)
	err := m.src.Fetch(ctx, ref.Name, 0, p, func(p []byte) error { return checkHash(ref.Name, 0, p, ref.Hash) })
	if err != nil {
		return nil, err
	}
	return p, nil
}

// page returns the entries of page i.
func (m *Image) page(ctx context.Context, i int) ([]Chunk, error) {
	return m.pageGroup(ctx, i, groupPages)
}

// pageGroup returns the entries of page i. If it has to be fetched, so are the
// others of its group of n pages that are not there.
func (m *Image) pageGroup(ctx context.Context, i, n int) ([]Chunk, error) {
	group := i / n * n
	for {
		m.mu.Lock()
		if list, ok := m.cache[i]; ok {
			m.mu.Unlock()
			return list, nil
		}
		// Fetches of the same pages at once wait for one another.
		wait, ok := m.busy[i/groupPages]
		if !ok {
			break
		}
		m.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	done := make(chan struct{})
	m.busy[i/groupPages] = done
	last := i + 1
	for last < min(group+n, len(m.pages)) && m.cache[last] == nil {
		last++
	}
	first := i
	for first > group && m.cache[first-1] == nil {
		first--
	}
	m.mu.Unlock()

	lists, err := m.fetchPages(ctx, first, last)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.busy, i/groupPages)
	close(done)
	if err != nil {
		return nil, err
	}
	for j, list := range lists {
		m.store(first+j, list)
	}
	return lists[i-first], nil
}

// store puts a page into the cache in the place of any other if that is full.
func (m *Image) store(i int, list []Chunk) {
	if _, ok := m.cache[i]; !ok && len(m.cache) >= m.keep {
		for victim := range m.cache {
			delete(m.cache, victim)
			break
		}
	}
	m.cache[i] = list
}

// fetchPages gets pages first to last-1 with one request.
func (m *Image) fetchPages(ctx context.Context, first, last int) ([][]Chunk, error) {
	refs := m.pages[first:last]
	name, base := m.manifest.Index.Name, refs[0].off
	end := refs[len(refs)-1]
	buf := make([]byte, end.off+int64(end.len)-base)
	slice := func(p []byte, r pageRef) []byte { return p[r.off-base:][:r.len] }
	err := m.src.Fetch(ctx, name, base, buf, func(p []byte) error {
		for _, r := range refs {
			if err := checkHash(name, r.off, slice(p, r), r.hash); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	lists := make([][]Chunk, len(refs))
	for i, r := range refs {
		list, off, err := parsePage(slice(buf, r), r, m.manifest.Size, m.manifest.Packs)
		if err != nil {
			return nil, &Error{Name: name, Off: r.off + int64(off), Err: err}
		}
		lists[i] = list
	}
	return lists, nil
}

// Reader returns the content of the disk, which it fetches chunk by chunk from
// the image's source. It suits copies and tests; package stream has a backend
// for guests. ReadAt fails with errors about the range that it names, and may
// be called concurrently.
func (m *Image) Reader(ctx context.Context) io.ReaderAt { return reader{ctx, m} }

type reader struct {
	ctx context.Context
	m   *Image
}

func (r reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("image: negative offset")
	}
	if off >= r.m.Size() {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > r.m.Size()-off {
		p, eof = p[:r.m.Size()-off], io.EOF
	}
	clear(p)
	n, err := r.m.Find(r.ctx, off)
	if err != nil {
		return 0, err
	}
	var content, frame []byte
	end := off + int64(len(p))
	for ; n < r.m.Chunks(); n++ {
		c, err := r.m.Chunk(r.ctx, n)
		if err != nil {
			return 0, err
		}
		if c.Off >= end {
			break
		}
		if content == nil {
			content, frame = make([]byte, MaxChunk), make([]byte, MaxFrame)
		}
		if err := r.m.ReadChunk(r.ctx, c, content[:c.Len], frame); err != nil {
			return 0, err
		}
		if c.Off >= off {
			copy(p[c.Off-off:], content[:c.Len])
		} else {
			copy(p, content[off-c.Off:c.Len])
		}
	}
	return len(p), eof
}

// ReadChunk fetches chunk c from the image's source into dst, which is c.Len
// bytes long. It needs scratch memory of c.PackLen bytes and takes scratch for
// it if that is large enough.
func (m *Image) ReadChunk(ctx context.Context, c Chunk, dst, scratch []byte) error {
	if len(scratch) < c.PackLen {
		scratch = make([]byte, c.PackLen)
	}
	name := m.Pack(c.Pack).Name
	return m.src.Fetch(ctx, name, c.PackOff, scratch[:c.PackLen], func(frame []byte) error {
		if err := Decode(dst, c, frame); err != nil {
			return &Error{Name: name, Off: c.PackOff, Err: err}
		}
		return nil
	})
}
