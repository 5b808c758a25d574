package soft

import (
	"testing"

	"github.com/vmkit-go/vmkit/memory"
)

// newTestCPU returns a CPU in flat 64-bit mode without paging, at address 0x1000 with
// code there that ends in HLT-like UD2.
func newTestCPU(t testing.TB, code []byte) *CPU {
	t.Helper()
	mem, err := memory.New(memory.Config{Size: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	e, err := New(mem, Config{})
	if err != nil {
		t.Fatal(err)
	}
	c := e.cpus[0]
	c.mode = mode64
	c.tlb, c.itlb = &c.tlbs[0], &c.itlbs[0]
	c.flags = flag1
	if err := mem.Write(0x1000, code); err != nil {
		t.Fatal(err)
	}
	c.rip = 0x1000
	c.r[regRSP] = 0x8000
	return c
}

// runTest runs until something stops the CPU.
func runTest(c *CPU, insns int64) stop {
	c.left, c.end = insns, insns
	for {
		b, s := c.lookup()
		if s != next {
			return s
		}
		if s = c.execute(b); s != event {
			return s
		}
	}
}

func TestLoopSum(t *testing.T) {
	// xor eax,eax; mov ecx,1000; add rax,rcx; mov [rsp-8],rax; mov rdx,[rsp-8]; dec ecx; jnz; ud2
	code := []byte{0x31, 0xc0, 0xb9, 0xe8, 3, 0, 0, 0x48, 0x01, 0xc8, 0x48, 0x89, 0x44, 0x24, 0xf8, 0x48, 0x8b, 0x54, 0x24, 0xf8, 0xff, 0xc9, 0x75, 0xef, 0x0f, 0x0b}
	c := newTestCPU(t, code)
	s := runTest(c, 1<<40)
	if s != fault || c.exc.vector != excUD {
		t.Fatalf("stop %d, exception %+v", s, c.exc)
	}
	if c.r[regRAX] != 500500 || c.r[regRDX] != 500500 {
		t.Errorf("rax %d, rdx %d", c.r[regRAX], c.r[regRDX])
	}
	if got := c.end - c.left; got != 2+5*1000 {
		t.Errorf("%d instructions", got)
	}
}

func BenchmarkLoop(b *testing.B) {
	code := []byte{0x31, 0xc0, 0xb9, 0xff, 0xff, 0xff, 0x7f, 0x48, 0x01, 0xc8, 0x48, 0x89, 0x44, 0x24, 0xf8, 0x48, 0x8b, 0x54, 0x24, 0xf8, 0xff, 0xc9, 0x75, 0xef, 0x0f, 0x0b}
	c := newTestCPU(b, code)
	b.ResetTimer()
	runTest(c, int64(b.N))
}
