package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm"
)

// savedOptions is what options.json of a saved guest holds: the flags that
// shape the machine.
type savedOptions struct {
	CPUs      int         `json:"cpus"`
	Memory    uint64      `json:"memory"`
	Model     string      `json:"model"`
	Transport string      `json:"transport"`
	Disks     []savedDisk `json:"disks"`
	Nets      []savedNet  `json:"nets"`
	Command   []string    `json:"command"`
}

type savedDisk struct {
	Path     string `json:"path"`
	ReadOnly bool   `json:"readOnly"`
}

type savedNet struct {
	Tap    string `json:"tap"`
	MAC    []byte `json:"mac"`
	Queues int    `json:"queues"`
}

func writeOptions(name string, o *options) error {
	s := savedOptions{
		CPUs: o.cpus, Memory: o.memory, Model: o.model.String(), Transport: o.transport.String(), Command: o.command,
	}
	for _, d := range o.disks {
		path, err := filepath.Abs(d.path)
		if err != nil {
			return err
		}
		s.Disks = append(s.Disks, savedDisk{path, d.readOnly})
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
	o.cpus, o.memory, o.command = s.CPUs, s.Memory, s.Command
	if o.model, err = vcpu.ParseModel(s.Model); err != nil {
		return fmt.Errorf("load: %s: %w", name, err)
	}
	o.transport = vm.PCI
	if s.Transport == vm.MMIO.String() {
		o.transport = vm.MMIO
	}
	o.disks, o.nets = nil, nil
	for _, d := range s.Disks {
		o.disks = append(o.disks, diskOption{d.Path, d.ReadOnly})
	}
	for _, n := range s.Nets {
		o.nets = append(o.nets, netOption{tap: n.Tap, mac: n.MAC, queues: n.Queues})
	}
	return nil
}

func loadCommand(ctx context.Context, args []string) error {
	o, rest, err := parseOptions("load", args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		fmt.Fprintln(os.Stderr, "usage: vmm load [flags] DIR")
		return exitStatus(statusUsage)
	}
	if err := o.readOptions(rest[0]); err != nil {
		return err
	}
	if nested, err := o.needsNested(); err != nil {
		return err
	} else if nested {
		return errors.New("load: a saved guest goes on only under the KVM that saved it, and this host's cannot run a kernel")
	}
	return runOnce(ctx, o, rest[0])
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
