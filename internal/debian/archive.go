package debian

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// archive is this machine's apt, with options that keep it usable without
// root when the system's package lists are missing.
type archive struct {
	log     io.Writer
	private string   // directory for package lists of our own
	opts    []string // -o options that point apt at private, if used
	updated bool
}

func newArchive(ctx context.Context, cache string, log io.Writer) (*archive, error) {
	a := &archive{log: log, private: filepath.Join(cache, "apt")}
	if !haveLists("/var/lib/apt/lists") {
		if os.Geteuid() != 0 && haveLists(filepath.Join(a.private, "lists")) {
			a.usePrivate()
			return a, nil
		}
		fmt.Fprintln(log, "apt has no package lists: running apt-get update")
		if err := a.update(ctx); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func haveLists(dir string) bool {
	lists, _ := filepath.Glob(filepath.Join(dir, "*_Packages*"))
	return len(lists) > 0
}

// usePrivate makes apt use lists of our own.
func (a *archive) usePrivate() {
	a.opts = []string{
		"-o", "Dir::State::Lists=" + filepath.Join(a.private, "lists"),
		"-o", "Dir::Cache=" + a.private,
		"-o", "Debug::NoLocking=1",
	}
}

// update fetches the package lists: the system's as root, and otherwise lists
// in a directory of our own.
func (a *archive) update(ctx context.Context) error {
	a.updated = true
	if os.Geteuid() != 0 {
		for _, d := range []string{"lists/partial", "archives/partial"} {
			if err := os.MkdirAll(filepath.Join(a.private, d), 0o755); err != nil {
				return err
			}
		}
		a.usePrivate()
	}
	if _, err := run(ctx, "", "apt-get", append(a.opts, "-q", "update")...); err != nil {
		return fmt.Errorf("%w: %w (is the network up, and is /etc/apt/sources.list right?)", ErrUnavailable, err)
	}
	return nil
}

// download puts the .deb of each package into dir. Lists that are out of date name
// versions that the archive no longer has, so a failure is tried again once
// after an update.
func (a *archive) download(ctx context.Context, dir string, names ...string) error {
	args := func() []string { return append(append(append([]string{}, a.opts...), "-q", "download"), names...) }
	_, err := run(ctx, dir, "apt-get", args()...)
	if err != nil && !a.updated && ctx.Err() == nil {
		what := names[0]
		if len(names) > 1 {
			what = fmt.Sprintf("%s or one of %d others", what, len(names)-1)
		}
		fmt.Fprintf(a.log, "%s is not to be had with the present package lists: running apt-get update\n", what)
		if err := a.update(ctx); err != nil {
			return err
		}
		_, err = run(ctx, dir, "apt-get", args()...)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// depends returns the names in a package's Depends field, in order.
func (a *archive) depends(ctx context.Context, name string) ([]string, error) {
	query := func() (string, error) {
		return run(ctx, "", "apt-cache", append(append([]string{}, a.opts...), "depends", "--important", name)...)
	}
	out, err := query()
	if err != nil && !a.updated && ctx.Err() == nil {
		if err := a.update(ctx); err != nil {
			return nil, err
		}
		out, err = query()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	var names []string
	for line := range strings.Lines(out) {
		if dep, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok {
			names = append(names, strings.TrimSpace(dep))
		}
	}
	return names, nil
}

// waitLock polls for the lock, so that a cancelled context ends the wait.
func waitLock(ctx context.Context, f *os.File) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
			return err
		}
	}
}
