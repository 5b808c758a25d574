package x86diff

import (
	"encoding/binary"

	"github.com/vmkit-go/vmkit/vcpu"
)

// The machine that cases run in: MemorySize bytes of RAM, mapped one to one, and
// once more at aliasBase, for addresses that need 64 bits.
const (
	MemorySize = 2 << 20

	gdtBase   = 0x1000
	idtBase   = 0x2000
	tssBase   = 0x3000
	stackTop  = 0x5000 // of CPL 0
	stubBase  = 0x6000 // one stub for each vector, stubSize bytes apart
	stubSize  = 8
	stubs     = 64      // of them, the IDT has 32 but for system cases
	tableBase = 0x10000 // page tables
	codeBase  = 0x40000 // two pages for the code of a case, one unmapped
	codeLast  = 0x42000
	dataBase  = 0x50000 // see dataPages
	dataLast  = 0x58000
	aliasBase = 0x7f00_0000_0000

	endPort = 0xf4 // a write to it ends a case

	selCode0 = 0x08
	selData0 = 0x10
	// Those of Linux: where CPL 3 runs on the host's own segments, the guest
	// sees the host's selectors.
	selData3 = 0x2b
	selCode3 = 0x33
	selTSS   = 0x40

	pteP, pteW, pteU, pteA, pteD, pteNX = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 63

	hlt = 0xf4 // fills the code pages: it faults at CPL 3
)

// dataPages says how the pages from dataBase are mapped, so that accesses across
// each kind of border happen.
var dataPages = [(dataLast - dataBase) / 4096]uint64{
	pteP | pteW | pteU | pteNX,
	pteP | pteW | pteU | pteNX,
	pteP | pteU | pteNX, // read-only
	0,
	pteP | pteW | pteU | pteNX,
	0,
	pteP | pteW | pteNX, // CPL 0 only
	0,
}

// writable are the pages that a case may change.
var writable = [...]uint64{0x50000, 0x51000, 0x54000}

// hasErrorCode says which exceptions push an error code (Intel SDM volume 3,
// table 7-1).
const hasErrorCode = 1<<8 | 1<<10 | 1<<11 | 1<<12 | 1<<13 | 1<<14 | 1<<17 | 1<<21

// image returns the memory that every case begins with: the machine's tables, stubs
// and data.
func image() []byte {
	ram := make([]byte, MemorySize)
	put := func(addr, v uint64) { binary.LittleEndian.PutUint64(ram[addr:], v) }

	put(gdtBase+selCode0, 0x00af9b000000ffff)
	put(gdtBase+selData0, 0x00cf93000000ffff)
	put(gdtBase+selData3&^7, 0x00cff3000000ffff)
	put(gdtBase+selCode3&^7, 0x00affb000000ffff)
	put(gdtBase+selTSS, 0x0000890000000067|tssBase<<16)
	put(tssBase+4, stackTop) // RSP0
	binary.LittleEndian.PutUint16(ram[tssBase+102:], 0x68)
	for v := range uint64(stubs) {
		stub := stubBase + v*stubSize
		copy(ram[stub:], []byte{0xe6, endPort, hlt}) // out endPort, al
		if v >= 32 {
			continue
		}
		gate := stub&0xffff | selCode0<<16 | 0x8e<<40 | stub>>16<<48
		if v == 3 || v == 4 {
			gate |= 3 << 45 // INT3 from CPL 3
		}
		put(idtBase+16*v, gate)
	}

	const all = pteP | pteW | pteU | pteA
	pml4, pdpt, pd, pt := uint64(tableBase), uint64(tableBase+0x1000), uint64(tableBase+0x2000), uint64(tableBase+0x3000)
	put(pml4, pdpt|all)
	put(pml4+aliasBase>>39*8, pdpt|all)
	put(pdpt, pd|all)
	put(pd, pt|all)
	for page := uint64(0); page < MemorySize; page += 4096 {
		pte := page | pteP | pteW | pteA | pteD
		switch {
		case page >= codeBase && page < codeLast:
			pte = page | pteP | pteU | pteA
			for i := range uint64(4096) {
				ram[page+i] = hlt
			}
		case page >= codeLast && page < codeLast+0x1000:
			pte = 0
		case page >= dataBase && page < dataLast:
			pte = dataPages[(page-dataBase)/4096]
			if pte != 0 {
				pte |= page | pteA | pteD
			}
			pattern(page, ram[page:][:4096])
		}
		put(pt+page/4096*8, pte)
	}
	return ram
}

// startState is the state in which every case starts, but for what its seed
// gives.
func startState(cpl uint8) vcpu.State {
	s := vcpu.PowerUp(true)
	code := vcpu.Segment{Selector: selCode3, Limit: 0xffffffff, Type: 11, DPL: cpl, Present: true, Long: true, Granularity: true}
	data := vcpu.Segment{Selector: selData3, Limit: 0xffffffff, Type: 3, DPL: cpl, Present: true, Big: true, Granularity: true}
	if cpl == 0 {
		code.Selector, data.Selector = selCode0, selData0
	}
	null := vcpu.Segment{Unusable: true}
	s.Segments.CS, s.Segments.SS = code, data
	s.Segments.DS, s.Segments.ES, s.Segments.FS, s.Segments.GS = null, null, null, null
	s.Segments.TR = vcpu.Segment{Base: tssBase, Limit: 0x67, Selector: selTSS, Type: 11, System: true, Present: true}
	s.Segments.LDT = vcpu.Segment{Unusable: true}
	s.GDT = vcpu.Table{Base: gdtBase, Limit: selTSS + 15}
	s.IDT = vcpu.Table{Base: idtBase, Limit: 32*16 - 1}
	s.Control.CR0 = 0x80050033 // PG AM WP NE ET MP PE
	s.Control.CR3 = tableBase
	s.Control.CR4 = vcpu.CR4PAE | 1<<9 | 1<<10 // OSFXSR OSXMMEXCPT
	s.Control.EFER = vcpu.EFERLME | vcpu.EFERLMA | vcpu.EFERNXE | vcpu.EFERSCE
	return s
}
