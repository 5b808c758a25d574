package thin

import (
	"sync"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/buffers"
)

// TryReadVAt implements [disk.Immediate]: it reads what the store has at once
// and in one piece, or what has no extent.
func (d *Disk) TryReadVAt(bufs [][]byte, off int64) (int, error) {
	return d.try(bufs, off, false)
}

// TryWriteVAt implements [disk.Immediate]: it writes to extents in one piece.
func (d *Disk) TryWriteVAt(bufs [][]byte, off int64) (int, error) {
	return d.try(bufs, off, true)
}

func (d *Disk) try(bufs [][]byte, off int64, write bool) (int, error) {
	if !d.v.gate.TryRLock() {
		return 0, disk.ErrWouldBlock
	}
	defer d.v.gate.RUnlock()
	n := buffers.Len(bufs)
	// Whatever is wrong is the waiting method's to say.
	if n == 0 || d.usable() != nil || off < 0 || n > d.size.Load()-off || write && d.cfg.ReadOnly {
		return 0, disk.ErrWouldBlock
	}
	turn := d.v.readers.enter()
	defer d.v.readers.leave(turn)
	at, length, mapped := d.run(off, n)
	if length == n && !mapped && !write {
		for _, b := range bufs {
			clear(b)
		}
		return int(n), nil
	}
	if length < n || !mapped || d.p.imm == nil {
		return 0, disk.ErrWouldBlock
	}
	var k int
	var err error
	if write {
		k, err = d.p.imm.TryWriteVAt(bufs, at)
	} else {
		k, err = d.p.imm.TryReadVAt(bufs, at)
	}
	if err == nil && int64(k) == n {
		return k, nil
	}
	return min(k, int(n)), disk.ErrWouldBlock // the waiting method meets the error, too
}

// cutter cuts a request's buffers where its extents lie apart. Its memory is
// kept for the next request.
type cutter struct {
	bufs  [][]byte
	at    int // bytes of bufs[0] that were used
	parts *[][]byte
}

var partsPool = sync.Pool{New: func() any { return new([][]byte) }}

func (c *cutter) start(bufs [][]byte) { c.bufs = bufs }

func (c *cutter) end() {
	if c.parts != nil {
		clear(*c.parts)
		*c.parts = (*c.parts)[:0]
		partsPool.Put(c.parts)
		c.parts = nil
	}
}

// next returns the next n bytes of all, which are valid until the next call.
func (c *cutter) next(n, all int64) [][]byte {
	if n == all && c.at == 0 {
		return c.bufs
	}
	if c.parts == nil {
		c.parts = partsPool.Get().(*[][]byte)
	}
	p := (*c.parts)[:0]
	for n > 0 {
		b := c.bufs[0][c.at:]
		if int64(len(b)) > n {
			b = b[:n]
			c.at += int(n)
		} else {
			c.bufs, c.at = c.bufs[1:], 0
		}
		if len(b) > 0 {
			p = append(p, b)
		}
		n -= int64(len(b))
	}
	*c.parts = p
	return p
}
