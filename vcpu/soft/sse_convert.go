package soft

import "github.com/vmkit-go/vmkit/vcpu/soft/decode"

// Conversions between integers and floating point, and between formats of the latter
// (Intel SDM volume 1, sections 10.4.4, 11.4.1 and 11.4.4).

var vectorConversions = []vector{
	{op: 0x2a, lower: lowerCvtFromMMX, fn: cvtPI2PS},
	{op: 0x2a, pp: pp66, lower: lowerCvtFromMMX, fn: cvtDQ2PD},
	{op: 0x2a, pp: ppF3, lower: lowerCvtFromR, fn: cvtSI2SS},
	{op: 0x2a, pp: ppF2, lower: lowerCvtFromR, fn: cvtSI2SD},
	{op: 0x2c, lower: lowerCvtToMMX, fn: cvtTPS2PI, size: 8},
	{op: 0x2c, pp: pp66, lower: lowerCvtToMMX, fn: cvtTPD2DQ},
	{op: 0x2c, pp: ppF3, lower: lowerCvtToR, fn: cvtTSS2SI, size: 4},
	{op: 0x2c, pp: ppF2, lower: lowerCvtToR, fn: cvtTSD2SI, size: 8},
	{op: 0x2d, lower: lowerCvtToMMX, fn: cvtPS2PI, size: 8},
	{op: 0x2d, pp: pp66, lower: lowerCvtToMMX, fn: cvtPD2DQ},
	{op: 0x2d, pp: ppF3, lower: lowerCvtToR, fn: cvtSS2SI, size: 4},
	{op: 0x2d, pp: ppF2, lower: lowerCvtToR, fn: cvtSD2SI, size: 8},
	{op: 0x5a, lower: lowerXX, fn: cvtPS2PD, size: 8},
	{op: 0x5a, pp: pp66, lower: lowerXX, fn: cvtPD2PS},
	{op: 0x5a, pp: ppF3, lower: lowerXX, fn: cvtSS2SD, size: 4},
	{op: 0x5a, pp: ppF2, lower: lowerXX, fn: cvtSD2SS, size: 8},
	{op: 0x5b, lower: lowerXX, fn: cvtDQ2PS},
	{op: 0x5b, pp: pp66, lower: lowerXX, fn: cvtPS2DQ},
	{op: 0x5b, pp: ppF3, lower: lowerXX, fn: cvtTPS2DQ},
	{op: 0xe6, pp: pp66, lower: lowerXX, fn: cvtTPD2DQ},
	{op: 0xe6, pp: ppF3, lower: lowerXX, fn: cvtDQ2PD, size: 8},
	{op: 0xe6, pp: ppF2, lower: lowerXX, fn: cvtPD2DQ},
}

// lowerCvtFromMMX is CVTPI2PS and CVTPI2PD. With an operand in memory these do not
// touch the MMX registers.
func lowerCvtFromMMX(l *lowerer, v *vector) bool {
	l.sse()
	if l.in.Mem {
		l.loadVector(xmmT0, 8)
	} else {
		l.mmxCheck()
		l.mmxGet(l.in.RM&7, decode.NoReg, false)
	}
	u := l.call(v.fn)
	u.d, u.s = l.in.Reg, xmmT0
	if !l.in.Mem {
		l.call(mmxEnter)
	}
	return true
}

// lowerCvtToMMX is CVTPS2PI, CVTPD2PI and those that truncate.
func lowerCvtToMMX(l *lowerer, v *vector) bool {
	l.sse()
	l.mmxCheck()
	s := l.vectorSource(v.size)
	u := l.call(v.fn)
	u.d, u.s = xmmT0, s
	l.mmxPut(l.in.Reg&7, 0)
	return true
}

// lowerCvtFromR is CVTSI2SS and CVTSI2SD.
func lowerCvtFromR(l *lowerer, v *vector) bool {
	l.sse()
	s := l.source(l.wide())
	u := l.call(v.fn)
	u.d, u.s, u.size = l.in.Reg, s, l.wide()
	return true
}

// lowerCvtToR is CVTSS2SI, CVTSD2SI and those that truncate.
func lowerCvtToR(l *lowerer, v *vector) bool {
	l.sse()
	s := l.vectorSource(v.size)
	u := l.call(v.fn)
	u.d, u.s, u.size = l.in.Reg, s, l.wide()
	return true
}

func cvtPI2PS(c *CPU, u *uop) stop {
	m, d, v := c.floatBegin(), c.x(u.d), c.x(u.s)[0]
	lo := m.IntToFloat32(int64(int32(v)))
	return c.floatSet64(d, both32(lo, m.IntToFloat32(int64(v)>>32)))
}

