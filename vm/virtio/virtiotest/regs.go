package virtiotest

// mmioRegs drives virtio 1.2, section 4.2.
type mmioRegs struct{ m *Machine }

func (r *mmioRegs) get(off uint64) uint32    { return uint32(r.m.Read(MMIOBase+off, 4)) }
func (r *mmioRegs) set(off uint64, v uint32) { r.m.Write(MMIOBase+off, 4, uint64(v)) }
func (r *mmioRegs) enable()                  {}
func (r *mmioRegs) status() byte             { return byte(r.get(0x70)) }
func (r *mmioRegs) setStatus(v byte)         { r.set(0x70, uint32(v)) }
func (r *mmioRegs) notify(q int)             { r.set(0x50, uint32(q)) }
func (r *mmioRegs) generation() uint32       { return r.get(0xfc) }
func (r *mmioRegs) config() uint64           { return MMIOBase + 0x100 }

func (r *mmioRegs) features() uint64 {
	r.set(0x14, 0)
	v := uint64(r.get(0x10))
	r.set(0x14, 1)
	return v | uint64(r.get(0x10))<<32
}

func (r *mmioRegs) setFeatures(v uint64) {
	r.set(0x24, 0)
	r.set(0x20, uint32(v))
	r.set(0x24, 1)
	r.set(0x20, uint32(v>>32))
}

func (r *mmioRegs) maxSize(q int) uint16 {
	r.set(0x30, uint32(q))
	return uint16(r.get(0x34))
}

func (r *mmioRegs) setQueue(q int, ring *Ring) {
	r.set(0x30, uint32(q))
	r.set(0x38, uint32(ring.Size))
	for _, a := range []struct{ off, v uint64 }{{0x80, ring.Desc}, {0x90, ring.Avail}, {0xa0, ring.Used}} {
		r.set(a.off, uint32(a.v))
		r.set(a.off+4, uint32(a.v>>32))
	}
	r.set(0x44, 1)
}

func (r *mmioRegs) enabled(q int) bool {
	r.set(0x30, uint32(q))
	return r.get(0x44) == 1
}

// configSpace is a PCI function's configuration space.
type configSpace interface {
	Read(reg int, p []byte)
	Write(reg int, p []byte)
}

// pciRegs drives virtio 1.2, section 4.1. It finds the structures through the
// capability list.
type pciRegs struct {
	m   *Machine
	cfg configSpace

	common, notifyBase, device, isr uint64 // guest addresses
	multiplier                      uint32
	msixTable                       uint64
	vectors                         int
	window                          int // configuration access capability
}

func (r *pciRegs) cfg8(reg int) int {
	var p [1]byte
	r.cfg.Read(reg, p[:])
	return int(p[0])
}

func (r *pciRegs) cfg32(reg int) uint32 {
	var p [4]byte
	r.cfg.Read(reg, p[:])
	return uint32(p[0]) | uint32(p[1])<<8 | uint32(p[2])<<16 | uint32(p[3])<<24
}

func (r *pciRegs) enable() {
	r.cfg.Write(4, []byte{6, 0}) // memory decoding, bus master
	bar := uint64(r.cfg32(0x10)&^15) | uint64(r.cfg32(0x14))<<32
	msix := 0
	for at, n := r.cfg8(0x34), 0; at != 0 && n < 48; at, n = r.cfg8(at+1), n+1 {
		off := bar + uint64(r.cfg32(at+8))
		switch r.cfg8(at) {
		case 0x11:
			msix = at
			r.vectors = int(r.cfg32(at)>>16&0x7ff) + 1
			r.msixTable = bar + uint64(r.cfg32(at+4)&^7)
		case 0x09:
			switch r.cfg8(at + 3) {
			case 1:
				r.common = off
			case 2:
				r.notifyBase = off
				r.multiplier = r.cfg32(at + 16)
			case 3:
				r.isr = off
			case 4:
				r.device = off
			case 5:
				r.window = at
			}
		}
	}
	// Vector i sends i.
	for i := range r.vectors {
		e := r.msixTable + uint64(i)*16
		r.m.Write(e, 4, 0xfee0_0000)
		r.m.Write(e+4, 4, 0)
		r.m.Write(e+8, 4, uint64(i))
		r.m.Write(e+12, 4, 0)
	}
	r.cfg.Write(msix+2, []byte{0, 0x80})
}

func (r *pciRegs) get(off uint64, size int) uint64    { return r.m.Read(r.common+off, size) }
func (r *pciRegs) set(off uint64, size int, v uint64) { r.m.Write(r.common+off, size, v) }
func (r *pciRegs) status() byte                       { return byte(r.get(20, 1)) }
func (r *pciRegs) setStatus(v byte)                   { r.set(20, 1, uint64(v)) }
func (r *pciRegs) generation() uint32                 { return uint32(r.get(21, 1)) }
func (r *pciRegs) config() uint64                     { return r.device }

func (r *pciRegs) features() uint64 {
	r.set(0, 4, 0)
	v := r.get(4, 4)
	r.set(0, 4, 1)
	return v | r.get(4, 4)<<32
}

func (r *pciRegs) setFeatures(v uint64) {
	r.set(8, 4, 0)
	r.set(12, 4, v)
	r.set(8, 4, 1)
	r.set(12, 4, v>>32)
}

func (r *pciRegs) maxSize(q int) uint16 {
	r.set(22, 2, uint64(q))
	return uint16(r.get(24, 2))
}

// setQueue uses vector 0 for configuration changes and q+1 for queue q, as
// far as there are so many.
func (r *pciRegs) setQueue(q int, ring *Ring) {
	r.set(16, 2, 0)
	r.set(22, 2, uint64(q))
	r.set(24, 2, uint64(ring.Size))
	r.set(26, 2, uint64(min(q+1, r.vectors-1)))
	r.set(32, 8, ring.Desc)
	r.set(40, 4, ring.Avail)
	r.set(44, 4, ring.Avail>>32)
	r.set(48, 8, ring.Used)
	r.set(28, 2, 1)
}

func (r *pciRegs) enabled(q int) bool {
	r.set(22, 2, uint64(q))
	return r.get(28, 2) == 1
}

// notify assumes that notification offsets equal queue numbers, which the
// transport's own test checks.
func (r *pciRegs) notify(q int) {
	r.m.Write(r.notifyBase+uint64(q)*uint64(r.multiplier), 2, uint64(q))
}
