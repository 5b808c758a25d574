package vm

import (
	"encoding/binary"
	"time"

	"github.com/vmkit-go/vmkit/internal/chip"
	"github.com/vmkit-go/vmkit/internal/inbox"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm/boot"
)

// addEngine makes the engine, and the inbox and the clock that go with it: its
// own where its CPUs take turns, else the host's.
func (m *Machine) addEngine(cpuid vcpu.CPUID) (err error) {
	if m.engine, m.engineName, err = newEngine(m.mem, m.cfg, cpuid); err != nil {
		return err
	}
	turns, ok := m.engine.(vcpu.Turns)
	if !ok {
		m.inbox, m.clock, m.start = inbox.New(), chip.HostClock(), m.cfg.StartTime
		return nil
	}
	m.runner = turns.Runner()
	m.turns = inbox.NewTurns(turns.Interject)
	m.inbox, m.clock = m.turns, turns.Clock()
	if m.start = m.cfg.StartTime; !m.start.IsZero() {
		return nil
	}
	// Where time passes with the instructions, it is asked for once.
	port, err := m.inbox.Open("start", nil)
	if err != nil {
		return err
	}
	var b [8]byte
	err = port.Sample(b[:], func(p []byte) error {
		binary.LittleEndian.PutUint64(p, uint64(time.Now().UnixNano()))
		return nil
	})
	m.start = time.Unix(0, int64(binary.LittleEndian.Uint64(b[:])))
	return err
}

// addCPUs makes the CPUs, with a loop each, or one for all where they take
// turns.
func (m *Machine) addCPUs() error {
	serve := vcpu.LoopConfig{Ports: &m.ports, Memory: &m.mmio}
	for i := range m.cfg.CPUs {
		cpu, err := m.engine.NewCPU(i)
		if err != nil {
			return err
		}
		m.cpus = append(m.cpus, cpu)
		if m.runner == nil {
			m.loops = append(m.loops, vcpu.NewLoop(cpu, serve))
		}
	}
	if m.runner != nil {
		m.loops = append(m.loops, vcpu.NewLoop(m.runner, serve))
	}
	return nil
}

// onCPU calls f with CPU i, which is out of the guest with its last access
// complete.
func (m *Machine) onCPU(i int, f func(vcpu.CPU) error) error {
	l := m.loops[0]
	if m.runner == nil {
		l = m.loops[i]
	}
	return l.Do(func(vcpu.CPU) error { return f(m.cpus[i]) })
}

// load starts to load the first program into the machine's memory. The
// function returned waits for the end of that and, if the machine is otherwise
// complete, points CPU 0 at the program.
func (m *Machine) load(l boot.Loader) (enter func(complete bool) error) {
	type result struct {
		entry boot.Entry
		err   error
	}
	loaded := make(chan result, 1)
	go func() {
		entry, err := l.Load(m.mem, m.hardware())
		loaded <- result{entry, err}
	}()
	return func(complete bool) error {
		r := <-loaded
		if r.err != nil || !complete {
			return r.err
		}
		state := r.entry.State()
		return m.onCPU(0, func(c vcpu.CPU) error { return c.SetState(&state) })
	}
}
