package guest

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// Names of the console ports over which a guest runs its command.
const (
	PortStdin  = "vmkit.in"
	PortStdout = "vmkit.out"
	PortStderr = "vmkit.err"
	PortExit   = "vmkit.exit"
	// PortSignal is optional: it takes names of signals for the command,
	// such as TERM, a line each. It comes before the others.
	PortSignal = "vmkit.signal"
)

// ErrNoStatus means that the guest ended without telling the status of its
// command.
var ErrNoStatus = errors.New("the guest ended before its command did")

// maxStatus bounds what a guest can make Result keep.
const maxStatus = 16

// Result takes what the guest writes to PortExit. Its methods may be called
// from any goroutine.
type Result struct {
	mu   sync.Mutex
	text []byte
}

// Write takes part of the status line.
func (r *Result) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.text = append(r.text, p[:min(len(p), maxStatus-len(r.text))]...)
	return len(p), nil
}

// Status is the exit status of the command, 0 to 255.
func (r *Result) Status() (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	line, whole := strings.CutSuffix(string(r.text), "\n")
	if !whole {
		return 0, ErrNoStatus
	}
	n, err := strconv.ParseUint(line, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("the guest sent %q as its command's status", line)
	}
	return int(n), nil
}
