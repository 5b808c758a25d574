package decode

// attr says what follows an opcode.
type attr uint8

const (
	aModRM attr = 1 << iota
	aImm8       // one byte, sign-extended
	aImmZ       // 2 or 4 bytes by operand size, sign-extended
	aImm16      // two bytes
	aOther      // special: see immediates
)

// primary and map0F have the attributes of each opcode; every opcode of the maps
// 0F 38 and 0F 3A has ModRM, and an immediate byte in the latter.
var primary, map0F [256]attr

func init() {
	set := func(t *[256]attr, a attr, ranges ...int) {
		for i := 0; i < len(ranges); i += 2 {
			for op := ranges[i]; op <= ranges[i+1]; op++ {
				t[op] |= a
			}
		}
	}
	for op := 0; op < 0x40; op += 8 {
		set(&primary, aModRM, op, op+3)
		set(&primary, aImm8, op+4, op+4)
		set(&primary, aImmZ, op+5, op+5)
	}
	set(&primary, aModRM, 0x62, 0x63, 0x69, 0x69, 0x6b, 0x6b, 0x80, 0x8f, 0xc0, 0xc1, 0xc4, 0xc7, 0xd0, 0xd3, 0xd8, 0xdf, 0xf6, 0xf7, 0xfe, 0xff)
	set(&primary, aImm8, 0x6a, 0x6b, 0x70, 0x7f, 0x80, 0x80, 0x82, 0x83, 0xa8, 0xa8, 0xb0, 0xb7, 0xc0, 0xc1, 0xc6, 0xc6, 0xcd, 0xcd, 0xd4, 0xd5, 0xe0, 0xe7, 0xeb, 0xeb)
	set(&primary, aImmZ, 0x68, 0x69, 0x81, 0x81, 0xa9, 0xa9, 0xc7, 0xc7, 0xe8, 0xe9)
	set(&primary, aImm16, 0xc2, 0xc2, 0xca, 0xca)
	set(&primary, aOther, 0x9a, 0x9a, 0xa0, 0xa3, 0xb8, 0xbf, 0xc8, 0xc8, 0xea, 0xea, 0xf6, 0xf7)

	set(&map0F, aModRM, 0x00, 0x03, 0x0d, 0x0d, 0x10, 0x2f, 0x40, 0x76, 0x78, 0x7f, 0x90, 0x9f, 0xa3, 0xa5,
		0xab, 0xaf, 0xb0, 0xc7, 0xd0, 0xff)
	set(&map0F, aImm8, 0x70, 0x73, 0xa4, 0xa4, 0xac, 0xac, 0xba, 0xba, 0xc2, 0xc2, 0xc4, 0xc6)
	set(&map0F, aImmZ, 0x80, 0x8f)
}

func (in *Inst) attributes() attr {
	switch in.Map {
	case MapPrimary:
		return primary[in.Op]
	case Map0F:
		if in.VEX && in.Op == 0x77 {
			return 0
		}
		return map0F[in.Op]
	case Map0F38:
		return aModRM
	}
	return aModRM | aImm8
}

// zSize is the size of an immediate that is never 8 bytes.
func (in *Inst) zSize() int { return int(min(in.OpSize, 4)) }

func (in *Inst) immediates(r *reader, a attr) (err error) {
	switch {
	case a&aImm8 != 0:
		in.Imm, err = r.signed(1)
	case a&aImmZ != 0:
		in.Imm, err = r.signed(in.zSize())
	case a&aImm16 != 0:
		in.Imm, err = r.num(2)
	case a&aOther != 0:
		err = in.special(r)
	}
	return err
}

// special reads what follows the few opcodes with a form of their own.
func (in *Inst) special(r *reader) (err error) {
	switch op := in.Op; {
	case op == 0x9a || op == 0xea: // a far pointer
		if in.Imm, err = r.num(in.zSize()); err == nil {
			in.Imm2, err = r.num(2)
		}
	case op&0xfc == 0xa0: // MOV with an absolute address
		in.Mem = true
		var d uint64
		d, err = r.num(int(in.AddrSize))
		in.Disp = int64(d)
	case op&0xf8 == 0xb8:
		in.Imm, err = r.signed(int(in.OpSize))
	case op == 0xc8: // ENTER
		if in.Imm, err = r.num(2); err == nil {
			in.Imm2, err = r.num(1)
		}
	case op == 0xf6 && in.Reg&6 == 0:
		in.Imm, err = r.signed(1)
	case op == 0xf7 && in.Reg&6 == 0:
		in.Imm, err = r.signed(in.zSize())
	}
	return err
}
