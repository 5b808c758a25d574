// Package turns measures several virtual machines in turn, one figure at a time.
//
// The speed of an emulated host changes by a factor of two within minutes, so that what
// is compared must be close in time: all machines are booted, stopped with
// SIGSTOP, and let run for one figure after the other.
//
//	m, err := turns.Start("qemu", cmd, nil)
//	...
//	v, err := m.Turn("read-1m")
//
// A guest writes lines "result NAME VALUE" to its console, which is the standard output
// of the machine's process: "ready" once it is, and then its figures, over and over. It
// rests for [Rest] after each, which is when it is stopped.
package turns

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Rest is how long a guest sleeps after each result.
const Rest = 500 * time.Millisecond

// patience bounds one guest's boot or measurement on a busy host.
const patience = 4 * time.Minute

// Machine is one machine. It is stopped but for its turns.
type Machine struct {
	Name   string
	cmd    *exec.Cmd
	lines  *bufio.Scanner // of its console
	said   strings.Builder
	report io.Writer
}

// Start boots the machine that is the process cmd, and stops it. What each of its
// threads uses in a turn is written to report, if that is not nil.
func Start(name string, cmd *exec.Cmd, report io.Writer) (*Machine, error) {
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	m := &Machine{Name: name, cmd: cmd, lines: bufio.NewScanner(out), report: report}
	if _, err := m.Turn("ready"); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Close kills the machine.
func (m *Machine) Close() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

// Turn lets the machine run until its guest has told the figure, which must be the next
// that it tells.
func (m *Machine) Turn(figure string) (float64, error) {
	timer := time.AfterFunc(patience, func() { _ = m.cmd.Process.Kill() })
	defer timer.Stop()
	used := takeUsage(m.cmd.Process.Pid)
	if err := m.cmd.Process.Signal(unix.SIGCONT); err != nil {
		return 0, fmt.Errorf("%s: %w", m.Name, err)
	}
	for m.lines.Scan() {
		line := strings.TrimSpace(m.lines.Text())
		fmt.Fprintln(&m.said, line)
		var what string
		var v float64
		// Firmware may have written before it on the same line.
		i := max(strings.Index(line, "result "), 0)
		if n, _ := fmt.Sscanf(line[i:], "result %s %g", &what, &v); n != 2 {
			continue
		}
		if what != figure {
			break
		}
		if err := m.cmd.Process.Signal(unix.SIGSTOP); err != nil {
			return 0, fmt.Errorf("%s: %w", m.Name, err)
		}
		if m.report != nil {
			fmt.Fprintf(m.report, "%s %s %.1f\n", m.Name, what, v)
			takeUsage(m.cmd.Process.Pid).print(m.report, used)
		}
		return v, nil
	}
	return 0, fmt.Errorf("%s: the guest did not come to %s; it said:\n%s", m.Name, figure, &m.said)
}
