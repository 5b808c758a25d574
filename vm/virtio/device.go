// Package virtio implements virtio 1.2 (OASIS virtio-v1.2): split virtqueues,
// the PCI and MMIO transports, and the console and entropy devices. Block and
// network devices live in packages disk and netdev; any other program can add
// a device of its own by implementing [Device].
//
// A device sees its guest only through the [Host] it was attached to and the
// queues it was activated with:
//
//	func (d *Echo) Notify(q int) {
//		c := &d.chain
//		for d.queues[q].Pop(c) {
//			n := 0
//			for _, b := range c.Readable {
//				n += c.CopyOut(b, n)
//			}
//			d.queues[q].Push(c, uint32(n))
//		}
//		d.queues[q].Publish()
//	}
//
// [NewPCI] and [NewMMIO] put a device behind a transport; package vm does that
// for the devices of a machine. Package virtiotest has the driver's side for
// tests.
package virtio

import (
	"log/slog"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vm/device"
)

// Type is a virtio device type (virtio 1.2, section 5).
type Type uint16

// Device types of this module.
const (
	TypeNet     Type = 1
	TypeBlock   Type = 2
	TypeConsole Type = 3
	TypeEntropy Type = 4
)

// Feature bits that belong to no single device type (virtio 1.2, section 6).
// The transports offer IndirectDesc, EventIdx and Version1 for every device.
const (
	FeatureIndirectDesc uint64 = 1 << 28
	FeatureEventIdx     uint64 = 1 << 29
	FeatureVersion1     uint64 = 1 << 32
)

// Device is one virtio device, whatever the transport. The transport calls it
// in this order: Attach once; then any number of rounds of Activate, Notify,
// Pause, Resume and Reset; Close at the end. Only Notify, ReadConfig and
// WriteConfig may be called concurrently, and Notify never twice at once for
// the same queue.
type Device interface {
	// Type is the device type.
	Type() Type
	// Features are the device-specific feature bits offered.
	Features() uint64
	// QueueSizes holds the maximum size of each queue, powers of two of at
	// most 32768. It does not change after Attach.
	QueueSizes() []uint16
	// ReadConfig reads the device-specific configuration space, zeroes past
	// its end. WriteConfig writes it; writes to read-only fields are dropped.
	ReadConfig(off uint32, p []byte)
	WriteConfig(off uint32, p []byte)

	// Attach gives the device its place in a machine.
	Attach(h *Host) error
	// Activate is called when the driver sets DRIVER_OK, or when a machine
	// with an active device was loaded. queues has an entry for each of
	// QueueSizes; a queue that the driver left disabled is nil. An error
	// makes the device demand a reset.
	Activate(features uint64, queues []*Queue) error
	// Notify says that queue q may hold new buffers. It runs on a goroutine
	// of that queue or on the CPU that rang. It may wait for the host's
	// disk, but not for something that may never happen: Pause and Reset
	// wait for it to return; see Yielder. Where the device's port says
	// Prompt, all that is asked for in the queue is done, and its completion
	// posted, before Notify returns.
	Notify(q int)
	// Pause returns when no request is in flight and nothing of the device
	// will touch guest memory before Resume. Chains that the device holds
	// without having begun to answer them are put back with Queue.Unpop, or
	// named with Queue.Keep where others after them were answered already.
	// The transport re-notifies every queue after Resume. A paused device
	// may be saved; to be loaded it is paused first and sees Reset, Load,
	// Activate if the driver was ready, and then Resume.
	Pause()
	Resume()
	// Reset returns the device to its state after Attach, with no request
	// in flight and the queues forgotten.
	Reset()
	// Close releases what the device owns. It is called once, after a Reset.
	Close() error

	device.Stateful
}

// Yielder is a [Device] whose Notify may wait, on a prompt machine (see
// device.Port), for somebody outside who may never come, such as the reader of
// a terminal.
type Yielder interface {
	// Yield makes a Notify that waits so return soon, and later ones not
	// wait, until Resume. What is left undone stays in the queue, which is
	// notified after Resume. It may be called from any goroutine, during
	// any other call.
	Yield()
}

// Waiter is implemented by a device that waits for doorbells itself, because the
// thread that does has something else to wait for.
type Waiter interface {
	// EventFD is the eventfd that the doorbell of queue q rings, or -1 if the
	// transport is to wait for it. Whenever it was rung the device calls
	// Host.Drain; until the device is reset it is open.
	EventFD(q int) int
}

// Host is what a device knows of its machine.
type Host struct {
	// Name is unique in the machine and stable across save and load: the
	// type and an ordinal, such as "blk0".
	Name string
	// Memory is the guest's memory.
	Memory *memory.Memory
	// Inbox is the way in for everything from outside.
	Inbox device.Inbox
	// ConfigChanged raises a configuration change interrupt.
	ConfigChanged func()
	// Drain is for a [Waiter]: it calls Notify for queue q, unless nothing may
	// run now or it runs elsewhere, and reports whether Drain shall be called
	// again.
	Drain func(q int) (more bool)
	// Log is never nil.
	Log *slog.Logger
}
