package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// pty is a terminal with a user who types and reads.
type pty struct {
	t             *testing.T
	master, slave *os.File
	before        unix.Termios

	mu   sync.Mutex
	text strings.Builder
	seen int // bytes of text that expect has passed
}

func newPty(t *testing.T) *pty {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 101}))
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { slave.Close() })
	p := &pty{t: t, master: master, slave: slave}
	p.before = p.modes()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			p.mu.Lock()
			p.text.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return p
}

func (p *pty) modes() unix.Termios {
	p.t.Helper()
	m, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
	require.NoError(p.t, err)
	return *m
}

// start runs vmm with the terminal for all its streams.
func (p *pty) start(args ...string) *exec.Cmd {
	p.t.Helper()
	cmd := command(p.t, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.slave, p.slave, p.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(p.t, cmd.Start())
	return cmd
}

func (p *pty) write(text string) {
	p.t.Helper()
	_, err := p.master.WriteString(text)
	require.NoError(p.t, err)
}

// expect waits until the terminal shows text, after what was expected before.
func (p *pty) expect(text string) {
	p.t.Helper()
	for deadline := time.Now().Add(bootLimit); ; time.Sleep(10 * time.Millisecond) {
		p.mu.Lock()
		all := p.text.String()
		i := strings.Index(all[p.seen:], text)
		if i >= 0 {
			p.seen += i + len(text)
		}
		p.mu.Unlock()
		if i >= 0 {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("the terminal does not show %q:\n%s", text, all)
		}
	}
}

// ends waits for vmm and checks that it left the terminal as it was.
func (p *pty) ends(cmd *exec.Cmd, status int) {
	p.t.Helper()
	_ = cmd.Wait()
	require.Equal(p.t, status, cmd.ProcessState.ExitCode(), "%v\n%s", cmd.ProcessState, p.text.String())
	require.Equal(p.t, p.before, p.modes(), "the terminal is not as it was")
}

// prompt is what the root disk's /etc/profile sets.
const prompt = "root@vmkit:/# "

// A console is a terminal of the guest, also after the guest was saved and
// went on.
func TestConsole(t *testing.T) {
	needNative(t)
	p := newPty(t)
	dir := t.TempDir()
	socket, saved := filepath.Join(dir, "socket"), filepath.Join(dir, "saved")
	cmd := p.start("run", "-control", socket)
	p.expect(prompt)
	require.NotEqual(t, p.before, p.modes(), "the terminal is not raw")
	p.write("echo $((40+2)) $TERM $(stty size); mark=before\r")
	p.expect("42 vt100 33 101\r\n")
	p.expect(prompt)
	require.NoError(t, unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 44, Col: 77}))
	require.NoError(t, cmd.Process.Signal(unix.SIGWINCH)) // as the shell of a window would
	time.Sleep(time.Second)
	p.write("stty size\r")
	p.expect("44 77\r\n")
	p.expect(prompt)
	p.write("sleep 1000\r")
	time.Sleep(time.Second)
	p.write("\x03") // Ctrl-C is the guest's
	p.expect(prompt)
	p.write("\x01h")
	p.expect("Ctrl-A x leaves")

	r := run(t, "save", "-control", socket, saved)
	require.Equal(t, 0, r.status, "%s", r.stderr)
	p.ends(cmd, 0)

	cmd = p.start("load", saved)
	p.write("echo x >/written; sync; echo $mark and after\r")
	p.expect("before and after\r\n")
	p.expect(prompt)
	p.write("\x01x")
	p.ends(cmd, 0)

	// It has written to its disk since it was saved.
	cmd = p.start("load", saved)
	p.expect("has changed since the guest was saved")
	p.ends(cmd, statusFailed)
}

// The terminal is as it was however vmm ends.
func TestTerminalRestored(t *testing.T) {
	needNative(t)
	p := newPty(t)
	p.ends(p.start("run", "-kernel", os.DevNull), statusFailed)
	p.expect("bad kernel image")
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGHUP} {
		cmd := p.start("run", "-disk", "none", "-v")
		p.expect("Linux version") // from the serial port
		require.NotEqual(t, p.before, p.modes(), "the terminal is not raw")
		require.NoError(t, cmd.Process.Signal(sig))
		p.ends(cmd, statusFailed)
		p.expect("vmm: interrupted")
	}
}

// Without a terminal, the end of the input ends the shell.
func TestConsoleFromPipe(t *testing.T) {
	needNative(t)
	cmd := command(t, "run", "-disk", "none")
	cmd.Stdin = strings.NewReader("echo $((6*7))\n")
	r := finish(t, cmd)
	require.Equal(t, 0, r.status, "%s", r.stderr)
	require.Contains(t, r.stdout, "42")
}

// A guest that reboots is started again on the same disks.
func TestReboot(t *testing.T) {
	needNative(t)
	cmd := command(t, "run", "-disk", rootDisk(t))
	in, typing, err := os.Pipe()
	require.NoError(t, err)
	defer in.Close()
	defer typing.Close()
	cmd.Stdin = in
	go func() { // what is typed while there is no shell is lost: type it again
		for {
			if _, err := typing.Write([]byte("[ -e /root/again ] && echo boot $((1+1)) && exit; touch /root/again; sync; reboot -f\n")); err != nil {
				return
			}
			time.Sleep(3 * time.Second)
		}
	}()
	r := finish(t, cmd)
	require.Contains(t, r.stdout, "boot 2", "%s", r.stderr)
	require.Contains(t, r.stderr, "rebooted")
}
