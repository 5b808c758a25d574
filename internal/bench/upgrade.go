package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/appliance"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
)

// upgrade publishes the appliance and then its upgrade, which was rebuilt from
// scratch, and says what the second adds. That depends on the day: the first has
// the packages of Debian's latest point release, and the second those of all
// updates since.
func upgrade(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "bench-upgrade")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	t := newTable("upgrade", "MB or %")
	var packages [][]string // of each version
	publish := func(version int, previous *image.Image) (*image.Image, image.Summary, error) {
		path, err := appliance.Disk(ctx, version, os.Stderr)
		if err != nil {
			return nil, image.Summary{}, err
		}
		src, err := disk.Open(path, disk.FileConfig{ReadOnly: true})
		if err != nil {
			return nil, image.Summary{}, err
		}
		defer src.Close()
		list, err := appliance.Packages(ctx, path)
		if err != nil {
			return nil, image.Summary{}, err
		}
		packages = append(packages, list)
		fmt.Fprintf(os.Stderr, "publishing version %d of the appliance\n", version)
		name := fmt.Sprintf("v%d.json", version)
		start := time.Now()
		sum, err := image.Pack(ctx, src, image.PackConfig{Dir: dir, Name: name, Previous: previous})
		if err != nil {
			return nil, sum, err
		}
		row := fmt.Sprintf("version %d", version)
		t.add(row, "content", float64(sum.Data)/1e6)
		t.add(row, "compressed", float64(sum.Compressed)/1e6)
		t.add(row, "new", float64(sum.NewBytes)/1e6)
		t.add(row, "new %", 100*float64(sum.NewBytes)/float64(sum.Compressed))
		t.add(row, "index %", 100*float64(sum.Index)/float64(sum.Compressed))
		t.add(row, "packed per second", float64(sum.Data)/1e6/time.Since(start).Seconds())
		img, err := image.Open(ctx, fetch.Dir(dir), name, image.Config{AllowUnsigned: true})
		return img, sum, err
	}
	v1, s1, err := publish(1, nil)
	if err != nil {
		return err
	}
	_, s2, err := publish(2, v1)
	if err != nil {
		return err
	}
	t.print()
	newer := slices.DeleteFunc(slices.Clone(packages[1]), func(p string) bool { return slices.Contains(packages[0], p) })
	fmt.Fprintf(stdout, "of %d packages, version 2 has these newer or new: %s\n\n", len(packages[1]), strings.Join(newer, " "))
	figure("upgrade-packages", float64(len(newer)), "newer")
	figure("upgrade-compressed", float64(s1.Compressed)/1e6, "MB")
	figure("upgrade-new", 100*float64(s2.NewBytes)/float64(s2.Compressed), "%")
	figure("upgrade-index", 100*max(float64(s1.Index)/float64(s1.Compressed), float64(s2.Index)/float64(s2.Compressed)), "%")
	return nil
}
