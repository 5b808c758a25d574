package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/qcow2"
)

const (
	clonesMade   = 25
	clonesBase   = 4 << 30   // size of the image that is cloned
	clonesData   = 256 << 20 // size of the one that is read and written
	clonesIO     = 4096
	clonesStride = clonesIO * 66797 // scattered over the disk; coprime to its blocks
	clonesRounds = 7
)

// benchClones makes linked clones, and holds reads and writes of one against a
// raw file, and against QEMU on the same files.
func benchClones(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "bench-clones")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := makeClones(dir, o.roundsOr(clonesRounds)); err != nil {
		return err
	}
	c := cloneBench{dir: dir, o: o}
	return c.run(ctx)
}

// makeClones measures making clones, each durable.
func makeClones(dir string, rounds int) error {
	base, err := disk.Create(filepath.Join(dir, "base4g"), clonesBase, disk.FileConfig{})
	if err != nil {
		return err
	}
	defer base.Close()
	t := newTable("25 clones", "ms")
	most := int64(0)
	for range rounds {
		start := time.Now()
		var wg sync.WaitGroup
		errs := make([]error, clonesMade)
		for i := range clonesMade {
			wg.Go(func() { errs[i] = makeClone(filepath.Join(dir, fmt.Sprint("clone", i)), "base4g", "raw", clonesBase) })
		}
		wg.Wait()
		t.add("create", "vmkit", time.Since(start).Seconds()*1000)
		if err := errors.Join(errs...); err != nil {
			return err
		}
		for i := range clonesMade {
			path := filepath.Join(dir, fmt.Sprint("clone", i))
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				return err
			}
			most = max(most, st.Size, st.Blocks*512)
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	t.print()
	figure("clones-create-25", t.median("create", "vmkit"), "ms")
	figure("clones-size-largest", float64(most)/1024, "KiB")
	return nil
}

// makeClone makes a durable clone of a disk of size bytes.
func makeClone(path, base, format string, size int64) (err error) {
	f, err := disk.Create(path, 0, disk.FileConfig{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := qcow2.Create(f, qcow2.CreateConfig{Size: size, BackingName: base, BackingFormat: format}); err != nil {
		return err
	}
	return f.Flush()
}

// cloneBench measures reads and writes.
type cloneBench struct {
	dir string
	o   options
}

func (c *cloneBench) path(name string) string { return filepath.Join(c.dir, name) }

// open opens a disk by its name here.
func (c *cloneBench) open(name string) (disk.Backend, error) {
	if name == "raw" {
		return disk.Open(c.path(name), disk.FileConfig{})
	}
	return qcow2.OpenFile(c.path(name), qcow2.FileConfig{Chain: []qcow2.Layer{{Path: c.path("base"), Format: qcow2.FormatRaw}}})
}

// prepare makes a raw disk, a base, a clone of which every other cluster is
// its own, and one that has all of them.
func (c *cloneBench) prepare() error {
	p := make([]byte, 64<<10) // all in the same pieces: they shape the page cache
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	for _, name := range []string{"raw", "base", "half", "full"} {
		var b disk.Backend
		var err error
		if name == "raw" || name == "base" {
			b, err = disk.Create(c.path(name), clonesData, disk.FileConfig{})
		} else if err = makeClone(c.path(name), "base", "raw", clonesData); err == nil {
			b, err = c.open(name)
		}
		if err != nil {
			return err
		}
		step := int64(len(p))
		if name == "half" {
			step *= 2
		}
		for off := int64(0); off < clonesData; off += step {
			if _, err := b.WriteAt(p, off); err != nil {
				return errors.Join(err, b.Close())
			}
		}
		if err := errors.Join(b.Flush(), b.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (c *cloneBench) run(ctx context.Context) error {
	if err := c.prepare(); err != nil {
		return err
	}
	t := newTable("4 KiB", "IOPS")
	rounds := c.o.roundsOr(clonesRounds)
	for round := range rounds {
		for _, depth := range []int{1, 16} {
			for _, write := range []bool{false, true} {
				row, clone := fmt.Sprintf("read depth %d", depth), "half"
				if write {
					row, clone = fmt.Sprintf("write depth %d", depth), "full"
				}
				// The order turns, so that what one leaves behind is not always
				// the same one's trouble.
				steps := []func() error{
					func() error { return c.ours(t, row, "vmkit raw", "raw", depth, write) },
					func() error { return c.ours(t, row, "vmkit clone", clone, depth, write) },
					func() error { return c.qemus(ctx, t, row, "qemu clone", clone, depth, write) },
				}
				for i := range steps {
					if err := steps[(i+round)%len(steps)](); err != nil {
						return err
					}
				}
			}
		}
		if err := c.first(ctx, t); err != nil {
			return err
		}
	}
	t.print()
	figure("clones-raw-spread", t.spread("vmkit raw"), "x")
	for _, row := range t.rows {
		name := figureName(row)
		ratio("clones-"+name+"-vs-raw", t.median(row, "vmkit clone"), t.median(row, "vmkit raw"))
		ratio("clones-"+name+"-vs-qemu", t.median(row, "vmkit clone"), t.median(row, "qemu clone"))
	}
	return nil
}

// first measures first writes, each of which copies a cluster from the base.
func (c *cloneBench) first(ctx context.Context, t *table) error {
	const row, depth, count = "first write depth 16", 16, 4000
	for _, who := range []string{"vmkit clone", "qemu clone"} {
		if err := makeClone(c.path("fresh"), "base", "raw", clonesData); err != nil {
			return err
		}
		var err error
		if who == "qemu clone" {
			err = c.qemu(ctx, t, row, who, "fresh", depth, count, true)
		} else {
			err = c.our(t, row, who, "fresh", depth, count, true)
		}
		if err := errors.Join(err, os.Remove(c.path("fresh"))); err != nil {
			return err
		}
	}
	return nil
}

// count is how many requests a measurement has: about a second's.
func (c *cloneBench) count() int { return int(300_000 * c.o.seconds) }

func (c *cloneBench) ours(t *table, row, col, name string, depth int, write bool) error {
	return c.our(t, row, col, name, depth, c.count(), write)
}

func (c *cloneBench) qemus(ctx context.Context, t *table, row, col, name string, depth int, write bool) error {
	return c.qemu(ctx, t, row, col, name, depth, c.count(), write)
}

// our measures count requests through a Backend, depth of them at once.
func (c *cloneBench) our(t *table, row, col, name string, depth, count int, write bool) error {
	b, err := c.open(name)
	if err != nil {
		return err
	}
	v, err := scattered(b, depth, count, write)
	t.add(row, col, v)
	return errors.Join(err, b.Flush(), b.Close())
}

// scattered makes count requests of 4 KiB, depth of them at once, and returns how
// many a second that were.
func scattered(b disk.Backend, depth, count int, write bool) (float64, error) {
	var next atomic.Int64
	errs := make([]error, depth)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range depth {
		wg.Go(func() {
			p := make([]byte, clonesIO)
			for {
				k := next.Add(1) - 1
				if k >= int64(count) {
					return
				}
				off := k * clonesStride % clonesData
				if write {
					_, errs[i] = b.WriteAt(p, off)
				} else if _, errs[i] = b.ReadAt(p, off); errs[i] == io.EOF {
					errs[i] = nil
				}
				if errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	return float64(count) / took.Seconds(), errors.Join(errs...)
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// figureName is a row's name as part of a figure's.
func figureName(row string) string { return notInNames.ReplaceAllString(row, "-") }

var benchTook = regexp.MustCompile(`Run completed in ([0-9.]+) seconds`)

// qemu measures the same requests through QEMU's block layer.
func (c *cloneBench) qemu(ctx context.Context, t *table, row, col, name string, depth, count int, write bool) error {
	args := []string{"bench", "-f", "qcow2", "-t", "writeback", "-c", fmt.Sprint(count), "-d", fmt.Sprint(depth),
		"-s", fmt.Sprint(clonesIO), "-S", fmt.Sprint(clonesStride)}
	if write {
		args = append(args, "-w")
	}
	out, err := exec.CommandContext(ctx, "qemu-img", append(args, c.path(name))...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("qemu-img bench: %w: %s", err, out)
	}
	m := benchTook.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("qemu-img bench says %q", out)
	}
	seconds, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		return err
	}
	t.add(row, col, float64(count)/seconds)
	return nil
}
