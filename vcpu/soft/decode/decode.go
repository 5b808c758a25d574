// Package decode takes x86 instructions apart: prefixes, opcode, ModRM, SIB,
// displacement and immediate (Intel SDM volume 2, chapter 2). It knows the shape of
// every instruction and the meaning of none, so an undefined opcode decodes like any
// other of its map; who gives instructions a meaning refuses it.
//
//	var in decode.Inst
//	n, err := decode.Decode(code, decode.Mode64, &in)
//	if in.Map == decode.MapPrimary && in.Op == 0x90 { ... }
package decode

import "errors"

// Mode is the size of code: the default operand and address size.
type Mode uint8

// The modes.
const (
	Mode16 Mode = iota
	Mode32
	Mode64
)

// Map is an opcode map.
type Map uint8

// The maps. VEX-encoded instructions have Inst.VEX set beside.
const (
	MapPrimary Map = iota // one byte
	Map0F                 // 0F
	Map0F38               // 0F 38
	Map0F3A               // 0F 3A
)

// MaxLen is the longest instruction, in bytes.
const MaxLen = 15

// Errors of Decode.
var (
	// ErrShort: the code ends within the instruction.
	ErrShort = errors.New("instruction is cut off")
	// ErrLong: the instruction is longer than MaxLen, which is #GP.
	ErrLong = errors.New("instruction is longer than 15 bytes")
	// ErrUndefined: no instruction looks like this, which is #UD.
	ErrUndefined = errors.New("undefined instruction")
)

// Segment registers by their number in instructions.
const (
	ES = iota
	CS
	SS
	DS
	FS
	GS
	NoSeg = 0xff // no override
)

// NoReg is a base or index that is not there.
const NoReg = 0xff

// Inst is one instruction.
type Inst struct {
	Map    Map
	Op     byte // the opcode's last byte
	Len    uint8
	OpSize uint8 // operand size in bytes as the prefixes say: 2, 4 or 8
	// AddrSize is the address size in bytes: 2, 4 or 8.
	AddrSize uint8
	Seg      uint8 // segment override, or NoSeg
	Rep      uint8 // the last of 0xf2 and 0xf3, or 0
	Op66     bool  // an operand-size prefix
	Lock     bool
	REX      uint8 // the REX prefix, or 0
	VEX      bool
	VexL     bool  // 256 bits
	VexW     bool  // REX.W, in legacy encodings too
	VexV     uint8 // the register in VEX.vvvv, 0 to 15
	VexPP    uint8 // 0, 1 (66), 2 (F3), 3 (F2); only with VEX

	HasModRM bool
	Mod      uint8
	Reg      uint8 // ModRM.reg with REX.R
	RM       uint8 // ModRM.rm with REX.B, if Mod is 3
	Mem      bool  // the operand is in memory
	RIPRel   bool  // Disp counts from the end of the instruction
	Base     uint8 // register, or NoReg
	Index    uint8 // register, or NoReg
	Scale    uint8 // shift: 0 to 3
	Disp     int64

	Imm  uint64 // sign-extended to 64 bits
	Imm2 uint64 // the second of ENTER and far pointers
}

// SegOr returns the override, or the default that the base register implies
// (Intel SDM volume 1, section 3.7.4): SS with rSP and rBP, else DS.
func (in *Inst) SegOr() uint8 {
	if in.Seg != NoSeg {
		return in.Seg
	}
	if in.Base == 4 || in.Base == 5 {
		return SS
	}
	return DS
}

// reader walks over code.
type reader struct {
	p []byte
	n int
}

func (r *reader) byte() (byte, error) {
	if r.n >= MaxLen {
		return 0, ErrLong
	}
	if r.n >= len(r.p) {
		return 0, ErrShort
	}
	b := r.p[r.n]
	r.n++
	return b, nil
}

// num reads a little-endian number of size bytes.
func (r *reader) num(size int) (uint64, error) {
	var v uint64
	for i := range size {
		b, err := r.byte()
		if err != nil {
			return 0, err
		}
		v |= uint64(b) << (8 * i)
	}
	return v, nil
}

// signed reads a number and extends its sign.
func (r *reader) signed(size int) (uint64, error) {
	v, err := r.num(size)
	s := 64 - 8*uint(size)
	return uint64(int64(v<<s) >> s), err
}

// Decode takes the instruction at the start of code apart and returns its
// length. After ErrShort more code may give another answer; the other errors are
// final. It allocates nothing.
func Decode(code []byte, mode Mode, in *Inst) (int, error) {
	*in = Inst{Seg: NoSeg, Base: NoReg, Index: NoReg}
	r := reader{p: code}
	err := in.decode(&r, mode)
	in.Len = uint8(r.n)
	return r.n, err
}

func (in *Inst) decode(r *reader, mode Mode) error {
	op, err := in.prefixes(r, mode)
	if err != nil {
		return err
	}
	if (op == 0xc4 || op == 0xc5) && in.isVEX(r, mode) {
		err = in.vex(r, op, mode)
	} else {
		err = in.opcode(r, op)
	}
	if err != nil {
		return err
	}
	in.sizes(mode)
	a := in.attributes()
	if a&aModRM != 0 {
		if err := in.modRM(r, mode); err != nil {
			return err
		}
	}
	return in.immediates(r, a)
}

