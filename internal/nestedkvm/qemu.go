package nestedkvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/nestedkvm/agent"
)

// qemu is the QEMU process of a nested host.
type qemu struct {
	ports   []io.ReadWriteCloser // our ends of the virtio-serial ports
	console *tail
	stderr  *tail
	process *os.Process
	exited  chan struct{} // closed after the process was waited for
	waitErr error         // valid after exited
	dir     string

	mu    sync.Mutex
	cause error // why we killed it
}

// startQEMU prepares the machine's files and starts the process.
func startQEMU(ctx context.Context, cfg *Config) (_ *qemu, err error) {
	program, err := debian.LookProgram("qemu-system-x86_64", "qemu-system-x86")
	if err != nil {
		return nil, err
	}
	q := &qemu{console: newTail(cfg.Console), stderr: newTail(cfg.Log), exited: make(chan struct{})}
	if q.dir, err = os.MkdirTemp("", "vmkit-nested-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			q.cleanup()
		}
	}()
	img, err := prepare(ctx, cfg, q.dir)
	if err != nil {
		return nil, err
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none",
		"-M", "q35,usb=off,graphics=off", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", fmt.Sprint(cfg.CPUs), "-m", fmt.Sprintf("%dK", cfg.Memory>>10),
		"-kernel", img.kernel, "-initrd", img.initrd,
		"-append", strings.TrimSpace(kernelArgs + " " + cfg.Append),
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-device", "virtio-serial-pci,id=ports,max_ports=" + fmt.Sprint(numPorts+2),
		"-drive", "if=none,id=cache,format=raw,readonly=on,file=" + optionValue(img.cache),
		"-device", "virtio-blk-pci,drive=cache,serial=" + cacheSerial,
		"-drive", "if=none,id=scratch,format=raw,cache=unsafe,discard=unmap,file=" + optionValue(img.scratch),
		"-device", "virtio-blk-pci,drive=scratch,serial=" + scratchSerial,
		"-device", "virtio-rng-pci",
	}
	for i, d := range cfg.Disks {
		ro := "off"
		if d.ReadOnly {
			ro = "on"
		}
		args = append(args,
			"-drive", fmt.Sprintf("if=none,id=disk%d,format=raw,discard=unmap,readonly=%s,file=%s", i, ro, optionValue(d.Path)),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d", i))
	}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	for i := range numPorts + 1 {
		ours, his, err := socketPair()
		if err != nil {
			return nil, err
		}
		q.ports = append(q.ports, ours)
		theirs = append(theirs, his)
		args = append(args,
			// ExtraFiles begin at descriptor 3.
			"-chardev", fmt.Sprintf("socket,id=p%d,fd=%d", i, 3+i),
			"-device", fmt.Sprintf("virtserialport,bus=ports.0,nr=%d,chardev=p%d,name=%s%d", i+1, i, agent.PortPrefix, i))
	}
	cmd := exec.Command(program, args...)
	cmd.ExtraFiles = theirs
	cmd.Stdout, cmd.Stderr = q.console, q.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // a terminal's Ctrl-C is for us to act on
	}
	if err := q.start(cmd); err != nil {
		return nil, err
	}
	return q, nil
}

// optionValue quotes a value for one of QEMU's comma-separated options.
func optionValue(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// start starts the process and waits for it on a thread of its own: the
// parent-death signal follows the thread that forked, so that one must stay.
func (q *qemu) start(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		q.waitErr = cmd.Wait()
		q.cleanup()
		close(q.exited)
	}()
	if err := <-started; err != nil {
		return err
	}
	q.process = cmd.Process
	return nil
}

// kill ends the process for a reason, which explain gives.
func (q *qemu) kill(cause error) {
	q.mu.Lock()
	if q.cause == nil {
		q.cause = cause
	}
	q.mu.Unlock()
	_ = q.process.Kill()
}

// stop kills QEMU, whose state nobody wants, and waits for its end.
func (q *qemu) stop() {
	q.kill(ErrClosed)
	<-q.exited
}

// cleanup releases our side of a process that has ended or never started.
func (q *qemu) cleanup() {
	for _, p := range q.ports {
		p.Close()
	}
	q.removeFiles()
}

// removeFiles removes the machine's files. Once QEMU has opened them that is
// best done at once: whatever happens later, nothing stays behind.
func (q *qemu) removeFiles() { _ = os.RemoveAll(q.dir) }

// explain adds to err what is known about the machine's end.
func (q *qemu) explain(err error) error {
	// The end of a port comes a moment before that of the process.
	select {
	case <-q.exited:
	case <-time.After(2 * time.Second):
	}
	var b strings.Builder
	q.mu.Lock()
	cause := q.cause
	q.mu.Unlock()
	if errors.Is(cause, ErrClosed) {
		return ErrClosed
	}
	select {
	case <-q.exited:
		if cause != nil {
			err = cause
			break
		}
		if !errors.Is(err, ErrHostDied) {
			err = fmt.Errorf("%w: %w", ErrHostDied, err)
		}
		if q.waitErr != nil {
			fmt.Fprintf(&b, "\nQEMU: %v", q.waitErr)
		} else {
			fmt.Fprintf(&b, "\nQEMU ended by itself")
		}
	default:
	}
	if s := q.stderr.String(); s != "" {
		fmt.Fprintf(&b, "\nQEMU's messages:\n%s", s)
	}
	if s := q.console.String(); s != "" {
		fmt.Fprintf(&b, "\nend of the nested kernel's console:\n%s", s)
	}
	return fmt.Errorf("%w%s", err, b.String())
}

// socketPair returns a connected pair of stream sockets: one end for us, and
// one to be inherited.
func socketPair() (io.ReadWriteCloser, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, his := os.NewFile(uintptr(fds[0]), "port"), os.NewFile(uintptr(fds[1]), "port")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		his.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return conn, his, nil
}

// tail passes text on and remembers its end.
type tail struct {
	mu   sync.Mutex
	next io.Writer
	buf  []byte
}

var escapes = regexp.MustCompile(`\x1b(c|\[[0-9;?=]*[a-zA-Z])`)

// tailSize is how much of the console an error shows, in bytes.
const tailSize = 4 << 10

func newTail(next io.Writer) *tail { return &tail{next: next} }

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next != nil {
		_, _ = t.next.Write(p)
	}
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - tailSize; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	// The firmware draws on its screen with escape sequences.
	text := escapes.ReplaceAllString(string(t.buf), "")
	return strings.TrimSpace(strings.ReplaceAll(text, "\r", ""))
}

// scratchFile makes the sparse image of the disk for /tmp.
func scratchFile(ctx context.Context, dir string, size uint64) (string, error) {
	mke2fs, err := debian.LookProgram("mke2fs", "e2fsprogs")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "scratch.img")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	err = f.Truncate(int64(size))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, mke2fs, "-q", "-F", "-t", "ext4",
		"-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", "-m", "0", path).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	return path, nil
}
