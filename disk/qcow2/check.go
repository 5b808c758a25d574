package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vmkit-go/vmkit/disk"
)

// CheckConfig says what [Check] does. The zero value only looks.
type CheckConfig struct {
	// Repair corrects refcounts, which gives back leaked clusters, and copied
	// flags, and then clears the dirty and the corrupt bit. Entries that point
	// nowhere sensible stay.
	Repair bool
}

// Report is what a check found. Where something was repaired, it still counts
// as found.
type Report struct {
	// Corruptions are contradictions that can damage data; Leaks are clusters
	// in use by nobody, which only cost space.
	Corruptions, Leaks int64
	// Repaired is how many of both were repaired.
	Repaired int64
	// Clusters is the disk's size in clusters, Allocated how many of them
	// have a place in the file, Compressed how many of these are compressed.
	Clusters, Allocated, Compressed int64
	// End is the offset behind the last cluster in use.
	End int64
	// Problems are the first of what was found, in words.
	Problems []string
}

const maxProblems = 100

// Check checks the tables of the image in file, whose backing disk it does not
// need, and which nobody else may use meanwhile. What is wrong with the image
// is in the report; the error says why it could not be checked, or repaired, to
// the end.
func Check(file disk.Backend, cfg CheckConfig) (*Report, error) {
	h, err := readHeader(file)
	var im *Image
	if err == nil {
		if err = checkable(h, cfg); err == nil {
			im, err = load(file, h, Config{ReadOnly: !cfg.Repair}, true)
		}
	}
	if errors.Is(err, ErrCorrupt) {
		return &Report{Corruptions: 1, Problems: []string{err.Error()}}, nil
	}
	if err == nil && cfg.Repair {
		err = im.prepare()
	}
	if err != nil {
		return nil, &disk.Error{Op: "check", Name: file.Info().Name, Err: err}
	}
	c := checker{im: im, repair: cfg.Repair}
	if err := c.run(); err != nil {
		return &c.report, &disk.Error{Op: "check", Name: file.Info().Name, Err: err}
	}
	return &c.report, nil
}

func checkable(h *header, cfg CheckConfig) error {
	if cfg.Repair && h.autoclear&autoclearBitmaps != 0 {
		return fmt.Errorf("repair of an image with dirty bitmaps: %w", errors.ErrUnsupported)
	}
	return nil
}

// checker computes every refcount from the tables. The image is its alone.
type checker struct {
	im     *Image
	repair bool
	report Report

	counts  countPages
	tables  map[int64]*foundTable // L2 tables by offset
	wrong   []int64               // clusters with a wrong refcount
	missing bool                  // some of them have no refcount block
}

type foundTable struct {
	refs  uint32
	index int // in the active L1 table, or -1
}

// countPages are refcounts, with memory for those regions only that have any.
type countPages map[int64]*[countPage]uint32

const (
	countPage = 512
	// maxPages bounds the memory of a check to about 1 GiB, which is enough for
	// 32 TiB in clusters of 64 KiB.
	maxPages = 1 << 19
)

func (p countPages) get(c int64) uint32 {
	if page := p[c/countPage]; page != nil {
		return page[c%countPage]
	}
	return 0
}

func (p countPages) add(c int64, n uint32) error {
	page := p[c/countPage]
	if page == nil {
		if len(p) >= maxPages {
			return fmt.Errorf("the file uses more than %d separate regions: %w", maxPages, errors.ErrUnsupported)
		}
		page = new([countPage]uint32)
		p[c/countPage] = page
	}
	if page[c%countPage] > 1<<31 {
		return fmt.Errorf("cluster %d is used more than %d times", c, 1<<31)
	}
	page[c%countPage] += n
	return nil
}

func (c *checker) corruption(err error) {
	c.report.Corruptions++
	c.problem(err.Error())
}

func (c *checker) problem(text string) {
	if len(c.report.Problems) < maxProblems {
		c.report.Problems = append(c.report.Problems, text)
	}
}

func (c *checker) run() error {
	c.counts, c.tables = countPages{}, map[int64]*foundTable{}
	c.report.Clusters = c.im.clusters(c.im.hdr.size)
	for _, step := range []func() error{c.countMeta, c.countBitmaps, c.countTables, c.compare, c.checkCopied} {
		if err := step(); err != nil {
			return err
		}
	}
	if !c.repair {
		return nil
	}
	return c.finish()
}

// use counts a use of n bytes at off.
func (c *checker) use(off, n int64) error {
	if n == 0 {
		return nil
	}
	for k := off >> c.im.bits; k < (off+n+c.im.cluster-1)>>c.im.bits; k++ {
		if err := c.counts.add(k, 1); err != nil {
			return err
		}
	}
	return nil
}

// countMeta counts what load has found to be sound.
func (c *checker) countMeta() error {
	im := c.im
	snaps, err := im.readSnapshots()
	if err != nil {
		return err
	}
	errs := []error{
		c.use(0, im.cluster),
		c.use(im.hdr.l1Off, im.hdr.l1Len*entrySize),
		c.use(im.hdr.refTable, im.hdr.refTableLen<<im.bits),
		c.use(im.hdr.snapshotOff, snaps.size),
	}
	for _, off := range im.refs.table {
		if off != 0 {
			errs = append(errs, c.use(off, im.cluster))
		}
	}
	for i := range im.l1 {
		if e := im.l1[i].Load(); e != 0 {
			off := int64(e & offsetMask)
			c.tables[off] = &foundTable{1, i}
			errs = append(errs, c.use(off, im.cluster))
		}
	}
	for _, s := range snaps.list {
		errs = append(errs, c.use(s.l1Off, s.l1Len*entrySize), c.countSnapshot(s))
	}
	return errors.Join(errs...)
}

