package vm_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/device"
)

// fake is an engine whose CPUs take turns: a processor of a few instructions of
// its own, one nanosecond each, that change hands after each of them.
//
//	i               R8++
//	s ADDR32        memory at ADDR = R8
//	o PORT16 VAL32  port output, 32 bits wide; "b" the same with 8 bits
//	r PORT16        R9 = port input, 32 bits wide; "B" the same with 8 bits
//	S ADDR32        memory at ADDR = R9
//	j BACK8         jump back by so many bytes, this instruction included
//	h               halt; any interjection goes on
type fake struct {
	mem  *memory.Memory
	cpus []*fakeCPU
	turn int
	now  int64

	timers []*fakeTimer
	inRun  bool // an instruction or an interjection is being carried out

	mu      sync.Mutex
	wake    chan struct{}
	queue   []func()
	kicked  bool
	closed  bool
	pending *vcpu.Exit // the access to complete
	buf     [4]byte
	into    *uint64 // where a read goes
}

func newFake(mem *memory.Memory, cfg vm.Config, _ vcpu.CPUID) (vcpu.Engine, error) {
	return &fake{mem: mem, wake: make(chan struct{}, 1)}, nil
}

type fakeCPU struct {
	e     *fake
	id    int
	state vcpu.State
	halt  bool
	ready bool // it has a state
}

func (e *fake) NewCPU(id int) (vcpu.CPU, error) {
	c := &fakeCPU{e: e, id: id}
	e.cpus = append(e.cpus, c)
	return c, nil
}

func (e *fake) CPUID() vcpu.CPUID                  { return vcpu.CPUID{{Function: 1}} }
func (e *fake) Line(int) device.Line               { return e }
func (e *fake) Set(bool) error                     { return nil }
func (e *fake) Signal(uint64, uint32) error        { return nil }
func (e *fake) SaveChips() (vcpu.ChipState, error) { return vcpu.ChipState{}, nil }
func (e *fake) LoadChips(vcpu.ChipState) error     { return nil }
func (e *fake) Close() error                       { e.closed = true; return nil }
func (e *fake) Runner() vcpu.CPU                   { return fakeRunner{&fakeCPU{e: e, id: -1}} }
func (e *fake) Clock() device.Clock                { return e }
func (e *fake) Now() int64                         { return e.now }
func (e *fake) Doorbell(uint64, int, *uint64) (device.Doorbell, error) {
	return nil, errors.ErrUnsupported
}

func (e *fake) Interject(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		panic("interjected after Close")
	}
	e.queue = append(e.queue, f)
	e.wakeUp()
}

func (e *fake) wakeUp() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

type fakeTimer struct {
	e  *fake
	f  func()
	at int64 // 0: not set
}

func (e *fake) NewTimer(f func()) device.Timer {
	t := &fakeTimer{e: e, f: f}
	e.timers = append(e.timers, t)
	return t
}

func (t *fakeTimer) Set(d time.Duration) { t.at = t.e.now + max(int64(d), 1) }
func (t *fakeTimer) Stop()               { t.at = 0 }
func (t *fakeTimer) Close()              { t.at = 0 }

func (c *fakeCPU) ID() int { return c.id }
func (c *fakeCPU) Kick() {
	c.e.mu.Lock()
	c.e.kicked = true
	c.e.wakeUp()
	c.e.mu.Unlock()
}
func (c *fakeCPU) Run(*vcpu.Exit) error     { return errors.New("Run of a CPU that takes turns") }
func (c *fakeCPU) SetSingleStep(bool) error { return errors.ErrUnsupported }
func (c *fakeCPU) Close() error             { return nil }

func (c *fakeCPU) State(s *vcpu.State) error {
	if c.e.inRun {
		return errors.New("State within an instruction")
	}
	c.e.complete()
	*s = c.state
	return nil
}

func (c *fakeCPU) SetState(s *vcpu.State) error {
	c.state, c.ready = *s, true
	return nil
}

type fakeRunner struct{ *fakeCPU }

