package soft

import (
	"math/bits"
	"unsafe"
)

// following returns the micro-operation after u. A block's last one never goes on to
// the next, so there always is one.
func following(u *uop) *uop {
	return (*uop)(unsafe.Add(unsafe.Pointer(u), unsafe.Sizeof(uop{})))
}

// More ways to end, inside execute only.
const (
	budget    stop = iota + abort + 1 // the instruction budget is too small, or the block is dead
	branchSub                         // branch on what comparing x with y says
	branchLog                         // branch on x, the result of a logical operation
)

// execute runs blocks from b on, which begins at c.rip, until something else has to
// be done: it returns event, fault, abort or budget. c.rip and c.left are exact then:
// for fault and abort they are those before the instruction at fault. It allocates
// nothing, except that a block that is not there yet is made.
func (c *CPU) execute(b *block) stop {
	for {
		if c.left < b.need {
			return budget
		}
		c.left -= b.n
		c.cur = b
		c.r[regRIP] = c.rip
		u := &b.ops[0]
		var s stop
		var x, y uint64 // of branchSub and branchLog, shifted to the top
	run:
		for {
			switch u.kind {
			case kindCall:
				if s = u.fn(c, u); s != next {
					break run
				}
			case kindNop:
			case kindMov64:
				c.r[u.d&31] = c.r[u.s&31] + u.imm
			case kindMov32:
				c.r[u.d&31] = uint64(uint32(c.r[u.s&31]))
			case kindLea64:
				c.r[u.d&31] = c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp
			case kindLea32:
				c.r[u.d&31] = uint64(uint32(c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp))
			case kindZx8:
				c.r[u.d&31] = uint64(uint8(c.r[u.s&31]))
			case kindZx16:
				c.r[u.d&31] = uint64(uint16(c.r[u.s&31]))
			case kindSx8to32:
				c.r[u.d&31] = uint64(uint32(int8(c.r[u.s&31])))
			case kindSx8to64:
				c.r[u.d&31] = uint64(int8(c.r[u.s&31]))
			case kindSx16to32:
				c.r[u.d&31] = uint64(uint32(int16(c.r[u.s&31])))
			case kindSx16to64:
				c.r[u.d&31] = uint64(int16(c.r[u.s&31]))
			case kindSx32to64:
				c.r[u.d&31] = uint64(int32(c.r[u.s&31]))

			case kindLoad8:
				lin := c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp + c.r[u.seg&31]
				if p := c.host(lin, 0); p != nil {
					c.r[u.d&31] = uint64(*(*uint8)(p))
				} else if s = c.loadSlow(u, lin, 1); s != next {
					break run
				}
			case kindLoad16:
				lin := c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp + c.r[u.seg&31]
				if p := c.host(lin, 1); p != nil {
					c.r[u.d&31] = uint64(*(*uint16)(p))
				} else if s = c.loadSlow(u, lin, 2); s != next {
					break run
				}
			case kindLoad32:
				lin := c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp + c.r[u.seg&31]
				if p := c.host(lin, 3); p != nil {
					c.r[u.d&31] = uint64(*(*uint32)(p))
				} else if s = c.loadSlow(u, lin, 4); s != next {
					break run
				}
			case kindLoad64:
				lin := c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp + c.r[u.seg&31]
				if p := c.host(lin, 7); p != nil {
					c.r[u.d&31] = *(*uint64)(p)
				} else if s = c.loadSlow(u, lin, 8); s != next {
					break run
				}
			case kindLoad32B:
				lin := c.r[u.b&31] + u.disp
				if p := c.host(lin, 3); p != nil {
					c.r[u.d&31] = uint64(*(*uint32)(p))
				} else if s = c.loadSlow(u, lin, 4); s != next {
					break run
				}
			case kindLoad64B:
				lin := c.r[u.b&31] + u.disp
				if p := c.host(lin, 7); p != nil {
					c.r[u.d&31] = *(*uint64)(p)
				} else if s = c.loadSlow(u, lin, 8); s != next {
					break run
				}
			case kindLoadW32:
				lin := c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp + c.r[u.seg&31]
				if p := c.hostW(lin, 3); p != nil {
					c.r[u.d&31] = uint64(*(*uint32)(p))
				} else if s = c.loadToModify(u, lin, 4); s != next {
					break run
				}
			case kindLoadW64:
				lin := c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp + c.r[u.seg&31]
				if p := c.hostW(lin, 7); p != nil {
					c.r[u.d&31] = *(*uint64)(p)
				} else if s = c.loadToModify(u, lin, 8); s != next {
					break run
				}
			case kindLoadSx:
				if s = c.loadSigned(u); s != next {
					break run
				}
			case kindStore8:
				lin := c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp + c.r[u.seg&31]
				v := c.r[u.s&31] + u.imm
				if p := c.hostW(lin, 0); p != nil {
					*(*uint8)(p) = uint8(v)
				} else if s = c.write(u, lin, 1, v); s != next {
					break run
				}
			case kindStore16:
				lin := c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp + c.r[u.seg&31]
				v := c.r[u.s&31] + u.imm
				if p := c.hostW(lin, 1); p != nil {
					*(*uint16)(p) = uint16(v)
				} else if s = c.write(u, lin, 2, v); s != next {
					break run
				}
			case kindStore32:
				lin := c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp + c.r[u.seg&31]
				v := c.r[u.s&31] + u.imm
				if p := c.hostW(lin, 3); p != nil {
					*(*uint32)(p) = uint32(v)
				} else if s = c.write(u, lin, 4, v); s != next {
					break run
				}
			case kindStore64:
				lin := c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp + c.r[u.seg&31]
				v := c.r[u.s&31] + u.imm
				if p := c.hostW(lin, 7); p != nil {
					*(*uint64)(p) = v
				} else if s = c.write(u, lin, 8, v); s != next {
					break run
				}
			case kindStore32B:
				lin := c.r[u.b&31] + u.disp
				v := c.r[u.s&31] + u.imm
				if p := c.hostW(lin, 3); p != nil {
					*(*uint32)(p) = uint32(v)
				} else if s = c.write(u, lin, 4, v); s != next {
					break run
				}
			case kindStore64B:
				lin := c.r[u.b&31] + u.disp
				v := c.r[u.s&31] + u.imm
				if p := c.hostW(lin, 7); p != nil {
					*(*uint64)(p) = v
				} else if s = c.write(u, lin, 8, v); s != next {
					break run
				}
			case kindProbe:
				if s = c.probe(u, c.addr(u), u.size); s != next {
					break run
				}

			case kindAdd64:
				a := c.r[u.d&31]
				v := a + c.r[u.s&31] + u.imm
				c.lazy, c.la, c.lr = lazyAdd+3, a, v
				c.r[u.d&31] = v
			case kindAdd32:
				a := uint64(uint32(c.r[u.d&31]))
				v := uint64(uint32(a + c.r[u.s&31] + u.imm))
				c.lazy, c.la, c.lr = lazyAdd+2, a, v
				c.r[u.d&31] = v
			case kindSub64:
				a := c.r[u.d&31]
				v := a - (c.r[u.s&31] + u.imm)
				c.lazy, c.la, c.lr = lazySub+3, a, v
				c.r[u.d&31] = v
			case kindSub32:
				a := uint64(uint32(c.r[u.d&31]))
				v := uint64(uint32(a - (c.r[u.s&31] + u.imm)))
				c.lazy, c.la, c.lr = lazySub+2, a, v
				c.r[u.d&31] = v
			case kindAnd64:
				v := c.r[u.d&31] & (c.r[u.s&31] + u.imm)
				c.lazy, c.lr = lazyLogic+3, v
				c.r[u.d&31] = v
			case kindAnd32:
				v := uint64(uint32(c.r[u.d&31] & (c.r[u.s&31] + u.imm)))
				c.lazy, c.lr = lazyLogic+2, v
				c.r[u.d&31] = v
			case kindOr64:
				v := c.r[u.d&31] | (c.r[u.s&31] + u.imm)
				c.lazy, c.lr = lazyLogic+3, v
				c.r[u.d&31] = v
			case kindOr32:
				v := uint64(uint32(c.r[u.d&31] | (c.r[u.s&31] + u.imm)))
				c.lazy, c.lr = lazyLogic+2, v
				c.r[u.d&31] = v
			case kindXor64:
				v := c.r[u.d&31] ^ (c.r[u.s&31] + u.imm)
				c.lazy, c.lr = lazyLogic+3, v
				c.r[u.d&31] = v
			case kindXor32:
				v := uint64(uint32(c.r[u.d&31] ^ (c.r[u.s&31] + u.imm)))
				c.lazy, c.lr = lazyLogic+2, v
				c.r[u.d&31] = v

			case kindAdd64N:
				c.r[u.d&31] += c.r[u.s&31] + u.imm
			case kindAdd32N:
				c.r[u.d&31] = uint64(uint32(c.r[u.d&31] + c.r[u.s&31] + u.imm))
			case kindSub64N:
				c.r[u.d&31] -= c.r[u.s&31] + u.imm
			case kindSub32N:
				c.r[u.d&31] = uint64(uint32(c.r[u.d&31] - (c.r[u.s&31] + u.imm)))
			case kindAnd64N:
				c.r[u.d&31] &= c.r[u.s&31] + u.imm
			case kindAnd32N:
				c.r[u.d&31] = uint64(uint32(c.r[u.d&31] & (c.r[u.s&31] + u.imm)))
			case kindOr64N:
				c.r[u.d&31] |= c.r[u.s&31] + u.imm
			case kindOr32N:
				c.r[u.d&31] = uint64(uint32(c.r[u.d&31] | (c.r[u.s&31] + u.imm)))
			case kindXor64N:
				c.r[u.d&31] ^= c.r[u.s&31] + u.imm
			case kindXor32N:
				c.r[u.d&31] = uint64(uint32(c.r[u.d&31] ^ (c.r[u.s&31] + u.imm)))

			case kindCmp64:
				a := c.r[u.d&31]
				c.lazy, c.la, c.lr = lazySub+3, a, a-(c.r[u.s&31]+u.imm)
			case kindCmp32:
				a := uint64(uint32(c.r[u.d&31]))
				c.lazy, c.la, c.lr = lazySub+2, a, uint64(uint32(a-(c.r[u.s&31]+u.imm)))
			case kindCmp16:
				a := uint64(uint16(c.r[u.d&31]))
				c.lazy, c.la, c.lr = lazySub+1, a, uint64(uint16(a-(c.r[u.s&31]+u.imm)))
			case kindCmp8:
				a := uint64(uint8(c.r[u.d&31]))
				c.lazy, c.la, c.lr = lazySub, a, uint64(uint8(a-(c.r[u.s&31]+u.imm)))
			case kindTest64:
				c.lazy, c.lr = lazyLogic+3, c.r[u.d&31]&(c.r[u.s&31]+u.imm)
			case kindTest32:
				c.lazy, c.lr = lazyLogic+2, uint64(uint32(c.r[u.d&31]&(c.r[u.s&31]+u.imm)))
			case kindTest16:
				c.lazy, c.lr = lazyLogic+1, uint64(uint16(c.r[u.d&31]&(c.r[u.s&31]+u.imm)))
			case kindTest8:
				c.lazy, c.lr = lazyLogic, uint64(uint8(c.r[u.d&31]&(c.r[u.s&31]+u.imm)))
			case kindInc64:
				v := c.r[u.d&31] + 1
				c.fl = c.carry()
				c.lazy, c.lr = lazyInc+3, v
				c.r[u.d&31] = v
			case kindInc32:
				v := uint64(uint32(c.r[u.d&31] + 1))
				c.fl = c.carry()
				c.lazy, c.lr = lazyInc+2, v
				c.r[u.d&31] = v
			case kindDec64:
				v := c.r[u.d&31] - 1
				c.fl = c.carry()
				c.lazy, c.lr = lazyDec+3, v
				c.r[u.d&31] = v
			case kindDec32:
				v := uint64(uint32(c.r[u.d&31] - 1))
				c.fl = c.carry()
				c.lazy, c.lr = lazyDec+2, v
				c.r[u.d&31] = v
			case kindNot64:
				c.r[u.d&31] = ^c.r[u.d&31]
			case kindNot32:
				c.r[u.d&31] = uint64(^uint32(c.r[u.d&31]))
			case kindShl64:
				a := c.r[u.d&31]
				v := a << (u.imm & 63)
				c.setShift(v, 8, a>>((64-u.imm)&63)&1, (a>>((64-u.imm)&63)^v>>63)&1)
				c.r[u.d&31] = v
			case kindShl32:
				a := uint64(uint32(c.r[u.d&31])) << (u.imm & 31)
				v := uint64(uint32(a))
				c.setShift(v, 4, a>>32&1, (a>>32^v>>31)&1)
				c.r[u.d&31] = v
			case kindShr64:
				a := c.r[u.d&31]
				v := a >> (u.imm & 63)
				c.setShift(v, 8, a>>((u.imm-1)&63)&1, a>>63)
				c.r[u.d&31] = v
			case kindShr32:
				a := uint64(uint32(c.r[u.d&31]))
				v := a >> (u.imm & 31)
				c.setShift(v, 4, a>>((u.imm-1)&31)&1, a>>31)
				c.r[u.d&31] = v
			case kindSar64:
				a := c.r[u.d&31]
				v := uint64(int64(a) >> (u.imm & 63))
				c.setShift(v, 8, a>>((u.imm-1)&63)&1, 0)
				c.r[u.d&31] = v
			case kindSar32:
				a := c.r[u.d&31]
				v := uint64(uint32(int32(a) >> (u.imm & 31)))
				c.setShift(v, 4, uint64(uint32(a))>>((u.imm-1)&31)&1, 0)
				c.r[u.d&31] = v
			case kindIMul64:
				a, m := c.r[u.s&31], u.imm
				if u.b == 0 {
					m = c.r[u.d&31]
				}
				hi, lo := bits.Mul64(a, m)
				hi -= uint64(int64(a)>>63)&m + uint64(int64(m)>>63)&a
				over := bit(hi != uint64(int64(lo)>>63))
				c.setKeep(lo, 8, over|over<<11)
				c.r[u.d&31] = lo
			case kindIMul32:
				m := int64(int32(u.imm))
				if u.b == 0 {
					m = int64(int32(c.r[u.d&31]))
				}
				p := int64(int32(c.r[u.s&31])) * m
				over := bit(p != int64(int32(p)))
				c.setKeep(uint64(uint32(p)), 4, over|over<<11)
				c.r[u.d&31] = uint64(uint32(p))
			case kindSetcc:
				c.r[u.d&31] = c.r[u.d&31]&^0xff | bit(c.cond(u.cc))
			case kindCmov64:
				if c.cond(u.cc) {
					c.r[u.d&31] = c.r[u.s&31]
				}
			case kindCmov32:
				if c.cond(u.cc) {
					c.r[u.d&31] = uint64(uint32(c.r[u.s&31]))
				} else {
					c.r[u.d&31] = uint64(uint32(c.r[u.d&31]))
				}
			case kindPush:
				lin := c.r[regRSP] - 8
				v := c.r[u.s&31] + u.imm
				if p := c.hostW(lin, 7); p != nil {
					*(*uint64)(p) = v
				} else if s = c.write(u, lin, 8, v); s > leave {
					break run
				}
				c.r[regRSP] = lin
				if s != next {
					break run
				}
			case kindPop:
				lin := c.r[regRSP]
				if p := c.host(lin, 7); p != nil {
					c.r[regRSP] = lin + 8
					c.r[u.d&31] = *(*uint64)(p)
				} else {
					var v uint64
					if v, s = c.read(u, lin, 8); s != next {
						break run
					}
					c.r[regRSP] = lin + 8
					c.r[u.d&31] = v
				}
			case kindMerge8:
				c.r[u.d&31] = c.r[u.d&31]&^0xff | (c.r[u.s&31]+u.imm)&0xff
			case kindMerge16:
				c.r[u.d&31] = c.r[u.d&31]&^0xffff | (c.r[u.s&31]+u.imm)&0xffff

			case kindEnd:
				c.rip = c.r[regRIP] + uint64(u.off) + uint64(u.len)
				s = link1
				break run
			case kindJmp:
				c.rip = c.r[regRIP] + u.disp
				s = link0
				break run
			case kindJmpR:
				c.rip = c.r[u.s&31]
				s = done
				if !canonical(c.rip) {
					s = c.gp()
				}
				break run
			case kindCallRel:
				s = c.push64(u, c.r[regRIP]+uint64(u.off)+uint64(u.len))
				if s <= leave {
					c.rip = c.r[regRIP] + u.disp
					s = max(s, link0)
				}
				break run
			case kindCallR:
				to := c.r[u.s&31]
				if !canonical(to) {
					s = c.gp()
					break run
				}
				s = c.push64(u, c.r[regRIP]+uint64(u.off)+uint64(u.len))
				if s <= leave {
					c.rip = to
					s = max(s, done)
				}
				break run
			case kindRet:
				lin := c.r[regRSP]
				var to uint64
				if p := c.host(lin, 7); p != nil {
					to = *(*uint64)(p)
				} else if to, s = c.read(u, lin, 8); s != next {
					break run
				}
				s = done
				if !canonical(to) {
					s = c.gp()
					break run
				}
				c.rip = to
				c.r[regRSP] = lin + 8 + u.imm
				break run
			case kindJcc:
				s = link1
				if c.cond(u.cc) {
					s = link0
				}
				break run
			case kindCmpJ64:
				x, y = c.r[u.d&31], c.r[u.s&31]+u.imm
				c.lazy, c.la, c.lr = lazySub+3, x, x-y
				s = branchSub
				break run
			case kindCmpJ32:
				a, m := uint64(uint32(c.r[u.d&31])), c.r[u.s&31]+u.imm
				c.lazy, c.la, c.lr = lazySub+2, a, uint64(uint32(a-m))
				x, y = a<<32, m<<32
				s = branchSub
				break run
			case kindCmpJ16:
				a, m := uint64(uint16(c.r[u.d&31])), c.r[u.s&31]+u.imm
				c.lazy, c.la, c.lr = lazySub+1, a, uint64(uint16(a-m))
				x, y = a<<48, m<<48
				s = branchSub
				break run
			case kindCmpJ8:
				a, m := uint64(uint8(c.r[u.d&31])), c.r[u.s&31]+u.imm
				c.lazy, c.la, c.lr = lazySub, a, uint64(uint8(a-m))
				x, y = a<<56, m<<56
				s = branchSub
				break run
			case kindTestJ64:
				x = c.r[u.d&31] & (c.r[u.s&31] + u.imm)
				c.lazy, c.lr = lazyLogic+3, x
				s = branchLog
				break run
			case kindTestJ32:
				v := uint64(uint32(c.r[u.d&31] & (c.r[u.s&31] + u.imm)))
				c.lazy, c.lr = lazyLogic+2, v
				x = v << 32
				s = branchLog
				break run
			case kindTestJ16:
				v := uint64(uint16(c.r[u.d&31] & (c.r[u.s&31] + u.imm)))
				c.lazy, c.lr = lazyLogic+1, v
				x = v << 48
				s = branchLog
				break run
			case kindTestJ8:
				v := uint64(uint8(c.r[u.d&31] & (c.r[u.s&31] + u.imm)))
				c.lazy, c.lr = lazyLogic, v
				x = v << 56
				s = branchLog
				break run
			}
			u = following(u)
		}

		switch s {
		case branchSub:
			s = branch(c.takenSub(u.cc, x, y))
		case branchLog:
			s = branch(c.takenLogic(u.cc, x))
		case leave:
			return c.finish(u)
		case event:
			return event
		case fault, abort:
			c.left += b.n - int64(u.n)
			c.rip = c.r[regRIP] + uint64(u.off)
			if c.mode&modeSize != mode64 {
				c.rip = uint64(uint32(c.rip))
			}
			return s
		}
		// link0, link1 or done.
		if s == done {
			if c.left <= 0 { // what the next instruction's fetch does is not due yet
				return budget
			}
			nb, s := c.lookup()
			if s != next {
				return s
			}
			b = nb
			continue
		}
		i := s - link0
		if u.kind >= kindJcc {
			to := u.disp
			if i != 0 {
				to = uint64(u.off) + uint64(u.len)
			}
			c.rip = c.r[regRIP] + to
		}
		if nb := b.link[i&1]; nb != nil {
			b = nb
			continue
		}
		if c.left <= 0 {
			return budget
		}
		nb, s := c.lookup()
		if s != next {
			return s
		}
		if b.local[i&1] && nb.page2 == nil && !b.dead() {
			b.link[i&1] = nb
		}
		b = nb
	}
}

func branch(taken bool) stop {
	if taken {
		return link0
	}
	return link1
}

// takenSub evaluates a condition code for the comparison of x with y, both shifted
// up to the highest bit.
func (c *CPU) takenSub(cc uint8, x, y uint64) (t bool) {
	switch cc >> 1 {
	case 1:
		t = x < y
	case 2:
		t = x == y
	case 3:
		t = x <= y
	case 4:
		t = int64(x-y) < 0
	case 6:
		t = int64(x) < int64(y)
	case 7:
		t = int64(x) <= int64(y)
	default: // overflow and parity
		return c.condFlags(cc)
	}
	return t != (cc&1 != 0)
}

// takenLogic evaluates a condition code for a result, shifted up likewise.
func (c *CPU) takenLogic(cc uint8, x uint64) (t bool) {
	switch cc >> 1 {
	case 0, 1: // OF and CF are clear
	case 2, 3:
		t = x == 0
	case 4, 6:
		t = int64(x) < 0
	case 7:
		t = int64(x) <= 0
	default:
		return c.condFlags(cc)
	}
	return t != (cc&1 != 0)
}
