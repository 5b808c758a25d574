package disk

import (
	"encoding/binary"
	"math/bits"
)

// Limits of one DISCARD or WRITE_ZEROES request. They bound how long a pause
// waits for one.
const (
	maxSegments      = 32
	maxDiscardSector = 1 << 22 // 2 GiB
	maxZeroesSector  = 1 << 19 // 256 MiB
)

// Offsets in struct virtio_blk_config (virtio 1.2, section 5.2.4).
const (
	cfgCapacity      = 0
	cfgSegMax        = 12
	cfgBlkSize       = 20
	cfgPhysExp       = 24
	cfgMinIO         = 26
	cfgOptIO         = 28
	cfgWriteback     = 32
	cfgNumQueues     = 34
	cfgMaxDiscard    = 36
	cfgMaxDiscardSeg = 40
	cfgDiscardAlign  = 44
	cfgMaxZeroes     = 48
	cfgMaxZeroesSeg  = 52
	cfgMayUnmap      = 56
	cfgSize          = 72
)

// ReadConfig reads the configuration space.
func (d *Device) ReadConfig(off uint32, p []byte) {
	var c [cfgSize]byte
	le := binary.LittleEndian
	logical := d.cfg.BlockSize
	le.PutUint64(c[cfgCapacity:], d.capacity.Load())
	// Two descriptors are for the header and the status.
	le.PutUint32(c[cfgSegMax:], uint32(d.cfg.QueueSize-2))
	le.PutUint32(c[cfgBlkSize:], uint32(logical))
	if phys := d.info.BlockSize; phys > logical {
		c[cfgPhysExp] = byte(bits.TrailingZeros(uint(phys / logical)))
		le.PutUint16(c[cfgMinIO:], uint16(min(phys/logical, 1<<15)))
	} else {
		le.PutUint16(c[cfgMinIO:], 1)
	}
	le.PutUint32(c[cfgOptIO:], uint32(max(d.info.OptimalIO, 0)/logical))
	if d.writeback.Load() {
		c[cfgWriteback] = 1
	}
	le.PutUint16(c[cfgNumQueues:], uint16(d.cfg.Queues))
	if d.features&FeatureDiscard != 0 {
		le.PutUint32(c[cfgMaxDiscard:], maxDiscardSector)
		le.PutUint32(c[cfgMaxDiscardSeg:], maxSegments)
		le.PutUint32(c[cfgDiscardAlign:], uint32(max(d.info.DiscardUnit, logical)/sectorSize))
	}
	if d.features&FeatureWriteZeroes != 0 {
		le.PutUint32(c[cfgMaxZeroes:], maxZeroesSector)
		le.PutUint32(c[cfgMaxZeroesSeg:], maxSegments)
		c[cfgMayUnmap] = 1
	}
	clear(p)
	if off < cfgSize {
		copy(p, c[off:])
	}
}

// WriteConfig writes the configuration space, of which only the cache mode
// can be changed.
func (d *Device) WriteConfig(off uint32, p []byte) {
	if off <= cfgWriteback && cfgWriteback-off < uint32(len(p)) {
		d.writeback.Store(p[cfgWriteback-off] != 0)
	}
}
