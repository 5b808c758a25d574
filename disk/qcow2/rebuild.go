package qcow2

import (
	"encoding/binary"
	"fmt"

	"github.com/vmkit-go/vmkit/disk"
)

// rebuild writes all refcounts anew, behind all that is in use, for an image
// that lacks refcount blocks: there is no place inside for which it is known
// that nothing needs it. One write to the header makes them valid.
func (c *checker) rebuild() error {
	im := c.im
	r := &im.refs
	// The old ones are not used any more.
	for k := range im.hdr.refTableLen {
		c.uncount(im.hdr.refTable>>im.bits + k)
	}
	for _, off := range r.table {
		if off != 0 {
			c.uncount(off >> im.bits)
		}
	}
	first := max(im.clusters(im.file.Size()), im.clusters(c.report.End))
	regions := map[int64]bool{}
	for page, counts := range c.counts {
		for k, n := range counts {
			if n > 0 {
				regions[(page*countPage+int64(k))/r.per] = true
			}
		}
	}
	// The new blocks and the new table need refcounts as well.
	tableLen, end := int64(0), first
	for {
		last := int64(0)
		for i := first / r.per; i <= max(end-1, first)/r.per; i++ {
			regions[i] = true
		}
		for i := range regions {
			last = max(last, i)
		}
		tableLen = im.clusters((last + 1) * entrySize)
		next := first + int64(len(regions)) + tableLen
		if next == end {
			break
		}
		end = next
	}
	if tableLen<<im.bits > maxRefTableBytes {
		return fmt.Errorf("%w: the refcount table cannot grow beyond %d bytes", disk.ErrNoSpace, maxRefTableBytes)
	}
	if err := im.alloc.extend(end << im.bits); err != nil {
		return err
	}
	for k := first; k < end; k++ {
		if err := c.counts.add(k, 1); err != nil {
			return err
		}
	}
	table := make([]int64, tableLen<<im.bits/entrySize)
	raw := make([]byte, tableLen<<im.bits)
	at := first << im.bits
	for i := range regions {
		data := make([]byte, im.cluster)
		for k := range r.per {
			if n := c.counts.get(i*r.per + k); n > 0 {
				r.put(data, k, uint64(n))
			}
		}
		if _, err := im.file.WriteAt(data, at); err != nil {
			return err
		}
		table[i] = at
		binary.BigEndian.PutUint64(raw[i*entrySize:], uint64(at))
		at += im.cluster
	}
	if _, err := im.file.WriteAt(raw, at); err != nil {
		return err
	}
	if err := im.file.Flush(); err != nil {
		return err
	}
	im.hdr.refTable, im.hdr.refTableLen = at, tableLen
	if err := im.hdr.write(im.file); err != nil {
		return err
	}
	r.table, r.cache = table, map[int64]*refBlock{}
	im.alloc.used(first, end-first)
	im.meta.set(first, end-first, true)
	return im.file.Flush()
}

// uncount takes back the use of a cluster by refcounts that are replaced.
func (c *checker) uncount(cluster int64) {
	if page := c.counts[cluster/countPage]; page != nil && page[cluster%countPage] > 0 {
		page[cluster%countPage]--
	}
	c.im.meta.set(cluster, 1, false)
}
