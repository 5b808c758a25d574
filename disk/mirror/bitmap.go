package mirror

import "math/bits"

// bitmap is a set of small integers.
type bitmap []uint64

func newBitmap(n int64) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) has(i int64) bool { return b[i/64]>>(i%64)&1 != 0 }

func (b bitmap) set(i int64) { b[i/64] |= 1 << (i % 64) }

// mask has the bits of word w that belong to [first, last].
func mask(w, first, last int64) uint64 {
	m := ^uint64(0)
	if w == first/64 {
		m <<= first % 64
	}
	if w == last/64 {
		m &= ^uint64(0) >> (63 - last%64)
	}
	return m
}

// setRange sets [first, last] and returns how many were not set.
func (b bitmap) setRange(first, last int64) (n int64) {
	for w := first / 64; w <= last/64; w++ {
		m := mask(w, first, last)
		n += int64(bits.OnesCount64(m &^ b[w]))
		b[w] |= m
	}
	return n
}

// clearRange clears [first, last] and returns how many were set.
func (b bitmap) clearRange(first, last int64) (n int64) {
	for w := first / 64; w <= last/64; w++ {
		m := mask(w, first, last)
		n += int64(bits.OnesCount64(m & b[w]))
		b[w] &^= m
	}
	return n
}

// all reports whether all of [first, last] are set.
func (b bitmap) all(first, last int64) bool {
	for w := first / 64; w <= last/64; w++ {
		if m := mask(w, first, last); b[w]&m != m {
			return false
		}
	}
	return true
}

// any reports whether one of [first, last] is set.
func (b bitmap) any(first, last int64) bool {
	for w := first / 64; w <= last/64; w++ {
		if b[w]&mask(w, first, last) != 0 {
			return true
		}
	}
	return false
}

// next returns the first member from i on, or -1.
func (b bitmap) next(i int64) int64 {
	if i >= int64(len(b))*64 {
		return -1
	}
	w := i / 64
	v := b[w] & (^uint64(0) << (i % 64))
	for v == 0 {
		if w++; w == int64(len(b)) {
			return -1
		}
		v = b[w]
	}
	return w*64 + int64(bits.TrailingZeros64(v))
}

// run returns the end of the members that follow each other from i on, at
// most limit.
func (b bitmap) run(i, limit int64) int64 {
	for i < limit && b.has(i) {
		if i%64 == 0 && i+64 <= limit && b[i/64] == ^uint64(0) {
			i += 64
			continue
		}
		i++
	}
	return i
}
