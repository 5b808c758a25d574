package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/thin"
)

// thinFirst is how many first writes are measured, each of which takes an extent.
const thinFirst = 4000

// benchThin holds a thin disk against a raw file: 4 KiB requests where it has its
// space, and the first writes of a disk that has none, which a sparse file has to
// find space for as well.
func benchThin(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "bench-thin")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	raw, err := disk.Create(filepath.Join(dir, "raw"), clonesData, disk.FileConfig{})
	if err != nil {
		return err
	}
	defer raw.Close()
	store, err := disk.Create(filepath.Join(dir, "pool"), 0, disk.FileConfig{})
	if err != nil {
		return err
	}
	defer store.Close()
	if err := thin.Format(store, thin.Layout{Capacity: 3 * clonesData}); err != nil {
		return err
	}
	pool, err := thin.Open(store, thin.Config{})
	if err != nil {
		return err
	}
	defer pool.Close()
	make := func(name string) (disk.Backend, error) {
		if err := pool.Create(name, clonesData); err != nil {
			return nil, err
		}
		return pool.OpenDisk(name, thin.DiskConfig{})
	}
	whole, err := make("whole")
	if err != nil {
		return err
	}
	defer whole.Close()
	p := [64 << 10]byte{1, 2, 3}
	for off := int64(0); off < clonesData; off += int64(len(p)) {
		for _, b := range []disk.Backend{raw, whole} {
			if _, err := b.WriteAt(p[:], off); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(raw.Flush(), whole.Flush()); err != nil {
		return err
	}
	t := newTable("4 KiB", "IOPS")
	count := int(300_000 * o.seconds)
	for round := range o.roundsOr(clonesRounds) {
		sides := []struct {
			name string
			b    disk.Backend
		}{{"raw", raw}, {"thin", whole}}
		for i := range sides {
			s := sides[(i+round)%2]
			for _, depth := range []int{1, 16} {
				for _, op := range []string{"read", "write"} {
					v, err := scattered(s.b, depth, count, op == "write")
					if err != nil {
						return err
					}
					t.add(fmt.Sprintf("%s depth %d", op, depth), s.name, v)
				}
			}
			if err := s.b.Flush(); err != nil {
				return err
			}
		}
		if err := thinFirsts(t, dir, pool, make); err != nil {
			return err
		}
	}
	t.print()
	figure("thin-raw-spread", t.spread("raw"), "x")
	for _, row := range t.rows {
		ratio("thin-"+figureName(row)+"-vs-raw", t.median(row, "thin"), t.median(row, "raw"))
	}
	return nil
}

// thinFirsts measures first writes.
func thinFirsts(t *table, dir string, pool *thin.Pool, make func(string) (disk.Backend, error)) error {
	const row, depth = "first write depth 16", 16
	path := filepath.Join(dir, "fresh")
	sparse, err := disk.Create(path, clonesData, disk.FileConfig{})
	if err != nil {
		return err
	}
	v, err := scattered(sparse, depth, thinFirst, true)
	if err := errors.Join(err, sparse.Flush(), sparse.Close(), os.Remove(path)); err != nil {
		return err
	}
	t.add(row, "raw", v)
	fresh, err := make("fresh")
	if err != nil {
		return err
	}
	v, err = scattered(fresh, depth, thinFirst, true)
	if err := errors.Join(err, fresh.Flush(), fresh.Close(), pool.Delete("fresh")); err != nil {
		return err
	}
	t.add(row, "thin", v)
	return nil
}
