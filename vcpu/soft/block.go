package soft

import "math"

const (
	maxInsns = 64 // instructions in a block
	// maxUops bounds the micro-operations of all blocks, about 40 bytes each.
	maxUops = 1 << 20
	// pageUops is what a codePage takes, counted in micro-operations.
	pageUops = 32

	jumpCacheSize = 4096
	itlbMask      = 255
)

// itlbEntry tells which page code comes from at a linear page.
type itlbEntry struct {
	tag  uint64 // linear page address | 1; 0: none
	page *codePage
}

type codeTLB [itlbMask + 1]itlbEntry

// jump is an entry of the cache of targets of jumps whose block is not known.
type jump struct {
	lin uint64
	b   *block
}

// block is a run of instructions decoded to micro-operations. It begins at a place in
// a page of guest-physical memory and does not depend on where that is mapped. Its last
// micro-operation leaves it.
type block struct {
	n    int64 // instructions
	need int64 // n, or deadBlock once what it was made of has changed
	ops  []uop
	link [2]*block // where link0 and link1 go, if that is in the same page
	page *codePage
	// page2 is where the last instruction ends if that is in another page.
	page2 *codePage
	next  *block // in codePage.blocks
	off   uint16 // of the first byte in page
	size  uint16 // bytes
	mode  mode
	local [2]bool // link0, link1 stay within the page
	uops  int
}

// deadBlock makes the check of the instruction budget fail.
const deadBlock = math.MaxInt64

func (b *block) dead() bool { return b.need == deadBlock }

// codePage is a page of guest memory with the blocks that begin or end in it.
type codePage struct {
	gpa    uint64
	bytes  []byte
	blocks [64]*block // by off / 64
	code   [64]uint64 // a bit for each byte that a block was made of
	tails  []*block   // blocks that end here and begin elsewhere
	live   int        // blocks
}

func (p *codePage) overlaps(off, n uint64) bool {
	for i := off; i < min(off+n, pageSize); i++ {
		if p.code[i>>6]>>(i&63)&1 != 0 {
			return true
		}
	}
	return false
}

func (p *codePage) mark(off, n uint64) {
	for i := off; i < min(off+n, pageSize); i++ {
		p.code[i>>6] |= 1 << (i & 63)
	}
}

// find returns the block of a mode at off.
func (p *codePage) find(off uint16, m mode) *block {
	for b := p.blocks[off>>6]; b != nil; b = b.next {
		if b.off == off && b.mode == m {
			return b
		}
	}
	return nil
}

// codeCache bounds what blocks take, and evicts by page, the oldest first.
type codeCache struct {
	e     *Engine
	pages []*codePage // all there are, the oldest first
	uops  int
}

// add enters a block, which is made of bytes of p, and of p2 if that is not nil.
func (cc *codeCache) add(b *block) {
	cc.evict(b.uops, b.page, b.page2)
	cc.uops += b.uops
	p := b.page
	b.next = p.blocks[b.off>>6]
	p.blocks[b.off>>6] = b
	first := min(uint64(b.size), pageSize-uint64(b.off))
	cc.watch(p, uint64(b.off), first)
	if b.page2 != nil {
		cc.watch(b.page2, 0, uint64(b.size)-first)
		b.page2.tails = append(b.page2.tails, b)
	}
}

// evict makes room for n micro-operations, but spares two pages. Pages are taken out
// whole: they take memory even without blocks.
func (cc *codeCache) evict(n int, spare, spare2 *codePage) {
	for tries := len(cc.pages); cc.uops+n > maxUops && tries > 0; tries-- {
		p := cc.pages[0]
		cc.pages = cc.pages[1:]
		if p == spare || p == spare2 {
			cc.pages = append(cc.pages, p)
			continue
		}
		cc.dropRange(p, 0, pageSize)
		r := cc.e.region(p.gpa)
		off := (p.gpa - r.base) >> 12
		r.code[off>>9][off&511] = nil
		cc.uops -= pageUops
		for _, c := range cc.e.cpus {
			for i := range c.itlbs {
				for j := range c.itlbs[i] {
					if c.itlbs[i][j].page == p {
						c.itlbs[i][j] = itlbEntry{}
					}
				}
			}
		}
	}
}

// watch makes writes to p be seen from now on.
func (cc *codeCache) watch(p *codePage, off, n uint64) {
	p.mark(off, n)
	p.live++
	if p.live == 1 {
		for _, c := range cc.e.cpus {
			c.flushWrites()
		}
	}
}

// dropRange drops the blocks made of any of n bytes at off of p.
func (cc *codeCache) dropRange(p *codePage, off, n uint64) {
	for i := range p.blocks {
		for b := p.blocks[i]; b != nil; b = b.next {
			end := uint64(b.off) + uint64(b.size)
			if uint64(b.off) < off+n && off < end {
				cc.drop(b)
			}
		}
	}
	for i := len(p.tails) - 1; i >= 0; i-- {
		if b := p.tails[i]; off < uint64(b.off)+uint64(b.size)-pageSize {
			cc.drop(b)
		}
	}
	if p.live == 0 {
		clear(p.code[:])
	}
}

