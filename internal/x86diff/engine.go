package x86diff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

// Engine runs cases on any engine, through its contract alone.
type Engine struct {
	*guest
	eng   vcpu.Engine
	cpu   vcpu.CPU
	run   vcpu.CPU // runs cpu: itself, or what takes turns
	start vcpu.State
	fx    [576]byte
}

// NewEngine makes a machine for cases of an engine: one with one CPU. It closes
// what newEngine returns.
func NewEngine(newEngine func(mem *memory.Memory) (vcpu.Engine, error)) (_ *Engine, err error) {
	mem, err := memory.New(memory.Config{Size: MemorySize})
	if err != nil {
		return nil, err
	}
	e := &Engine{start: startState(3)}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if e.guest, err = newGuest(mem); err != nil {
		return nil, errors.Join(err, mem.Close())
	}
	if e.eng, err = newEngine(mem); err != nil {
		return nil, err
	}
	if e.cpu, err = e.eng.NewCPU(0); err != nil {
		return nil, err
	}
	e.run = e.cpu
	if t, ok := e.eng.(vcpu.Turns); ok {
		e.run = t.Runner()
	}
	return e, nil
}

// Close releases the machine.
func (e *Engine) Close() error {
	var errs []error
	if e.cpu != nil {
		errs = append(errs, e.cpu.Close())
	}
	if e.eng != nil {
		errs = append(errs, e.eng.Close())
	}
	if e.guest != nil {
		errs = append(errs, e.mem.Close())
	}
	return errors.Join(errs...)
}

// Run runs a case.
func (e *Engine) Run(c *Case, out *Outcome) error {
	if err := e.place(c); err != nil {
		return err
	}
	in := c.Input()
	s := e.start
	s.Regs = in.Regs
	s.Segments.FS.Base, s.Segments.GS.Base = in.FSBase, in.GSBase
	copy(e.fx[:], in.FX[:])
	clear(e.fx[512:])
	binary.LittleEndian.PutUint64(e.fx[512:], 3)
	s.XSAVE = e.fx[:]
	exit, runErr, err := e.enter(&s)
	if err != nil {
		return err
	}
	e.finish(c, out, &s.Regs, s.Control.CR2)
	e.outcome(out, exit, runErr)
	if len(s.XSAVE) < len(e.fx) {
		return fmt.Errorf("x86diff: a state with an XSAVE area of %d bytes", len(s.XSAVE))
	}
	fromXSAVE(&out.FX, s.XSAVE)
	if err := e.changes(out); err != nil {
		return err
	}
	return e.clean(c)
}

// enter runs the CPU from a state up to its first exit, and loads the state there.
// The first error is that of Run, which a case may cause.
func (e *Engine) enter(s *vcpu.State) (exit vcpu.Exit, runErr, err error) {
	if err := e.cpu.SetState(s); err != nil {
		return exit, nil, err
	}
	watchdog := time.AfterFunc(caseTime, e.run.Kick)
	runErr = e.run.Run(&exit)
	if !watchdog.Stop() && runErr == nil && exit.Reason != vcpu.ExitKick {
		// The kick comes to the next Run: take it.
		var kick vcpu.Exit
		e.run.Kick()
		if err := e.run.Run(&kick); err != nil {
			return exit, runErr, err
		}
	}
	return exit, runErr, e.cpu.State(s)
}

// outcome says how a case ended other than in a stub.
func (e *Engine) outcome(out *Outcome, exit vcpu.Exit, runErr error) {
	switch {
	case runErr != nil:
		out.Vector, out.Err = Failed, runErr
	case exit.Reason == vcpu.ExitIO && exit.Port == endPort:
	case exit.Reason == vcpu.ExitShutdown:
		out.Vector = Shutdown
	case exit.Reason == vcpu.ExitKick:
		out.Vector = Hung
	default:
		out.Vector, out.Err = Failed, fmt.Errorf("exit %+v", exit)
	}
}
