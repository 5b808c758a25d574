package x86diff

import (
	"bytes"
	"encoding/binary"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

// How a case ended, where it is no exception's vector.
const (
	Finished = -1 // after the last instruction
	Shutdown = -2 // by a triple fault
	Failed   = -3 // the engine gave up; see Err
	Hung     = -4 // not at all, in time
)

// Outcome is what a case leaves behind. After an exception the registers are
// those of the interrupted code.
type Outcome struct {
	Vector    int // of the exception, or one of the above
	ErrorCode uint32
	CR2       uint64 // of page faults
	Regs      vcpu.Registers
	FX        [512]byte // as FXSAVE64 writes it
	Memory    []Bytes   // what has changed, by address
	Err       error     // with Failed
	// Doubtful says that this is most likely not what a processor does: where
	// CPL 3 runs natively beneath a CPL 0 that KVM emulates, the
	// emulator is tried on what has raised #GP, and turns that into #UD for
	// instructions that it lacks.
	Doubtful bool

	frame [2]uint64 // CS and SS that the exception pushed
}

// Bytes are the bytes at an address.
type Bytes struct {
	Addr uint64
	Data []byte
}

// Subject runs cases.
type Subject interface {
	// Run runs a case. An error means that nothing can be run any more.
	Run(c *Case, out *Outcome) error
	Close() error
}

// guest is the memory of a subject, and what it was before a case.
type guest struct {
	mem  *memory.Memory
	ram  []byte // all of it
	base []byte // the data pages as they are to be
	// image is all of it, as it is to be.
	image []byte
}

func newGuest(mem *memory.Memory) (*guest, error) {
	g := &guest{mem: mem, image: image()}
	if err := mem.Write(0, g.image); err != nil {
		return nil, err
	}
	g.base = g.image[dataBase:dataLast]
	var err error
	g.ram, err = mem.Slice(0, MemorySize)
	return g, err
}

// place writes the code of a case.
func (g *guest) place(c *Case) error { return g.mem.Write(c.Start(), c.Code) }

// clean takes it away again.
func (g *guest) clean(c *Case) error { return g.mem.Write(c.Start(), hlts[:len(c.Code)]) }

var hlts = bytes.Repeat([]byte{hlt}, maxCode)

// changes returns what a case has changed in memory, and undoes it.
func (g *guest) changes(out *Outcome) error {
	out.Memory = out.Memory[:0]
	for _, page := range writable {
		now, was := g.ram[page:][:4096], g.base[page-dataBase:][:4096]
		if bytes.Equal(now, was) {
			continue
		}
		for i := 0; i < 4096; i++ {
			if now[i] == was[i] {
				continue
			}
			last := i // ends with a gap of 8 equal bytes
			for j := i; j < 4096 && j <= last+8; j++ {
				if now[j] != was[j] {
					last = j
				}
			}
			out.Memory = append(out.Memory, Bytes{page + uint64(i), bytes.Clone(now[i : last+1])})
			i = last
		}
		if err := g.mem.Write(page, was); err != nil {
			return err
		}
	}
	return nil
}

// doubtful reports whether an outcome is most likely KVM's and not the processor's. It
// emulates an instruction after #GP, and is not exact there: a #UD, for one, for which
// there is no reason in the forms.
func doubtful(c *Case, out *Outcome) bool {
	if out.Vector == 14 && out.ErrorCode&8 != 0 {
		return true // no entry has a reserved bit
	}
	if len(c.Forms) == 1 && out.Vector != 6 && locked(c.Code) && !Forms[c.Forms[0]].lock {
		return true // the emulator does not mind LOCK
	}
	if binary.LittleEndian.Uint32(out.FX[24:])>>16 != 0 {
		return true // MXCSR has a bit that only some processors of AMD have, MM
	}
	for _, n := range c.Lens {
		if n > 15 {
			return true // nor how long an instruction is, or what else is wrong with it
		}
	}
	if out.Vector != 6 || len(c.Forms) == 0 || len(c.Lens) != len(c.Forms) {
		return false
	}
	at := out.Regs.RIP - c.Start()
	for i, f := range c.Forms {
		n := uint64(c.Lens[i])
		if at >= n {
			at -= n
			continue
		}
		return at == 0 && !Forms[f].fault && !locked(c.Code[out.Regs.RIP-c.Start():][:n])
	}
	return false
}

// locked reports whether an instruction has a LOCK prefix.
func locked(insn []byte) bool {
	for _, b := range insn {
		switch b {
		case 0xf0:
			return true
		case 0x66, 0x67, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65:
			continue
		}
		if b&0xf0 != 0x40 {
			return false
		}
	}
	return false
}

// finish fills in an outcome from the registers at the end: in a stub, with the
// frame of an exception on the stack, or (at CPL 0) after the end itself.
func (g *guest) finish(c *Case, out *Outcome, regs *vcpu.Registers, cr2 uint64) {
	out.Regs, out.Vector, out.ErrorCode, out.CR2, out.Err = *regs, Finished, 0, 0, nil
	out.frame = [2]uint64{}
	if regs.RIP < stubBase || regs.RIP >= stubBase+stubs*stubSize {
		return
	}
	out.Vector = int(regs.RIP-stubBase) / stubSize
	sp := regs.RSP
	pop := func() (v uint64) {
		if sp <= stackTop-8 {
			v = binary.LittleEndian.Uint64(g.ram[sp:])
		}
		sp += 8
		return v
	}
	if out.Vector < 32 && hasErrorCode>>out.Vector&1 != 0 {
		out.ErrorCode = uint32(pop())
	}
	out.Regs.RIP = pop()
	out.frame[0] = pop()
	out.Regs.RFLAGS = pop()
	out.Regs.RSP = pop()
	out.frame[1] = pop()
	switch {
	case out.Vector == 14:
		out.CR2 = cr2
	case out.Vector == 13 && out.Regs.RIP == c.End() && out.ErrorCode == 0:
		out.Vector = Finished // by the HLT that follows the code
	}
}
