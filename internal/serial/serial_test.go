package serial

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/internal/chip/chiptest"
	"github.com/vmkit-go/vmkit/internal/inbox"
)

// sink is an output that can be looked at and held up.
type sink struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	gate chan struct{} // if not nil, each Write waits for it
	err  error
}

func (s *sink) Write(p []byte) (int, error) {
	if s.gate != nil {
		<-s.gate
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	return s.buf.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

type bench struct {
	*UART
	line chiptest.Line
	out  sink
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := new(bench)
	u, err := New(Config{Inbox: inbox.New(), Line: &b.line, Output: &b.out})
	if err != nil {
		t.Fatal(err)
	}
	b.UART = u
	t.Cleanup(func() { u.Close() })
	return b
}

func (b *bench) in(reg uint64) byte     { return byte(chiptest.In(b, reg, 1)) }
func (b *bench) set(reg uint64, v byte) { chiptest.Out(b, reg, 1, uint32(v)) }

func (b *bench) input(t testing.TB, s string) {
	t.Helper()
	if n, err := b.Input(context.Background(), []byte(s)); n != len(s) || err != nil {
		t.Fatalf("input took %d of %d: %v", n, len(s), err)
	}
}

func (b *bench) want(t *testing.T, reg uint64, v byte) {
	t.Helper()
	if got := b.in(reg); got != v {
		t.Errorf("register %d reads %#x, want %#x", reg, got, v)
	}
}

func flush(t *testing.T, u *UART) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return u.Flush(ctx)
}

func TestConfig(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("no inbox, no error")
	}
	box := inbox.New()
	for i := range 2 {
		u, err := New(Config{Inbox: box})
		if (err != nil) != (i == 1) {
			t.Errorf("port %d at one inbox: %v", i, err)
		}
		if err == nil {
			chiptest.Out(u, regData, 1, 'x') // to nobody
			if err := flush(t, u); err != nil {
				t.Error(err)
			}
			u.Close()
		}
	}
}

func TestOutput(t *testing.T) {
	b := newBench(t)
	text := strings.Repeat("a line of output\r\n", 1000)
	for _, c := range []byte(text) {
		if b.in(regLSR)&lsrEmpty != lsrEmpty {
			t.Fatal("the transmitter is not ready")
		}
		b.set(regData, c)
	}
	if err := flush(t, b.UART); err != nil {
		t.Fatal(err)
	}
	if got := b.out.String(); got != text {
		t.Errorf("%d bytes came out of %d", len(got), len(text))
	}
}

// TestProbe is what Linux does to tell a 16550A from the rest (autoconfig in
// drivers/tty/serial/8250/8250_port.c).
func TestProbe(t *testing.T) {
	b := newBench(t)
	b.set(regIER, 0)
	b.want(t, regIER, 0)
	b.set(regIER, 0x0f)
	b.want(t, regIER, 0x0f)
	b.set(regIER, 0)
	b.set(regMCR, mcrLoop|mcrOut2|mcrRTS)
	if v := b.in(regMSR) & 0xf0; v != msrDCD|msrCTS {
		t.Errorf("loopback modem status %#x", v)
	}
	b.set(regMCR, 0)
	b.set(regLCR, 0xbf)
	b.set(regIIR, 0)
	b.set(regLCR, 0)
	b.set(regIIR, fcrEnable)
	if v := b.in(regIIR) >> 6; v != 3 {
		t.Errorf("type bits %d, want those of a 16550A", v)
	}
	b.set(regIIR, fcrEnable|1<<5) // 64-byte FIFO of a 16750
	if b.in(regIIR)&(1<<5) != 0 {
		t.Error("claims to be a 16750")
	}
	b.set(regScratch, 0xa5)
	b.want(t, regScratch, 0xa5)
}

func TestDivisor(t *testing.T) {
	b := newBench(t)
	b.set(regLCR, lcrDivisor|3)
	b.set(regData, 0x01)
	b.set(regIER, 0x02)
	b.want(t, regData, 0x01)
	b.want(t, regIER, 0x02)
	b.set(regLCR, 3)
	b.want(t, regIER, 0)
	b.want(t, regLCR, 3)
	if err := flush(t, b.UART); err != nil || b.out.String() != "" {
		t.Errorf("a divisor went out as %q, %v", b.out.String(), err)
	}
}

func TestReceiveInterrupt(t *testing.T) {
	b := newBench(t)
	b.set(regIIR, fcrEnable|3<<6) // trigger at 14
	b.input(t, "early")
	if b.line.Level() {
		t.Fatal("interrupt although none is enabled")
	}
	b.set(regIER, ierReceived)
	b.want(t, regIIR, iirFIFOs|causeTimeout)
	b.input(t, strings.Repeat("x", 20)) // more than the FIFO holds
	b.want(t, regIIR, iirFIFOs|causeReceived)
	b.want(t, regLSR, lsrEmpty|lsrData)
	var got []byte
	for b.in(regLSR)&lsrData != 0 {
		if !b.line.Level() {
			t.Fatal("no interrupt while there is data")
		}
		got = append(got, b.in(regData))
	}
	if string(got) != "early"+strings.Repeat("x", 20) {
		t.Errorf("received %q", got)
	}
	if b.line.Level() {
		t.Error("interrupt without data")
	}
	b.want(t, regIIR, iirFIFOs|causeNone)
	b.want(t, regData, 0)
}

