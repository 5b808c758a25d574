package x86diff

import (
	"fmt"
	"io"
	"strings"
)

// Coverage counts the cases of each form.
type Coverage struct {
	n []formCount
}

type formCount struct{ cases, finished, differ uint64 }

// NewCoverage returns a count of nothing.
func NewCoverage() *Coverage { return &Coverage{make([]formCount, len(Forms))} }

// Add counts a case, how it ended, and whether there was a difference.
func (v *Coverage) Add(c *Case, out *Outcome, differ bool) {
	for _, i := range c.Forms {
		n := &v.n[i]
		n.cases++
		if finished(c, out) {
			n.finished++
		}
		if differ {
			n.differ++
		}
	}
}

// finished reports whether a case ran to its end, or jumped to a HLT elsewhere.
func finished(c *Case, out *Outcome) bool {
	return out.Vector == Finished ||
		len(c.Forms) == 1 && out.Vector == 13 && out.Regs.RIP != c.Start() && out.ErrorCode == 0
}

// String returns the form's opcode as the manuals write it.
func (f *Form) String() string {
	var b strings.Builder
	if f.vex {
		b.WriteString("VEX ")
	}
	if f.prefix != 0 {
		fmt.Fprintf(&b, "%02X ", f.prefix)
	}
	fmt.Fprintf(&b, "% X", f.op)
	switch {
	case f.plus != 0:
		b.WriteString("+r")
	case f.modrm && f.digit >= 0:
		fmt.Fprintf(&b, " /%d", f.digit)
	case f.modrm:
		b.WriteString(" /r")
	}
	for _, i := range f.imm {
		b.WriteString(" " + i)
	}
	if f.modrm && !f.mem {
		b.WriteString(" reg")
	}
	if f.modrm && !f.reg {
		b.WriteString(" mem")
	}
	return b.String()
}

// Missing lists the forms of groups without a case, and those that ought to have
// run to their end at times and never did.
func (v *Coverage) Missing(groups Groups) []string {
	var out []string
	for i := range Forms {
		f := &Forms[i]
		if f.Group&groups == 0 {
			continue
		}
		if v.n[i].cases == 0 || v.n[i].finished == 0 && !f.fault {
			out = append(out, fmt.Sprintf("%s (%s): %d cases, %d to the end", f.Name, f, v.n[i].cases, v.n[i].finished))
		}
	}
	return out
}

// Print writes a table of all forms, and the sum of each group.
func (v *Coverage) Print(w io.Writer) {
	var sums [32]formCount
	for i := range Forms {
		f := &Forms[i]
		n := v.n[i]
		fmt.Fprintf(w, "%-8v %-12s %-24s %9d cases %9d finished", f.Group, f.Name, f, n.cases, n.finished)
		if n.differ > 0 {
			fmt.Fprintf(w, " %9d differ", n.differ)
		}
		fmt.Fprintln(w)
		for g := range groupNames {
			if f.Group>>g&1 != 0 {
				sums[g].cases += n.cases
				sums[g].differ += n.differ
			}
		}
	}
	for g, name := range groupNames {
		fmt.Fprintf(w, "%-8s %9d cases %9d differ\n", name, sums[g].cases, sums[g].differ)
	}
}
