package x86diff

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

var regNames = [16]string{"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
	"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"}

// mask is what of an outcome is not compared.
type mask struct {
	flags  uint16 // of RFLAGS
	cc     uint16 // of FSW
	approx bool
}

// mask returns what the case leaves undefined.
func (c *Case) mask(want *Outcome) mask {
	var m mask
	for _, i := range c.Forms {
		f := &Forms[i]
		if len(c.Forms) == 1 {
			// After a fault everything is as it was before.
			if want.Vector == Finished || want.Regs.RIP != c.Start() {
				m.flags = f.undefined(c)
			}
		} else {
			m.flags |= f.undef
			if f.shift {
				m.flags |= allFlags
			}
		}
		m.cc |= f.undefCC
		if f.invalidCC && binary.LittleEndian.Uint16(want.FX[2:])&0x83 != 0 { // IE, DE, ES
			m.cc |= 0x4700
		}
		if f.invalidCC && (len(c.Forms) > 1 || f.Group == X87 && !f.approx) {
			m.cc |= 0x4700 // of a quotient of 0, too
		} else if f.invalidCC {
			// Vendors disagree on the bits of a quotient of 0.
			if in := c.Input(); bytes.Equal(in.FX[32:42], want.FX[32:42]) {
				m.cc |= 0x4300
			}
		}
		m.approx = m.approx || f.approx
	}
	return m
}

// undefined returns the flags that a case of this one form leaves undefined
// (Intel SDM volume 2 and AMD APM volume 3, the union of both). For shifts and
// rotates that depends on the count.
func (f *Form) undefined(c *Case) uint16 {
	if !f.shift {
		return f.undef
	}
	in := c.Input()
	count := in.Regs.RCX
	op := f.op[len(f.op)-1]
	switch {
	case len(f.imm) > 0:
		count = uint64(c.Code[len(c.Code)-1])
	case f.op[0] == 0xd0 || f.op[0] == 0xd1:
		count = 1
	}
	size, wide := uint64(32), uint64(31)
	switch {
	case f.size == 'b':
		size = 8
	case f.hasW(c.Code):
		size, wide = 64, 63
	case bytes.IndexByte(c.Code[:bytes.IndexByte(c.Code, op)], 0x66) >= 0:
		size = 16
	}
	count &= wide
	rotate := f.op[0] != 0x0f && f.digit < 4
	switch {
	case count == 0:
		return 0
	case rotate && count == 1:
		return 0
	case rotate:
		return flagO
	case count == 1:
		return flagA
	case count >= size && f.digit != 7 && f.op[0] != 0x0f:
		return flagA | flagO | flagC
	}
	return flagA | flagO
}

// hasW reports whether the instruction has REX.W: right before the opcode.
func (f *Form) hasW(code []byte) bool {
	for _, b := range code {
		switch b {
		case 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65:
			continue
		}
		return b&0xf8 == 0x48
	}
	return false
}

// vectorName names how a case ended.
func vectorName(v int) string {
	switch v {
	case Finished:
		return "finished"
	case Shutdown:
		return "shutdown"
	case Failed:
		return "engine failed"
	case Hung:
		return "hung"
	}
	return fmt.Sprintf("exception %d", v)
}

// loose reports whether two outcomes differ in nothing but which of several
// faults comes first, where manuals leave that open.
func (c *Case) loose(want, got *Outcome) bool {
	for _, i := range c.Forms {
		f := &Forms[i]
		if f.loose && (want.Vector >= 0 || got.Vector >= 0) {
			return true
		}
		// The target of a call is checked before or after the push.
		if f.Name == "call" && want.Vector >= 0 && got.Vector >= 0 && want.Vector != got.Vector {
			return true
		}
		// A page fault in an operand of many bytes, or in one of two.
		if (f.Name == "cmps" || f.rep) && want.Vector >= 0 && got.Vector >= 0 {
			return true
		}
		// AMD's string instructions work in chunks, and a fault undoes one.
		wide := f.Group == X87 && f.alone || f.rep
		if wide && want.Vector >= 0 && got.Vector == want.Vector {
			return true
		}
	}
	v := [2]int{want.Vector, got.Vector}
	switch {
	case v == [2]int{17, 14}: // alignment is checked before or after paging
		return true
	case v[0] != v[1] && (v[0] == 17 || v[1] == 17): // which operands are checked differs
		return true
	case got.Vector == 13 && replaced(c.Code):
		return true // KVM's emulator was tried, and took the other segment
	case v == [2]int{12, 13} || v == [2]int{13, 12}: // a segment prefix that 64-bit code ignores may count or not
		return bytes.ContainsAny(c.Code, "\x26\x2e\x36\x3e")
	}
	return false
}

