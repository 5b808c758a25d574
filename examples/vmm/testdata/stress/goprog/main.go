// A program whose output depends on nothing but that the processor and the
// kernel do what they should, however the runtime schedules goroutines and
// collects garbage.
package main

import (
	"bytes"
	"compress/flate"
	"crypto/aes"
	"crypto/cipher"
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math"
	"math/big"
	"math/rand/v2"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	debug.SetGCPercent(20)
	numbers()
	floats()
	hashes()
	documents()
	goroutines()
	garbage()
	faults()
}

func random(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, n)) }

func numbers() {
	f := big.NewInt(1)
	for i := range int64(800) {
		f.Mul(f, big.NewInt(i+1))
	}
	text := f.String()
	fmt.Printf("800! has %d digits, sum %x\n", len(text), sha256.Sum256([]byte(text)))
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 521), big.NewInt(1))
	fmt.Println("2^521-1 is prime:", p.ProbablyPrime(2))
	e := new(big.Int).Exp(big.NewInt(3), new(big.Int).Rsh(f, 4000), p)
	fmt.Println(e)
	q, r := new(big.Int).QuoRem(f, e, new(big.Int))
	fmt.Println(q.BitLen(), r, new(big.Int).Sqrt(f).BitLen(), new(big.Int).GCD(nil, nil, f, e))
	fmt.Println(new(big.Float).SetPrec(300).Quo(big.NewFloat(1), big.NewFloat(7)).Text('g', 80))
}

func floats() {
	r := random(1)
	h := sha256.New()
	sum := 0.0
	for range 6_000 {
		d := math.Float64frombits(r.Uint64())
		s := strconv.FormatFloat(d, 'g', -1, 64)
		back, err := strconv.ParseFloat(s, 64)
		if err != nil || back != d && d == d {
			fmt.Println("wrong:", s, d, back, err)
		}
		fmt.Fprintf(h, "%s %.6e %d", s, float32(d), int64(math.Mod(d, 1e15)))
		x := r.NormFloat64()
		sum += math.Sqrt(math.Abs(x)) + math.Floor(x) - math.Trunc(x*3) + math.FMA(x, x, 1)
	}
	fmt.Printf("floats %x %v\n", h.Sum(nil), sum)
	fmt.Printf("%.12g %.12g %.12g %.12g\n", math.Sin(1e5), math.Exp(10.5), math.Log(3), math.Pow(2.5, 17.25))
	fmt.Println(complex(1, 2)/complex(3, -4), float32(1)/3, 1e23, math.MaxFloat64, math.SmallestNonzeroFloat64)
}

