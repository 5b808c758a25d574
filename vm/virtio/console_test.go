package virtio_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// guest is a console driver as Linux has it.
type guest struct {
	*virtiotest.Machine
	t  testing.TB
	by map[[2]int]uint64 // addresses of the buffers offered, by queue and head
	tx uint64
}

func newGuest(t testing.TB, m *virtiotest.Machine) *guest {
	g := &guest{Machine: m, t: t, by: map[[2]int]uint64{}}
	g.tx = m.Alloc(256 << 10)
	return g
}

// offer gives queue q n receive buffers of 4096 bytes.
func (g *guest) offer(q, n int) {
	g.t.Helper()
	for range n {
		a := g.Alloc(4096)
		head, err := g.Rings[q].Add(virtiotest.Buf{Addr: a, Len: 4096, Write: true})
		if err != nil {
			g.t.Fatal(err)
		}
		g.by[[2]int{q, int(head)}] = a
	}
	g.Kick(q)
}

// recv waits for one buffer of queue q, and offers it again.
func (g *guest) recv(q int) []byte {
	g.t.Helper()
	head, n, err := g.WaitUsed(q, time.Minute)
	if err != nil {
		g.t.Fatal(err)
	}
	a := g.by[[2]int{q, int(head)}]
	p := make([]byte, n)
	if err := g.Mem.Read(a, p); err != nil {
		g.t.Fatal(err)
	}
	head, err = g.Rings[q].Add(virtiotest.Buf{Addr: a, Len: 4096, Write: true})
	if err != nil {
		g.t.Fatal(err)
	}
	g.by[[2]int{q, int(head)}] = a
	g.Kick(q)
	return p
}

func (g *guest) recvN(q, n int) []byte {
	g.t.Helper()
	var p []byte
	for len(p) < n {
		p = append(p, g.recv(q)...)
	}
	return p
}

// send writes to a transmit queue and waits until the buffer is used.
func (g *guest) send(q int, p []byte) {
	g.t.Helper()
	if err := g.Mem.Write(g.tx, p); err != nil {
		g.t.Fatal(err)
	}
	if _, err := g.Do(q, virtiotest.Buf{Addr: g.tx, Len: uint32(len(p))}); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) control(id uint32, event, value uint16) {
	g.t.Helper()
	var b [8]byte
	binary.LittleEndian.PutUint32(b[0:], id)
	binary.LittleEndian.PutUint16(b[4:], event)
	binary.LittleEndian.PutUint16(b[6:], value)
	g.send(3, b[:])
}

func (g *guest) expect(id uint32, event, value uint16, rest string) {
	g.t.Helper()
	want := binary.LittleEndian.AppendUint32(nil, id)
	want = binary.LittleEndian.AppendUint16(want, event)
	want = binary.LittleEndian.AppendUint16(want, value)
	want = append(want, rest...)
	if got := g.recv(2); !bytes.Equal(got, want) {
		g.t.Fatalf("control message %q, want %q", got, want)
	}
}

// output collects what a console writes.
type output struct {
	mu  sync.Mutex
	buf []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf = append(o.buf, p...)
	return len(p), nil
}

func (o *output) wait(t testing.TB, want string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		o.mu.Lock()
		got := string(o.buf)
		o.mu.Unlock()
		if got == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("output %q, want %q", got, want)
		}
	}
}