// replaced reports whether FS or GS is followed by the prefix of a segment that 64-bit
// code ignores. KVM's emulator lets that take its place, and processors do not.
func replaced(code []byte) bool {
	for i := range len(code) - 1 {
		if code[i]&^1 != 0x64 {
			continue
		}
	prefixes:
		for _, b := range code[i+1:] {
			switch b {
			case 0x26, 0x2e, 0x36, 0x3e:
				return true
			case 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3:
			default:
				break prefixes
			}
		}
	}
	return false
}

// Compare returns how got differs from want, one difference a line, or "". What
// the forms of the case leave undefined is not compared; nor are the x87
// instruction and data pointers.
func Compare(c *Case, want, got *Outcome) string {
	if c.loose(want, got) {
		return ""
	}
	var b strings.Builder
	diff := func(name string, w, g any) { fmt.Fprintf(&b, "%s: want %#x, got %#x\n", name, w, g) }
	if want.Vector != got.Vector {
		fmt.Fprintf(&b, "end: want %s, got %s", vectorName(want.Vector), vectorName(got.Vector))
		if got.Err != nil {
			fmt.Fprintf(&b, " (%v)", got.Err)
		}
		fmt.Fprintf(&b, " (error code %#x, cr2 %#x; got %#x, %#x)\n", want.ErrorCode, want.CR2, got.ErrorCode, got.CR2)
	} else {
		if want.ErrorCode != got.ErrorCode {
			diff("error code", want.ErrorCode, got.ErrorCode)
		}
		if want.CR2 != got.CR2 {
			diff("cr2", want.CR2, got.CR2)
		}
	}
	m := c.mask(want)
	w, g := array(&want.Regs), array(&got.Regs)
	for i := range w {
		if w[i] != g[i] {
			diff(regNames[i], w[i], g[i])
		}
	}
	if want.Regs.RIP != got.Regs.RIP {
		diff("rip", want.Regs.RIP, got.Regs.RIP)
	}
	if d := (want.Regs.RFLAGS ^ got.Regs.RFLAGS) &^ uint64(m.flags); d != 0 {
		fmt.Fprintf(&b, "rflags: want %#x, got %#x: bits %#x differ\n", want.Regs.RFLAGS, got.Regs.RFLAGS, d)
	}
	w87, g87 := want.FX, got.FX
	if want.Vector >= 0 && got.Vector == want.Vector && want.Vector != 16 {
		// An MMX instruction may have taken the x87 registers over before it faulted.
		copy(g87[2:24], w87[2:24])
		copy(g87[32:160], w87[32:160])
	}
	compareFX(&b, m, &w87, &g87)
	fx := len(c.Forms) == 1 && Forms[c.Forms[0]].Name == "fxsave"
	compareMemory(&b, want.Memory, got.Memory, fx)
	return b.String()
}

