package image

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
)

// An index file is pages back to back and after them the directory.
//
// A page is a sequence of entries, each
//
//	gap     uvarint: blocks between the chunk before and this one
//	len     uvarint: blocks of the chunk
//	where   uvarint: pack<<1 | 1 if an offset follows
//	[off    uvarint: offset in the pack]
//	plen    uvarint: bytes in the pack
//	hash    32 bytes
//
// Without an offset the chunk follows the page's chunk before it in the same
// pack. A page of the directory is
//
//	len     uvarint: bytes of the page
//	chunks  uvarint: entries of the page
//	blocks  uvarint: from the end of the page before to the end of this one
//	hash    32 bytes: SHA-256 of the page
const (
	pageSize = 8 << 10 // a page ends with the entry that reaches this
	maxPage  = pageSize + maxEntry
	maxEntry = 5*binary.MaxVarintLen64 + sha256.Size
	minEntry = 4 + sha256.Size

	maxPages     = 1 << 20 // some 12 TiB of content
	maxDirectory = maxPages * maxDirEntry
	maxDirEntry  = 3*binary.MaxVarintLen64 + sha256.Size
	minDirEntry  = 3 + sha256.Size
)

// pageRef is an entry of the directory, with the sums of those before it.
type pageRef struct {
	off        int64 // in the index file
	len        int
	first, end int   // chunk numbers
	start      int64 // block after the last chunk of the page before
	stop       int64 // block after the last chunk of this page
	hash       Hash
}

// blocks is the number of blocks that n bytes touch.
func blocks(n int64) int64 { return n/BlockSize + min(n%BlockSize, 1) }

// pageWriter makes the pages of an index.
type pageWriter struct {
	out   []byte // pages done and the one under way
	dir   []byte
	pages int

	page   int   // where the page under way starts in out
	chunks int   // in it
	start  int64 // block at which it starts
	next   int64 // block after the last chunk
	follow map[int]int64
}

// add appends a chunk, which must come after those before.
func (w *pageWriter) add(c Chunk) {
	if w.chunks == 0 {
		w.start = w.next
		w.follow = make(map[int]int64)
	}
	at := c.Off / BlockSize
	n := blocks(int64(c.Len))
	w.out = binary.AppendUvarint(w.out, uint64(at-w.next))
	w.out = binary.AppendUvarint(w.out, uint64(n))
	if off, ok := w.follow[c.Pack]; ok && off == c.PackOff {
		w.out = binary.AppendUvarint(w.out, uint64(c.Pack)<<1)
	} else {
		w.out = binary.AppendUvarint(w.out, uint64(c.Pack)<<1|1)
		w.out = binary.AppendUvarint(w.out, uint64(c.PackOff))
	}
	w.out = binary.AppendUvarint(w.out, uint64(c.PackLen))
	w.out = append(w.out, c.Hash[:]...)
	w.follow[c.Pack] = c.PackOff + int64(c.PackLen)
	w.next = at + n
	w.chunks++
	if len(w.out)-w.page >= pageSize {
		w.endPage()
	}
}

func (w *pageWriter) endPage() {
	if w.chunks == 0 {
		return
	}
	page := w.out[w.page:]
	hash := sha256.Sum256(page)
	w.dir = binary.AppendUvarint(w.dir, uint64(len(page)))
	w.dir = binary.AppendUvarint(w.dir, uint64(w.chunks))
	w.dir = binary.AppendUvarint(w.dir, uint64(w.next-w.start))
	w.dir = append(w.dir, hash[:]...)
	w.page, w.chunks = len(w.out), 0
	w.pages++
}

// finish returns the whole file, and its directory, which is its end.
func (w *pageWriter) finish() (file, dir []byte) {
	w.endPage()
	file = append(w.out, w.dir...)
	return file, file[len(w.out):]
}

// parser reads varints and hashes from untrusted bytes. The first error sticks.
type parser struct {
	p   []byte
	off int
	err error
}

func (r *parser) fail(off int, format string, args ...any) {
	if r.err == nil {
		r.off = off
		r.err = fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
}

// uvarint reads a number of at most limit in its shortest form.
func (r *parser) uvarint(what string, limit uint64) uint64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.p[r.off:])
	switch {
	case n <= 0:
		r.fail(r.off, "%s is cut off or has more than 64 bits", what)
		return 0
	case n > 1 && r.p[r.off+n-1] == 0:
		r.fail(r.off, "%s is not in its shortest form", what)
		return 0
	case v > limit:
		r.fail(r.off, "%s is %d, above %d", what, v, limit)
		return 0
	}
	r.off += n
	return v
}

