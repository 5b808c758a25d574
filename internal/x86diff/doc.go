// Package x86diff compares engines that run x86-64 code, one random case at a
// time: a few instructions from tables of opcode forms, with registers, flags,
// x87, SSE state and memory biased to values that matter, run on a [Subject]
// (real hardware through KVM, or any vcpu.Engine) with everything that they
// leave behind compared.
//
//	hw, err := x86diff.NewKVM(sys)
//	soft, err := x86diff.NewEngine(eng, mem)
//	gen := x86diff.NewGenerator(seed, x86diff.Groups{})
//	for range n {
//		c := gen.Next()
//		want, err := hw.Run(&c)
//		got, err := soft.Run(&c)
//		if d := x86diff.Compare(&c, &want, &got); d != "" { ... }
//	}
//
// What an instruction leaves undefined stands with its form, in the tables, and
// nowhere else.
package x86diff