func (c *checker) countSnapshot(s snapshot) error {
	im := c.im
	raw := make([]byte, s.l1Len*entrySize)
	if err := readFull(im.file, raw, s.l1Off); err != nil {
		return err
	}
	for i := range s.l1Len {
		e := binary.BigEndian.Uint64(raw[i*entrySize:])
		if e == 0 {
			continue
		}
		off := int64(e & offsetMask)
		if err := im.checkTable(off, e&reservedL1, s.l1Off+i*entrySize, "snapshot's L1 entry", int(i), e); err != nil {
			c.corruption(err)
			continue
		}
		if t := c.tables[off]; t != nil {
			t.refs++
		} else {
			c.tables[off] = &foundTable{1, -1}
		}
		if err := c.use(off, im.cluster); err != nil {
			return err
		}
	}
	return nil
}

// countTables reads every L2 table once, however often it is referred to.
func (c *checker) countTables() error {
	im := c.im
	raw := make([]byte, im.cluster)
	var offs []int64
	for off := range c.tables {
		offs = append(offs, off)
	}
	slices.Sort(offs)
	for _, off := range offs {
		t := c.tables[off]
		if err := readFull(im.file, raw, off); err != nil {
			return err
		}
		for j := range im.l2Len {
			e := binary.BigEndian.Uint64(raw[j*entrySize:])
			if e == 0 {
				continue
			}
			if err := im.checkEntry(e, off+j*entrySize); err != nil {
				c.corruption(err)
				continue
			}
			first, n := im.hostClusters(e)
			for k := first; k < first+n; k++ {
				if err := c.counts.add(k, t.refs); err != nil {
					return err
				}
			}
			if t.index >= 0 && n > 0 {
				c.report.Allocated++
				if e&flagCompressed != 0 {
					c.report.Compressed++
				}
			}
		}
	}
	return nil
}

// compare holds the refcounts against the counts.
func (c *checker) compare() error {
	im := c.im
	regions := map[int64]bool{}
	for page := range c.counts {
		for k := page * countPage; k < (page+1)*countPage; k += min(countPage, im.refs.per) {
			regions[k/im.refs.per] = true
		}
	}
	for i, off := range im.refs.table {
		if off != 0 {
			regions[int64(i)] = true
		}
	}
	var order []int64
	for i := range regions {
		order = append(order, i)
	}
	slices.Sort(order)
	for _, i := range order {
		b, err := im.refs.block(i)
		if err != nil {
			return err
		}
		for k := range im.refs.per {
			cluster := i*im.refs.per + k
			want, have := uint64(c.counts.get(cluster)), uint64(0)
			if b != nil {
				have = im.refs.value(b.data, k)
			}
			if want > 0 {
				c.report.End = (cluster + 1) << im.bits
			}
			switch {
			case want == have:
				continue
			case want < have:
				c.report.Leaks++
			default:
				c.report.Corruptions++
			}
			c.problem(fmt.Sprintf("cluster %d at offset %d has refcount %d and is used %d times", cluster, cluster<<im.bits, have, want))
			if want > im.refs.max {
				return fmt.Errorf("cluster %d is used %d times, its refcount ends at %d: %w", cluster, want, im.refs.max, errors.ErrUnsupported)
			}
			if c.repair {
				c.wrong = append(c.wrong, cluster)
				c.missing = c.missing || b == nil
			}
		}
	}
	return nil
}

// checkCopied holds the copied flags of the active tables against the counts.
func (c *checker) checkCopied() error {
	im := c.im
	for i := range im.l1 {
		e := im.l1[i].Load()
		if e == 0 {
			continue
		}
		off := int64(e & offsetMask)
		if copied := c.counts.get(off>>im.bits) == 1; copied != (e&flagCopied != 0) {
			c.corruption(corrupt(im.hdr.l1Off+int64(i)*entrySize, "L1 entry %d is %#x, but its table is used %d times", i, e, c.counts.get(off>>im.bits)))
			if c.repair {
				im.mu.Lock()
				im.l1[i].Store(e ^ flagCopied)
				im.l1Dirty[int64(i)*entrySize/sectorSize] = true
				im.changed = true
				im.mu.Unlock()
				c.report.Repaired++
			}
		}
		t, err := im.table(int64(i))
		if err != nil {
			return err
		}
		for j := range t.e {
			e := t.e[j].Load()
			if k := int64(e&offsetMask) >> im.bits; e&flagCompressed == 0 && k != 0 && t.bad[int64(j)] == nil &&
				(c.counts.get(k) == 1) != (e&flagCopied != 0) {
				c.corruption(corrupt(off+int64(j)*entrySize, "L2 entry is %#x, but its cluster is used %d times", e, c.counts.get(k)))
				if c.repair {
					im.mu.Lock()
					im.setEntry(t, int64(j), e^flagCopied)
					im.mu.Unlock()
					c.report.Repaired++
				}
			}
		}
	}
	return nil
}

// finish repairs the refcounts, writes all that was repaired, and clears the
// marks if nothing is left.
func (c *checker) finish() error {
	im := c.im
	im.mu.Lock()
	var err error
	if c.missing {
		err = c.rebuild()
	} else {
		for _, k := range c.wrong {
			if err = im.refs.set(k, uint64(c.counts.get(k))); err != nil {
				break
			}
		}
	}
	im.mu.Unlock()
	if err != nil {
		return err
	}
	c.report.Repaired += int64(len(c.wrong))
	if c.report.Repaired == c.report.Corruptions+c.report.Leaks {
		im.hdr.incompat &^= incompatCorrupt
	}
	im.marked = im.hdr.incompat&incompatDirty != 0
	if err := im.settle(); err != nil {
		return err
	}
	im.changed = false
	return nil
}
