package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/vmkit-go/vmkit/disk/nbd"
	"github.com/vmkit-go/vmkit/internal/debian"
)

// qemuMirror measures the same of QEMU's mirror in its write-blocking mode: two
// null devices, which hold nothing and answer after 200 µs, in
// qemu-storage-daemon. The load comes through an NBD export, without the mirror
// as with it, so that the share that QEMU keeps is rather too large.
func qemuMirror(ctx context.Context, o options, dir string) (err error) {
	daemon, err := debian.LookProgram("qemu-storage-daemon", "qemu-system-common")
	if err != nil {
		return err
	}
	t := newTable("QEMU's mirror", "4 KiB writes, 1/s")
	kept := newTable("QEMU's mirror", "share of the speed without")
	for range o.roundsOr(7) {
		for _, l := range mirrorLoads {
			var alone float64
			for _, how := range []string{"alone", "in step", "copying"} {
				v, err := qemuMirrorRound(ctx, daemon, dir, how, l.depth, l.random)
				if err != nil {
					return fmt.Errorf("qemu-storage-daemon: %w", err)
				}
				t.add(how, l.name, v)
				if how == "alone" {
					alone = v
				} else {
					kept.add(how, l.name, v/alone)
				}
			}
		}
	}
	t.print()
	kept.print()
	for _, l := range mirrorLoads {
		figure("mirror-qemu-"+l.name+"-in-step", kept.median("in step", l.name), "x")
		figure("mirror-qemu-"+l.name+"-copying", kept.median("copying", l.name), "x")
	}
	return nil
}

func qemuMirrorRound(ctx context.Context, daemon, dir, how string, depth int, random bool) (v float64, err error) {
	control, socket := filepath.Join(dir, "qmp"), filepath.Join(dir, "qemu")
	for _, name := range []string{control, socket} {
		_ = os.Remove(name)
	}
	size := int64(mirrorSize)
	if how == "copying" {
		size = 1 << 40 // it never catches up
	}
	args := []string{"--chardev", "socket,path=" + control + ",server=on,wait=off,id=qmp", "--monitor", "chardev=qmp"}
	for _, name := range []string{"a", "b"} {
		args = append(args, "--blockdev", fmt.Sprintf("null-co,node-name=%s,size=%d,latency-ns=%d,read-zeroes=off", name, size, mirrorLatency.Nanoseconds()))
	}
	args = append(args, "--nbd-server", "addr.type=unix,addr.path="+socket, "--export", "nbd,id=e,node-name=a,name=a,writable=on")
	cmd := exec.CommandContext(ctx, daemon, args...)
	// It complains of whoever looks whether it listens.
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		// It has nothing to lose.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for _, name := range []string{control, socket} {
		if err := waitSocket(ctx, name); err != nil {
			return 0, err
		}
	}
	if how != "alone" {
		if err := qemuStartMirror(control, how == "in step"); err != nil {
			return 0, err
		}
	}
	d, err := nbd.Dial(ctx, nbd.ClientConfig{Network: "unix", Address: socket, Export: "a"})
	if err != nil {
		return 0, err
	}
	defer d.Close()
	var stop atomic.Bool
	timer := time.AfterFunc(time.Second/2, func() { stop.Store(true) })
	defer timer.Stop()
	return writeLoad(d, depth, random, &stop)
}

// qemuStartMirror starts the mirror by QMP, and waits until both sides are in
// step if asked to.
func qemuStartMirror(control string, inStep bool) error {
	c, err := net.Dial("unix", control)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	in := bufio.NewScanner(c)
	for _, line := range []string{
		`{"execute": "qmp_capabilities"}`,
		`{"execute": "blockdev-mirror", "arguments": {"job-id": "m", "device": "a", "target": "b", "sync": "full", "copy-mode": "write-blocking"}}`,
	} {
		if _, err := fmt.Fprintln(c, line); err != nil {
			return err
		}
		if _, err := qmpNext(in, func(m qmpMessage) bool { return m.Return != nil }); err != nil {
			return err
		}
	}
	if inStep {
		_, err = qmpNext(in, func(m qmpMessage) bool { return m.Event == "BLOCK_JOB_READY" })
	}
	return err
}

type qmpMessage struct {
	Return json.RawMessage
	Event  string
	Error  *struct{ Desc string }
}

// qmpNext returns the next message that is wanted.
func qmpNext(in *bufio.Scanner, want func(qmpMessage) bool) (m qmpMessage, err error) {
	for in.Scan() {
		m = qmpMessage{}
		if err := json.Unmarshal(in.Bytes(), &m); err != nil {
			return m, err
		}
		if m.Error != nil {
			return m, errors.New(m.Error.Desc)
		}
		if want(m) {
			return m, nil
		}
	}
	return m, fmt.Errorf("the connection ended: %w", in.Err())
}