func TestReceiveWithoutFIFO(t *testing.T) {
	b := newBench(t)
	b.set(regIER, ierReceived)
	b.input(t, "ab")
	b.want(t, regIIR, causeReceived)
	b.want(t, regData, 'a')
	b.want(t, regData, 'b')
	b.want(t, regIIR, causeNone)
	b.input(t, "cd")
	b.set(regIIR, fcrEnable) // clears the receiver, and so drops 'c'
	b.want(t, regData, 'd')
	b.input(t, strings.Repeat("e", fifoSize)+"f")
	b.set(regIIR, fcrEnable|fcrClearReceive)
	b.want(t, regData, 'f')
}

func TestTransmitInterrupt(t *testing.T) {
	b := newBench(t)
	b.set(regIER, ierTransmit)
	if !b.line.Level() {
		t.Fatal("no interrupt on enabling it with an empty transmitter")
	}
	b.want(t, regIIR, causeTransmit)
	b.want(t, regIIR, causeNone)
	if b.line.Level() {
		t.Fatal("reading IIR did not clear it")
	}
	b.set(regData, 'x')
	if !b.line.Level() || b.line.Rises() != 2 {
		t.Fatal("no edge after a byte has left")
	}
	b.set(regIER, 0)
	if b.line.Level() {
		t.Error("interrupt although disabled")
	}
	// A cause of higher priority hides it and does not clear it.
	b.set(regIER, ierTransmit|ierReceived)
	b.input(t, "y")
	b.want(t, regIIR, causeReceived)
	b.want(t, regData, 'y')
	b.want(t, regIIR, causeTransmit)
}

func TestLoopback(t *testing.T) {
	b := newBench(t)
	b.set(regIIR, fcrEnable)
	b.set(regIER, ierReceived|ierLine|ierModem)
	b.set(regMCR, mcrLoop)
	b.in(regMSR)
	b.set(regMCR, mcrLoop|mcrDTR|mcrRTS|mcrOut1|mcrOut2)
	b.want(t, regIIR, iirFIFOs|causeModem)
	b.want(t, regMSR, 0xf0|msrDeltas&^msrTERI)
	b.want(t, regMSR, 0xf0)
	b.set(regMCR, mcrLoop)
	b.want(t, regMSR, msrDeltas)
	b.input(t, "outside")
	for i := range fifoSize + 1 {
		b.set(regData, byte('a'+i))
	}
	b.want(t, regIIR, iirFIFOs|causeLine)
	b.want(t, regLSR, lsrEmpty|lsrData|lsrOverrun)
	b.want(t, regLSR, lsrEmpty|lsrData)
	for i := range fifoSize {
		b.want(t, regData, byte('a'+i))
	}
	b.want(t, regLSR, lsrEmpty)
	b.set(regMCR, 0)
	for _, c := range []byte("outside") {
		b.want(t, regData, c)
	}
	// Without FIFOs an overrun replaces the byte.
	b.set(regIIR, 0)
	b.set(regMCR, mcrLoop)
	b.set(regData, '1')
	b.set(regData, '2')
	b.want(t, regLSR, lsrEmpty|lsrData|lsrOverrun)
	b.want(t, regData, '2')
	if err := flush(t, b.UART); err != nil || b.out.String() != "" {
		t.Errorf("%q left the chip in loopback, %v", b.out.String(), err)
	}
}

func TestInputWaits(t *testing.T) {
	b := newBench(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), inputMax/16+100)
	b.set(regIIR, fcrEnable) // before there is input, of which it would drop what was received
	done := make(chan error, 1)
	go func() {
		_, err := b.Input(context.Background(), big)
		done <- err
	}()
	var got []byte
	deadline := time.Now().Add(time.Minute)
	for len(got) < len(big) && time.Now().Before(deadline) {
		if b.in(regLSR)&lsrData != 0 {
			got = append(got, b.in(regData))
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, big) {
		t.Errorf("%d bytes of %d arrived", len(got), len(big))
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		for full := false; !full; time.Sleep(time.Millisecond) {
			b.mu.Lock()
			full = b.pending == inputMax
			b.mu.Unlock()
		}
	}()
	n, err := b.Input(ctx, big)
	if n != inputMax+fifoSize || !errors.Is(err, context.Canceled) {
		t.Errorf("took %d: %v", n, err)
	}
	go func() {
		_, err := b.Input(context.Background(), big)
		done <- err
	}()
	b.Close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("input of a closed port: %v", err)
	}
	b.Deliver(0, big) // more than fits, from a tape
}

