package agent

import (
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/nestedkvm/wire"
)

// newTerminal gives a program a pseudo-terminal as its controlling terminal.
func newTerminal(cmd *exec.Cmd, spec wire.Command) (*stdio, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	ptmx := os.NewFile(uintptr(fd), "/dev/ptmx")
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = resize(fd, *spec.Terminal)
	}
	if err != nil {
		ptmx.Close()
		return nil, fmt.Errorf("set up a terminal: %w", err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		ptmx.Close()
		return nil, err
	}
	// Reading and writing use a descriptor each, so that the end of input does
	// not end output.
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		ptmx.Close()
		tty.Close()
		return nil, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr.Setctty = true
	cmd.SysProcAttr.Ctty = 0
	return &stdio{in: os.NewFile(uintptr(dup), "/dev/ptmx"), out: ptmx, theirs: []*os.File{tty}}, nil
}

// resize sets the size of the terminal with master fd; the kernel sends SIGWINCH.
func resize(fd int, size wire.Size) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
}
