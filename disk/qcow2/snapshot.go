package qcow2

import "encoding/binary"

// Offsets in an entry of the snapshot table (specification, "Snapshots").
const (
	snapL1Off    = 0
	snapL1Len    = 8
	snapIDLen    = 12
	snapNameLen  = 14
	snapExtraLen = 36
	snapFixed    = 40
)

// snapshot is what matters of an internal snapshot: where its L1 table is.
// Snapshots are kept as they are; clusters that they share are copied before
// they are written.
type snapshot struct {
	l1Off, l1Len int64
	pos          int64 // of the entry in the file
}

type snapshots struct {
	list []snapshot
	size int64 // of the table in bytes
}

// readSnapshots reads the snapshot table.
func (im *Image) readSnapshots() (s snapshots, err error) {
	h := im.hdr
	if h.snapshots == 0 {
		return s, nil
	}
	if h.snapshotOff&(im.cluster-1) != 0 {
		return s, corrupt(hdrSnapshotsOff, "snapshot table at %d, which is no cluster", h.snapshotOff)
	}
	total := int64(0)
	for i := range h.snapshots {
		var b [snapFixed]byte
		pos := h.snapshotOff + s.size
		if err := readFull(im.file, b[:], pos); err != nil {
			return s, err
		}
		be := binary.BigEndian
		extra := int64(be.Uint32(b[snapExtraLen:]))
		l1Off := be.Uint64(b[snapL1Off:])
		sn := snapshot{l1Len: int64(be.Uint32(b[snapL1Len:])), pos: pos}
		n := snapFixed + extra + int64(be.Uint16(b[snapIDLen:])) + int64(be.Uint16(b[snapNameLen:]))
		s.size += (n + 7) &^ 7
		total += sn.l1Len * entrySize
		switch {
		case s.size > maxSnapshotBytes || pos > im.file.Size()-n:
			return s, corrupt(pos, "snapshot %d: entry of %d bytes", i, n)
		case sn.l1Len*entrySize > maxL1Bytes || total > 4*maxL1Bytes:
			return s, corrupt(pos, "snapshot %d: L1 table of %d entries", i, sn.l1Len)
		case l1Off > maxHost || l1Off&uint64(im.cluster-1) != 0:
			return s, corrupt(pos, "snapshot %d: L1 table at %d, which is no cluster", i, l1Off)
		case int64(l1Off) > im.file.Size()-sn.l1Len*entrySize:
			return s, corrupt(pos, "snapshot %d: L1 table at %d, past the end of the file", i, l1Off)
		}
		sn.l1Off = int64(l1Off)
		s.list = append(s.list, sn)
	}
	return s, nil
}
