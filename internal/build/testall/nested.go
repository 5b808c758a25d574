package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// nested runs the tests of the packages that use KVM in one nested host.
func (a *all) nested() error {
	pkgs, err := a.nestedPackages()
	if err != nil || len(pkgs) == 0 {
		return err
	}
	dir, err := os.MkdirTemp("", "vmkit-test-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tool := filepath.Join(dir, "nestedexec")
	if err := a.command("go", "build", "-o", tool, "./internal/nestedkvm/nestedexec"); err != nil {
		return err
	}
	var h *host
	defer func() { h.stop() }()
	var failed []error
	for _, p := range pkgs {
		for boots := 1; ; boots++ {
			if h == nil {
				if h, err = a.serve(tool, filepath.Join(dir, fmt.Sprintf("sock-%s-%d", filepath.Base(p), boots))); err != nil {
					return errors.Join(append(failed, err)...)
				}
			}
			// One package at a time: its tests have the machine's two processors.
			err := a.goTest("nested", []string{"VMKIT_NESTED_SOCK=" + h.sock}, []string{"-p=1", "-exec=" + tool}, []string{p})
			if err == nil {
				break
			}
			// A failed test stands. But when the host under it has died, which
			// QEMU's emulator now and then does to it, nothing was tested.
			if !h.dead() || boots == maxBoots {
				failed = append(failed, err)
				break
			}
			fmt.Printf("nested: the nested host died under %s; testing that again in a new one\n", p)
			h.stop()
			h = nil
		}
	}
	return errors.Join(failed...)
}

// maxBoots is how many nested hosts a package's tests may outlive.
const maxBoots = 3

// host is a served nested host.
type host struct {
	sock  string
	ended chan struct{} // closed when it has ended by itself or was stopped
	end   func()
}

// stop ends the host. It may be called on nil.
func (h *host) stop() {
	if h != nil {
		h.end()
	}
}

// dead reports whether the host has ended; it may take a moment to show.
func (h *host) dead() bool {
	select {
	case <-h.ended:
		return true
	case <-time.After(5 * time.Second):
		return false
	}
}

// nestedPackages lists the packages whose tests use KVM.
func (a *all) nestedPackages() ([]string, error) {
	pkgs, err := a.list("{{.ImportPath}}")
	if err != nil {
		return nil, err
	}
	// With -test, a test binary is listed as PKG.test with all it depends on.
	out, err := a.output("go", append([]string{"list", "-test", "-f",
		`{{if eq .Name "main"}}{{.ImportPath}} {{join .Deps " "}}{{end}}`}, pkgs...)...)
	if err != nil {
		return nil, err
	}
	usesKVM := map[string]bool{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		pkg, ok := strings.CutSuffix(f[0], ".test")
		if !ok {
			continue
		}
		for _, dep := range f[1:] {
			// The package under test itself is listed as "kvm [kvm.test]".
			if dep == module+"/kvm" {
				usesKVM[pkg] = true
			}
		}
	}
	var chosen []string
	for _, p := range pkgs {
		if (usesKVM[p] || os.Geteuid() != 0 && matches(p, rootNested)) && !matches(p, notNested) {
			chosen = append(chosen, p)
		}
	}
	return chosen, nil
}

// serve boots a nested host and waits until it serves.
func (a *all) serve(tool, sock string) (*host, error) {
	ctx, cancel := context.WithCancel(a.ctx)
	// One processor: with several, QEMU's emulator runs them on threads of
	// their own, and now and then one keeps a breakpoint that another has just
	// taken out of the kernel's code. Nested kernels, and their guests with
	// several CPUs, then crash.
	cmd := exec.CommandContext(ctx, tool, "-cpus", "1", "-serve", sock)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	log, err := cmd.StderrPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	ready, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		up := false
		for in := bufio.NewScanner(log); in.Scan(); {
			fmt.Println(in.Text())
			if !up && strings.HasPrefix(in.Text(), "serving on ") {
				up = true
				close(ready)
			}
		}
	}()
	h := &host{sock: sock, ended: ended}
	h.end = func() {
		cancel()
		<-ended
		_ = cmd.Wait()
	}
	select {
	case <-ready:
		return h, nil
	case <-ended:
		h.stop()
		return nil, errors.New("the nested host did not start")
	}
}
