package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/nbd"
	"github.com/vmkit-go/vmkit/disk/qcow2"
	"github.com/vmkit-go/vmkit/internal/appliance"
	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/stream"
	"github.com/vmkit-go/vmkit/stream/cache"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
	"github.com/vmkit-go/vmkit/stream/profile"
	"github.com/vmkit-go/vmkit/vm/boot/initramfs"
)

//go:embed testdata/stream-init.sh
var streamInit []byte

const linkTrip = 20 * time.Millisecond

// streamBench boots an appliance from a local disk, and streamed over shaped
// links. The guest runs under QEMU's TCG on this host; its disk is an NBD export
// of package nbd, over an overlay of package qcow2, over the streamed disk. Time
// counts from before the manifest is fetched to the service's answer.
func streamBench(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "bench-stream")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &streamGuest{dir: dir, public: filepath.Join(dir, "public"), verbose: o.verbose}
	if o.keep != "" {
		b.public = o.keep
	}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	figure("stream-image", float64(b.compressed)/1e6, "MB")
	parts := []struct {
		name string
		run  func(context.Context, int) error
	}{{"profile", b.profiles}, {"boot", b.boots}, {"replay", b.replays}, {"latency", b.latency}}
	for _, p := range parts {
		if o.only == "" || slices.Contains(strings.Split(o.only, ","), p.name) {
			if err := p.run(ctx, o.roundsOr(3)); err != nil {
				return err
			}
		}
	}
	return nil
}

// profiles measures how long what the profile names takes to arrive when nobody
// asks for anything, and how much of the link's rate that is: no guest that reads
// all of it can be ready earlier.
func (b *streamGuest) profiles(ctx context.Context, rounds int) error {
	t := newTable("the profile has arrived after", "s")
	share := newTable("bytes of the link by then", "% of its rate")
	for range rounds {
		for _, mbit := range []float64{25, 100} {
			took, n, err := b.overLink(ctx, mbit, false, func(ctx context.Context, d disk.Backend) error {
				for d.(*stream.Disk).Status().PlannedLeft > 0 && ctx.Err() == nil {
					time.Sleep(5 * time.Millisecond)
				}
				return ctx.Err()
			})
			if err != nil {
				return err
			}
			row := fmt.Sprintf("%.0f Mbit/s", mbit)
			t.add(row, "time", took.Seconds())
			share.add(row, "share", 100*float64(n)/(mbit*1e6/8*took.Seconds()))
		}
	}
	t.print()
	share.print()
	figure("stream-25-profile", t.median("25 Mbit/s", "time"), "s")
	figure("stream-100-profile", t.median("100 Mbit/s", "time"), "s")
	return nil
}

// boots compares the time to the service's answer.
func (b *streamGuest) boots(ctx context.Context, rounds int) error {
	boots := newTable("service answers after", "s")
	fetched := newTable("fetched by then", "% of the image, compressed")
	for range rounds {
		local, err := b.local(ctx, nil)
		if err != nil {
			return err
		}
		boots.add("local disk", "time", local.Seconds())
		fmt.Fprintf(os.Stderr, "stream: local disk: %.1f s\n", local.Seconds())
		for _, mbit := range []float64{25, 100} {
			for _, demandOnly := range []bool{false, true} {
				name := fmt.Sprintf("%.0f Mbit/s", mbit)
				if demandOnly {
					name += ", on demand only"
				}
				took, n, err := b.streamed(ctx, mbit, demandOnly)
				if err != nil {
					return err
				}
				boots.add(name, "time", took.Seconds())
				fetched.add(name, "bytes", 100*float64(n)/float64(b.compressed))
				fmt.Fprintf(os.Stderr, "stream: %s: %.1f s, %.1f MB\n", name, took.Seconds(), float64(n)/1e6)
			}
		}
	}
	boots.print()
	fetched.print()
	figure("stream-local", boots.median("local disk", "time"), "s")
	figure("stream-fetched", fetched.median("25 Mbit/s", "bytes"), "%")
	download := float64(b.compressed) / (25e6 / 8)
	ratio("stream-25-download", boots.median("25 Mbit/s", "time"), download)
	ratio("stream-100-local", boots.median("100 Mbit/s", "time"), boots.median("local disk", "time"))
	for _, m := range []string{"25", "100"} {
		ratio("stream-"+m+"-demand", boots.median(m+" Mbit/s, on demand only", "time"), boots.median(m+" Mbit/s", "time"))
	}
	return nil
}

