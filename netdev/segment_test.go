package netdev

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
)

// packet builds a TCP or UDP packet with payload, its checksum field holding
// what a stack with checksum offload leaves there.
func packet(v6, udp bool, vlans, payload int) (frame []byte, l3, l4 int) {
	frame = append(frame, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2)
	for range vlans {
		frame = append(frame, 0x81, 0, 0, 5)
	}
	proto := byte(protoTCP)
	head := 32 // TCP with timestamps
	if udp {
		proto, head = protoUDP, 8
	}
	if v6 {
		frame = append(frame, 0x86, 0xdd)
		l3 = len(frame)
		frame = append(frame, 0x60, 0, 0, 0, 0, 0, proto, 64)
		binary.BigEndian.PutUint16(frame[l3+4:], uint16(head+payload))
		for i := range 32 {
			frame = append(frame, byte(0x20+i))
		}
	} else {
		frame = append(frame, 8, 0)
		l3 = len(frame)
		frame = append(frame, 0x45, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2)
		binary.BigEndian.PutUint16(frame[l3+2:], uint16(20+head+payload))
	}
	l4 = len(frame)
	if udp {
		frame = append(frame, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0)
		binary.BigEndian.PutUint16(frame[l4+4:], uint16(head+payload))
	} else {
		frame = append(frame, 0x12, 0x34, 0x56, 0x78, 0xff, 0xff, 0xff, 0xf0, 1, 2, 3, 4, 0x80, tcpCWR|0x10|tcpPSH|tcpFIN, 1, 0, 0, 0, 0, 0)
		frame = append(frame, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8)
	}
	for i := range payload {
		frame = append(frame, byte(i*7+i>>8))
	}
	field := l4 + 16
	if udp {
		field = l4 + 6
	}
	binary.BigEndian.PutUint16(frame[field:], fold(pseudo(frame, v6, l3, l4, uint64(proto))))
	return frame, l3, l4
}

func pseudo(f []byte, v6 bool, l3, l4 int, proto uint64) uint64 {
	acc := proto + uint64(len(f)-l4)
	if v6 {
		return sum(acc, f[l3+8:l3+40])
	}
	return sum(acc, f[l3+12:l3+20])
}

func TestSegment(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			for vlans := range 3 {
				for _, payload := range []int{0, 1, 999, 1000, 1001, 5000, 60000} {
					frame, l3, l4 := packet(v6, udp, vlans, payload)
					h := Header{Flags: NeedsChecksum, GSOType: GSOTCPv4 | GSOECN, GSOSize: 1000, CsumStart: uint16(l4), CsumOffset: 16}
					if v6 {
						h.GSOType = GSOTCPv6
					}
					head := 32
					if udp {
						h.GSOType, h.CsumOffset, head = GSOUDPL4, 6, 8
					}
					require.NoError(t, h.Check(len(frame), OffloadAll))
					orig := append([]byte(nil), frame...)
					var s segmenter
					require.NoError(t, s.reset(&h, frame))
					var got []byte
					want := max(1, (payload+999)/1000)
					for i := range want {
						p := s.next()
						require.NotNil(t, p)
						body := p[l4+head:]
						last := i == want-1
						if !last {
							require.Len(t, body, 1000)
						}
						got = append(got, body...)
						// Every checksum and length is right.
						proto := uint64(protoTCP)
						if udp {
							proto = protoUDP
							require.EqualValues(t, len(p)-l4, binary.BigEndian.Uint16(p[l4+4:]))
						} else {
							require.EqualValues(t, 0xfffffff0+uint32(1000*i), binary.BigEndian.Uint32(p[l4+4:]))
							flags := byte(0x10)
							if i == 0 {
								flags |= tcpCWR
							}
							if last {
								flags |= tcpPSH | tcpFIN
							}
							require.Equal(t, flags, p[l4+13])
						}
						require.EqualValues(t, 0xffff, fold(sum(pseudo(p, v6, l3, l4, proto), p[l4:])))
						if v6 {
							require.EqualValues(t, len(p)-l4+l4-l3-40, binary.BigEndian.Uint16(p[l3+4:]))
						} else {
							require.EqualValues(t, 0xffff, fold(sum(0, p[l3:l4])))
							require.EqualValues(t, len(p)-l3, binary.BigEndian.Uint16(p[l3+2:]))
							require.EqualValues(t, uint16(0xfffe+i), binary.BigEndian.Uint16(p[l3+4:]))
						}
					}
					require.Nil(t, s.next())
					require.Nil(t, s.next())
					require.Equal(t, string(frame[l4+head:]), string(got))
					require.Equal(t, orig, frame)
				}
			}
		}
	}
}

