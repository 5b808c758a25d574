package virtio

import (
	"encoding/binary"
	"sync"
	"time"
)

// How long Pause and Close wait for an Out that takes nothing.
const (
	pauseGrace = 500 * time.Millisecond
	closeGrace = time.Second
)

// roomStep is how many bytes Out must have taken before the device hears of
// it: often enough to keep the guest going, rarely enough for a tape.
const roomStep = portBuffer / 4

// consolePort is one port: its streams on the host's side, and its state on
// the guest's. Fields without a lock of their own are guarded by Console.mu.
type consolePort struct {
	index int
	cfg   ConsolePort

	// What the guest has done.
	ready     bool // PORT_READY
	guestOpen bool // PORT_OPEN
	toSend    uint8

	// Input.
	hostOpen bool // as the guest shall see it
	ended    bool // In has ended
	pending  []byte

	// Output. credit is the room left, a function of what the guest sent
	// and of the events delivered, never of the host's timing. On a prompt
	// machine it is what is known to be left: the guest, which waits where
	// there is none, cannot see it.
	prompt bool
	credit int
	txDone uint32 // bytes of the queue's next chain that are sent already

	in  inPump
	out outPump
}

// inPump reads In ahead as far as there is credit: portBuffer less what is
// pending or on its way there.
type inPump struct {
	mu     sync.Mutex
	wake   sync.Cond
	credit int
	closed bool
	done   chan struct{} // nil: no reader
}

// outPump holds output until Out has taken it.
type outPump struct {
	mu       sync.Mutex
	wake     sync.Cond // for the writer
	room     sync.Cond // for a CPU
	buf      []byte
	sent     uint64 // bytes ever put into buf
	taken    uint64 // of those, bytes that Out has taken
	yielding bool   // no CPU is to wait for room
	closed   bool
	done     chan struct{} // nil: no writer
}

func newConsolePort(index int, cfg ConsolePort) *consolePort {
	p := &consolePort{index: index, cfg: cfg, hostOpen: true, credit: portBuffer}
	p.in.wake.L, p.out.wake.L, p.out.room.L = &p.in.mu, &p.out.mu, &p.out.mu
	p.in.credit = portBuffer
	return p
}

// rxQueue is the number of the port's receive queue; its transmit queue
// follows (virtio 1.2, section 5.3.2).
func (p *consolePort) rxQueue() int {
	if p.index == 0 {
		return 0
	}
	return 2 + 2*p.index
}

func (p *consolePort) startWriting(d *Console) {
	if p.cfg.Out != nil {
		p.out.done = make(chan struct{})
		go p.write(d)
	}
}

func (p *consolePort) startReading(d *Console) {
	if p.cfg.In != nil && p.in.done == nil {
		p.in.done = make(chan struct{})
		go p.read(d)
	}
}

// read posts what In yields.
func (p *consolePort) read(d *Console) {
	defer close(p.in.done)
	buf := make([]byte, 8192)
	for {
		room := p.in.wait()
		if room == 0 {
			return
		}
		n, err := p.cfg.In.Read(buf[:min(room, len(buf))])
		if !p.in.take(n) {
			return
		}
		if n > 0 {
			d.inbox.Post(consoleTag(p.index, eventData), buf[:n])
		}
		if err != nil {
			d.inbox.Post(consoleTag(p.index, eventEOF), nil)
			return
		}
	}
}

// wait returns the room for input, 0 once closed.
func (i *inPump) wait() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	for i.credit <= 0 && !i.closed {
		i.wake.Wait()
	}
	if i.closed {
		return 0
	}
	return i.credit
}

func (i *inPump) take(n int) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.credit -= n
	return !i.closed
}

// consumed says that the guest has got n bytes of input.
func (p *consolePort) consumed(n int) {
	p.in.mu.Lock()
	p.in.credit = min(p.in.credit+n, portBuffer)
	p.in.wake.Signal()
	p.in.mu.Unlock()
}

