package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/disk/nbd"
	"github.com/vmkit-go/vmkit/disk/qcow2"
	"github.com/vmkit-go/vmkit/vcpu"
)

// savedOptions is what options.json of a saved guest holds: the flags that
// shape the machine.
type savedOptions struct {
	Kernel    string      `json:"kernel"`
	Initrd    string      `json:"initrd"`
	Append    string      `json:"append"`
	Protocol  string      `json:"protocol"`
	Unpack    string      `json:"unpack"`
	CPUs      int         `json:"cpus"`
	Memory    uint64      `json:"memory"`
	Model     string      `json:"model"`
	Portable  bool        `json:"portable,omitempty"`
	Transport string      `json:"transport"`
	Disks     []savedDisk `json:"disks"`
	Nets      []savedNet  `json:"nets"`
	Command   []string    `json:"command"`
}

type savedDisk struct {
	Path     string `json:"path"`
	ReadOnly bool   `json:"readOnly"`
	// What the image was like when the guest was saved: it must not have
	// changed when that goes on.
	Size    int64     `json:"size"`
	ModTime time.Time `json:"modTime"`
}

// describeDisk looks at an image as it is now.
func describeDisk(d diskOption) (savedDisk, error) {
	if d.stream != nil {
		return savedDisk{}, fmt.Errorf("disk %s is streamed: a guest with such a disk cannot be saved", d.path)
	}
	if nbd.IsURI(d.path) {
		return savedDisk{}, fmt.Errorf("disk %s is another machine's: a guest with such a disk cannot be saved", d.path)
	}
	if d.format == qcow2.FormatQcow2 {
		// Closing it writes its tables, so it would not be as it was.
		return savedDisk{}, fmt.Errorf("disk %s is a qcow2 image: a guest with such a disk cannot be saved", d.path)
	}
	path, err := filepath.Abs(d.path)
	if err != nil {
		return savedDisk{}, err
	}
	s := savedDisk{Path: path, ReadOnly: d.readOnly}
	info, err := os.Stat(path)
	if err == nil && info.Mode().IsRegular() {
		s.Size, s.ModTime = info.Size(), info.ModTime()
	}
	return s, err
}

type savedNet struct {
	Tap    string `json:"tap"`
	MAC    []byte `json:"mac"`
	Queues int    `json:"queues"`
}

func writeOptions(name string, o *options) error {
	s := savedOptions{
		Append: o.append, Protocol: chosen(o.protocol, protocols), Unpack: chosen(o.unpack, unpackers),
		CPUs: o.cpus, Memory: o.memory, Model: o.model.String(), Portable: o.portable, Transport: o.transport.String(), Command: o.command,
	}
	for _, f := range []struct {
		saved *string
		path  string
	}{{&s.Kernel, o.kernel}, {&s.Initrd, o.initrd}} {
		if f.path == "" {
			continue
		}
		var err error
		if *f.saved, err = filepath.Abs(f.path); err != nil {
			return err
		}
	}
	for _, d := range o.disks {
		disk, err := describeDisk(d)
		if err != nil {
			return err
		}
		s.Disks = append(s.Disks, disk)
	}
	for _, n := range o.nets {
		s.Nets = append(s.Nets, savedNet{n.tap, n.mac, n.queues})
	}
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(data, '\n'), 0o600)
}

// readOptions puts what was saved in dir over o.
func (o *options) readOptions(dir string) error {
	name := filepath.Join(dir, "options.json")
	data, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	var s savedOptions
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("load: %s: %w", name, err)
	}
	if err := o.restore(s); err != nil {
		return fmt.Errorf("load: %s: %w", name, err)
	}
	return nil
}

func (o *options) restore(s savedOptions) (err error) {
	o.kernel, o.initrd, o.append = s.Kernel, s.Initrd, s.Append
	o.cpus, o.memory, o.portable, o.command = s.CPUs, s.Memory, s.Portable, s.Command
	if o.model, err = vcpu.ParseModel(s.Model); err != nil {
		return err
	}
	for _, ok := range []bool{
		named(&o.transport, s.Transport, transports),
		named(&o.protocol, s.Protocol, protocols),
		named(&o.unpack, s.Unpack, unpackers),
	} {
		if !ok {
			return fmt.Errorf("unknown transport %q, protocol %q or unpacking %q", s.Transport, s.Protocol, s.Unpack)
		}
	}
	o.disks, o.nets = nil, nil
	for _, d := range s.Disks {
		option := diskOption{path: d.Path, readOnly: d.ReadOnly}
		now, err := describeDisk(option)
		if err != nil {
			return err
		}
		if now.Size != d.Size || !now.ModTime.Equal(d.ModTime) {
			return fmt.Errorf("%s has changed since the guest was saved: going on would damage its file systems", d.Path)
		}
		o.disks = append(o.disks, option)
	}
	if len(o.disks) == 0 {
		o.disks = []diskOption{{path: "none"}}
	}
	for _, n := range s.Nets {
		o.nets = append(o.nets, netOption{tap: n.Tap, mac: n.MAC, queues: n.Queues})
	}
	return o.check()
}

// named sets p to the value of that name, if there is one.
func named[T any](p *T, name string, values map[string]T) bool {
	v, ok := values[name]
	if ok {
		*p = v
	}
	return ok
}

func loadCommand(ctx context.Context, args []string) error {
	o, rest, err := parseOptions("load", args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return usageError("usage: vmm load [flags] DIR")
	}
	if err := o.readOptions(rest[0]); err != nil {
		return err
	}
	if err := o.chooseEngine(); err != nil {
		return err
	}
	return runUntilOff(ctx, o, rest[0])
}

// eachData calls f for every range of the file that is not a hole.
func eachData(file *os.File, size int64, f func(off, n int64) error) error {
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(file.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: find data: %w", file.Name(), err)
		}
		hole, err := unix.Seek(int(file.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("%s: find hole: %w", file.Name(), err)
		}
		if err := f(data, hole-data); err != nil {
			return err
		}
		off = hole
	}
	return nil
}