// streamGuest is the appliance and what boots it.
type streamGuest struct {
	dir, raw, public     string
	qemu, kernel, initrd string
	compressed           int64 // bytes of the published packs
	img                  *image.Image
	profile              *profile.Profile
	verbose              bool
}

// prepare records a boot and publishes the appliance with its profile.
func (b *streamGuest) prepare(ctx context.Context) (err error) {
	if b.raw, err = appliance.Disk(ctx, 1, os.Stderr); err != nil {
		return err
	}
	if b.qemu, err = debian.LookProgram("qemu-system-x86_64", "qemu-system-x86"); err != nil {
		return err
	}
	k, err := debian.FetchKernel(ctx, os.Stderr)
	if err != nil {
		return err
	}
	b.kernel, b.initrd = k.Image, filepath.Join(b.dir, "initrd")
	if err := b.writeInitrd(ctx, k); err != nil {
		return err
	}
	if b.opened(ctx) == nil {
		return nil // kept from an earlier run
	}
	fmt.Fprintln(os.Stderr, "stream: recording two boots")
	src, err := disk.Open(b.raw, disk.FileConfig{ReadOnly: true})
	if err != nil {
		return err
	}
	defer src.Close()
	first := filepath.Join(b.dir, "first")
	if _, err := image.Pack(ctx, src, image.PackConfig{Dir: first}); err != nil {
		return err
	}
	plain, err := image.Open(ctx, fetch.Dir(first), "manifest.json", image.Config{AllowUnsigned: true})
	if err != nil {
		return err
	}
	var runs []*profile.Profile
	for range 2 {
		var rec *profile.Recorder
		if _, err := b.local(ctx, func(d disk.Backend) disk.Backend {
			rec = profile.NewRecorder(d)
			return rec
		}); err != nil {
			return err
		}
		p, err := rec.Profile(stream.Layout(ctx, plain))
		if err != nil {
			return err
		}
		runs = append(runs, p)
	}
	p, err := profile.Merge(runs...)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if _, err := p.WriteTo(&text); err != nil {
		return err
	}
	order := make([]image.Hash, len(p.Entries))
	for i, e := range p.Entries {
		order[i] = e.Hash
	}
	if err := os.RemoveAll(first); err != nil {
		return err
	}
	sum, err := image.Pack(ctx, src, image.PackConfig{Dir: b.public, BootOrder: order, BootProfile: text.Bytes()})
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "stream: %d MB compressed, the profile names %d of %d chunks, %.1f MB\n",
		sum.Compressed>>20, len(order), sum.Chunks, float64(sum.BootBytes)/1e6)
	return b.opened(ctx)
}

// opened reads what is published.
func (b *streamGuest) opened(ctx context.Context) (err error) {
	if b.img, err = image.Open(ctx, fetch.Dir(b.public), "manifest.json", image.Config{AllowUnsigned: true}); err != nil {
		return err
	}
	text, err := b.img.BootProfile(ctx)
	if err != nil {
		return err
	}
	if b.profile, err = profile.Read(bytes.NewReader(text), b.public); err != nil {
		return err
	}
	b.compressed = 0
	for i := range b.img.Packs() {
		b.compressed += b.img.Pack(i).Size
	}
	return nil
}

