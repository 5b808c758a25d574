package kvmcpu

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/vm/device"
)

// doorbell is an eventfd that KVM signals when the guest writes.
//
// Wait blocks in read(2) on a thread of its own rather than in the runtime's
// poller: a poller's wake-up takes a second thread and a second read.
type doorbell struct {
	e    *Engine
	conf kvm.IOEventFD
	lent bool // the eventfd is somebody else's

	mu     sync.Mutex
	gone   sync.Cond // users became 0
	users  int       // in Wait or Ring
	closed bool
}

// Doorbell claims guest writes to an address; see [device.Doorbells].
func (e *Engine) Doorbell(addr uint64, size int, match *uint64) (device.Doorbell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("kvmcpu: doorbell at %#x: %w", addr, err)
	}
	d, err := e.doorbell(fd, false, addr, size, match)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return d, nil
}

// DoorbellTo implements [device.EventDoorbells].
func (e *Engine) DoorbellTo(event int, addr uint64, size int, match *uint64) (device.Doorbell, error) {
	return e.doorbell(event, true, addr, size, match)
}

func (e *Engine) doorbell(fd int, lent bool, addr uint64, size int, match *uint64) (device.Doorbell, error) {
	switch size {
	case 1, 2, 4, 8:
	default:
		return nil, fmt.Errorf("%w: doorbell of %d bytes", ErrConfig, size)
	}
	d := &doorbell{e: e, lent: lent, conf: kvm.IOEventFD{Addr: addr, Len: uint32(size), FD: fd}}
	d.gone.L = &d.mu
	if match != nil {
		d.conf.Flags = kvm.IOEventFDDatamatch
		d.conf.Datamatch = *match
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("kvmcpu: doorbell at %#x: %w", addr, kvm.ErrClosed)
	}
	if err := e.vm.IOEventFD(d.conf); err != nil {
		return nil, err
	}
	e.doorbells[d] = struct{}{}
	return d, nil
}

func (d *doorbell) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.users++
	return true
}

func (d *doorbell) leave() (closed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.users--
	if d.closed {
		if d.users == 0 {
			d.gone.Signal()
		} else {
			d.signal() // pass the wake-up on to the next waiter
		}
	}
	return d.closed
}

// Wait blocks until the guest has written since the last Wait.
func (d *doorbell) Wait() error {
	if !d.enter() {
		return d.errClosed()
	}
	var err error
	for {
		if err = readEvent(d.conf.FD); err != unix.EINTR {
			break
		}
	}
	if d.leave() {
		return d.errClosed()
	}
	if err != nil {
		return fmt.Errorf("kvmcpu: doorbell at %#x: %w", d.conf.Addr, err)
	}
	return nil
}

func (d *doorbell) errClosed() error {
	return fmt.Errorf("kvmcpu: doorbell at %#x: %w", d.conf.Addr, os.ErrClosed)
}

// Ring makes one Wait return.
func (d *doorbell) Ring() {
	if d.enter() {
		d.signal()
		d.leave()
	}
}

func (d *doorbell) signal() {
	// It fails only with EINTR, or would block at 2^64-2 rings.
	for writeEvent(d.conf.FD) == unix.EINTR {
	}
}

// Close gives the address back to the bus and ends Wait. It returns when nobody
// uses the descriptor. A second Close does nothing.
func (d *doorbell) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	conf := d.conf
	conf.Flags |= kvm.IOEventFDDeassign
	err := d.e.vm.IOEventFD(conf)
	if d.users > 0 {
		d.signal()
	}
	for d.users > 0 {
		d.gone.Wait()
	}
	if !d.lent {
		unix.Close(d.conf.FD)
	}
	d.mu.Unlock()

	d.e.mu.Lock()
	delete(d.e.doorbells, d)
	d.e.mu.Unlock()
	return err
}