func TestSlowOutput(t *testing.T) {
	var out sink
	out.gate = make(chan struct{})
	u, err := New(Config{Inbox: inbox.New(), Output: &out})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	const n = 3 * outputMax
	cpu := make(chan struct{})
	go func() {
		defer close(cpu)
		for range n {
			chiptest.Out(u, regData, 1, 'z')
		}
	}()
	select {
	case <-cpu:
		t.Fatal("the CPU did not wait for the output")
	case <-time.After(50 * time.Millisecond):
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := u.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flush with nobody reading: %v", err)
	}
	u.Pause()
	<-cpu // a paused CPU gets through
	u.Resume()
	close(out.gate)
	if err := flush(t, u); err != nil || len(out.String()) != n {
		t.Errorf("%d of %d bytes came out, %v", len(out.String()), n, err)
	}
}

// TestClose loses nothing that a working output can take, and does not wait
// for one that is stuck.
func TestClose(t *testing.T) {
	var out sink
	u, err := New(Config{Inbox: inbox.New(), Output: &out})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		chiptest.Out(u, regData, 1, 'z')
	}
	if err := errors.Join(u.Close(), u.Close()); err != nil || len(out.String()) != 1000 {
		t.Errorf("%d bytes of 1000 came out, %v", len(out.String()), err)
	}
	chiptest.Out(u, regData, 1, 'z') // too late

	stuck := sink{gate: make(chan struct{})}
	defer close(stuck.gate)
	if u, err = New(Config{Inbox: inbox.New(), Output: &stuck}); err != nil {
		t.Fatal(err)
	}
	chiptest.Out(u, regData, 1, 'z')
	if err := u.Close(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close with a stuck output: %v", err)
	}
}

func TestBrokenOutput(t *testing.T) {
	out := sink{err: io.ErrClosedPipe}
	u, err := New(Config{Inbox: inbox.New(), Output: &out})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for range 2 * outputMax {
		chiptest.Out(u, regData, 1, 'z') // must not wait for ever
	}
	if err := flush(t, u); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("flush: %v", err)
	}
}

func TestWideAccess(t *testing.T) {
	b := newBench(t)
	chiptest.Out(b, regLCR, 2, 0x1f<<8|0x03)
	if v := chiptest.In(b, regLCR, 2); v != 0x1f03 {
		t.Errorf("LCR and MCR read %#x", v)
	}
	b.Write(7, []byte{1, 2, 3, 4})
	p := make([]byte, 4)
	b.Read(7, p)
	if !bytes.Equal(p, []byte{1, 0xff, 0xff, 0xff}) {
		t.Errorf("past the end: %x", p)
	}
}

func TestState(t *testing.T) {
	a := newBench(t)
	a.set(regIIR, fcrEnable|2<<6)
	a.set(regIER, ierReceived)
	a.set(regLCR, 3)
	a.set(regMCR, mcrDTR|mcrRTS|mcrOut2)
	a.input(t, "input that the guest has not read")
	s, err := a.Save()
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	if err := b.Load(s); err != nil {
		t.Fatal(err)
	}
	if !b.line.Level() {
		t.Error("the interrupt was lost")
	}
	again, err := b.Save()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.Data, again.Data) {
		t.Errorf("saved\n%s, loaded\n%s", s.Data, again.Data)
	}
	for _, c := range []byte("input that the guest has not read") {
		b.want(t, regData, c)
	}
	chiptest.BadStates(t, b,
		`{"ier":16}`, `{"ier":256}`, `{"fcr":192}`, `{"fcr":2}`, `{"mcr":32}`, `{"deltas":16}`,
		`{"receive":"YWI="}`, `{"fcr":1,"receive":"`+strings.Repeat("AAAA", 6)+`"}`,
		`{"queue":"`+strings.Repeat("AAAA", inputMax/3+1)+`"}`)
}

func TestAllocs(t *testing.T) {
	u, err := New(Config{Inbox: inbox.New(), Output: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	p := []byte{'x'}
	for range 2 * outputMax { // let the buffers grow
		u.Write(regData, p)
	}
	if n := testing.AllocsPerRun(1000, func() { u.Read(regLSR, p); u.Write(regData, p) }); n != 0 {
		t.Errorf("%v allocations for a byte", n)
	}
}

func FuzzUART(f *testing.F) {
	f.Add([]byte{1, 2, 0xc1, 1, 1, 0x0f, 6, 0, 9, 0, 5, 1, 4, 0x10, 1, 0, 'x', 2, 0})
	f.Add([]byte("\x03\x00" + `{"fcr":1,"receive":"YWI=","queue":"YWJj"}`))
	f.Fuzz(func(t *testing.T, script []byte) {
		b, fresh := newBench(t), newBench(t)
		chiptest.Drive(t, b, fresh, Size, script, func(op byte) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			b.Deliver(0, bytes.Repeat([]byte{op}, int(op)*16))
			_, _ = b.Input(ctx, []byte{op})
		})
	})
}