func (b *streamGuest) writeInitrd(ctx context.Context, k *debian.Kernel) (err error) {
	busybox, err := debian.Busybox(ctx, os.Stderr)
	if err != nil {
		return err
	}
	modules, err := k.Modules("virtio_pci", "virtio_blk")
	if err != nil {
		return err
	}
	f, err := os.Create(b.initrd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := initramfs.NewWriter(f)
	errs := []error{w.Device("dev/console", fs.ModeDevice|fs.ModeCharDevice|0o600, 5, 1)}
	for _, d := range []string{"bin", "proc", "sys", "sysroot"} {
		errs = append(errs, w.Dir(d, 0o755))
	}
	var names strings.Builder
	for _, m := range modules {
		data, err := debian.ReadModule(m)
		if err != nil {
			return err
		}
		name, _, _ := strings.Cut(filepath.Base(m), ".ko")
		fmt.Fprintln(&names, name+".ko")
		errs = append(errs, w.WriteFile(name+".ko", data, 0o644))
	}
	errs = append(errs, w.HostFile("bin/busybox", busybox), w.WriteFile("modules", []byte(names.String()), 0o644),
		w.WriteFile("init", streamInit, 0o755), w.Close())
	return errors.Join(errs...)
}

// local boots from the file.
func (b *streamGuest) local(ctx context.Context, wrap func(disk.Backend) disk.Backend) (time.Duration, error) {
	start := time.Now()
	src, err := disk.Open(b.raw, disk.FileConfig{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer src.Close()
	var base disk.Backend = src
	if wrap != nil {
		base = wrap(src)
	}
	err = b.boot(ctx, base)
	return time.Since(start), err
}

// serve publishes the appliance behind a link, until stop.
func (b *streamGuest) serve(mbit float64) (l *link, url string, stop func(), err error) {
	l = newLink(mbit, linkTrip)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", nil, err
	}
	s := &http.Server{Handler: http.FileServer(http.Dir(b.public))}
	go s.Serve(linkListener{tcp, l})
	return l, "http://" + tcp.Addr().String() + "/manifest.json", func() { s.Close() }, nil
}

// streamed boots over a link, with an empty cache. It returns the bytes that
// had come through the link.
func (b *streamGuest) streamed(ctx context.Context, mbit float64, demandOnly bool) (took time.Duration, n int64, err error) {
	return b.overLink(ctx, mbit, demandOnly, b.boot)
}

// overLink runs something on the disk streamed over a link.
func (b *streamGuest) overLink(ctx context.Context, mbit float64, demandOnly bool, run func(context.Context, disk.Backend) error) (took time.Duration, n int64, err error) {
	l, url, stop, err := b.serve(mbit)
	if err != nil {
		return 0, 0, err
	}
	defer stop()
	kept, err := os.MkdirTemp(b.dir, "cache")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(kept)
	start := time.Now()
	c, err := cache.Open(kept, cache.Config{})
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	d, err := stream.Open(ctx, url, stream.Config{Cache: c, NoPrefetch: demandOnly, Image: image.Config{AllowUnsigned: true}})
	if err != nil {
		return 0, 0, err
	}
	defer d.Close()
	d.Start()
	err = run(ctx, d)
	took, n = time.Since(start), l.bytes.Load()
	if b.verbose {
		s := d.Status()
		fmt.Fprintf(os.Stderr, "stream: %+v\n", s)
	}
	return took, n, err
}

// boot runs the guest on an overlay over base, until its service answers.
func (b *streamGuest) boot(ctx context.Context, base disk.Backend) (err error) {
	dir, err := os.MkdirTemp(b.dir, "boot")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file, err := disk.Create(filepath.Join(dir, "overlay"), 0, disk.FileConfig{})
	if err != nil {
		return err
	}
	defer file.Close()
	if err := qcow2.Create(file, qcow2.CreateConfig{Size: base.Size(), ClusterSize: 4 << 10, BackingName: "base", BackingFormat: "raw"}); err != nil {
		return err
	}
	overlay, err := qcow2.Open(file, qcow2.Config{Backing: base})
	if err != nil {
		return err
	}
	defer overlay.Close()
	socket := filepath.Join(dir, "nbd")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := &nbd.Server{Exports: []nbd.Export{{Name: "root", Backend: overlay}}}
	go server.Serve(ln)
	defer server.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	qemu := exec.CommandContext(ctx, b.qemu, "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "768", "-nodefaults", "-display", "none",
		"-serial", "stdio", "-no-reboot", "-kernel", b.kernel, "-initrd", b.initrd, "-append", "console=ttyS0 quiet panic=-1",
		"-blockdev", "driver=nbd,node-name=root,export=root,server.type=unix,server.path="+socket,
		"-device", "virtio-blk-pci,drive=root")
	out, err := qemu.StdoutPipe()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	qemu.Stderr = &said
	if err := qemu.Start(); err != nil {
		return err
	}
	ready := false
	for s := bufio.NewScanner(out); !ready && s.Scan(); {
		fmt.Fprintln(&said, s.Text())
		ready = strings.Contains(s.Text(), appliance.Ready)
	}
	qemu.Process.Kill()
	qemu.Wait()
	if !ready {
		text := said.String()
		return fmt.Errorf("the appliance's service did not answer (%w): %s", context.Cause(ctx), text[max(0, len(text)-2000):])
	}
	return nil
}

// replaySpeed is how much less time a replayed guest takes between reads than
// the recorded one, which QEMU emulated.
const replaySpeed = 10

// replays compares streaming with fetching on demand for a guest whose own work
// takes less time: the recorded reads are made again, one after the other.
func (b *streamGuest) replays(ctx context.Context, rounds int) error {
	hashes := make([]image.Hash, len(b.profile.Entries))
	for i, e := range b.profile.Entries {
		hashes[i] = e.Hash
	}
	numbers, err := b.img.Resolve(ctx, hashes)
	if err != nil {
		return err
	}
	run := func(ctx context.Context, d disk.Backend) error {
		last := time.Duration(0)
		buf := make([]byte, image.MaxChunk)
		for i, e := range b.profile.Entries {
			time.Sleep((e.At - last) / replaySpeed)
			last = e.At
			c, err := b.img.Chunk(ctx, numbers[i])
			if err != nil {
				return err
			}
			if _, err := d.ReadAt(buf[:c.Len], c.Off); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(fmt.Sprintf("replay of the reads, %d times as fast", replaySpeed), "s")
	for range rounds {
		for _, mbit := range []float64{25, 100} {
			for _, name := range []string{"streamed", "on demand only"} {
				took, _, err := b.overLink(ctx, mbit, name != "streamed", run)
				if err != nil {
					return err
				}
				t.add(fmt.Sprintf("%.0f Mbit/s", mbit), name, took.Seconds())
			}
		}
	}
	t.print()
	for _, m := range []string{"25", "100"} {
		ratio("stream-"+m+"-replay-demand", t.median(m+" Mbit/s", "on demand only"), t.median(m+" Mbit/s", "streamed"))
	}
	return nil
}

// latency compares how long what is asked for takes, with and without
// prefetching beside it.
func (b *streamGuest) latency(ctx context.Context, _ int) error {
	const reads = 400
	t := newTable("random reads over 25 Mbit/s", "ms")
	var p99 [2]float64
	for i, name := range []string{"no prefetching", "beside prefetching"} {
		took, err := b.randomReads(ctx, i == 1, reads)
		if err != nil {
			return err
		}
		slices.Sort(took)
		for _, q := range []struct {
			name string
			at   float64
		}{{"p50", 0.5}, {"p99", 0.99}} {
			v := took[int(q.at*float64(len(took)-1))].Seconds() * 1e3
			t.add(name, q.name, v)
			p99[i] = v
		}
	}
	t.print()
	ratio("stream-latency-p99", p99[1], p99[0])
	return nil
}

func (b *streamGuest) randomReads(ctx context.Context, prefetch bool, reads int) (took []time.Duration, err error) {
	l, url, stop, err := b.serve(25)
	if err != nil {
		return nil, err
	}
	defer stop()
	kept, err := os.MkdirTemp(b.dir, "cache")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(kept)
	c, err := cache.Open(kept, cache.Config{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	d, err := stream.Open(ctx, url, stream.Config{Cache: c, NoPrefetch: !prefetch, Image: image.Config{AllowUnsigned: true}})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if prefetch {
		d.Backfill()
		time.Sleep(3 * time.Second) // let it find its pace
	}
	r := rand.New(rand.NewPCG(1, 1))
	before := l.bytes.Load()
	start := time.Now()
	p := make([]byte, 4096)
	for len(took) < reads {
		// From the second half of the disk, which the rest has not reached.
		k, err := b.img.Chunk(ctx, b.img.Chunks()/2+r.IntN(b.img.Chunks()/2))
		if err != nil {
			return nil, err
		}
		if c.Has(k.Hash) {
			continue
		}
		begin := time.Now()
		if _, err := d.ReadAt(p, k.Off); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
		time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
	}
	fmt.Fprintf(os.Stderr, "stream: random reads, prefetching %v: the link carried %.1f Mbit/s\n",
		prefetch, float64(l.bytes.Load()-before)*8/1e6/time.Since(start).Seconds())
	return took, nil
}
