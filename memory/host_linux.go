package memory

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// hostPage is the host's page: the unit in which it maps and takes back memory,
// and a multiple of PageSize. Kernels for arm64 may have 64 KiB. Tests vary it.
var hostPage = uint64(os.Getpagesize())

// openFile makes the memfd.
func (m *Memory) openFile() error {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	if m.huge {
		flags |= unix.MFD_HUGETLB | unix.MFD_HUGE_2MB
	}
	fd, err := unix.MemfdCreate("guest-memory", flags)
	if err != nil {
		return err
	}
	// Nobody who is handed the descriptor may cut memory away under us.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		unix.Close(fd)
		return fmt.Errorf("seal: %w", err)
	}
	m.fd = fd
	return nil
}

func closeFile(fd int) error { return unix.Close(fd) }

// allocate makes the memory of a region, at the end of what the memfd has in use. The
// mapping is of whole pages of the host, so it may be longer than the region.
func (m *Memory) allocate(size uint64) (mapping, error) {
	size = (size + hostPage - 1) &^ (hostPage - 1)
	flags := unix.MAP_SHARED
	if m.fd < 0 {
		flags = unix.MAP_PRIVATE | unix.MAP_ANON
		if m.huge {
			flags |= unix.MAP_HUGETLB | unix.MAP_HUGE_2MB
		}
	} else if end := m.fileUsed + int64(size); end > m.fileSize {
		if err := unix.Ftruncate(m.fd, end); err != nil {
			return mapping{}, fmt.Errorf("grow memfd to %#x: %w", end, err)
		}
		m.fileSize = end
	}
	// Without MAP_NORESERVE the kernel claims the huge pages here or fails;
	// with it a guest could run into SIGBUS later.
	if !m.huge {
		flags |= unix.MAP_NORESERVE
	}
	p, err := mmap(m.fd, m.fileUsed, uintptr(size), flags)
	if err != nil {
		if m.huge && errors.Is(err, unix.ENOMEM) {
			return mapping{}, fmt.Errorf("%w: %d of 2 MiB needed (see sysctl vm.nr_hugepages): %w", ErrNoHugePages, size/HugePageSize, err)
		}
		return mapping{}, fmt.Errorf("map %#x bytes: %w", size, err)
	}
	host := p.bytes()
	// Advice only: keep guests out of core dumps, use transparent huge pages
	// where the host allows them.
	_ = unix.Madvise(host, unix.MADV_DONTDUMP)
	if !m.huge {
		_ = unix.Madvise(host, unix.MADV_HUGEPAGE)
	}
	return p, nil
}

// barrier makes every running thread of this process pass a full memory
// barrier, so that MarkDirty need not have one while tracking is off: a
// writer's earlier store cannot be invisible to us if its load of tracking
// still gave false.
func barrier() {
	const (
		cmdGlobal                   = 1 << 0
		cmdPrivateExpedited         = 1 << 3
		cmdRegisterPrivateExpedited = 1 << 4
	)
	membarrier := func(cmd uintptr) bool {
		_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, cmd, 0, 0)
		return errno == 0
	}
	if membarrier(cmdRegisterPrivateExpedited) && membarrier(cmdPrivateExpedited) || membarrier(cmdGlobal) {
		return
	}
	// No membarrier here (a seccomp filter, perhaps). Store buffers drain
	// within microseconds.
	time.Sleep(time.Millisecond)
}
