package vcpu

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fakeCPU gives the exits of a script and then stays in the guest until
// kicked. Like a real engine it finishes a pending access before it looks at
// a kick.
type fakeCPU struct {
	script []Exit
	next   int
	kick   chan struct{}
	spin   bool // give the script's exits for ever
	inRun  atomic.Bool
	runs   atomic.Uint64
	step   bool
}

func newFake(script ...Exit) *fakeCPU {
	return &fakeCPU{script: script, kick: make(chan struct{}, 1)}
}

func (c *fakeCPU) ID() int { return 3 }

func (c *fakeCPU) Run(e *Exit) error {
	if !c.inRun.CompareAndSwap(false, true) {
		panic("two goroutines in Run")
	}
	defer c.inRun.Store(false)
	c.runs.Add(1)
	if c.spin {
		select {
		case <-c.kick:
			*e = Exit{Reason: ExitKick}
		default:
			*e = c.script[c.next%len(c.script)]
			c.next++
		}
		return nil
	}
	if c.next < len(c.script) {
		*e = c.script[c.next]
		c.next++
		if c.step {
			*e = Exit{Reason: ExitDebug}
		}
		return nil
	}
	<-c.kick
	*e = Exit{Reason: ExitKick}
	return nil
}

func (c *fakeCPU) Kick() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

func (c *fakeCPU) State(*State) error {
	if c.inRun.Load() {
		return errors.New("State beside Run")
	}
	return nil
}
func (c *fakeCPU) SetState(*State) error       { return nil }
func (c *fakeCPU) SetSingleStep(on bool) error { c.step = on; return nil }
func (c *fakeCPU) Close() error                { return nil }
func (c *fakeCPU) stateFn(l *Loop, t *testing.T) {
	t.Helper()
	must(t, l.Do(func(c CPU) error { return c.State(nil) }))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type recordBus struct {
	mu  sync.Mutex
	log []access
}

type access struct {
	write bool
	addr  uint64
	data  string
}

func (b *recordBus) Read(addr uint64, p []byte) {
	for i := range p {
		p[i] = byte(addr) + byte(i)
	}
	b.add(access{false, addr, string(p)})
}
func (b *recordBus) Write(addr uint64, p []byte) { b.add(access{true, addr, string(p)}) }
func (b *recordBus) add(a access) {
	b.mu.Lock()
	b.log = append(b.log, a)
	b.mu.Unlock()
}

func TestLoopServes(t *testing.T) {
	in := make([]byte, 4)
	odd := []byte{1, 2, 3}
	cpu := newFake(
		Exit{Reason: ExitIO, Write: true, Port: 0x80, Size: 1, Count: 1, Data: []byte("x")},
		Exit{Reason: ExitIO, Port: 0x60, Size: 2, Count: 2, Data: in},
		Exit{Reason: ExitMMIO, Write: true, Addr: 0x1001, Data: odd},
		Exit{Reason: ExitMMIO, Write: true, Addr: 0x2000, Data: []byte("12345678")},
		Exit{Reason: ExitNone},
		Exit{Reason: ExitShutdown},
	)
	var ports, mem recordBus
	l := NewLoop(cpu, LoopConfig{Ports: &ports, Memory: &mem})
	reason, err := l.Run(t.Context())
	if reason != ExitShutdown || err != nil {
		t.Fatalf("Run: %v, %v", reason, err)
	}
	want := []access{{true, 0x80, "x"}, {false, 0x60, "\x60\x61"}, {false, 0x60, "\x60\x61"}}
	if len(ports.log) != 3 || ports.log[0] != want[0] || ports.log[1] != want[1] || ports.log[2] != want[2] {
		t.Errorf("ports: %+v", ports.log)
	}
	wantMem := []access{{true, 0x1001, "\x01"}, {true, 0x1002, "\x02\x03"}, {true, 0x2000, "12345678"}}
	if len(mem.log) != 3 || mem.log[0] != wantMem[0] || mem.log[1] != wantMem[1] || mem.log[2] != wantMem[2] {
		t.Errorf("memory: %+v", mem.log)
	}
	if string(in) != "\x60\x61\x60\x61" {
		t.Errorf("read %q", in)
	}
}

func TestLoopFloatingBus(t *testing.T) {
	p := make([]byte, 4)
	l := NewLoop(newFake(Exit{Reason: ExitMMIO, Addr: 1, Data: p}, Exit{Reason: ExitReset}), LoopConfig{})
	if r, err := l.Run(t.Context()); r != ExitReset || err != nil {
		t.Fatal(r, err)
	}
	if string(p) != "\xff\xff\xff\xff" {
		t.Errorf("read %q", p)
	}
}

func start(ctx context.Context, l *Loop) <-chan error {
	ch := make(chan error, 1)
	go func() {
		r, err := l.Run(ctx)
		if err == nil && r != ExitNone {
			err = errors.New("unexpected reason")
		}
		ch <- err
	}()
	return ch
}

func TestLoopPauseResume(t *testing.T) {
	for _, spin := range []bool{false, true} {
		cpu := newFake(Exit{Reason: ExitIO, Size: 1, Data: make([]byte, 1)})
		cpu.spin = spin
		l := NewLoop(cpu, LoopConfig{})
		done := start(t.Context(), l)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 500 {
					l.Pause()
					if cpu.inRun.Load() {
						t.Error("paused in the guest")
					}
					n := cpu.runs.Load()
					cpu.stateFn(l, t)
					if cpu.runs.Load() != n {
						t.Error("ran while paused")
					}
					l.Resume()
				}
			})
		}
		wg.Wait()
		for n := cpu.runs.Load(); spin && cpu.runs.Load() == n; { // it goes on
			time.Sleep(time.Millisecond)
		}
		l.Stop()
		must(t, <-done)
	}
}