func hashes() {
	data := make([]byte, 200_000)
	rand.NewChaCha8([32]byte{1}).Read(data)
	fmt.Printf("%x\n%x\n%x\n", md5.Sum(data), sha256.Sum256(data), sha512.Sum512(data))
	fmt.Printf("%08x %08x\n", crc32.ChecksumIEEE(data), crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
	block, err := aes.NewCipher(data[:32])
	check(err)
	gcm, err := cipher.NewGCM(block)
	check(err)
	sealed := gcm.Seal(nil, data[:12], data[:50_000], nil)
	opened, err := gcm.Open(nil, data[:12], sealed, nil)
	check(err)
	fmt.Printf("%x %v\n", sealed[len(sealed)-16:], bytes.Equal(opened, data[:50_000]))
	var packed bytes.Buffer
	w, err := flate.NewWriter(&packed, 6)
	check(err)
	text := bytes.Repeat(data[:3000], 40)
	_, err = w.Write(text)
	check(err)
	check(w.Close())
	n := packed.Len()
	unpacked, err := io.ReadAll(flate.NewReader(&packed))
	check(err)
	fmt.Println(n, bytes.Equal(unpacked, text))
}

type node struct {
	Name   string             `json:"name"`
	Weight float64            `json:"weight"`
	Tags   map[string]int     `json:"tags,omitempty"`
	Below  []*node            `json:"below,omitempty"`
	Note   *string            `json:"note"`
	Table  map[string]float32 `json:"table,omitempty"`
}

func tree(r *rand.Rand, depth int) *node {
	n := &node{Name: strconv.FormatUint(r.Uint64(), 36), Weight: r.ExpFloat64()}
	if depth == 0 {
		return n
	}
	n.Tags, n.Table = map[string]int{}, map[string]float32{}
	for i := range 4 {
		n.Tags[strconv.Itoa(r.IntN(1000))] = i
		n.Table["<"+strconv.Itoa(i)+">é"] = r.Float32()
		n.Below = append(n.Below, tree(r, depth-1))
	}
	return n
}

func documents() {
	text, err := json.Marshal(tree(random(2), 5))
	check(err)
	var back node
	check(json.Unmarshal(text, &back))
	again, err := json.Marshal(back)
	check(err)
	fmt.Printf("json %d %v %x\n", len(text), bytes.Equal(text, again), sha256.Sum256(text))
	words := map[string]int{}
	for _, w := range regexp.MustCompile(`[a-z]{2,}[0-9]`).FindAllString(string(text), -1) {
		words[w[:2]]++
	}
	keys := slices.Sorted(maps.Keys(words))
	slices.SortStableFunc(keys, func(a, b string) int { return words[b] - words[a] })
	for _, k := range keys[:10] {
		fmt.Print(k, "=", words[k], " ")
	}
	fmt.Println(len(keys), strings.Count(string(text), "weight"), strings.LastIndex(string(text), "note"))
}

func goroutines() {
	// Numbers through a chain of sieves.
	in := make(chan int)
	go func(to chan<- int) {
		for i := 2; ; i++ {
			to <- i
		}
	}(in)
	from, last := in, 0
	for range 60 {
		prime := <-from
		next := make(chan int, 3)
		go func(from <-chan int, to chan<- int) {
			for n := range from {
				if n%prime != 0 {
					to <- n
				}
			}
		}(from, next)
		from, last = next, prime
	}
	fmt.Println("the 60th prime is", last)

	var (
		wg     sync.WaitGroup
		mu     sync.RWMutex
		total  atomic.Int64
		shared = map[int]int{}
	)
	for g := range 8 {
		wg.Go(func() {
			r := random(uint64(g))
			for i := range 3000 {
				k := r.IntN(500)
				mu.Lock()
				shared[k] += i
				mu.Unlock()
				mu.RLock()
				if _, ok := shared[k]; ok {
					total.Add(int64(k))
				}
				mu.RUnlock()
				if i%100 == 0 {
					runtime.Gosched()
				}
				if i%1000 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	sum := 0
	for k, v := range shared {
		sum += k * v
	}
	fmt.Println("shared", len(shared), sum, total.Load())
}

// garbage makes much of it beside what stays, on several goroutines.
func garbage() {
	results := make([]uint64, 4)
	var wg sync.WaitGroup
	for g := range results {
		wg.Go(func() {
			r := random(uint64(100 + g))
			kept := make([]*node, 200)
			for i := range 8_000 {
				n := &node{Name: strconv.Itoa(i), Weight: float64(i)}
				j := r.IntN(len(kept))
				if old := kept[j]; old != nil && i%3 != 0 {
					n.Below = append(n.Below[:0:0], old)
					old.Below = nil
				}
				kept[j] = n
			}
			runtime.GC()
			for _, n := range kept {
				for ; n != nil; n = n.Below[0] {
					v, err := strconv.Atoi(n.Name)
					check(err)
					if float64(v) != n.Weight {
						panic("a node was overwritten")
					}
					results[g] = results[g]*31 + uint64(v)
					if len(n.Below) == 0 {
						break
					}
				}
			}
		})
	}
	wg.Wait()
	fmt.Println("garbage", results)
}

// faults are signals that the runtime turns into panics.
func faults() {
	for i, f := range []func(zero int, none *node) any{
		func(zero int, none *node) any { return none.Weight },
		func(zero int, none *node) any { return 1 / zero },
		func(zero int, none *node) any { return make([]int, 3)[zero+3] },
		func(zero int, none *node) any { return any(none).(error) },
	} {
		func() {
			defer func() { fmt.Println("fault", i, recover()) }()
			fmt.Println(f(0, nil))
		}()
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