// prefixes reads legacy prefixes and REX, which counts only right before the
// opcode.
func (in *Inst) prefixes(r *reader, mode Mode) (op byte, err error) {
	addr := false
	defer func() { in.AddrSize = addressSize(mode, addr) }()
	for {
		b, err := r.byte()
		if err != nil {
			return 0, err
		}
		switch b {
		case 0x66:
			in.Op66 = true
		case 0x67:
			addr = true
		case 0xf0:
			in.Lock = true
		case 0xf2, 0xf3:
			in.Rep = b
		case 0x26, 0x2e, 0x36, 0x3e:
			if mode != Mode64 { // there, these are ignored
				in.Seg = b >> 3 & 3
			}
		case 0x64, 0x65:
			in.Seg = b - 0x60
		default:
			if mode == Mode64 && b&0xf0 == 0x40 {
				in.REX = b
				continue
			}
			return b, nil
		}
		in.REX = 0
	}
}

func addressSize(mode Mode, prefix bool) uint8 {
	switch {
	case mode == Mode64 && !prefix:
		return 8
	case mode == Mode64:
		return 4
	case mode == Mode16 != prefix:
		return 2
	}
	return 4
}

// isVEX tells a VEX prefix from LES and LDS, which have a memory operand.
func (in *Inst) isVEX(r *reader, mode Mode) bool {
	return mode == Mode64 || r.n < len(r.p) && r.p[r.n] >= 0xc0
}

func (in *Inst) vex(r *reader, op byte, mode Mode) error {
	if in.Op66 || in.Rep != 0 || in.Lock || in.REX != 0 {
		return ErrUndefined
	}
	in.VEX = true
	b, err := r.byte()
	if err != nil {
		return err
	}
	m := byte(1)
	rex := byte(0x40) | ^b>>5&4 // R
	if op == 0xc4 {
		rex |= ^b >> 5 & 3 // X and B
		m = b & 31
		if b, err = r.byte(); err != nil {
			return err
		}
		if b&0x80 != 0 {
			rex |= 8
		}
	}
	if mode != Mode64 {
		rex &= 0x48
	}
	in.REX = rex
	in.VexV = ^b >> 3 & 15
	in.VexL = b&4 != 0
	in.VexPP = b & 3
	if m == 0 || m > 3 {
		return ErrUndefined
	}
	in.Map = Map(m)
	in.Op, err = r.byte()
	return err
}

func (in *Inst) opcode(r *reader, op byte) (err error) {
	if op != 0x0f {
		in.Op = op
		return nil
	}
	in.Map = Map0F
	if in.Op, err = r.byte(); err != nil {
		return err
	}
	switch in.Op {
	case 0x38:
		in.Map = Map0F38
	case 0x3a:
		in.Map = Map0F3A
	default:
		return nil
	}
	in.Op, err = r.byte()
	return err
}

func (in *Inst) sizes(mode Mode) {
	in.VexW = in.REX&8 != 0
	switch {
	case in.VexW:
		in.OpSize = 8
	case mode == Mode16 != in.Op66:
		in.OpSize = 2
	default:
		in.OpSize = 4
	}
}

// modRM reads the ModRM byte and what follows from it.
func (in *Inst) modRM(r *reader, mode Mode) error {
	b, err := r.byte()
	if err != nil {
		return err
	}
	in.HasModRM = true
	in.Mod = b >> 6
	in.Reg = b>>3&7 | in.REX<<1&8
	rm := b & 7
	if in.Mod == 3 || in.regOnly() {
		in.Mod = 3
		in.RM = rm | in.REX<<3&8
		return nil
	}
	in.Mem = true
	if in.AddrSize == 2 {
		return in.address16(r, rm)
	}
	dispLen := [3]int{0, 1, 4}[in.Mod]
	switch {
	case rm == 4:
		if b, err = r.byte(); err != nil {
			return err
		}
		in.Scale = b >> 6
		if index := b>>3&7 | in.REX<<2&8; index != 4 {
			in.Index = index
		}
		if b&7 == 5 && in.Mod == 0 {
			dispLen = 4
		} else {
			in.Base = b&7 | in.REX<<3&8
		}
	case rm == 5 && in.Mod == 0:
		dispLen = 4
		in.RIPRel = mode == Mode64
	default:
		in.Base = rm | in.REX<<3&8
	}
	d, err := r.signed(dispLen)
	if dispLen > 0 {
		in.Disp = int64(d)
	}
	return err
}

// address16 is the table of 16-bit addressing (Intel SDM volume 2, table 2-1).
func (in *Inst) address16(r *reader, rm byte) error {
	pair := [8][2]uint8{{3, 6}, {3, 7}, {5, 6}, {5, 7}, {6, NoReg}, {7, NoReg}, {5, NoReg}, {3, NoReg}}[rm]
	in.Base, in.Index = pair[0], pair[1]
	dispLen := [3]int{0, 1, 2}[in.Mod]
	if in.Mod == 0 && rm == 6 {
		in.Base, dispLen = NoReg, 2
	}
	if dispLen == 0 {
		return nil
	}
	d, err := r.signed(dispLen)
	in.Disp = int64(d)
	return err
}

// regOnly: MOV to and from control and debug registers ignore ModRM.mod.
func (in *Inst) regOnly() bool {
	return in.Map == Map0F && !in.VEX && in.Op >= 0x20 && in.Op <= 0x23
}
