package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/vmkit-go/vmkit/internal/buffers"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// reqKind is a request type (virtio 1.2, section 5.2.6).
type reqKind uint32

const (
	reqIn          reqKind = 0
	reqOut         reqKind = 1
	reqFlush       reqKind = 4
	reqGetID       reqKind = 8
	reqDiscard     reqKind = 11
	reqWriteZeroes reqKind = 13
)

func (k reqKind) String() string {
	switch k {
	case reqIn:
		return "IN"
	case reqOut:
		return "OUT"
	case reqFlush:
		return "FLUSH"
	case reqGetID:
		return "GET_ID"
	case reqDiscard:
		return "DISCARD"
	case reqWriteZeroes:
		return "WRITE_ZEROES"
	}
	return fmt.Sprintf("type %d", uint32(k))
}

// Status bytes (virtio 1.2, section 5.2.6).
const (
	statusOK     = 0
	statusIOErr  = 1
	statusUnsupp = 2
)

const (
	headerLen  = 16
	idLen      = 20
	segmentLen = 16

	flagUnmap = 1 // of a WRITE_ZEROES segment

	// pieceLen is how much of a read travels in one event of the inbox.
	pieceLen = 256 << 10
)

// segment is one range of a DISCARD or WRITE_ZEROES request.
type segment struct {
	off, n int64
	unmap  bool
}

// request is one request from the guest. It owns its chain's buffers from Pop
// to Push.
type request struct {
	q     *queue
	next  *request // in queue.free or workers.first
	chain virtio.Chain

	// Set by parse, from a single copy of what the guest wrote.
	kind  reqKind
	off   int64    // bytes, within the disk
	n     int64    // bytes of data
	bufs  [][]byte // the data in guest memory
	early byte     // status to answer with at once, if not todo
	segs  []segment

	age  uint64 // place in the order in which requests came
	read int64  // bytes that pieces have carried to the guest; the worker's

	// Guarded by queue.mu.
	held      bool  // in queue.held
	waits     bool  // was held and is not answered
	posted    int   // events posted
	delivered int   // events delivered
	at        int64 // bytes delivered
	ended     bool  // neither backend nor worker holds the request
	final     bool  // the last event came, or the queue is abandoned
}

// todo is the value of request.early for a request that is well formed.
const todo = 0xff

// parse checks the request that chain holds against the disk.
func (r *request) parse() {
	d := r.q.d
	r.kind, r.off, r.n, r.early = ^reqKind(0), 0, 0, statusIOErr
	r.bufs, r.segs = r.bufs[:0], r.segs[:0]
	var h [headerLen]byte
	// Without room for a status there is no way to answer; the chain is
	// returned as it is.
	if r.chain.WriteLen == 0 || r.chain.CopyIn(h[:], 0) < headerLen {
		return
	}
	r.kind = reqKind(binary.LittleEndian.Uint32(h[:]))
	sector := binary.LittleEndian.Uint64(h[8:])
	switch r.kind {
	case reqIn, reqOut:
		if r.kind == reqIn {
			r.n = int64(r.chain.WriteLen) - 1
		} else {
			r.n = int64(r.chain.ReadLen) - headerLen
		}
		if r.kind == reqOut && d.cfg.ReadOnly || r.n%sectorSize != 0 || !d.within(sector, uint64(r.n)/sectorSize) {
			return
		}
		r.off = int64(sector) * sectorSize
		if r.kind == reqIn {
			r.bufs = buffers.AppendPart(r.bufs, r.chain.Writable, 0, r.n)
		} else {
			r.bufs = buffers.AppendPart(r.bufs, r.chain.Readable, headerLen, r.n)
		}
	case reqFlush:
	case reqGetID:
		r.n = int64(r.chain.WriteLen) - 1
		r.early = statusOK // the answer is in answer
		return
	case reqDiscard, reqWriteZeroes:
		if status := r.parseSegments(); status != todo {
			r.early = status
			return
		}
	default:
		r.early = statusUnsupp
		return
	}
	r.early = todo
}

func (r *request) parseSegments() byte {
	d := r.q.d
	feature, most := FeatureDiscard, uint32(maxDiscardSector)
	if r.kind == reqWriteZeroes {
		feature, most = FeatureWriteZeroes, maxZeroesSector
	}
	switch n := r.chain.ReadLen - headerLen; {
	case d.cfg.ReadOnly:
		return statusIOErr
	case r.q.s.features&feature == 0:
		return statusUnsupp
	case n == 0 || n%segmentLen != 0 || n > maxSegments*segmentLen:
		return statusIOErr
	}
	for at := headerLen; at < int(r.chain.ReadLen); at += segmentLen {
		var b [segmentLen]byte
		r.chain.CopyIn(b[:], at)
		sector := binary.LittleEndian.Uint64(b[:])
		count := binary.LittleEndian.Uint32(b[8:])
		flags := binary.LittleEndian.Uint32(b[12:])
		// virtio 1.2, section 5.2.6.2: unknown flags, and for DISCARD unmap
		// as well, are not supported.
		if flags&^flagUnmap != 0 || r.kind == reqDiscard && flags != 0 {
			return statusUnsupp
		}
		if count > most || !d.within(sector, uint64(count)) {
			return statusIOErr
		}
		s := segment{int64(sector) * sectorSize, int64(count) * sectorSize, flags&flagUnmap != 0}
		r.segs = append(r.segs, s)
		r.n += s.n
	}
	r.off = r.segs[0].off
	return todo
}

// within reports whether n sectors from sector on are on the disk.
func (d *Device) within(sector, n uint64) bool {
	c := d.capacity.Load()
	return sector <= c && n <= c-sector
}

