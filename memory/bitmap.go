package memory

import (
	"iter"
	"math/bits"
	"slices"
)

// Bitmap is a set of guest pages. The zero Bitmap is empty and covers no
// addresses; [NewBitmap] and [Memory.CollectDirty] make it cover regions. It
// takes one bit per covered page, 32 KiB for a GiB. It is not safe for
// concurrent use.
type Bitmap struct {
	segs []segment // sorted by base, disjoint
}

// segment is the pages of one region.
type segment struct {
	base, size uint64 // in bytes
	words      []uint64
}

// NewBitmap returns an empty set that covers the given regions. Regions that
// overlap an earlier one are left out.
func NewBitmap(regions []Region) *Bitmap {
	b := new(Bitmap)
	for _, r := range regions {
		b.segment(r.Base, r.Size)
	}
	return b
}

// segment returns the words for the region [base, base+size), which it adds
// if need be. If the bitmap has other pages there, the words returned belong
// to nobody; a Memory's regions never move, so that is a mix of two machines.
func (b *Bitmap) segment(base, size uint64) []uint64 {
	i, found := slices.BinarySearchFunc(b.segs, base, func(s segment, base uint64) int {
		switch {
		case s.base < base:
			return -1
		case s.base > base:
			return 1
		}
		return 0
	})
	if found && b.segs[i].size == size {
		return b.segs[i].words
	}
	words := make([]uint64, (size/PageSize+63)/64)
	if found || i > 0 && b.segs[i-1].base+b.segs[i-1].size > base || i < len(b.segs) && b.segs[i].base-base < size {
		return words
	}
	b.segs = slices.Insert(b.segs, i, segment{base, size, words})
	return words
}

// Set adds the pages that n bytes at gpa touch. Addresses that b does not
// cover are ignored.
func (b *Bitmap) Set(gpa, n uint64) {
	for i := range b.segs {
		s := &b.segs[i]
		lo, hi, ok := s.pages(gpa, n)
		if !ok {
			continue
		}
		for w := lo / 64; w <= hi/64; w++ {
			s.words[w] |= wordMask(w, lo, hi)
		}
	}
}

// Unset removes the pages that lie wholly within n bytes at gpa.
func (b *Bitmap) Unset(gpa, n uint64) {
	skip := -gpa % PageSize
	if n < skip || gpa+skip < gpa {
		return
	}
	gpa, n = gpa+skip, (n-skip)&^(PageSize-1)
	for i := range b.segs {
		s := &b.segs[i]
		lo, hi, ok := s.pages(gpa, n)
		if !ok {
			continue
		}
		for w := lo / 64; w <= hi/64; w++ {
			s.words[w] &^= wordMask(w, lo, hi)
		}
	}
}

// Test reports whether the page of gpa is in b.
func (b *Bitmap) Test(gpa uint64) bool {
	for i := range b.segs {
		s := &b.segs[i]
		if p := (gpa - s.base) / PageSize; gpa >= s.base && gpa-s.base < s.size {
			return s.words[p/64]>>(p%64)&1 != 0
		}
	}
	return false
}

// pages returns the first and last page of the segment that n bytes at gpa
// touch.
func (s *segment) pages(gpa, n uint64) (lo, hi uint64, ok bool) {
	if gpa < s.base {
		skip := s.base - gpa
		if n <= skip {
			return 0, 0, false
		}
		gpa, n = s.base, n-skip
	}
	off := gpa - s.base
	if n == 0 || off >= s.size {
		return 0, 0, false
	}
	n = min(n, s.size-off)
	return off / PageSize, (off + n - 1) / PageSize, true
}

// wordMask is the bits of word w among bits lo to hi.
func wordMask(w, lo, hi uint64) uint64 {
	mask := ^uint64(0)
	if w == lo/64 {
		mask &= ^uint64(0) << (lo % 64)
	}
	if w == hi/64 {
		mask &= ^uint64(0) >> (63 - hi%64)
	}
	return mask
}

// Or adds the pages of other, and covers what other covers.
func (b *Bitmap) Or(other *Bitmap) {
	for i := range other.segs {
		o := &other.segs[i]
		words := b.segment(o.base, o.size)
		for w, v := range o.words {
			words[w] |= v
		}
	}
}

// Clear removes every page and keeps the storage for reuse.
func (b *Bitmap) Clear() {
	for i := range b.segs {
		clear(b.segs[i].words)
	}
}

// Count is the number of pages in b.
func (b *Bitmap) Count() uint64 {
	var n int
	for i := range b.segs {
		for _, w := range b.segs[i].words {
			n += bits.OnesCount64(w)
		}
	}
	return uint64(n)
}

// Runs yields the longest runs of adjacent pages, as address and length in
// bytes, in order of address. b must not be changed meanwhile.
func (b *Bitmap) Runs() iter.Seq2[uint64, uint64] {
	return func(yield func(gpa, n uint64) bool) {
		var start, end uint64 // the run being built, empty if equal
		for i := range b.segs {
			s := &b.segs[i]
			for w, word := range s.words {
				for word != 0 {
					low := bits.TrailingZeros64(word)
					ones := bits.TrailingZeros64(^(word >> low))
					a := s.base + (uint64(w)*64+uint64(low))*PageSize
					if a != end {
						if start != end && !yield(start, end-start) {
							return
						}
						start = a
					}
					end = a + uint64(ones)*PageSize
					if low+ones == 64 {
						break
					}
					word &= ^uint64(0) << (low + ones)
				}
			}
		}
		if start != end {
			yield(start, end-start)
		}
	}
}
