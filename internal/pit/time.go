package pit

import (
	"math"
	"math/bits"

	"github.com/vmkit-go/vmkit/internal/platform"
)

const second = 1_000_000_000

// pulses is how many clock pulses there are in ns nanoseconds.
func pulses(ns int64) uint64 {
	if ns <= 0 {
		return 0
	}
	hi, lo := bits.Mul64(uint64(ns), platform.PITHz)
	q, _ := bits.Div64(hi, lo, second) // hi < 2^20: no overflow
	return q
}

// duration is the time in nanoseconds of the given clock pulse, the first being
// 1: the least ns for which pulses(ns) is that much. It is Never where that
// does not fit.
func duration(pulse uint64) int64 {
	hi, lo := bits.Mul64(pulse, second)
	lo, carry := bits.Add64(lo, platform.PITHz-1, 0)
	hi += carry
	if hi >= platform.PITHz {
		return Never
	}
	q, _ := bits.Div64(hi, lo, platform.PITHz)
	if q > math.MaxInt64 {
		return Never
	}
	return int64(q)
}

// add is a+b for b of at least 0, at most Never.
func add(a, b int64) int64 {
	if b == Never || a > Never-b {
		return Never
	}
	return a + b
}