func TestCompleteChecksum(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			for payload := range 40 {
				frame, l3, l4 := packet(v6, udp, 0, payload)
				h := Header{Flags: NeedsChecksum, CsumStart: uint16(l4), CsumOffset: 16}
				proto := uint64(protoTCP)
				if udp {
					h.CsumOffset, proto = 6, protoUDP
				}
				var s segmenter
				require.NoError(t, s.reset(&h, frame))
				p := s.next()
				require.Nil(t, s.next())
				require.EqualValues(t, 0xffff, fold(sum(pseudo(p, v6, l3, l4, proto), p[l4:])))
			}
		}
	}
	// UDP's checksum of 0 means none, and is sent as its complement.
	b := []byte{0, 0, 0xff, 0xff}
	putChecksum(b, fold(sum(0, b)), true)
	require.Equal(t, []byte{0xff, 0xff}, b[:2])
}

func TestSegmentRejects(t *testing.T) {
	frame, _, l4 := packet(false, false, 0, 3000)
	good := Header{Flags: NeedsChecksum, GSOType: GSOTCPv4, GSOSize: 1000, CsumStart: uint16(l4), CsumOffset: 16}
	for name, change := range map[string]func(h *Header, f []byte) []byte{
		"not IP":           func(h *Header, f []byte) []byte { f[12] = 0x99; return f },
		"version":          func(h *Header, f []byte) []byte { f[14] = 0x65; return f },
		"header length":    func(h *Header, f []byte) []byte { f[14] = 0x46; return f },
		"wrong family":     func(h *Header, f []byte) []byte { h.GSOType = GSOTCPv6; return f },
		"checksum start":   func(h *Header, f []byte) []byte { h.CsumStart++; return f },
		"checksum offset":  func(h *Header, f []byte) []byte { h.CsumOffset = 6; return f },
		"as UDP":           func(h *Header, f []byte) []byte { h.GSOType = GSOUDPL4; return f },
		"short TCP header": func(h *Header, f []byte) []byte { f[l4+12] = 0x40; return f },
		"cut off TCP":      func(h *Header, f []byte) []byte { return f[:l4+19] },
		"cut off options":  func(h *Header, f []byte) []byte { return f[:l4+25] },
		"cut off IP":       func(h *Header, f []byte) []byte { return f[:20] },
		"cut off VLAN":     func(h *Header, f []byte) []byte { f[12], f[13] = 0x81, 0; return f[:16] },
		"endless VLAN tags": func(h *Header, f []byte) []byte {
			for i := 12; i < len(f)-1; i += 4 {
				f[i], f[i+1] = 0x81, 0
			}
			return f
		},
	} {
		h := good
		f := change(&h, append([]byte(nil), frame...))
		var s segmenter
		require.ErrorIs(t, s.reset(&h, f), ErrHeader, name)
		require.Nil(t, s.next(), name)
	}
}

// FuzzSegment: whatever the header and frame, segments stay within bounds.
func FuzzSegment(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			frame, _, l4 := packet(v6, udp, 1, 100)
			h := Header{Flags: NeedsChecksum, GSOType: GSOTCPv4, GSOSize: 30, CsumStart: uint16(l4), CsumOffset: 16}
			if v6 {
				h.GSOType = GSOTCPv6
			}
			if udp {
				h.GSOType, h.CsumOffset = GSOUDPL4, 6
			}
			b := make([]byte, HeaderLen)
			h.put(b)
			f.Add(append(b, frame...))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderLen {
			return
		}
		var h Header
		h.get(b)
		frame := b[HeaderLen:]
		if h.Check(len(frame), OffloadAll) != nil {
			return
		}
		var s segmenter
		if s.reset(&h, frame) != nil {
			return
		}
		total, n := 0, 0
		for p := s.next(); p != nil; p = s.next() {
			if len(p) > len(frame) {
				t.Fatalf("segment of %d bytes of a frame of %d", len(p), len(frame))
			}
			total += len(p)
			if n++; n > len(frame)+1 {
				t.Fatal("too many segments")
			}
		}
		if n == 0 || total < len(frame) {
			t.Fatalf("%d bytes in %d segments of a frame of %d", total, n, len(frame))
		}
	})
}
