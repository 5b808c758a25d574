package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/nbd"
	"github.com/vmkit-go/vmkit/disk/qcow2"
	"github.com/vmkit-go/vmkit/stream"
	"github.com/vmkit-go/vmkit/stream/cache"
	"github.com/vmkit-go/vmkit/stream/image"
	"github.com/vmkit-go/vmkit/stream/profile"
)

// streamOption is a -disk flag whose disk is streamed:
// URL[,cache=DIR][,overlay=FILE][,key=FILE][,record=FILE][,fail=DURATION][,lease=DURATION][,ro].
type streamOption struct {
	cache   string
	overlay string
	record  string
	keys    []ed25519.PublicKey
	fail    time.Duration
	lease   time.Duration // 0: none is taken
}

// remote reports whether s, of a -disk flag, is to be streamed.
func remote(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

func (o *options) addStream(s string) error {
	words := strings.Split(s, ",")
	d := diskOption{path: words[0], stream: &streamOption{}}
	for _, w := range words[1:] {
		k, v, _ := strings.Cut(w, "=")
		var err error
		switch k {
		case "cache":
			d.stream.cache = v
		case "overlay":
			d.stream.overlay = v
		case "record":
			d.stream.record = v
		case "key":
			var key ed25519.PublicKey
			if key, err = readKey(v); err == nil {
				d.stream.keys = append(d.stream.keys, key)
			}
		case "fail":
			d.stream.fail, err = time.ParseDuration(v)
		case "lease":
			if d.stream.lease, err = time.ParseDuration(v); err == nil && d.stream.lease <= 0 {
				err = fmt.Errorf("lease=%s: want a time", v)
			}
		case "ro":
			d.readOnly = true
		default:
			err = fmt.Errorf("unknown setting %q", k)
		}
		if err != nil {
			return err
		}
	}
	o.disks = append(o.disks, d)
	return nil
}

// readKey reads a public key as "stream keygen" writes it.
func readKey(path string) (ed25519.PublicKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(strings.TrimSpace(string(text)), "vmkit-ed25519-public "))
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%s is not a public key", path)
	}
	return key, nil
}

// streams are the streamed disks of a guest, which share caches.
type streams struct {
	caches map[string]*cache.Cache
	disks  []*streamed
	status *http.Server
	temp   string
	done   chan struct{}
	lost   func(error) // is told of a lease that was lost
}

// streamed is one of them: what arrives, and what the guest writes.
type streamed struct {
	option  diskOption
	disk    *stream.Disk
	lease   *held             // nil: none
	rec     *profile.Recorder // nil: nothing is recorded
	file    *disk.File        // nil: read-only
	overlay *qcow2.Image
	server  *nbd.Server
	device  atomic.Pointer[disk.Device] // holds what cannot be had for now
	waits   atomic.Bool                 // the guest does, and the user was told
}

// backend is what the guest gets.
func (s *streamed) backend() disk.Backend {
	switch {
	case s.overlay != nil:
		return s.overlay
	case s.rec != nil:
		return s.rec
	}
	return s.disk
}