// complete ends the access of the last exit.
func (e *fake) complete() {
	if e.pending != nil && !e.pending.Write && e.into != nil {
		*e.into = uint64(binary.LittleEndian.Uint32(e.buf[:]))
	}
	e.pending, e.into = nil, nil
}

// Run runs all CPUs of the machine.
func (r fakeRunner) Run(exit *vcpu.Exit) error {
	e := r.e
	e.complete()
	for {
		if e.interjected() {
			exit.Reason = vcpu.ExitKick
			return nil
		}
		for _, t := range e.timers {
			if t.at != 0 && t.at <= e.now {
				t.at = 0
				t.f()
			}
		}
		c := e.next()
		if c == nil {
			<-e.wake
			continue
		}
		e.now++
		if err := e.step(c, exit); err != nil || exit.Reason != vcpu.ExitNone {
			return err
		}
	}
}

// interjected runs what was interjected and takes a kick.
func (e *fake) interjected() bool {
	for {
		e.mu.Lock()
		if len(e.queue) == 0 {
			defer e.mu.Unlock()
			kicked := e.kicked
			e.kicked = false
			return kicked
		}
		f := e.queue[0]
		e.queue = e.queue[1:]
		e.mu.Unlock()
		for _, c := range e.cpus {
			c.halt = false
		}
		e.inRun = true
		f()
		e.inRun = false
	}
}

// next is the CPU whose turn it is, or nil if all are halted.
func (e *fake) next() *fakeCPU {
	for range e.cpus {
		e.turn = (e.turn + 1) % len(e.cpus)
		if c := e.cpus[e.turn]; c.ready && !c.halt {
			return c
		}
	}
	return nil
}

func (e *fake) step(c *fakeCPU, exit *vcpu.Exit) error {
	var code [8]byte
	regs := &c.state.Regs
	if err := e.mem.Read(regs.RIP, code[:]); err != nil {
		return err
	}
	*exit = vcpu.Exit{}
	le := binary.LittleEndian
	access := func(size uint8, write bool) {
		*exit = vcpu.Exit{Reason: vcpu.ExitIO, Write: write, Size: size, Count: 1, Port: le.Uint16(code[1:]), Data: e.buf[:size]}
		if write {
			copy(e.buf[:], code[3:7])
		}
		pending := *exit
		e.pending = &pending
	}
	switch code[0] {
	case 'i':
		regs.R8++
		regs.RIP++
	case 's', 'S':
		v := regs.R8
		if code[0] == 'S' {
			v = regs.R9
		}
		regs.RIP += 5
		return e.mem.PutUint64(uint64(le.Uint32(code[1:])), v)
	case 'o':
		access(4, true)
		regs.RIP += 7
	case 'b':
		access(1, true)
		regs.RIP += 7
	case 'r', 'B':
		e.buf = [4]byte{}
		access(map[byte]uint8{'r': 4, 'B': 1}[code[0]], false)
		e.into = &regs.R9
		regs.RIP += 3
	case 'j':
		regs.RIP -= uint64(code[1])
	case 'h':
		c.halt = true
		regs.RIP++
	default:
		return fmt.Errorf("no instruction %q", code[0])
	}
	return nil
}

// The fake's instructions.
func fakeOut(port uint16, v uint32) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16([]byte{'o'}, port), v)
}

func fakeOutb(port uint16, v byte) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16([]byte{'b'}, port), uint32(v))
}

func fakeIn(port uint16) []byte { return binary.LittleEndian.AppendUint16([]byte{'r'}, port) }

func fakeInb(port uint16) []byte { return binary.LittleEndian.AppendUint16([]byte{'B'}, port) }

func fakeStore(op byte, addr uint32) []byte {
	return binary.LittleEndian.AppendUint32([]byte{op}, addr)
}

// fakeLoop repeats code for ever.
func fakeLoop(code ...byte) []byte { return append(code, 'j', byte(len(code))) }

func fakeCode(parts ...[]byte) flat { return flat{code: slices.Concat(parts...)} }