// advance drops the first n bytes of the request's data.
func (r *request) advance(n int) {
	r.off += int64(n)
	for len(r.bufs) > 0 && n >= len(r.bufs[0]) {
		n -= len(r.bufs[0])
		// Shift, so that the array is kept.
		r.bufs = r.bufs[:copy(r.bufs, r.bufs[1:])]
	}
	if n > 0 {
		r.bufs[0] = r.bufs[0][n:]
	}
}

// answer writes what remains to be written to the guest: the status, the
// identification, and zeroes instead of data that a failed read did not get,
// so that nothing depends on what a backend left there.
func (r *request) answer(status byte) {
	c := &r.chain
	if c.WriteLen == 0 {
		return
	}
	switch {
	case status == statusOK && r.kind == reqGetID:
		var id [idLen]byte
		copy(id[:], r.q.d.cfg.Serial)
		c.CopyOut(id[:min(idLen, c.WriteLen-1)], 0)
	case status != statusOK && r.kind == reqIn:
		left := int(c.WriteLen - 1)
		for _, b := range c.Writable {
			k := min(left, len(b))
			clear(b[:k])
			left -= k
		}
	}
	s := [1]byte{status}
	c.CopyOut(s[:], int(c.WriteLen-1))
}

// try answers r if that needs no waiting, and reports whether it did.
func (d *Device) try(r *request) (status byte, done bool) {
	if r.early != todo {
		return r.early, true
	}
	if d.imm == nil || !r.q.s.direct {
		return 0, false
	}
	var n int
	var err error
	switch {
	case r.kind == reqIn:
		n, err = d.imm.TryReadVAt(r.bufs, r.off)
	case r.kind == reqOut && d.writeback.Load():
		n, err = d.imm.TryWriteVAt(r.bufs, r.off)
	default:
		return 0, false
	}
	if err == ErrWouldBlock {
		r.advance(n)
		return 0, false
	}
	if d.holds(err) {
		return 0, false // a worker will find the same, and may hold it
	}
	return d.outcome(r, err), true
}

// outcome turns err into a status and logs it.
func (d *Device) outcome(r *request, err error) byte {
	if err == nil {
		return statusOK
	}
	if err == io.EOF {
		err = fmt.Errorf("the disk ends early: %w", io.ErrUnexpectedEOF)
	}
	d.warn("disk request failed", r, err)
	if errors.Is(err, errors.ErrUnsupported) {
		return statusUnsupp
	}
	return statusIOErr
}

// start has r carried out: by a worker, or on a prompt machine here and now.
func (d *Device) start(r *request) {
	if !r.q.s.prompt {
		d.pool.submit(r)
		return
	}
	d.execute(r, nil) // direct: it needs no buffer
}

// execute carries r out on a worker, whose buffer bounce points to. A request
// that was held is carried out once more, as a whole.
func (d *Device) execute(r *request, bounce *[]byte) {
	q := r.q
	var err error
	switch r.kind {
	case reqIn:
		if q.s.direct {
			_, err = ReadV(d.backend, r.bufs, r.off)
			break
		}
		if *bounce == nil {
			*bounce = make([]byte, pieceLen)
		}
		for r.read < r.n && err == nil {
			p := (*bounce)[:min(pieceLen, r.n-r.read)]
			var n int
			if n, err = d.backend.ReadAt(p, r.off+r.read); n < len(p) {
				break
			}
			if err = nil; !q.postPiece(r, p) {
				break
			}
			r.read += int64(n)
		}
	case reqOut:
		_, err = WriteV(d.backend, r.bufs, r.off)
		if err == nil && !d.writeback.Load() {
			err = d.backend.Flush()
		}
	case reqFlush:
		err = d.backend.Flush()
	case reqDiscard, reqWriteZeroes:
		for _, s := range r.segs {
			if s.n == 0 {
				continue
			}
			if r.kind == reqDiscard {
				err = d.backend.Discard(s.off, s.n)
			} else {
				err = d.backend.WriteZeroes(s.off, s.n, s.unmap)
			}
			if err != nil {
				break
			}
		}
		if err == nil && r.kind == reqWriteZeroes && !d.writeback.Load() {
			err = d.backend.Flush()
		}
	}
	if d.holds(err) && d.hold.add(r, err) {
		return
	}
	q.end(r, d.outcome(r, err))
}

// postCapacity tells the guest of a new capacity.
func (d *Device) postCapacity(sectors uint64) {
	var b [capacityBytes]byte
	binary.LittleEndian.PutUint64(b[:], sectors)
	d.port.Post(uint64(tagCapacity)<<tagQueue, b[:])
}

// Deliver implements device.Receiver. Events for requests that a reset has
// ended are dropped; others that fit nothing come from a damaged tape.
func (d *Device) Deliver(tag uint64, data []byte) {
	index := int(tag >> tagQueue & 0xffff)
	if index == tagRetry {
		d.hold.retry()
		return
	}
	if index == tagCapacity {
		if len(data) == capacityBytes {
			d.capacity.Store(binary.LittleEndian.Uint64(data))
			d.host.ConfigChanged()
		}
		return
	}
	s := d.active.Load()
	if s == nil || uint16(tag>>tagEpoch) != s.epoch || index >= len(s.queues) || s.queues[index] == nil {
		return
	}
	status := byte(tag & tagStatus)
	if status > statusUnsupp {
		status = statusIOErr
	}
	s.queues[index].deliver(uint16(tag>>tagHead), status, tag&tagMore != 0, data)
}