func TestLoopDoWithoutPause(t *testing.T) {
	cpu := newFake()
	l := NewLoop(cpu, LoopConfig{})
	want := errors.New("from f")
	if err := l.Do(func(CPU) error { return want }); err != want { // no Run
		t.Fatal(err)
	}
	done := start(t.Context(), l)
	for range 1000 {
		cpu.stateFn(l, t)
	}
	l.Stop()
	must(t, <-done)
	cpu.stateFn(l, t)
}

func TestLoopStopBeforeRun(t *testing.T) {
	l := NewLoop(newFake(), LoopConfig{})
	l.Stop()
	must(t, <-start(t.Context(), l))
	l.Pause() // before Run: it must not enter
	done := start(t.Context(), l)
	time.Sleep(10 * time.Millisecond)
	if n := l.CPU().(*fakeCPU).runs.Load(); n != 0 {
		t.Errorf("%d runs while paused", n)
	}
	l.Stop()
	must(t, <-done)
}

func TestLoopContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	l := NewLoop(newFake(), LoopConfig{})
	done := start(ctx, l)
	time.Sleep(time.Millisecond)
	if _, err := l.Run(ctx); !errors.Is(err, ErrRunning) {
		t.Errorf("second Run: %v", err)
	}
	why := errors.New("why")
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	l.Pause() // counts as paused
	l.Resume()
	l.Resume()
}

// TestLoopRunAgain: the end of one Run's context does not reach the next Run.
func TestLoopRunAgain(t *testing.T) {
	l := NewLoop(newFake(), LoopConfig{})
	for range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		done := start(ctx, l)
		l.Stop()
		go cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		again := start(t.Context(), l)
		must(t, l.Do(func(CPU) error { return nil }))
		l.Stop()
		must(t, <-again)
	}
}

func TestPauseAll(t *testing.T) {
	var loops []*Loop
	var done []<-chan error
	for range 4 {
		cpu := newFake(Exit{Reason: ExitMMIO, Data: make([]byte, 4)})
		cpu.spin = true
		l := NewLoop(cpu, LoopConfig{})
		loops, done = append(loops, l), append(done, start(t.Context(), l))
	}
	for range 200 {
		PauseAll(loops...)
		for _, l := range loops {
			if l.CPU().(*fakeCPU).inRun.Load() {
				t.Fatal("in the guest")
			}
		}
		for _, l := range loops {
			l.Resume()
		}
	}
	for i, l := range loops {
		l.Stop()
		must(t, <-done[i])
	}
}

func TestLoopStep(t *testing.T) {
	cpu := newFake(Exit{}, Exit{}, Exit{})
	l := NewLoop(cpu, LoopConfig{})
	for range 2 {
		e, err := l.Step(t.Context())
		if err != nil || e.Reason != ExitDebug {
			t.Fatal(e, err)
		}
	}
	l.Pause()
	done := start(t.Context(), l)
	if e, err := l.Step(t.Context()); err != nil || e.Reason != ExitDebug {
		t.Fatal(e, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := l.Step(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	l.Stop()
	must(t, <-done)
}

func TestLoopDebug(t *testing.T) {
	n := 0
	l := NewLoop(newFake(Exit{Reason: ExitDebug}, Exit{Reason: ExitDebug}), LoopConfig{
		Debug: func(CPU, *Exit) bool { n++; return n < 2 },
	})
	if r, err := l.Run(t.Context()); r != ExitDebug || err != nil || n != 2 {
		t.Fatal(r, err, n)
	}
}

func TestLoopExitAllocs(t *testing.T) {
	l := NewLoop(newFake(), LoopConfig{})
	io := Exit{Reason: ExitIO, Size: 1, Count: 1, Data: make([]byte, 1)}
	mm := Exit{Reason: ExitMMIO, Data: make([]byte, 3)}
	if n := testing.AllocsPerRun(100, func() { l.servePort(&io); l.serveMemory(&mm) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
