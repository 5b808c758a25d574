// A program that is compiled and linked in the guest. It asks a little of
// every part of the compiler: constants too large for a machine word, generic
// functions, closures, interfaces, switches over strings and types, arithmetic
// of each width, maps, goroutines.
package main

import (
	"errors"
	"math/bits"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
)

const (
	huge  = 1 << 300 / 3
	small = float64(huge) / (1 << 298)
	mask  = ^uint32(0) >> 5
)

type number interface {
	~int8 | ~uint16 | ~int32 | ~uint64 | ~float32 | ~float64
}

// sum is compiled once for each shape of T.
func sum[T number](of []T, f func(T) T) (s T) {
	for i, v := range of {
		if i%3 != 0 {
			v = f(v)
		}
		s += v
	}
	return s
}

type (
	shape  interface{ area() float64 }
	square struct{ side float64 }
	circle struct {
		square
		name string
	}
	tree[K any] struct {
		left, right *tree[K]
		key         K
	}
)

func (s square) area() float64  { return s.side * s.side }
func (c *circle) area() float64 { return 3.141592653589793 * c.square.area() }

func (t *tree[K]) insert(k K, less func(a, b K) bool) *tree[K] {
	switch {
	case t == nil:
		return &tree[K]{key: k}
	case less(k, t.key):
		t.left = t.left.insert(k, less)
	default:
		t.right = t.right.insert(k, less)
	}
	return t
}

func (t *tree[K]) all(yield func(K) bool) bool {
	return t == nil || t.left.all(yield) && yield(t.key) && t.right.all(yield)
}

func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "nothing"
	case *circle:
		return "circle " + v.name + " " + strconv.FormatFloat(v.area(), 'g', 12, 64)
	case shape:
		return "shape " + strconv.FormatFloat(v.area(), 'g', 12, 64)
	case error:
		return "error " + v.Error()
	case []string:
		return strings.Join(v, "+")
	}
	return "something else"
}

func value(word string) int {
	switch word {
	case "zero", "none":
		return 0
	case "one":
		return 1
	case "two":
		return 2
	case "twelve":
		return 12
	case "hundred":
		return 100
	}
	return -1
}

// divide returns the runtime's panic as an error.
func divide(a, b int64) (q int64, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.Join(errors.New("recovered"), r.(error))
		}
	}()
	return a/b + a%b, nil
}

func mix(x uint64, y uint32, z int16) uint64 {
	x ^= bits.RotateLeft64(x, 17) * 0x9e3779b97f4a7c15
	hi, lo := bits.Mul64(x, uint64(y)<<7|1)
	y = y*69069 + uint32(z)&mask
	z = z>>3 ^ int16(y/10)
	return hi ^ lo + uint64(bits.OnesCount32(y))<<40 - uint64(bits.TrailingZeros64(x|1<<50)) + uint64(z%7)
}

func main() {
	var out []string
	say := func(words ...string) { out = append(out, strings.Join(words, " ")) }

	say("constants", strconv.FormatFloat(small, 'g', -1, 64), strconv.Itoa(huge>>240&0xffff))
	n := 0
	step := func(by int) func() int { return func() int { n += by; return n } }
	three, seven := step(3), step(7)
	say("closures", strconv.Itoa(three()*seven()+three()))
	say("sums", strconv.Itoa(int(sum([]int8{100, 27, 3, -128}, func(v int8) int8 { return -v }))),
		strconv.FormatUint(sum([]uint64{1 << 63, 5, 1 << 63, 9}, func(v uint64) uint64 { return v / 3 }), 10),
		strconv.FormatFloat(float64(sum([]float32{0.1, 0.2, 0.3}, func(v float32) float32 { return v * v })), 'g', -1, 32))
	for _, v := range []any{nil, square{1.5}, &circle{square{2}, "c"}, errors.New("e"), []string{"a", "b"}, 'x'} {
		say("it is", describe(v))
	}
	total := 0
	for _, w := range strings.Fields("zero one two twelve hundred thousand none") {
		total = total*3 + value(w)
	}
	say("words", strconv.Itoa(total))
	for _, b := range []int64{7, 0, -1} {
		q, err := divide(-1<<63, b)
		say("divide", strconv.FormatInt(q, 10), strings.ReplaceAll(describe(err), "\n", ", "))
	}

	parts := make(map[int]uint64)
	var wg sync.WaitGroup
	results := make(chan [2]uint64, 2)
	for g := range 6 {
		wg.Go(func() {
			x := uint64(g) + 1
			for i := range 20_000 {
				x = mix(x, uint32(i), int16(i*g))
			}
			results <- [2]uint64{uint64(g), x}
		})
	}
	go func() { wg.Wait(); close(results) }()
	for r := range results {
		parts[int(r[0])] = r[1]
	}
	var root *tree[uint64]
	for _, v := range parts {
		root = root.insert(v, func(a, b uint64) bool { return a < b })
	}
	var inOrder []uint64
	root.all(func(v uint64) bool { inOrder = append(inOrder, v); return true })
	say("tree", strconv.FormatBool(slices.IsSorted(inOrder)), strconv.FormatUint(inOrder[0], 16), strconv.Itoa(len(inOrder)))
	sort.Slice(inOrder, func(i, j int) bool { return inOrder[i]%1000 < inOrder[j]%1000 })
	for _, v := range inOrder {
		say(strconv.FormatUint(v, 36))
	}
	if _, err := os.Stdout.WriteString(strings.Join(out, "\n") + "\n"); err != nil {
		panic(err)
	}
}
