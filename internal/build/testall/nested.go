package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// slowest are the packages that take longest in a nested host, to begin with.
var slowest = []string{"vm", "examples/vmm"}

// nested runs the tests of the packages that use KVM, in as many nested hosts at a
// time as there are processors, which have one each.
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
	slices.SortStableFunc(pkgs, func(p, q string) int { return rank(p) - rank(q) })
	queue := make(chan string, len(pkgs))
	for _, p := range pkgs {
		queue <- p
	}
	close(queue)
	lanes := min(runtime.NumCPU(), maxLanes)
	errs := make([]error, lanes)
	var wg sync.WaitGroup
	for i := range lanes {
		l := &lane{all: a, tool: tool, sock: filepath.Join(dir, fmt.Sprint("sock", i))}
		wg.Go(func() { errs[i] = l.run(queue) })
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	begin := time.Now()
	alive := time.NewTicker(time.Minute) // a package prints when it has ended
	defer alive.Stop()
	for {
		select {
		case <-done:
			return errors.Join(errs...)
		case <-alive.C:
			a.say("nested: going on after %v", time.Since(begin).Round(time.Second))
		}
	}
}

// maxLanes bounds the nested hosts at a time, each of which has 2 GiB of memory.
const maxLanes = 2

// rank is a package's place among slowest.
func rank(pkg string) int {
	if i := slices.Index(slowest, strings.TrimPrefix(pkg, module+"/")); i >= 0 {
		return i
	}
	return len(slowest)
}

// lane tests one package after the other.
type lane struct {
	*all
	tool, sock string
	h          *host
	boots      int
}

func (l *lane) run(queue <-chan string) error {
	defer func() { l.h.stop() }()
	var failed []error
	for p := range queue {
		if l.ctx.Err() != nil {
			break
		}
		// What lanes print at the same time would be nobody's.
		var out output
		l.say("nested: testing %s", p)
		err := l.test(&out, p)
		l.say("%s", bytes.TrimSuffix(out.b, []byte("\n")))
		if err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// say prints a line.
func (a *all) say(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fmt.Printf(format+"\n", args...)
}

// test tests one package.
func (l *lane) test(w io.Writer, pkg string) error {
	for n := 1; ; n++ {
		if l.h == nil {
			var err error
			l.boots++
			if l.h, err = l.serve(w, l.tool, fmt.Sprintf("%s-%d", l.sock, l.boots)); err != nil {
				return err
			}
		}
		err := l.goTest(w, "nested", []string{"VMKIT_NESTED_SOCK=" + l.h.sock}, []string{"-p=1", "-exec=" + l.tool}, []string{pkg})
		// A failed test stands. But when the host under it has died, which
		// QEMU's emulator now and then does to it, nothing was tested.
		if err == nil || !l.h.dead() || n == maxBoots {
			return err
		}
		fmt.Fprintf(w, "nested: the nested host died under %s; testing that again in a new one\n", pkg)
		l.h.stop()
		l.h = nil
	}
}

// output keeps what several goroutines print.
type output struct {
	mu sync.Mutex
	b  []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b = append(o.b, p...)
	return len(p), nil
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
func (a *all) serve(w io.Writer, tool, sock string) (*host, error) {
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
			fmt.Fprintln(w, in.Text())
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
