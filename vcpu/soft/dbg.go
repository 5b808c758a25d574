package soft

import (
	"fmt"
	"os"
	"strconv"
)

var dbg = os.Getenv("SOFTDBG") != ""

func (c *CPU) dbgFault() {
	if dbg {
		p := []byte{}
		if pg, s := c.fetchPage(c.rip); s == next && pg != nil {
			p = pg.bytes[c.rip&4095:]
			if len(p) > 16 {
				p = p[:16]
			}
		}
		fmt.Fprintf(os.Stderr, "FAULT cpu%d vec %d code %#x cr2 %#x rip %#x mode %#x cpl %d count %d bytes % x rsp %#x\n", c.id, c.exc.vector, c.exc.code, c.cr2, c.rip, c.mode, c.cpl, c.end-c.left, p, c.r[4])
	}
}

var dbgTrace = os.Getenv("SOFTTRACE") != ""
var dbgFrom, _ = strconv.ParseInt(os.Getenv("SOFTFROM"), 10, 64)

func (c *CPU) dbgBlock(b *block) {
	if at := c.end - c.left; dbgTrace && at >= dbgFrom && at < dbgFrom+2000 {
		n := min(int(b.size), 4096-int(b.off))
		fmt.Fprintf(os.Stderr, "B %d rip %#x rax %#x rbx %#x rcx %#x rdx %#x rsi %#x rdi %#x rsp %#x rbp %#x fl %#x % x\n", c.end-c.left, c.rip, c.r[0], c.r[3], c.r[1], c.r[2], c.r[6], c.r[7], c.r[4], c.r[5], c.rflags(), b.page.bytes[b.off:int(b.off)+n])
	}
}

var dbgNext int64

func (e *Engine) dbgTick() {
	if dbg && e.count > dbgNext {
		dbgNext = e.count + 30_000_000
		c := e.turn
		fmt.Fprintf(os.Stderr, "TICK count %d rip %#x halted %v fl %#x next %d timers %d now %d\n", e.count, c.rip, c.halted, c.rflags(), e.chips.Next(), e.clock.next(), e.clock.Now())
	}
}