func (r *parser) hash() (h Hash) {
	if r.err != nil {
		return h
	}
	if len(r.p)-r.off < len(h) {
		r.fail(r.off, "a hash is cut off")
		return h
	}
	r.off += copy(h[:], r.p[r.off:])
	return h
}

// parseDirectory reads a directory of pages that fill size bytes, with chunks
// entries, of a disk of diskBlocks blocks. It returns the error's offset.
func parseDirectory(p []byte, size int64, chunks int, diskBlocks int64) ([]pageRef, int, error) {
	r := parser{p: p}
	refs := make([]pageRef, 0, min(len(p)/minDirEntry, maxPages))
	var last pageRef
	for r.off < len(p) && r.err == nil {
		if len(refs) == maxPages {
			r.fail(r.off, "more than %d pages", maxPages)
			break
		}
		at := r.off
		n := r.uvarint("length of a page", maxPage)
		count := r.uvarint("number of a page's chunks", n/minEntry)
		span := r.uvarint("blocks of a page", uint64(diskBlocks-last.stop))
		h := r.hash()
		if r.err == nil && (count == 0 || span < count) {
			r.fail(at, "a page of %d chunks in %d blocks", count, span)
		}
		last = pageRef{
			off: last.off + int64(last.len), len: int(n),
			first: last.end, end: last.end + int(count),
			start: last.stop, stop: last.stop + int64(span), hash: h,
		}
		refs = append(refs, last)
	}
	if r.err == nil && (last.off+int64(last.len) != size || last.end != chunks) {
		r.fail(r.off, "pages of %d bytes and %d chunks: the manifest has %d and %d",
			last.off+int64(last.len), last.end, size, chunks)
	}
	if r.err != nil {
		return nil, r.off, r.err
	}
	return refs, 0, nil
}

// parsePage reads the entries of a page. size is that of the disk.
func parsePage(p []byte, ref pageRef, size int64, packs []File) ([]Chunk, int, error) {
	r := parser{p: p}
	count := ref.end - ref.first
	list := make([]Chunk, 0, count)
	type cursor struct {
		pack int
		off  int64
	}
	var follow []cursor
	next := ref.start
	for r.off < len(p) && r.err == nil && len(list) < count {
		at := r.off
		gap := r.uvarint("gap between chunks", uint64(ref.stop-next))
		n := r.uvarint("length of a chunk", min(maxBlocks, uint64(ref.stop-next)-gap))
		if r.err == nil && n == 0 {
			r.fail(at, "an empty chunk")
		}
		where := r.uvarint("number of a pack", uint64(max(len(packs), 1))<<1-1)
		pack := int(where >> 1)
		if r.err == nil && pack >= len(packs) {
			r.fail(at, "pack %d of %d", pack, len(packs))
		}
		if r.err != nil {
			break
		}
		i := slices.IndexFunc(follow, func(c cursor) bool { return c.pack == pack })
		if where&1 != 0 {
			off := int64(r.uvarint("offset in a pack", uint64(packs[pack].Size)))
			if i < 0 {
				i, follow = len(follow), append(follow, cursor{pack: pack})
			}
			follow[i].off = off
		} else if i < 0 {
			r.fail(at, "chunk %d follows none in pack %d", ref.first+len(list), pack)
			break
		}
		off := follow[i].off
		plen := r.uvarint("length in a pack", uint64(min(MaxFrame, packs[pack].Size-off)))
		if r.err == nil && plen == 0 {
			r.fail(at, "a chunk of no bytes in a pack")
		}
		h := r.hash()
		c := Chunk{N: ref.first + len(list), Off: (next + int64(gap)) * BlockSize, Hash: h,
			Pack: pack, PackOff: off, PackLen: int(plen)}
		c.Len = int(min(int64(n)*BlockSize, size-c.Off))
		follow[i].off += int64(plen)
		next += int64(gap + n)
		list = append(list, c)
	}
	if r.err == nil && (r.off != len(p) || len(list) != count || next != ref.stop) {
		r.fail(r.off, "page of %d chunks up to block %d: the directory has %d up to %d in %d bytes",
			len(list), next, count, ref.stop, len(p))
	}
	if r.err != nil {
		return nil, r.off, r.err
	}
	return list, 0, nil
}
