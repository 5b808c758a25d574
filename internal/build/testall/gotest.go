package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sort"
	"strings"
	"syscall"
	"time"
)

// test names a test, or a subtest.
type test struct{ pkg, name string }

// outcome is how a test fared over all steps.
type outcome struct {
	ran     bool              // it passed or failed somewhere
	skipped map[string]string // why it was skipped, by step
}

// event is a line of go test -json (see go doc test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

// goTest runs go test over packages, notes each test's outcome, and prints to w.
func (a *all) goTest(w io.Writer, step string, env, flags, pkgs []string) error {
	if len(pkgs) == 0 {
		fmt.Fprintln(w, "no packages")
		return nil
	}
	args := []string{"test", "-json", "-timeout=20m"}
	if a.run != "" {
		args = append(args, "-run", a.run)
	}
	args = append(append(args, flags...), pkgs...)
	cmd := exec.CommandContext(a.ctx, "go", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 30 * time.Second
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = w
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := report{all: a, w: w, step: step, held: map[test]*strings.Builder{}}
	in := bufio.NewScanner(out)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil {
			fmt.Fprintln(w, in.Text()) // go's own complaints
			continue
		}
		r.event(e)
	}
	scanErr := in.Err()
	err = cmd.Wait()
	r.rest()
	switch {
	case scanErr != nil:
		return fmt.Errorf("read go test's output: %w", scanErr)
	case len(r.failed) > 0:
		return fmt.Errorf("%d failed: %s", len(r.failed), strings.Join(r.failed, ", "))
	case err != nil:
		return fmt.Errorf("go test: %w", err)
	}
	fmt.Fprintf(w, "%s: %d tests passed, %d skipped\n", step, r.passed, r.skipped)
	return nil
}

// report prints what is worth reading of one go test.
type report struct {
	all             *all
	w               io.Writer
	step            string
	held            map[test]*strings.Builder
	passed, skipped int
	failed          []string
}

func (r *report) event(e event) {
	t := test{e.Package, e.Test}
	short := strings.TrimPrefix(e.Package, module+"/")
	switch e.Action {
	case "output", "build-output":
		r.output(t, e.Output)
	case "build-fail":
		r.failed = append(r.failed, "build")
	case "pass":
		if e.Test != "" {
			r.all.ran(t)
			r.passed++
			delete(r.held, t)
		}
	case "fail":
		if e.Test == "" {
			// A package fails without a failed test when it does not
			// build, crashes or runs out of time.
			if !r.hasFailed(short + ".") {
				r.failed = append(r.failed, short)
			}
			r.flush(t)
			return
		}
		r.all.ran(t)
		r.failed = append(r.failed, short+"."+e.Test)
		r.flush(t)
	case "skip":
		if e.Test == "" {
			return
		}
		why := ""
		if b := r.held[t]; b != nil {
			why = reason(b.String())
			delete(r.held, t)
		}
		r.all.skipped(t, r.step, why)
		r.skipped++
	}
}

// output prints a line at once, or holds it until its test fails.
func (r *report) output(t test, text string) {
	if r.all.verbose {
		fmt.Fprint(r.w, text)
	}
	if t.name == "" {
		if !r.all.verbose && text != "PASS\n" && !strings.Contains(text, "[no test files]") {
			fmt.Fprint(r.w, text)
		}
		return
	}
	b := r.held[t]
	if b == nil {
		b = new(strings.Builder)
		r.held[t] = b
	}
	if b.Len() < 1<<20 {
		b.WriteString(text)
	}
}

// flush prints what was held of a failed test.
func (r *report) flush(t test) {
	if b := r.held[t]; b != nil && !r.all.verbose {
		fmt.Fprint(r.w, b.String())
	}
	delete(r.held, t)
}

// rest prints what was held of tests that never ended: those that ran when
// their binary crashed.
func (r *report) rest() {
	for t := range r.held {
		if r.hasFailed(strings.TrimPrefix(t.pkg, module+"/")) {
			r.flush(t)
		}
	}
}

func (r *report) hasFailed(prefix string) bool {
	for _, f := range r.failed {
		if strings.HasPrefix(f, prefix) {
			return true
		}
	}
	return false
}

// ran and skipped note what has become of a test in a step.
func (a *all) ran(t test) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.outcome(t).ran = true
}

func (a *all) skipped(t test, step, why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.outcome(t).skipped[step] = why
}

func (a *all) outcome(t test) *outcome {
	o := a.seen[t]
	if o == nil {
		o = &outcome{skipped: map[string]string{}}
		a.seen[t] = o
	}
	return o
}

// reason is the message of a skipped test, in one line.
func reason(output string) string {
	var words []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- ") {
			continue
		}
		words = append(words, line)
	}
	return strings.Join(words, " ")
}

// everywhereSkipped prints the tests that ran nowhere, and reports whether there
// were none.
func (a *all) everywhereSkipped() bool {
	var lines []string
	for t, o := range a.seen {
		if o.ran || len(o.skipped) == 0 {
			continue
		}
		for step, why := range o.skipped {
			lines = append(lines, fmt.Sprintf("%s.%s: %s: %s", strings.TrimPrefix(t.pkg, module+"/"), t.name, step, why))
		}
	}
	if len(lines) == 0 {
		return true
	}
	sort.Strings(lines)
	fmt.Println("\n=== skipped wherever they might run")
	for _, l := range lines {
		fmt.Println(l)
	}
	return false
}
