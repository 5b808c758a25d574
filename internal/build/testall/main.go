// Command testall is what `make test` runs: lint, every test on this machine,
// those of machines in software as programs for arm64, the tests again under the
// race detector, and the tests of the packages that use KVM inside a nested host
// with a real kvm-amd. There, and on this machine
// if its own /dev/kvm runs kernels at native speed, package kvmtest turns each
// skip for lack of KVM into a failure.
//
// A test that is skipped everywhere fails the run: each test runs somewhere.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmkit-go/vmkit/kvm"
)

// rootNested are packages that run in the nested host beside those whose tests
// depend on package kvm, if this process is not root as they need it.
var rootNested = []string{"netdev"}

// notNested are packages that depend on package kvm and have no business in
// the nested host.
var notNested = []string{"internal/build", "internal/nestedkvm", "internal/debian"}

// notRace are packages whose tests take too long under the race detector.
var notRace = []string{"internal/build", "internal/nestedkvm", "internal/debian", "examples"}

// nativeSpeed is the speed at CPL 0, in instructions a second, from which a KVM
// counts as able to boot kernels; one that emulates has a hundredth of it.
const nativeSpeed = 20e6

func main() {
	var (
		verbose  = flag.Bool("v", false, "print all of go test's output")
		only     = flag.String("only", "", "run these steps alone: lint,host,arm64,race,nested,fuzz")
		fuzztime = flag.Duration("fuzztime", 30*time.Second, "time for each fuzz target")
		run      = flag.String("run", "", "passed to go test")
		pkgs     = flag.String("pkgs", "./...", "the packages to test, separated by spaces")
	)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	a := &all{ctx: ctx, verbose: *verbose, run: *run, pkgs: strings.Fields(*pkgs), seen: map[test]*outcome{}}
	steps := []step{
		{"lint", a.lint}, {"host", a.host}, {"arm64", a.arm64}, {"race", a.race}, {"nested", a.nested},
	}
	if *only != "" {
		steps = nil
		for _, name := range strings.Split(*only, ",") {
			s, ok := map[string]func() error{
				"lint": a.lint, "host": a.host, "arm64": a.arm64, "race": a.race, "nested": a.nested,
				"fuzz": func() error { return a.fuzz(*fuzztime) },
			}[name]
			if !ok {
				fmt.Fprintf(os.Stderr, "testall: no step %q\n", name)
				os.Exit(2)
			}
			steps = append(steps, step{name, s})
		}
	}
	ok := a.steps(steps)
	if *only == "" && *run == "" && ok {
		ok = a.everywhereSkipped()
	}
	if !ok {
		fmt.Println("FAIL")
		os.Exit(1)
	}
	fmt.Println("PASS")
}

type step struct {
	name string
	do   func() error
}

// all is one run of everything.
type all struct {
	ctx     context.Context
	verbose bool
	run     string
	pkgs    []string

	mu   sync.Mutex
	seen map[test]*outcome
}

// steps runs each step, and prints a summary.
func (a *all) steps(steps []step) bool {
	var lines []string
	ok := true
	for _, s := range steps {
		fmt.Printf("=== %s\n", s.name)
		start := time.Now()
		err := s.do()
		if err == nil {
			err = a.ctx.Err()
		}
		verdict := "ok"
		if err != nil {
			ok = false
			verdict = "FAIL: " + err.Error()
		}
		lines = append(lines, fmt.Sprintf("%-8s %6.1f s  %s", s.name, time.Since(start).Seconds(), verdict))
		if a.ctx.Err() != nil {
			break
		}
	}
	fmt.Println("\n=== summary")
	for _, l := range lines {
		fmt.Println(l)
	}
	return ok
}

// command runs a command with its output passed on.
func (a *all) command(name string, args ...string) error {
	cmd := exec.CommandContext(a.ctx, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return nil
}

// staticcheck is pinned, so that a new release of it cannot break the build.
const staticcheck = "honnef.co/go/tools/cmd/staticcheck@v0.8.2"

func (a *all) lint() error {
	// gofmt lists the files that it would change, and exits with 0.
	out, err := exec.CommandContext(a.ctx, "gofmt", "-l", ".").Output()
	if err != nil {
		return fmt.Errorf("gofmt: %w", err)
	}
	if len(out) > 0 {
		err = fmt.Errorf("gofmt would change:\n%s", out)
	}
	return errors.Join(err,
		a.command("go", "vet", "./..."),
		a.command("go", "run", staticcheck, "./..."),
		a.cross())
}

// portable are the packages that need nothing of Linux or amd64.
var portable = []string{"./vcpu", "./vcpu/soft/...", "./memory"}

// cross vets them, tests included, for other systems, and all packages for
// Linux on another architecture.
func (a *all) cross() error {
	var errs []error
	for _, target := range []string{"linux/arm64", "darwin/arm64", "windows/amd64"} {
		goos, goarch, _ := strings.Cut(target, "/")
		pkgs := portable
		if goos == "linux" {
			pkgs = []string{"./..."}
		}
		cmd := exec.CommandContext(a.ctx, "go", append([]string{"vet"}, pkgs...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+goarch)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			errs = append(errs, fmt.Errorf("go vet for %s: %w", target, err))
		}
	}
	return errors.Join(errs...)
}

// host runs every test on this machine.
func (a *all) host() error {
	var env []string
	speed, err := hostKVM()
	switch {
	case err != nil:
		fmt.Printf("this machine has no KVM to test on: %v\n", err)
	case speed < nativeSpeed:
		fmt.Printf("this machine's KVM emulates code at CPL 0 (%.1f million instructions a second): "+
			"tests that boot a kernel run in the nested host alone\n", speed/1e6)
	default:
		fmt.Printf("this machine's KVM runs code at CPL 0 at %.0f million instructions a second: "+
			"tests must not be skipped for lack of KVM\n", speed/1e6)
		env = append(env, "VMKIT_REQUIRE_KVM=1")
	}
	return a.goTest(os.Stdout, "host", env, nil, a.pkgs)
}

// hostKVM measures this machine's KVM.
func hostKVM() (float64, error) {
	sys, err := kvm.Open()
	if err != nil {
		return 0, err
	}
	defer sys.Close()
	return sys.KernelSpeed()
}

// race runs the tests under the race detector, in their short form.
func (a *all) race() error {
	pkgs, err := a.list("{{.ImportPath}}")
	if err != nil {
		return err
	}
	return a.goTest(os.Stdout, "race", nil, []string{"-race", "-short"}, without(pkgs, notRace))
}

const module = "github.com/vmkit-go/vmkit"

// list is go list over the packages to test that have tests.
func (a *all) list(format string) ([]string, error) {
	format = "{{if or .TestGoFiles .XTestGoFiles}}" + format + "{{end}}"
	args := append([]string{"list", "-f", format}, a.pkgs...)
	out, err := a.output("go", args...)
	return strings.Fields(out), err
}

func (a *all) output(name string, args ...string) (string, error) {
	cmd := exec.CommandContext(a.ctx, name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return string(out), nil
}

// matches reports whether a package is one of the listed ones, relative to the
// module, or below one.
func matches(pkg string, list []string) bool {
	for _, l := range list {
		if p := module + "/" + l; pkg == p || strings.HasPrefix(pkg, p+"/") {
			return true
		}
	}
	return false
}

func without(pkgs, list []string) []string {
	var rest []string
	for _, p := range pkgs {
		if !matches(p, list) {
			rest = append(rest, p)
		}
	}
	return rest
}
