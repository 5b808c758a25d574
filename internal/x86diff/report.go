package x86diff

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Report describes a case and how two outcomes of it differ.
func Report(c *Case, diff string) string {
	var b strings.Builder
	var names []string
	for _, i := range c.Forms {
		names = append(names, fmt.Sprintf("%s (%v)", Forms[i].Name, &Forms[i]))
	}
	fmt.Fprintf(&b, "% x   seed %#x, place %d: %s\n", c.Code, c.Seed, c.Place, strings.Join(names, "; "))
	b.WriteString(disassemble(c))
	in := c.Input()
	g := array(&in.Regs)
	for i, v := range g {
		fmt.Fprintf(&b, "%4s %016x", regNames[i], v)
		if i%4 == 3 {
			b.WriteByte('\n')
		} else {
			b.WriteByte(' ')
		}
	}
	fmt.Fprintf(&b, "rip %#x rflags %#x fs %#x gs %#x\n", in.Regs.RIP, in.Regs.RFLAGS, in.FSBase, in.GSBase)
	fx := uses(c)
	if fx&X87 != 0 {
		fmt.Fprintf(&b, "fcw %02x%02x fsw %02x%02x ftw %02x\n", in.FX[1], in.FX[0], in.FX[3], in.FX[2], in.FX[4])
		for i := range 8 {
			r := in.FX[32+16*i:]
			fmt.Fprintf(&b, "st%d %x:%x%c", i, rev(r[8:10]), rev(r[:8]), "\t\n"[i&1])
		}
	}
	if fx&^X87 != 0 {
		fmt.Fprintf(&b, "mxcsr %x\n", rev(in.FX[24:28]))
		for i := range 16 {
			r := in.FX[160+16*i:]
			fmt.Fprintf(&b, "xmm%-2d %x:%x%c", i, rev(r[8:16]), rev(r[:8]), "\t\n"[i&1])
		}
	}
	b.WriteString(diff)
	return b.String()
}

// uses returns the groups of the case that have registers of their own.
func uses(c *Case) Groups {
	var g Groups
	for _, i := range c.Forms {
		g |= Forms[i].Group
	}
	if g&MMX != 0 {
		g |= X87
	}
	if len(c.Forms) == 0 {
		g = X87 | SSE
	}
	return g & (X87 | SSE | SSE2 | SSE3 | SSSE3 | SSE41 | SSE42)
}

func rev(b []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[len(b)-1-i] = b[i]
	}
	return out
}

// disassemble returns what objdump makes of the code, if there is one.
func disassemble(c *Case) string {
	f, err := os.CreateTemp("", "x86diff-")
	if err != nil {
		return ""
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(c.Code); err != nil {
		return ""
	}
	out, err := exec.Command("objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel",
		fmt.Sprintf("--adjust-vma=%#x", c.Start()), f.Name()).Output()
	if err != nil {
		return ""
	}
	var b strings.Builder
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, ":\t") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// Minimize returns a case without the instructions that do not matter to
// whether differs says that it makes a difference.
func Minimize(c Case, differs func(*Case) bool) Case {
	for again := len(c.Lens) > 1; again; {
		again = false
		for i, at := 0, 0; i < len(c.Lens) && len(c.Lens) > 1; {
			n := c.Lens[i]
			t := c
			t.Code = slices.Delete(slices.Clone(c.Code), at, at+n)
			t.Forms = slices.Delete(slices.Clone(c.Forms), i, i+1)
			t.Lens = slices.Delete(slices.Clone(c.Lens), i, i+1)
			if differs(&t) {
				c, again = t, true
				continue
			}
			at += n
			i++
		}
	}
	return c
}
