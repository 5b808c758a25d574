package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// HeaderLen is the length of a Header in its wire form: struct
// virtio_net_hdr with num_buffers (virtio 1.2, section 5.1.6).
const HeaderLen = 12

// HeaderFlags are the flags of a Header.
type HeaderFlags uint8

const (
	// NeedsChecksum says that the checksum field at CsumStart+CsumOffset
	// holds the sum of the pseudo-header, and that the bytes from CsumStart
	// to the end are still to be added.
	NeedsChecksum HeaderFlags = 1
	// DataValid says that the checksums of the frame were verified. It is
	// for received frames only.
	DataValid HeaderFlags = 2
)

// GSOType says whether and how a frame is to be segmented.
type GSOType uint8

// Values of GSOType. GSOECN is or'ed to one of the TCP types.
const (
	GSONone  GSOType = 0
	GSOTCPv4 GSOType = 1
	GSOUDP   GSOType = 3 // IP fragmentation of UDP; not used by this package
	GSOTCPv6 GSOType = 4
	GSOUDPL4 GSOType = 5 // segmentation into UDP datagrams
	GSOECN   GSOType = 0x80
)

// Header is the metadata of a frame, as of virtio 1.2, section 5.1.6. Its zero
// value is a frame that is complete.
type Header struct {
	Flags   HeaderFlags
	GSOType GSOType
	// HdrLen is the length of the Ethernet, IP and transport headers of a
	// frame to be segmented: a hint that nothing trusts.
	HdrLen uint16
	// GSOSize is the payload size of each segment.
	GSOSize uint16
	// CsumStart and CsumOffset locate the checksum, if NeedsChecksum is set.
	CsumStart, CsumOffset uint16
	// NumBuffers is used between a device and its driver only.
	NumBuffers uint16
}

// ErrHeader is wrapped by the errors for headers that contradict the standard,
// the frame, or what was negotiated.
var ErrHeader = errors.New("bad frame header")

// Offload is a set of tasks that a sender may leave to the receiver.
type Offload uint16

const (
	// OffloadChecksum is the completion of TCP and UDP checksums.
	OffloadChecksum Offload = 1 << iota
	// OffloadTSO4 and OffloadTSO6 are TCP segmentation over IPv4 and IPv6.
	OffloadTSO4
	OffloadTSO6
	// OffloadECN is TCP segmentation of frames with the CWR flag set.
	OffloadECN
	// OffloadUSO is segmentation into UDP datagrams, over IPv4 and IPv6.
	OffloadUSO

	// OffloadAll is all of them.
	OffloadAll = OffloadChecksum | OffloadTSO4 | OffloadTSO6 | OffloadECN | OffloadUSO
)

// sound returns o without what makes no sense in it: segmentation needs
// checksums, ECN needs TCP segmentation.
func (o Offload) sound() Offload {
	o &= OffloadAll
	if o&OffloadChecksum == 0 {
		return 0
	}
	if o&(OffloadTSO4|OffloadTSO6) == 0 {
		o &^= OffloadECN
	}
	return o
}

// Needs returns what a receiver must be able to do to take a frame with
// header h. An unknown GSO type needs more than there is.
func (h *Header) Needs() Offload {
	var o Offload
	if h.Flags&NeedsChecksum != 0 {
		o |= OffloadChecksum
	}
	switch h.GSOType &^ GSOECN {
	case GSONone:
		if h.GSOType != 0 {
			return ^Offload(0)
		}
		return o
	case GSOTCPv4:
		o |= OffloadTSO4
	case GSOTCPv6:
		o |= OffloadTSO6
	case GSOUDPL4:
		o |= OffloadUSO
		if h.GSOType&GSOECN != 0 {
			return ^Offload(0)
		}
	default:
		return ^Offload(0)
	}
	if h.GSOType&GSOECN != 0 {
		o |= OffloadECN
	}
	return o
}

// Check reports whether h is sound for a frame of n bytes sent to a receiver
// that can do what is in allowed. The error wraps ErrHeader.
func (h *Header) Check(n int, allowed Offload) error {
	if p := h.problem(n, allowed); p != "" {
		return fmt.Errorf("%w: %s: %+v, frame of %d bytes", ErrHeader, p, *h, n)
	}
	return nil
}

// problem is Check without the making of an error.
func (h *Header) problem(n int, allowed Offload) string {
	if n < MinFrame || n > MaxFrame {
		return "length out of range"
	}
	if h.Flags&^(NeedsChecksum|DataValid) != 0 {
		return "unknown flags"
	}
	if h.Needs()&^allowed != 0 {
		return "offload was not negotiated"
	}
	if h.Flags&NeedsChecksum != 0 {
		if int(h.CsumStart) < MinFrame || int(h.CsumStart)+int(h.CsumOffset)+2 > n {
			return "checksum outside of the frame"
		}
	}
	if h.GSOType == GSONone {
		return ""
	}
	switch {
	case h.Flags&NeedsChecksum == 0:
		return "segmentation without a checksum to complete"
	case h.GSOSize == 0:
		return "segments of no bytes"
	case int(h.HdrLen) > n:
		return "headers longer than the frame"
	}
	return ""
}

// put writes the wire form of h to p, which holds at least HeaderLen bytes.
func (h *Header) put(p []byte) {
	_ = p[HeaderLen-1]
	p[0], p[1] = byte(h.Flags), byte(h.GSOType)
	binary.LittleEndian.PutUint16(p[2:], h.HdrLen)
	binary.LittleEndian.PutUint16(p[4:], h.GSOSize)
	binary.LittleEndian.PutUint16(p[6:], h.CsumStart)
	binary.LittleEndian.PutUint16(p[8:], h.CsumOffset)
	binary.LittleEndian.PutUint16(p[10:], h.NumBuffers)
}

// get reads the wire form of h from p, which holds at least HeaderLen bytes.
func (h *Header) get(p []byte) {
	_ = p[HeaderLen-1]
	h.Flags, h.GSOType = HeaderFlags(p[0]), GSOType(p[1])
	h.HdrLen = binary.LittleEndian.Uint16(p[2:])
	h.GSOSize = binary.LittleEndian.Uint16(p[4:])
	h.CsumStart = binary.LittleEndian.Uint16(p[6:])
	h.CsumOffset = binary.LittleEndian.Uint16(p[8:])
	h.NumBuffers = binary.LittleEndian.Uint16(p[10:])
}