// drop takes one block out. Its micro-operations stay whole for a CPU that is in it.
func (cc *codeCache) drop(b *block) {
	p := b.page
	for at := &p.blocks[b.off>>6]; *at != nil; at = &(*at).next {
		if *at == b {
			*at = b.next
			break
		}
	}
	p.live--
	if q := b.page2; q != nil {
		for i, t := range q.tails {
			if t == b {
				q.tails = append(q.tails[:i], q.tails[i+1:]...)
				break
			}
		}
		q.live--
	}
	cc.uops -= b.uops
	b.need = deadBlock
	b.link = [2]*block{}
}

// invalidate drops the blocks made of a range of guest-physical memory that something
// other than a CPU has written. While the machine runs, that happens on its goroutine; while
// it does not, several devices may write at once.
func (e *Engine) invalidate(gpa, n uint64) {
	e.invalidateMu.Lock()
	defer e.invalidateMu.Unlock()
	for n > 0 {
		c := min(n, pageSize-gpa&(pageSize-1))
		if r := e.region(gpa); r != nil {
			if p := r.codePage((gpa - r.base) >> 12); p != nil && p.live > 0 && p.overlaps(gpa&(pageSize-1), c) {
				e.code.dropRange(p, gpa&(pageSize-1), c)
			}
		}
		gpa, n = gpa+c, n-c
	}
}

// codeAddress is the linear address of rip.
func (c *CPU) codeAddress() uint64 {
	if c.is64() {
		return c.rip
	}
	return uint64(uint32(c.rip + c.seg[segCS].Base))
}

// lookup returns the block at rip, or the stop that fetching it gives.
func (c *CPU) lookup() (*block, stop) {
	lin := c.codeAddress()
	j := &c.jumps[(lin^lin>>12)&(jumpCacheSize-1)]
	it := &c.itlb[lin>>12&itlbMask]
	if b := j.b; b != nil && j.lin == lin && it.tag == lin&pageMask|1 && it.page == b.page && b.mode == c.mode && !b.dead() && b.page2 == nil {
		return b, next
	}
	b, s := c.lookupSlow(lin, c.mode)
	if s == next && c.mode&(modeSize|modeFlat) < mode64 {
		return c.withinCode(b)
	}
	if s == next {
		j.lin, j.b = lin, b
	}
	return b, s
}

// withinCode holds a block against the code segment's limit. A long one that ends
// beyond gives way to its first instruction.
func (c *CPU) withinCode(b *block) (*block, stop) {
	last := c.rip + uint64(b.size) - 1
	switch limit := uint64(c.seg[segCS].Limit); {
	case last <= limit:
		return b, next
	case b.n > 1 && c.rip <= limit:
		return c.lookupIn(c.mode | modeSingle)
	}
	return nil, c.gp()
}

// fetchPage returns the page that code at lin comes from.
func (c *CPU) fetchPage(lin uint64) (*codePage, stop) {
	it := &c.itlb[lin>>12&itlbMask]
	if it.tag == lin&pageMask|1 {
		return it.page, next
	}
	sp := spaceKernel
	if c.cpl == 3 {
		sp = spaceUser
	}
	gpa, _, s := c.translate(sp, false, lin, accessExec)
	if s != next {
		return nil, s
	}
	p := c.e.page(gpa)
	if p != nil {
		*it = itlbEntry{lin&pageMask | 1, p}
	}
	return p, next
}

// lookupIn is lookup for a mode other than the current one.
func (c *CPU) lookupIn(m mode) (*block, stop) {
	lin := c.codeAddress()
	b, s := c.lookupSlow(lin, m)
	if s == next && m&(modeSize|modeFlat) < mode64 {
		return c.withinCode(b)
	}
	return b, s
}

func (c *CPU) lookupSlow(lin uint64, m mode) (*block, stop) {
	page, s := c.fetchPage(lin)
	if s != next {
		return nil, s
	}
	if page == nil { // a device, whose bytes nobody means as code
		return nil, c.raise(excUD)
	}
	off := uint16(lin & (pageSize - 1))
	if b := page.find(off, m); b != nil {
		if b.page2 == nil {
			return b, next
		}
		page2, s := c.fetchPage(c.wrap(lin&pageMask + pageSize))
		if s != next {
			return nil, s
		}
		if page2 == b.page2 {
			return b, next
		}
		c.e.code.drop(b)
	}
	b, s := c.lower.build(c, page, lin, m)
	if s != next {
		c.e.code.evict(0, page, nil)
		return nil, s
	}
	c.e.code.add(b)
	return b, next
}
