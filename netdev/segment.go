package netdev

import (
	"encoding/binary"
	"fmt"
)

// IP protocol and EtherType numbers that the segmenter knows.
const (
	protoTCP = 6
	protoUDP = 17

	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100
	etherQinQ = 0x88a8
)

// TCP flags, byte 13 of the header.
const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// segmenter does in software what the header of a frame leaves to its
// receiver: it completes the checksum and cuts the frame into segments. It
// allocates only until its buffer has grown.
type segmenter struct {
	frame []byte
	buf   []byte
	done  bool

	gso     bool
	v6      bool
	udp     bool
	l3, l4  int // offsets of the IP and transport headers
	payload int // offset of the first byte to distribute
	next0   int // offset of the next one
	size    int // bytes per segment
	id      uint16
	seq     uint32
}

// reset prepares for a frame, which must have passed h.Check and must stay
// unchanged until the last next.
func (s *segmenter) reset(h *Header, frame []byte) error {
	*s = segmenter{frame: frame, buf: s.buf[:0]}
	if h.GSOType == GSONone {
		s.buf = append(s.buf, frame...)
		if h.Flags&NeedsChecksum != 0 {
			completeChecksum(s.buf, int(h.CsumStart), int(h.CsumOffset))
		}
		return nil
	}
	if err := s.parse(h); err != nil {
		s.done = true
		return fmt.Errorf("%w: %w", ErrHeader, err)
	}
	return nil
}

func (s *segmenter) parse(h *Header) error {
	f := s.frame
	s.gso = true
	s.size = int(h.GSOSize)
	s.udp = h.GSOType == GSOUDPL4
	kind := h.GSOType &^ GSOECN
	off := 12
	ether := binary.BigEndian.Uint16(f[off:])
	for ether == etherVLAN || ether == etherQinQ {
		off += 4
		if off+2 > len(f) {
			return fmt.Errorf("VLAN tag cut off at %d bytes", len(f))
		}
		ether = binary.BigEndian.Uint16(f[off:])
	}
	s.l3 = off + 2
	s.l4 = int(h.CsumStart)
	switch {
	case ether == etherIPv4 && kind != GSOTCPv6:
		if s.l3+20 > len(f) || f[s.l3]>>4 != 4 {
			return fmt.Errorf("no IPv4 header at %d", s.l3)
		}
		if ihl := int(f[s.l3]&15) * 4; ihl < 20 || s.l3+ihl != s.l4 {
			return fmt.Errorf("IPv4 header of %d bytes at %d, checksum from %d", ihl, s.l3, s.l4)
		}
		s.id = binary.BigEndian.Uint16(f[s.l3+4:])
	case ether == etherIPv6 && kind != GSOTCPv4:
		s.v6 = true
		if s.l3+40 > len(f) || f[s.l3]>>4 != 6 || s.l4 < s.l3+40 {
			return fmt.Errorf("no IPv6 header from %d to %d", s.l3, s.l4)
		}
	default:
		return fmt.Errorf("GSO type %#x of EtherType %#x", uint8(h.GSOType), ether)
	}
	if s.udp {
		s.payload = s.l4 + 8
		if h.CsumOffset != 6 || s.payload > len(f) {
			return fmt.Errorf("no UDP header at %d", s.l4)
		}
	} else {
		if h.CsumOffset != 16 || s.l4+20 > len(f) {
			return fmt.Errorf("no TCP header at %d", s.l4)
		}
		n := int(f[s.l4+12]>>4) * 4
		s.payload = s.l4 + n
		if n < 20 || s.payload > len(f) {
			return fmt.Errorf("TCP header of %d bytes at %d", n, s.l4)
		}
		s.seq = binary.BigEndian.Uint32(f[s.l4+4:])
	}
	s.next0 = s.payload
	return nil
}

// next returns the next frame, complete, or nil after the last. It is valid
// until the following call.
func (s *segmenter) next() []byte {
	if s.done {
		return nil
	}
	if !s.gso {
		s.done = true
		return s.buf
	}
	f := s.frame
	end := min(s.next0+s.size, len(f))
	first, last := s.next0 == s.payload, end == len(f)
	s.done = last
	b := append(s.buf[:0], f[:s.payload]...)
	b = append(b, f[s.next0:end]...)
	s.buf = b
	if s.v6 {
		binary.BigEndian.PutUint16(b[s.l3+4:], uint16(len(b)-s.l3-40))
	} else {
		binary.BigEndian.PutUint16(b[s.l3+2:], uint16(len(b)-s.l3))
		binary.BigEndian.PutUint16(b[s.l3+4:], s.id)
		s.id++
		b[s.l3+10], b[s.l3+11] = 0, 0
		binary.BigEndian.PutUint16(b[s.l3+10:], ^fold(sum(0, b[s.l3:s.l4])))
	}
	proto, field := uint64(protoTCP), s.l4+16
	if s.udp {
		proto, field = protoUDP, s.l4+6
		binary.BigEndian.PutUint16(b[s.l4+4:], uint16(len(b)-s.l4))
	} else {
		binary.BigEndian.PutUint32(b[s.l4+4:], s.seq)
		s.seq += uint32(end - s.next0)
		if !last {
			b[s.l4+13] &^= tcpFIN | tcpPSH
		}
		if !first {
			b[s.l4+13] &^= tcpCWR
		}
	}
	b[field], b[field+1] = 0, 0
	total := proto + uint64(len(b)-s.l4)
	if s.v6 {
		total = sum(total, b[s.l3+8:s.l3+40])
	} else {
		total = sum(total, b[s.l3+12:s.l3+20])
	}
	putChecksum(b[field:], fold(sum(total, b[s.l4:])), s.udp)
	s.next0 = end
	return b
}

// completeChecksum adds what the sender left out. start and offset lie within
// the frame (Header.Check).
func completeChecksum(frame []byte, start, offset int) {
	// UDP is told from TCP by the place of its checksum.
	putChecksum(frame[start+offset:], fold(sum(0, frame[start:])), offset == 6)
}

// putChecksum stores the complement of a folded sum; UDP has no checksum of 0.
func putChecksum(p []byte, folded uint16, udp bool) {
	c := ^folded
	if c == 0 && udp {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(p, c)
}

// sum adds the 16-bit words of p to acc, in the Internet checksum's way (RFC
// 1071). It cannot overflow for any frame.
func sum(acc uint64, p []byte) uint64 {
	for len(p) >= 8 {
		acc += uint64(binary.BigEndian.Uint32(p)) + uint64(binary.BigEndian.Uint32(p[4:]))
		p = p[8:]
	}
	for len(p) >= 2 {
		acc += uint64(binary.BigEndian.Uint16(p))
		p = p[2:]
	}
	if len(p) == 1 {
		acc += uint64(p[0]) << 8
	}
	return acc
}

// fold reduces a sum to 16 bits.
func fold(acc uint64) uint16 {
	for acc>>16 != 0 {
		acc = acc&0xffff + acc>>16
	}
	return uint16(acc)
}