// open opens a streamed disk. If wait is set, requests wait in it while its
// content cannot be had; otherwise they fail soon, for the device to hold them.
func (ss *streams) open(ctx context.Context, d diskOption, wait bool) (_ *streamed, err error) {
	if ss.caches == nil {
		ss.caches, ss.done = map[string]*cache.Cache{}, make(chan struct{})
	}
	c, err := ss.cache(d.stream.cache)
	if err != nil {
		return nil, err
	}
	s := &streamed{option: d}
	ss.disks = append(ss.disks, s) // which are closed with ss
	cfg := stream.Config{
		Cache: c, Image: image.Config{Keys: d.stream.keys, AllowUnsigned: len(d.stream.keys) == 0},
		Events: s.event, FailAfter: d.stream.fail,
	}
	if cfg.FailAfter == 0 && !wait {
		cfg.FailAfter = 2 * time.Second
	}
	base := d.stream.overlay + ".base"
	if d.stream.overlay != "" {
		switch id, err := os.ReadFile(base); {
		case err == nil:
			if cfg.ID, err = image.ParseHash(strings.TrimSpace(string(id))); err != nil {
				return nil, fmt.Errorf("%s: %w", base, err)
			}
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	if d.stream.lease > 0 {
		// Before the manifest is read: nobody changes the image from here on.
		if s.lease, err = takeLease(ctx, d, c, ss.lost); err != nil {
			return nil, err
		}
		if s.lease.out != nil {
			cfg.ID = s.lease.out.ID()
		}
	}
	if s.disk, err = stream.Open(ctx, d.path, cfg); err != nil {
		return nil, err
	}
	var below disk.Backend = s.disk
	if d.stream.record != "" {
		s.rec = profile.NewRecorder(s.disk)
		below = s.rec
	}
	if d.readOnly {
		return s, nil
	}
	path := d.stream.overlay
	if path == "" {
		if ss.temp == "" {
			if ss.temp, err = os.MkdirTemp("", "vmm-stream-"); err != nil {
				return nil, err
			}
		}
		path = filepath.Join(ss.temp, fmt.Sprint("overlay", len(ss.disks)))
	}
	return s, s.cover(path, base, below)
}

// cover puts an overlay on the disk, for what the guest writes.
func (s *streamed) cover(path, base string, below disk.Backend) (err error) {
	s.file, err = disk.Open(path, disk.FileConfig{})
	if errors.Is(err, fs.ErrNotExist) {
		if s.option.stream.overlay != "" {
			// The overlay is of use with this version of the image only.
			if err := os.WriteFile(base, []byte(s.disk.ID().String()+"\n"), 0o644); err != nil {
				return err
			}
		}
		if s.file, err = disk.Create(path, 0, disk.FileConfig{}); err == nil {
			err = qcow2.Create(s.file, qcow2.CreateConfig{
				Size: below.Size(), ClusterSize: 16 << 10, BackingName: s.option.path, BackingFormat: "raw",
			})
		}
	}
	if err != nil {
		return err
	}
	s.overlay, err = qcow2.Open(s.file, qcow2.Config{Backing: below})
	return err
}

// event tells the user what happens to a disk.
func (s *streamed) event(e stream.Event) {
	switch e.Kind {
	case stream.ProfileDone, stream.Completed:
		fmt.Fprintf(os.Stderr, "vmm: %s: %v\n", s.option.path, e.Kind)
	case stream.Available:
		fmt.Fprintf(os.Stderr, "vmm: %s: %v\n", s.option.path, e.Kind)
		s.retry()
	default:
		fmt.Fprintf(os.Stderr, "vmm: %s: %v: %v\n", s.option.path, e.Kind, e.Err)
	}
}

// retryHeld is how often requests that the device holds are tried again, beside
// when there is reason to hope.
const retryHeld = 3 * time.Second

// held is told when the device holds requests, and when it does not any more.
func (s *streamed) held(e disk.HoldEvent) {
	if was := s.waits.Swap(e.Held); e.Held && !was {
		fmt.Fprintf(os.Stderr, "vmm: the guest waits for its disk: %v\n", e.Err)
	} else if was && !e.Held {
		fmt.Fprintln(os.Stderr, "vmm: the guest goes on")
	}
	if e.Held {
		time.AfterFunc(retryHeld, s.retry)
	}
}

func (s *streamed) retry() {
	if dev := s.device.Load(); dev != nil {
		dev.Retry()
	}
}

// cache opens a cache, or one that is open. Disks of one vmm share it.
func (ss *streams) cache(dir string) (*cache.Cache, error) {
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(user, "vmkit", "stream")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if c := ss.caches[dir]; c != nil {
		return c, nil
	}
	c, err := cache.Open(dir, cache.Config{})
	if err == nil {
		ss.caches[dir] = c
	}
	return c, err
}

// report serves the disks' status over HTTP, by number from 0, and shows it on
// the terminal, as far as either is wanted.
func (ss *streams) report(addr string, progress bool) error {
	if len(ss.disks) == 0 {
		return nil
	}
	if addr != "" {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("status: %w", err)
		}
		mux := http.NewServeMux()
		mux.Handle("/", ss.disks[0].disk)
		for i, s := range ss.disks {
			mux.Handle("/"+strconv.Itoa(i), s.disk)
		}
		ss.status = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
		fmt.Fprintf(os.Stderr, "vmm: status of streamed disks at http://%s/?map=100\n", l.Addr())
		go ss.status.Serve(l)
	}
	if progress {
		go ss.draw()
	}
	return nil
}

// draw prints a line a second for each disk that is still arriving.
func (ss *streams) draw() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ss.done:
			return
		}
		for i, s := range ss.disks {
			st := s.disk.Status()
			if st.Absent == 0 && st.Rate == 0 {
				continue
			}
			fmt.Fprintf(os.Stderr, "vmm: disk %d [%s] %3d%% there, %.1f MB fetched, %.1f MB/s\n", i, s.disk.Map(50),
				(int64(st.Chunks)-st.Absent)*100/max(1, int64(st.Chunks)), float64(st.DemandBytes+st.PrefetchBytes)/1e6, float64(st.Rate)/1e6)
		}
	}
}

// export offers a disk to the nested host, and returns where.
func (ss *streams) export(s *streamed) (uri string, err error) {
	if ss.temp == "" {
		if ss.temp, err = os.MkdirTemp("", "vmm-stream-"); err != nil {
			return "", err
		}
	}
	socket := filepath.Join(ss.temp, fmt.Sprint("nbd", len(ss.disks)))
	l, err := net.Listen("unix", socket)
	if err != nil {
		return "", err
	}
	s.server = &nbd.Server{Exports: []nbd.Export{{Name: "disk", Backend: s.backend(), ReadOnly: s.option.readOnly}}}
	go s.server.Serve(l)
	return "nbd+unix:///disk?socket=" + socket, nil
}

// close ends a disk, and writes what was recorded.
func (s *streamed) close() (err error) {
	if s.server != nil {
		err = s.server.Close()
	}
	if s.overlay != nil {
		err = errors.Join(err, s.overlay.Close())
	}
	if s.file != nil {
		err = errors.Join(err, s.file.Close())
	}
	if s.rec != nil {
		p, rerr := s.rec.Profile(stream.Layout(context.Background(), s.disk.Image()))
		if rerr == nil {
			rerr = profile.AddToFile(s.option.stream.record, p)
		}
		if rerr == nil {
			fmt.Fprintf(os.Stderr, "vmm: the guest used %d chunks of %s; they are in %s\n", len(p.Entries), s.option.path, s.option.stream.record)
		}
		err = errors.Join(err, rerr)
	}
	if s.disk != nil {
		err = errors.Join(err, s.disk.Close())
	}
	if s.lease != nil {
		err = errors.Join(err, s.lease.close())
	}
	return err
}

// Close ends all disks.
func (ss *streams) Close() (err error) {
	if ss.done != nil {
		close(ss.done)
	}
	if ss.status != nil {
		err = ss.status.Close()
	}
	for _, s := range ss.disks {
		err = errors.Join(err, s.close())
	}
	for _, c := range ss.caches {
		err = errors.Join(err, c.Close())
	}
	if ss.temp != "" {
		err = errors.Join(err, os.RemoveAll(ss.temp))
	}
	*ss = streams{}
	return err
}
