package soft

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

// TestDirtyLogOfRunning reads the log of a guest that runs, writes two pages and reads a
// port all the time. Whoever reads the log had to be quicker than the guest's loop, or
// waited for ever; and if the loop was, the machine ended.
func TestDirtyLogOfRunning(t *testing.T) {
	m := newLong(t)
	// INC QWORD [RSI]; INC QWORD [RDI]; IN AL, 0x80; JMP
	m.kernel(0x48, 0xff, 0x06, 0x48, 0xff, 0x07, 0xe4, 0x80, 0xeb, 0xf6)
	m.r[regRSI], m.r[regRDI] = atData, atData+pageSize
	loop := vcpu.NewLoop(m.e.Runner(), vcpu.LoopConfig{})
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, err := loop.Run(ctx)
		ended <- err
	}()
	if err := m.mem.StartDirty(); err != nil {
		t.Fatal(err)
	}
	var last [2]uint64 // what the pages had when they were last found
	round := func() (found bool) {
		t.Helper()
		b := memory.NewBitmap(m.mem.Regions())
		if err := m.mem.CollectDirty(b); err != nil {
			t.Fatal(err)
		}
		for i := range last {
			if at := atData + uint64(i)*pageSize; b.Test(at) {
				last[i] = m.get(at, 8)
				found = true
			}
		}
		return found
	}
	for found := 0; found < 100; {
		if round() {
			found++
		}
		select {
		case err := <-ended:
			t.Fatalf("the machine has ended: %v", err)
		case <-time.After(10 * time.Microsecond):
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	round()
	for i, v := range last {
		if got := m.get(atData+uint64(i)*pageSize, 8); got != v || got == 0 {
			t.Errorf("page %d has %d, but %d when it was last found to be written", i, got, v)
		}
	}
	if err := m.mem.StopDirty(); err != nil {
		t.Fatal(err)
	}
}

// TestWritesAtOnce has devices write over code from several goroutines, as they may while
// the machine does not run.
func TestWritesAtOnce(t *testing.T) {
	m := newLong(t)
	code := make([]byte, 512*3) // JMP to the next, so that there is a block for each
	for i := 0; i < len(code)-3; i += 3 {
		copy(code[i:], []byte{0xeb, 0x01, 0xcc})
	}
	code[len(code)-3] = 0xf4
	for range 20 {
		m.kernel(code...)
		m.halted = false
		m.runs()
		p := m.e.page(atCode)
		if p.live < 100 {
			t.Fatalf("%d blocks", p.live)
		}
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for at := i; at < len(code); at += 4 {
					m.code(atCode+uint64(at), 0xcc)
				}
			})
		}
		wg.Wait()
		if p.live != 0 {
			t.Fatalf("%d blocks are left", p.live)
		}
	}
}