// restore replaces the input that the guest has not got. The credit follows,
// so that pending never holds more than portBuffer.
func (p *consolePort) restore(saved []byte) {
	p.in.mu.Lock()
	p.in.credit += len(p.pending) - len(saved)
	p.in.wake.Signal()
	p.in.mu.Unlock()
	p.pending = append(p.pending[:0], saved...)
}

// room reports whether there is credit. On a prompt machine it waits for some,
// unless it is not to.
func (p *consolePort) room() bool {
	if p.credit > 0 || !p.prompt {
		return p.credit > 0
	}
	o := &p.out
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.buf) >= portBuffer && !o.yielding && !o.closed {
		o.room.Wait()
	}
	p.credit = max(portBuffer-len(o.buf), 0)
	return p.credit > 0
}

func (p *consolePort) setYielding(on bool) {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	p.out.yielding = on
	p.out.room.Broadcast()
}

// send appends output, at most credit bytes, for Out.
func (p *consolePort) send(b []byte) {
	if p.out.done == nil {
		return // dropped
	}
	p.credit -= len(b)
	p.out.mu.Lock()
	p.out.buf = append(p.out.buf, b...)
	p.out.sent += uint64(len(b))
	p.out.wake.Signal()
	p.out.mu.Unlock()
}

// write hands the output to Out.
func (p *consolePort) write(d *Console) {
	defer close(p.out.done)
	o := &p.out
	var buf []byte
	var room [4]byte
	failed, unsaid := false, 0
	for {
		o.mu.Lock()
		for len(o.buf) == 0 && !o.closed {
			o.wake.Wait()
		}
		if len(o.buf) == 0 {
			o.mu.Unlock()
			return
		}
		buf, o.buf = o.buf, buf[:0]
		o.room.Broadcast()
		o.mu.Unlock()
		if !failed {
			if _, err := p.cfg.Out.Write(buf); err != nil {
				failed = true // and drop what follows: nobody listens
				d.log.Warn("virtio: console output", "port", p.index, "error", err)
			}
		}
		o.mu.Lock()
		o.taken += uint64(len(buf))
		closed := o.closed
		o.mu.Unlock()
		if unsaid += len(buf); unsaid >= roomStep && !closed && !p.prompt {
			binary.LittleEndian.PutUint32(room[:], uint32(unsaid))
			unsaid = 0
			d.inbox.Post(consoleTag(p.index, eventRoom), room[:])
		}
	}
}

// stop tells both goroutines to end.
func (p *consolePort) stop() {
	p.in.mu.Lock()
	p.in.closed = true
	p.in.wake.Signal()
	p.in.mu.Unlock()
	p.out.mu.Lock()
	p.out.closed = true
	p.out.wake.Signal()
	p.out.room.Broadcast()
	p.out.mu.Unlock()
	if r, ok := p.cfg.In.(interface{ SetReadDeadline(time.Time) error }); ok && p.in.done != nil {
		select {
		case <-p.in.done:
		default:
			_ = r.SetReadDeadline(time.Unix(1, 0)) // where that works, end a Read
		}
	}
}

// wait waits for the writer to end with all output written. It gives up on an
// Out that takes nothing for closeGrace.
func (p *consolePort) wait() {
	if p.out.done == nil {
		return
	}
	if !p.flush(closeGrace) {
		w, ok := p.cfg.Out.(interface{ SetWriteDeadline(time.Time) error })
		if !ok || w.SetWriteDeadline(time.Unix(1, 0)) != nil {
			return
		}
	}
	<-p.out.done
}

// flush waits until Out has taken all output, as long as it takes some every
// grace. It reports whether that is so. What counts is the time slept: on a host
// that is too busy to run this process, Out is not to blame.
func (p *consolePort) flush(grace time.Duration) bool {
	pause, waited, last := 10*time.Microsecond, time.Duration(0), uint64(0)
	for {
		p.out.mu.Lock()
		left, taken := p.out.sent-p.out.taken, p.out.taken
		p.out.mu.Unlock()
		if left == 0 {
			return true
		}
		if taken != last {
			last, waited = taken, 0
		} else if waited > grace {
			return false
		}
		time.Sleep(pause)
		waited += pause
		pause = min(2*pause, 5*time.Millisecond)
	}
}