func compareFX(b *strings.Builder, m mask, want, got *[512]byte) {
	le := binary.LittleEndian
	word := func(name string, off int, ignore uint16) {
		w, g := le.Uint16(want[off:]), le.Uint16(got[off:])
		if d := (w ^ g) &^ ignore; d != 0 {
			fmt.Fprintf(b, "%s: want %#04x, got %#04x: bits %#x differ\n", name, w, g, d)
		}
	}
	ignore := m.cc
	if m.approx {
		ignore |= 1<<5 | 1<<9 // precision, rounded up
	}
	word("fcw", 0, 0)
	word("fsw", 2, ignore)
	if want[4] != got[4] {
		fmt.Fprintf(b, "ftw: want %#02x, got %#02x\n", want[4], got[4])
	}
	if w, g := le.Uint32(want[24:]), le.Uint32(got[24:]); w != g {
		fmt.Fprintf(b, "mxcsr: want %#x, got %#x\n", w, g)
	}
	for i := range 8 {
		w, g := want[32+16*i:][:10], got[32+16*i:][:10]
		if !bytes.Equal(w, g) && (!m.approx || !near80(w, g)) {
			fmt.Fprintf(b, "st%d: want %04x:%016x, got %04x:%016x\n", i, le.Uint16(w[8:]), le.Uint64(w), le.Uint16(g[8:]), le.Uint64(g))
		}
	}
	for i := range 16 {
		w, g := want[160+16*i:][:16], got[160+16*i:][:16]
		if !bytes.Equal(w, g) && (!m.approx || !near32(w, g)) {
			fmt.Fprintf(b, "xmm%d: want %016x:%016x, got %016x:%016x\n", i, le.Uint64(w[8:]), le.Uint64(w), le.Uint64(g[8:]), le.Uint64(g))
		}
	}
}

// near80 reports whether two 80-bit numbers differ by at most a few units of
// the last place of a double: what transcendental instructions are good for.
func near80(w, g []byte) bool {
	le := binary.LittleEndian
	we, ge := le.Uint16(w[8:]), le.Uint16(g[8:])
	d := int(we) - int(ge)
	wm, gm := le.Uint64(w), le.Uint64(g)
	const most = 1 << 14
	switch d {
	case 0:
		return max(wm, gm)-min(wm, gm) < most
	case 1: // 1.000 against 1.111 of the binade below
		return wm-1<<63 < most && ^gm < most
	case -1:
		return gm-1<<63 < most && ^wm < most
	}
	return false
}

// near32 reports whether the numbers of two vectors differ by no more than two
// approximations with a relative error of 1.5 * 2**-12 may.
func near32(w, g []byte) bool {
	for i := 0; i < 16; i += 4 {
		wb, gb := binary.LittleEndian.Uint32(w[i:]), binary.LittleEndian.Uint32(g[i:])
		if wb == gb {
			continue
		}
		x, y := float64(math.Float32frombits(wb)), float64(math.Float32frombits(gb))
		if !(math.Abs(x-y) <= math.Abs(x)*3/4096) {
			return false
		}
	}
	return true
}

// compareMemory compares what has changed. With fx it is an FXSAVE area, in which
// MXCSR_MASK differs between vendors: the bits that MXCSR can have. Those are up to 4
// bytes, and up to 7 before and behind them that have not changed but are listed
// because they lie between some that have.
func compareMemory(b *strings.Builder, want, got []Bytes, fx bool) {
	at := map[uint64]byte{}
	for _, r := range want {
		for i, v := range r.Data {
			at[r.Addr+uint64(i)] = v
		}
	}
	differ := 0
	for _, r := range got {
		for i, v := range r.Data {
			if w, ok := at[r.Addr+uint64(i)]; !ok || w != v {
				differ++
			}
			delete(at, r.Addr+uint64(i))
		}
	}
	differ += len(at)
	if differ == 0 || fx && differ <= 4+2*7 {
		return
	}
	list := func(m []Bytes) string {
		var parts []string
		for _, r := range m {
			d := r.Data
			more := ""
			if len(d) > 64 {
				d, more = d[:64], fmt.Sprintf("... (%d bytes)", len(r.Data))
			}
			parts = append(parts, fmt.Sprintf("%#x: %x%s", r.Addr, d, more))
		}
		return strings.Join(parts, "; ")
	}
	fmt.Fprintf(b, "memory: want %s\n        got  %s\n", list(want), list(got))
}
