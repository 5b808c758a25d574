package inbox

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// engine runs what is interjected when it is told to, on the caller.
type engine struct {
	mu sync.Mutex
	fs []func()
}

func (e *engine) interject(f func()) {
	e.mu.Lock()
	e.fs = append(e.fs, f)
	e.mu.Unlock()
}

func (e *engine) step() {
	e.mu.Lock()
	fs := e.fs
	e.fs = e.fs[:0:0]
	e.mu.Unlock()
	for _, f := range fs {
		f()
	}
}

// list is a receiver that writes down what it gets.
type list struct {
	mu   sync.Mutex
	got  []string
	then func()
}

func (l *list) Deliver(tag uint64, data []byte) {
	l.mu.Lock()
	l.got = append(l.got, fmt.Sprintf("%d %s", tag, data))
	l.mu.Unlock()
	if l.then != nil {
		l.then()
	}
}

func (l *list) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	got := l.got
	l.got = nil
	return got
}

func TestTurns(t *testing.T) {
	var eng engine
	b := NewTurns(eng.interject)
	var l list
	p, err := b.Open("x", &l)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open("x", nil); err == nil {
		t.Error("a name twice")
	}
	if p.Direct() || !p.Prompt() {
		t.Error("a port is direct or not prompt")
	}
	expect := func(when string, want ...string) {
		t.Helper()
		if got := l.take(); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", when, got, want)
		}
	}
	p.Post(1, []byte("new"))
	expect("before it runs", "1 new")

	b.Run()
	data := []byte("abc")
	p.Post(2, data)
	copy(data, "xyz") // ours again
	p.Post(3, nil)
	p.Post(4, data)
	expect("while it runs")
	l.then = func() { // an event that causes another
		l.then = nil
		p.Post(5, []byte("caused"))
	}
	eng.step()
	expect("interjected", "2 abc", "3 ", "4 xyz", "5 caused")
	eng.step()
	expect("interjected again")

	p.Post(6, []byte("late"))
	b.Pause()
	expect("paused", "6 late")
	p.Post(7, nil)
	expect("while paused", "7 ")
	b.Run()
	eng.step() // what was interjected before the pause finds nothing
	expect("resumed")
	p.Post(8, nil)
	eng.step()
	expect("running again", "8 ")

	silent, err := b.Open("y", nil)
	if err != nil {
		t.Fatal(err)
	}
	silent.Post(1, nil)
}

// TestTurnsOrder posts from several goroutines while the machine stops and
// goes on: nothing is lost, doubled or overtaken.
func TestTurnsOrder(t *testing.T) {
	var eng engine
	b := NewTurns(eng.interject)
	const posters, events = 4, 2000
	var wg sync.WaitGroup
	lists := make([]list, posters)
	for i := range posters {
		p, err := b.Open(fmt.Sprint("port", i), &lists[i])
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for n := range events {
				p.Post(uint64(n), []byte{'e'})
				if n%64 == 0 {
					time.Sleep(time.Microsecond)
				}
			}
		})
	}
	posted := make(chan struct{})
	go func() { wg.Wait(); close(posted) }()
	for done := false; !done; {
		select {
		case <-posted:
			done = true
		default:
		}
		b.Run()
		for range 10 {
			eng.step()
		}
		b.Pause()
	}
	for i := range lists {
		got := lists[i].take()
		if len(got) != events {
			t.Fatalf("port %d: %d events of %d", i, len(got), events)
		}
		for n, e := range got {
			if want := fmt.Sprintf("%d e", n); e != want {
				t.Fatalf("port %d: event %d is %q", i, n, e)
			}
		}
	}
}

func TestTurnsAllocates(t *testing.T) {
	fs := make([]func(), 0, 16)
	b := NewTurns(func(f func()) { fs = append(fs, f) })
	p, err := b.Open("x", new(counter))
	if err != nil {
		t.Fatal(err)
	}
	b.Run()
	data := make([]byte, 1500)
	if n := testing.AllocsPerRun(100, func() {
		for range 8 {
			p.Post(1, data)
		}
		for _, f := range fs {
			f()
		}
		fs = fs[:0]
	}); n != 0 {
		t.Errorf("8 events allocate %v times", n)
	}
}
