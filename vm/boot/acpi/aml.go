package acpi

import "encoding/binary"

// The AML encoder: each function returns the encoding of one term (ACPI 6.5,
// section 20.2, "AML Grammar Definition").

const (
	opName    = 0x08
	opString  = 0x0d
	opScope   = 0x10
	opBuffer  = 0x11
	opPackage = 0x12
	extPrefix = 0x5b
	extDevice = 0x82
)

// join concatenates terms.
func join(terms ...[]byte) []byte {
	var b []byte
	for _, t := range terms {
		b = append(b, t...)
	}
	return b
}

// amlInt is an integer in its shortest form (ComputationalData, section 20.2.3).
func amlInt(v uint64) []byte {
	switch {
	case v <= 1:
		return []byte{byte(v)} // ZeroOp, OneOp
	case v <= 0xff:
		return []byte{0x0a, byte(v)}
	case v <= 0xffff:
		return binary.LittleEndian.AppendUint16([]byte{0x0b}, uint16(v))
	case v <= 0xffff_ffff:
		return binary.LittleEndian.AppendUint32([]byte{0x0c}, uint32(v))
	}
	return binary.LittleEndian.AppendUint64([]byte{0x0e}, v)
}

func amlString(s string) []byte { return append(append([]byte{opString}, s...), 0) }

// amlEISAID packs a PNP identifier such as "PNP0501" into the compressed
// form of section 19.3.4.
func amlEISAID(id string) []byte {
	hex := func(c byte) uint32 {
		if c >= 'A' {
			return uint32(c-'A') + 10
		}
		return uint32(c - '0')
	}
	v := uint32(id[0]-0x40)<<26 | uint32(id[1]-0x40)<<21 | uint32(id[2]-0x40)<<16 |
		hex(id[3])<<12 | hex(id[4])<<8 | hex(id[5])<<4 | hex(id[6])
	b := []byte{0x0c}
	return binary.BigEndian.AppendUint32(b, v)
}

// amlSized prepends op and the package length that covers body and itself
// (PkgLength, section 20.2.4).
func amlSized(op []byte, body []byte) []byte {
	n := len(body)
	var l []byte
	switch {
	case n+1 < 1<<6:
		l = []byte{byte(n + 1)}
	case n+2 < 1<<12:
		n += 2
		l = []byte{1<<6 | byte(n&0xf), byte(n >> 4)}
	case n+3 < 1<<20:
		n += 3
		l = []byte{2<<6 | byte(n&0xf), byte(n >> 4), byte(n >> 12)}
	default:
		n += 4
		l = []byte{3<<6 | byte(n&0xf), byte(n >> 4), byte(n >> 12), byte(n >> 20)}
	}
	return join(op, l, body)
}

// amlName is Name(seg, value). seg is four characters, or a root path such
// as `\_S5_`.
func amlName(seg string, value []byte) []byte {
	return join([]byte{opName}, []byte(seg), value)
}

func amlScope(path string, terms ...[]byte) []byte {
	return amlSized([]byte{opScope}, join([]byte(path), join(terms...)))
}

func amlDevice(seg string, terms ...[]byte) []byte {
	return amlSized([]byte{extPrefix, extDevice}, join([]byte(seg), join(terms...)))
}

func amlPackage(elems ...[]byte) []byte {
	return amlSized([]byte{opPackage}, join([]byte{byte(len(elems))}, join(elems...)))
}

func amlBuffer(b []byte) []byte {
	return amlSized([]byte{opBuffer}, join(amlInt(uint64(len(b))), b))
}

// resources is _CRS with the given descriptors (section 6.4). The end tag's
// checksum is zero, which means that there is none.
func resources(descriptors ...[]byte) []byte {
	return amlName("_CRS", amlBuffer(append(join(descriptors...), 0x79, 0)))
}

// resIO is a range of n ports, decoded on 16 address bits.
func resIO(port uint16, n uint8) []byte {
	b := []byte{0x47, 1}
	b = binary.LittleEndian.AppendUint16(b, port)
	b = binary.LittleEndian.AppendUint16(b, port)
	return append(b, 1, n)
}

// resIRQ is an ISA interrupt: edge, active high, not shared.
func resIRQ(irq uint8) []byte {
	return binary.LittleEndian.AppendUint16([]byte{0x22}, 1<<irq)
}

// resInterrupt is a level-triggered, active-high, exclusive interrupt.
func resInterrupt(gsi uint32) []byte {
	return binary.LittleEndian.AppendUint32([]byte{0x89, 6, 0, 1, 1}, gsi)
}

// resMemory32 is a fixed, writable memory range below 4 GiB.
func resMemory32(base, size uint32) []byte {
	b := []byte{0x86, 9, 0, 1}
	b = binary.LittleEndian.AppendUint32(b, base)
	return binary.LittleEndian.AppendUint32(b, size)
}

// Flags of address space descriptors: a window that the bridge produces, with
// both ends fixed.
const (
	windowFixed    = 0x0c
	memoryWritable = 0x01
	memoryPrefetch = 0x06
)

// resBusNumbers are the bus numbers [first, last] below a host bridge.
func resBusNumbers(first, last uint16) []byte {
	b := []byte{0x88, 13, 0, 2, windowFixed, 0}
	for _, v := range []uint16{0, first, last, 0, last - first + 1} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

// resWindow is a memory window of a host bridge: a QWord descriptor, which
// reaches everywhere.
func resWindow(base, size uint64, prefetchable bool) []byte {
	flags := byte(memoryWritable)
	if prefetchable {
		flags |= memoryPrefetch
	}
	b := []byte{0x8a, 43, 0, 0, windowFixed, flags}
	for _, v := range []uint64{0, base, base + size - 1, 0, size} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}
