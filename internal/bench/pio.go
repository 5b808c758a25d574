package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/kvmcpu"
	"github.com/vmkit-go/vmkit/vm/device"
)

const (
	pioExits = 3000
	pioEntry = 0x1000
	pioSize  = 0x10000
	pioPort  = 0x10
)

// pioCode is the guest of testdata/pio.c.
var pioCode = []byte{0xe6, pioPort, 0x66, 0x49, 0x75, 0xfa, 0xf4}

// pio measures the round trip of a port write: guest, kernel, VMM, and back.
func pio(ctx context.Context, o options) error {
	t := newTable("port write round trip", "ns")
	const col = "time"
	ways := []struct {
		name    string
		measure func(context.Context) (ns float64, err error)
	}{{"C", pioC}, {"package kvm", pioKVM}, {"vcpu.Loop", pioLoop}}
	for range o.roundsOr(25) {
		for _, w := range ways {
			if o.verbose {
				fmt.Println(w.name, "starts")
			}
			ns, err := w.measure(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			if o.verbose {
				fmt.Printf("%s: %.0f ns\n", w.name, ns)
			}
			t.add(w.name, col, ns)
		}
	}
	t.print()
	figure("pio-c", t.median("C", col), "ns")
	figure("pio-kvm", t.median("package kvm", col), "ns")
	figure("pio-loop", t.median("vcpu.Loop", col), "ns")
	ratio("pio-kvm-ratio", t.median("package kvm", col), t.median("C", col))
	ratio("pio-loop-ratio", t.median("vcpu.Loop", col), t.median("C", col))
	return nil
}

// pioC runs the program in C.
func pioC(ctx context.Context) (ns float64, err error) {
	out, err := exec.CommandContext(ctx, pioProgram, fmt.Sprint(pioExits)).Output()
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscanf(string(out), "result c %g", &ns); err != nil {
		return 0, fmt.Errorf("%q: %w", out, err)
	}
	return ns, nil
}

// pioKVM measures package kvm alone.
func pioKVM(context.Context) (ns float64, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sys, err := kvm.Open()
	if err != nil {
		return 0, err
	}
	defer sys.Close()
	vm, err := sys.CreateVM(0)
	if err != nil {
		return 0, err
	}
	defer vm.Close()
	mem, err := unix.Mmap(-1, 0, pioSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(mem)
	copy(mem[pioEntry:], pioCode)
	if err := vm.SetUserMemory(0, 0, 0, mem); err != nil {
		return 0, err
	}
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		return 0, err
	}
	defer cpu.Close()
	sregs, err := cpu.Sregs()
	sregs.CS.Base, sregs.CS.Selector = 0, 0
	regs := kvm.Regs{RIP: pioEntry, RCX: pioExits, RFLAGS: 2}
	if err := errors.Join(err, cpu.SetSregs(&sregs), cpu.SetRegs(&regs)); err != nil {
		return 0, err
	}
	var port portCounter
	run := cpu.RunData()
	for start := time.Now(); ; {
		if err := cpu.Run(); err == unix.EINTR {
			continue
		} else if err != nil {
			return 0, err
		}
		switch run.ExitReason {
		case kvm.ExitIO:
			if io := run.IO(); io.Direction == kvm.IOOut && io.Port == pioPort {
				port.Write(0, cpu.IOData())
			}
		case kvm.ExitHLT:
			return port.average(time.Since(start))
		default:
			return 0, fmt.Errorf("exit %v", run.ExitReason)
		}
	}
}

// pioLoop measures the loop that runs a machine's CPUs, with its bus.
func pioLoop(ctx context.Context) (ns float64, err error) {
	mem, err := memory.New(memory.Config{Size: pioSize, Anonymous: true})
	if err != nil {
		return 0, err
	}
	defer mem.Close()
	if err := mem.Write(pioEntry, pioCode); err != nil {
		return 0, err
	}
	engine, err := kvmcpu.New(mem, kvmcpu.Config{Chips: kvmcpu.ChipsNone})
	if err != nil {
		return 0, err
	}
	defer engine.Close()
	cpu, err := engine.NewCPU(0)
	if err != nil {
		return 0, err
	}
	s := vcpu.PowerUp(true)
	s.Segments.CS.Base, s.Segments.CS.Selector = 0, 0
	s.Regs.RIP, s.Regs.RCX = pioEntry, pioExits
	if err := cpu.SetState(&s); err != nil {
		return 0, err
	}
	var port portCounter
	var ports device.Bus
	if err := ports.Map(pioPort, 1, &port); err != nil {
		return 0, err
	}
	loop := vcpu.NewLoop(cpu, vcpu.LoopConfig{Ports: &ports})
	start := time.Now()
	reason, err := loop.Run(ctx)
	if err == nil && reason != vcpu.ExitHalt {
		err = fmt.Errorf("exit %v", reason)
	}
	if err != nil {
		return 0, err
	}
	return port.average(time.Since(start))
}

// portCounter is a port that counts what is written to it.
type portCounter struct{ n int }

func (*portCounter) Read(_ uint64, p []byte)    { clear(p) }
func (c *portCounter) Write(_ uint64, p []byte) { c.n += len(p) }

func (c *portCounter) average(d time.Duration) (float64, error) {
	if c.n != pioExits {
		return 0, fmt.Errorf("%d exits of %d", c.n, pioExits)
	}
	return float64(d.Nanoseconds()) / pioExits, nil
}
