// Package x86diff compares engines that run x86-64 code, one random case at a
// time: a few instructions from tables of opcode forms, with registers, flags,
// x87, SSE state and memory biased to values that matter, run on a [Subject]
// (real hardware through KVM, or any vcpu.Engine) with everything that they
// leave behind compared.
//
//	hw, err := x86diff.NewKVM(sys)
//	soft, err := x86diff.NewEngine(func(mem *memory.Memory) (vcpu.Engine, error) {
//		return soft.New(mem, soft.Config{})
//	})
//	gen := x86diff.NewGenerator(seed, x86diff.V2)
//	for range n {
//		c := gen.Next()
//		want, err := hw.Run(&c)
//		got, err := soft.Run(&c)
//		if d := x86diff.Compare(&c, &want, &got); d != "" { ... }
//	}
//
// What an instruction leaves undefined stands with its form, in the tables, and
// nowhere else. [Excluded] names the forms without cases, and why. A [SystemCase] is
// the same for what only a kernel does. testdata/corpus.txt has cases with what
// hardware made of them, for hosts whose KVM cannot tell.
package x86diff