func cvtDQ2PD(c *CPU, u *uop) stop {
	m, v := c.floatBegin(), c.x(u.s)[0]
	return c.floatSet(c.x(u.d), xmm{m.IntToFloat64(int64(int32(v))), m.IntToFloat64(int64(v) >> 32)})
}

func cvtDQ2PS(c *CPU, u *uop) stop {
	m, s := c.floatBegin(), c.x(u.s)
	var r xmm
	for i, v := range s {
		r[i] = both32(m.IntToFloat32(int64(int32(v))), m.IntToFloat32(int64(v)>>32))
	}
	return c.floatSet(c.x(u.d), r)
}

func cvtSI2SS(c *CPU, u *uop) stop {
	v := int64(signExtend(c.r[u.s&31], u.size))
	return c.floatSet32(c.x(u.d), c.floatBegin().IntToFloat32(v))
}

func cvtSI2SD(c *CPU, u *uop) stop {
	v := int64(signExtend(c.r[u.s&31], u.size))
	return c.floatSet64(c.x(u.d), c.floatBegin().IntToFloat64(v))
}

// floatSetR is floatEnd, and writes a general register.
func (c *CPU) floatSetR(u *uop, v int64) stop {
	s := c.floatEnd()
	if s == next {
		c.r[u.d&31] = uint64(v) & maskOf(u.size)
	}
	return s
}

func (c *CPU) cvtSS(u *uop, trunc bool) stop {
	m, v := c.floatBegin(), uint32(c.x(u.s)[0])
	if u.size == 8 {
		return c.floatSetR(u, m.Float32ToInt64(v, trunc))
	}
	return c.floatSetR(u, int64(m.Float32ToInt32(v, trunc)))
}

func (c *CPU) cvtSD(u *uop, trunc bool) stop {
	m, v := c.floatBegin(), c.x(u.s)[0]
	if u.size == 8 {
		return c.floatSetR(u, m.Float64ToInt64(v, trunc))
	}
	return c.floatSetR(u, int64(m.Float64ToInt32(v, trunc)))
}

func cvtSS2SI(c *CPU, u *uop) stop  { return c.cvtSS(u, false) }
func cvtTSS2SI(c *CPU, u *uop) stop { return c.cvtSS(u, true) }
func cvtSD2SI(c *CPU, u *uop) stop  { return c.cvtSD(u, false) }
func cvtTSD2SI(c *CPU, u *uop) stop { return c.cvtSD(u, true) }

// cvtPS converts the first n halves of pairs.
func (c *CPU) cvtPS(u *uop, n int, trunc bool) stop {
	m, s := c.floatBegin(), c.x(u.s)
	var r xmm
	for i, v := range s[:n] {
		lo := uint32(m.Float32ToInt32(uint32(v), trunc))
		r[i] = both32(lo, uint32(m.Float32ToInt32(uint32(v>>32), trunc)))
	}
	return c.floatSet(c.x(u.d), r)
}

func cvtPS2DQ(c *CPU, u *uop) stop  { return c.cvtPS(u, 2, false) }
func cvtTPS2DQ(c *CPU, u *uop) stop { return c.cvtPS(u, 2, true) }
func cvtPS2PI(c *CPU, u *uop) stop  { return c.cvtPS(u, 1, false) }
func cvtTPS2PI(c *CPU, u *uop) stop { return c.cvtPS(u, 1, true) }

// cvtPD clears the upper half.
func (c *CPU) cvtPD(u *uop, trunc bool) stop {
	m, s := c.floatBegin(), c.x(u.s)
	lo := uint32(m.Float64ToInt32(s[0], trunc))
	return c.floatSet(c.x(u.d), xmm{both32(lo, uint32(m.Float64ToInt32(s[1], trunc)))})
}

func cvtPD2DQ(c *CPU, u *uop) stop  { return c.cvtPD(u, false) }
func cvtTPD2DQ(c *CPU, u *uop) stop { return c.cvtPD(u, true) }

func cvtPS2PD(c *CPU, u *uop) stop {
	m, v := c.floatBegin(), c.x(u.s)[0]
	return c.floatSet(c.x(u.d), xmm{m.Float32To64(uint32(v)), m.Float32To64(uint32(v >> 32))})
}

func cvtPD2PS(c *CPU, u *uop) stop {
	m, s := c.floatBegin(), c.x(u.s)
	return c.floatSet(c.x(u.d), xmm{both32(m.Float64To32(s[0]), m.Float64To32(s[1]))})
}

func cvtSS2SD(c *CPU, u *uop) stop {
	return c.floatSet64(c.x(u.d), c.floatBegin().Float32To64(uint32(c.x(u.s)[0])))
}

func cvtSD2SS(c *CPU, u *uop) stop {
	return c.floatSet32(c.x(u.d), c.floatBegin().Float64To32(c.x(u.s)[0]))
}
