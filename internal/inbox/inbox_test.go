package inbox

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

type counter struct {
	sum atomic.Uint64
	n   atomic.Int64
}

func (c *counter) Deliver(tag uint64, data []byte) {
	c.sum.Add(tag)
	c.n.Add(int64(len(data)))
}

func TestOpenNames(t *testing.T) {
	var b Inbox
	if _, err := b.Open("", nil); !errors.Is(err, ErrName) {
		t.Errorf("empty name: %v", err)
	}
	if _, err := b.Open("a", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open("a", &counter{}); !errors.Is(err, ErrName) {
		t.Errorf("taken name: %v", err)
	}
}

func TestPostDeliversBeforeItReturns(t *testing.T) {
	b := New()
	c := new(counter)
	p, err := b.Open("x", c)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Direct() {
		t.Error("a free-running port is direct")
	}
	p.Post(3, []byte("abc"))
	if c.sum.Load() != 3 || c.n.Load() != 3 {
		t.Errorf("got %d, %d", c.sum.Load(), c.n.Load())
	}
	want := errors.New("no entropy")
	buf := make([]byte, 2)
	if err := p.Sample(buf, func(p []byte) error { p[0] = 9; return want }); err != want || buf[0] != 9 {
		t.Errorf("sample: %v, %v", err, buf)
	}
	silent, err := b.Open("y", nil)
	if err != nil {
		t.Fatal(err)
	}
	silent.Post(1, nil)
	data := []byte("abc")
	if n := testing.AllocsPerRun(100, func() { p.Post(1, data) }); n != 0 {
		t.Errorf("Post allocates %v times", n)
	}
}

func TestConcurrent(t *testing.T) {
	b := New()
	c := new(counter)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			p, err := b.Open(fmt.Sprint("port", g), c)
			if err != nil {
				t.Error(err)
				return
			}
			for range 1000 {
				p.Post(1, nil)
			}
		})
	}
	wg.Wait()
	if c.sum.Load() != 8000 {
		t.Errorf("%d of 8000 delivered", c.sum.Load())
	}
}