func newConsole(t testing.TB, cfg virtio.ConsoleConfig) *virtio.Console {
	t.Helper()
	d, err := virtio.NewConsole(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestConsole(t *testing.T) {
	each(t, func(t *testing.T, cfg virtiotest.Config) {
		in, typed := io.Pipe()
		defer typed.Close()
		out := &output{}
		d := newConsole(t, virtio.ConsoleConfig{In: in, Out: out, Cols: 80, Rows: 25})
		g := newGuest(t, start(t, d, cfg))
		if c := g.ReadConfig(0, 12); !bytes.Equal(c, []byte{80, 0, 25, 0, 1, 0, 0, 0, 0, 0, 0, 0}) {
			t.Fatalf("configuration %x", c)
		}
		if g.Features&7 != 5 {
			t.Fatalf("features %#x", g.Features)
		}
		g.WriteConfig(8, 4, '!')
		g.send(1, []byte("hello "))
		g.send(1, []byte("world"))
		out.wait(t, "!hello world")
		if _, err := typed.Write([]byte("early")); err != nil {
			t.Fatal(err)
		}
		g.offer(0, 4)
		if got := g.recvN(0, 5); string(got) != "early" {
			t.Fatalf("got %q", got)
		}
		before := g.Generation()
		d.Resize(132, 50)
		if g.Generation() == before {
			t.Fatal("no configuration change")
		}
		if c := g.ReadConfig(0, 4); !bytes.Equal(c, []byte{132, 0, 50, 0}) {
			t.Fatalf("configuration %x", c)
		}
	})
}

func TestConsolePorts(t *testing.T) {
	each(t, func(t *testing.T, cfg virtiotest.Config) {
		in, host := io.Pipe()
		out := &output{}
		opened := make(chan bool, 10)
		d := newConsole(t, virtio.ConsoleConfig{Cols: 80, Rows: 25, Ports: []virtio.ConsolePort{
			{Name: "control", In: in, Out: out, CloseAtEOF: true, Opened: func(o bool) { opened <- o }},
			{Name: "other"},
		}})
		g := newGuest(t, start(t, d, cfg))
		g.offer(2, 8)
		g.control(0, 0, 1) // DEVICE_READY
		for i := range uint32(3) {
			g.expect(i, 1, 1, "")
		}
		g.control(0, 3, 1) // PORT_READY
		g.expect(0, 4, 1, "")
		g.expect(0, 6, 1, "")
		g.expect(0, 5, 1, "\x50\x00\x19\x00")
		g.control(1, 3, 1)
		g.expect(1, 7, 1, "control")
		g.expect(1, 6, 1, "")
		g.control(77, 3, 1) // no such port
		g.offer(4, 4)
		go func() {
			host.Write([]byte("command"))
			host.Close()
		}()
		time.Sleep(5 * time.Millisecond)
		if _, _, ok := g.Rings[4].Used1(); ok {
			t.Fatal("input before the guest opened the port")
		}
		g.control(1, 6, 1)
		if !<-opened {
			t.Fatal("not opened")
		}
		if got := g.recvN(4, 7); string(got) != "command" {
			t.Fatalf("got %q", got)
		}
		g.expect(1, 6, 0, "") // end of file
		g.send(5, []byte("result"))
		out.wait(t, "result")
		g.control(1, 6, 0)
		if <-opened {
			t.Fatal("not closed")
		}
		g.send(7, []byte("dropped")) // no Out
		g.control(1, 6, 1)
		<-opened
		g.Reset()
		if <-opened {
			t.Fatal("reset leaves the port open")
		}
	})
}

// slow is a writer that takes nothing until told.
type slow struct {
	output
	gate chan struct{}
}

func (s *slow) Write(p []byte) (int, error) {
	<-s.gate
	return s.output.Write(p)
}

func TestConsoleBackPressure(t *testing.T) {
	for _, hold := range []bool{false, true} {
		out := &slow{gate: make(chan struct{})}
		inR, inW := io.Pipe()
		d := newConsole(t, virtio.ConsoleConfig{In: inR, Out: out})
		m := start(t, d, virtiotest.Config{Hold: hold})
		g := newGuest(t, m)
		// Output: 200 KiB in chains of 20 KiB, with the host taking none.
		var want []byte
		for i := range 200 << 10 {
			want = append(want, byte(i*7>>3))
		}
		if err := g.Mem.Write(g.tx, want); err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			a := g.tx + uint64(i)*20480
			if _, err := g.Rings[1].Add(virtiotest.Buf{Addr: a, Len: 5000}, virtiotest.Buf{Addr: a + 5000, Len: 15480}); err != nil {
				t.Fatal(err)
			}
		}
		g.Kick(1)
		used := 0
		for {
			if _, _, ok := g.Rings[1].Used1(); !ok {
				break
			}
			used++
		}
		if used != 3 { // 64 KiB hold three of them and a part of the fourth
			t.Fatalf("%d chains used while the host takes nothing", used)
		}
		// Pause and save do not wait for the host, and nothing is lost or doubled.
		m.Transport.Pause()
		if _, err := m.Transport.Save(); err != nil {
			t.Fatal(err)
		}
		m.Transport.Resume()
		close(out.gate)
		for end := time.Now().Add(time.Minute); used < 10; {
			m.Inbox.Deliver()
			if _, _, ok := g.Rings[1].Used1(); ok {
				used++
			} else if time.Now().After(end) {
				t.Fatalf("%d chains used", used)
			}
		}
		out.wait(t, string(want))

		// Input: the host writes 200 KiB, the guest offers nothing yet.
		done := make(chan error, 1)
		go func() {
			_, err := inW.Write(want)
			inW.Close()
			done <- err
		}()
		time.Sleep(20 * time.Millisecond)
		select {
		case <-done:
			t.Fatal("the device took everything")
		default:
		}
		g.offer(0, 8)
		var got []byte
		for end := time.Now().Add(time.Minute); len(got) < len(want); {
			m.Inbox.Deliver()
			head, n, ok := g.Rings[0].Used1()
			if !ok {
				if time.Now().After(end) {
					t.Fatalf("%d bytes received", len(got))
				}
				continue
			}
			a := g.by[[2]int{0, int(head)}]
			p := make([]byte, n)
			g.Mem.Read(a, p)
			got = append(got, p...)
			head, _ = g.Rings[0].Add(virtiotest.Buf{Addr: a, Len: 4096, Write: true})
			g.by[[2]int{0, int(head)}] = a
			g.Kick(0)
		}
		if !bytes.Equal(got, want) {
			t.Fatal("input damaged")
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// TestConsolePauseFlushes: what the guest has sent is out when Pause returns.
func TestConsolePauseFlushes(t *testing.T) {
	var out lazy
	m := start(t, newConsole(t, virtio.ConsoleConfig{Out: &out}), virtiotest.Config{PCI: true})
	g := newGuest(t, m)
	for i := range 20 {
		g.send(1, []byte("text"))
		m.Transport.Pause()
		if n := out.n.Load(); n != int32(i+1)*4 {
			t.Fatalf("%d bytes written when paused", n)
		}
		m.Transport.Resume()
	}
}

// lazy is a writer that takes its time.
type lazy struct{ n atomic.Int32 }

func (l *lazy) Write(p []byte) (int, error) {
	time.Sleep(2 * time.Millisecond)
	l.n.Add(int32(len(p)))
	return len(p), nil
}

// TestConsoleCloseStuck: an Out that takes nothing does not keep Close.
func TestConsoleCloseStuck(t *testing.T) {
	out := &slow{gate: make(chan struct{})}
	m, err := virtiotest.NewMachine(newConsole(t, virtio.ConsoleConfig{Out: out}), virtiotest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	newGuest(t, m).send(1, []byte("text"))
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	close(out.gate)
}

func TestConsoleSaveLoad(t *testing.T) {
	each(t, func(t *testing.T, cfg virtiotest.Config) {
		inR, inW := io.Pipe()
		ports := func(in io.Reader, out io.Writer, opened func(bool)) virtio.ConsoleConfig {
			return virtio.ConsoleConfig{Out: out, Ports: []virtio.ConsolePort{{Name: "control", In: in, Out: out, Opened: opened}}}
		}
		m := start(t, newConsole(t, ports(inR, io.Discard, nil)), cfg)
		g := newGuest(t, m)
		g.offer(2, 8)
		g.control(0, 0, 1)
		g.expect(0, 1, 1, "")
		g.expect(1, 1, 1, "")
		g.control(1, 3, 1)
		g.expect(1, 7, 1, "control")
		g.expect(1, 6, 1, "")
		g.control(1, 6, 1)
		if _, err := inW.Write([]byte("typed before")); err != nil {
			t.Fatal(err)
		}
		inW.Close()
		// What was written has been read, but may be on its way to the device.
		typed := base64.StdEncoding.EncodeToString([]byte("typed before"))
		var st device.State
		for !bytes.Contains(st.Data, []byte(typed)) {
			m.Transport.Resume()
			runtime.Gosched()
			m.Transport.Pause()
			var err error
			if st, err = m.Transport.Save(); err != nil {
				t.Fatal(err)
			}
		}
		out := &output{}
		opened := make(chan bool, 10)
		m2, err := m.Successor(newConsole(t, ports(bytes.NewReader([]byte(", typed after")), out, func(o bool) { opened <- o })))
		if err != nil {
			t.Fatal(err)
		}
		defer m2.Close()
		m2.Transport.Pause()
		if err := m2.Transport.Load(st); err != nil {
			t.Fatal(err)
		}
		if !<-opened {
			t.Fatal("the host does not learn that the port is open")
		}
		m2.Transport.Resume()
		g.Machine = m2
		g.offer(4, 4)
		if got := g.recvN(4, 25); string(got) != "typed before, typed after" {
			t.Fatalf("got %q", got)
		}
		g.send(5, []byte("back"))
		out.wait(t, "back")

		// The wrong device.
		for name, cfg := range map[string]virtio.ConsoleConfig{
			"no port":    {},
			"other name": {Ports: []virtio.ConsolePort{{Name: "x"}}},
		} {
			m3, err := m.Successor(newConsole(t, cfg))
			if err != nil {
				t.Fatal(err)
			}
			m3.Transport.Pause()
			if err := m3.Transport.Load(st); !errors.Is(err, virtio.ErrState) {
				t.Errorf("%s: %v", name, err)
			}
			m3.Close()
		}
	})
}

func TestConsoleConfigRefused(t *testing.T) {
	many := make([]virtio.ConsolePort, 31)
	for i := range many {
		many[i].Name = fmt.Sprint(i)
	}
	for name, ports := range map[string][]virtio.ConsolePort{
		"no name": {{}}, "twice": {{Name: "a"}, {Name: "a"}}, "zero byte": {{Name: "a\x00"}}, "many": many,
	} {
		if _, err := virtio.NewConsole(virtio.ConsoleConfig{Ports: ports}); !errors.Is(err, virtio.ErrDevice) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRNG(t *testing.T) {
	each(t, func(t *testing.T, cfg virtiotest.Config) {
		d, err := virtio.NewRNG(virtio.RNGConfig{})
		if err != nil {
			t.Fatal(err)
		}
		m := start(t, d, cfg)
		a := m.Alloc(1 << 20)
		for _, tc := range []struct{ ask, want uint32 }{{8, 8}, {4096, 4096}, {1 << 20, 4096}} {
			n, err := m.Do(0, virtiotest.Buf{Addr: a, Len: tc.ask, Write: true})
			if err != nil || n != tc.want {
				t.Fatalf("asked for %d: got %d, %v", tc.ask, n, err)
			}
		}
		p := make([]byte, 4096)
		if err := m.Mem.Read(a, p); err != nil {
			t.Fatal(err)
		}
		if bytes.Count(p, []byte{0}) > 200 {
			t.Fatal("not random")
		}
		if n, err := m.Do(0, virtiotest.Buf{Addr: a, Len: 8}); err != nil || n != 0 {
			t.Fatal(n, err)
		}
	})
	d, err := virtio.NewRNG(virtio.RNGConfig{Source: bytes.NewReader(nil)})
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, d, virtiotest.Config{})
	if n, err := m.Do(0, virtiotest.Buf{Addr: 0x800000, Len: 8, Write: true}); err != nil || n != 0 {
		t.Fatal(n, err)
	}
}

func TestRNGAllocs(t *testing.T) {
	d, err := virtio.NewRNG(virtio.RNGConfig{})
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, d, virtiotest.Config{PCI: true})
	round := func() {
		if _, err := m.Do(0, virtiotest.Buf{Addr: 0x800000, Len: 64, Write: true}); err != nil {
			t.Fatal(err)
		}
	}
	round()
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Fatalf("%v allocations per request", n)
	}
}

// gated is an Out that takes nothing before it is opened.
type gated struct {
	open chan struct{}
	output
}

func (g *gated) Write(p []byte) (int, error) {
	<-g.open
	return g.output.Write(p)
}

// TestConsolePrompt: where output is prompt, the guest's buffers come back in
// the notification, however slow Out is, and a pause gets the CPU out of it.
func TestConsolePrompt(t *testing.T) {
	out := &gated{open: make(chan struct{})}
	d := newConsole(t, virtio.ConsoleConfig{Out: out})
	m := start(t, d, virtiotest.Config{PCI: true, Prompt: true})
	const at, size = 0x900000, 48 << 10
	var want []byte
	add := func() {
		t.Helper()
		p := bytes.Repeat([]byte{byte('a' + len(want)/size)}, size)
		want = append(want, p...)
		if err := m.Mem.Write(at+uint64(len(want)-size), p); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Rings[1].Add(virtiotest.Buf{Addr: at + uint64(len(want)-size), Len: size}); err != nil {
			t.Fatal(err)
		}
	}
	used := func() bool { _, _, ok := m.Rings[1].Used1(); return ok }
	add()
	m.Notify(1)
	if !used() {
		t.Fatal("not answered within the notification")
	}
	// The writer holds up to one buffer and another waits; then the CPU does.
	for range 3 {
		add()
	}
	rang := make(chan struct{})
	go func() { m.Notify(1); close(rang) }()
	select {
	case <-rang:
		t.Fatal("the notification did not wait for room")
	case <-time.After(50 * time.Millisecond):
	}
	m.Transport.(interface{ Yield() }).Yield()
	<-rang
	done := 0
	for used() {
		done++
	}
	if done == 3 {
		t.Fatal("everything was answered, though nothing was taken")
	}
	m.Transport.Pause()
	if used() {
		t.Fatal("an answer during the pause")
	}
	close(out.open)
	m.Transport.Resume()
	for used() {
		done++
	}
	if done != 3 {
		t.Fatalf("%d of 3 answered when Resume returned", done)
	}
	out.wait(t, string(want))
}
