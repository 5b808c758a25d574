// Package device is the contract between a machine and its devices, virtio or
// not: the inbox through which everything from outside reaches the guest, the
// form in which a device saves its state, the buses that carry guest accesses
// to it, and the interrupts it raises.
//
// A device never reads the host's clock, draws randomness or completes I/O
// behind the machine's back. It opens a [Port] on the machine's [Inbox] and
// lets every such input pass through it:
//
//	port, err := inbox.Open("sensor0", dev)  // dev implements Receiver
//	...
//	port.Post(seq, reading)                  // from any goroutine
//
//	func (d *Sensor) Deliver(tag uint64, data []byte) { ... } // now the guest may see it
package device

// Inbox is the one way in which anything from outside a machine reaches its
// guest. A free-running machine delivers at once, or, where its CPUs take
// turns, between two instructions; a recording one delivers at a landmark and
// writes the event to its tape; a replaying one takes the events from the tape.
type Inbox interface {
	// Open registers a source of events. The name is unique in the machine
	// and stable across save, load and replay ("blk0", "rtc").
	Open(name string, r Receiver) (Port, error)
}

// Port is one source's entrance to the inbox. Its methods may be called from
// any goroutine.
type Port interface {
	// Post hands one event to the machine, which passes it to the receiver
	// exactly once: before Post returns, or later, before the guest's next
	// instruction or at the landmark of a tape. Events of one goroutine
	// arrive in order. The caller may reuse data when Post returns.
	Post(tag uint64, data []byte)

	// Sample fills p with something from outside that the guest asks for
	// now, such as the time or random bytes. read is called for it unless
	// a tape supplies the bytes.
	Sample(p []byte, read func(p []byte) error) error

	// Direct reports whether the host may write into guest memory before
	// the completing event is posted (zero-copy input). When it is false,
	// input travels as the data of Post and reaches guest memory only in
	// Deliver.
	Direct() bool

	// Prompt reports whether what the guest asks of a device has to be done
	// before the guest goes on: on the goroutine that notifies, in the order
	// of the queue, waiting for the host where need be. Then nothing that
	// the guest can see depends on how quick the host is. What comes from
	// outside (frames, keys, a new size) is posted when it comes. It never
	// changes.
	Prompt() bool
}

// Receiver takes the events of one source. Deliver runs on an arbitrary
// goroutine; data is valid only until it returns.
type Receiver interface {
	Deliver(tag uint64, data []byte)
}

// Line is one level-triggered interrupt input of the machine's interrupt
// chips. Set may be called from any goroutine.
type Line interface {
	Set(level bool) error
}

// MSI sends message-signalled interrupts (PCI Local Bus Specification 3.0,
// section 6.8; Intel SDM volume 3, section 11.11). Signal may be called from
// any goroutine.
type MSI interface {
	Signal(addr uint64, data uint32) error
}

// Doorbells turns guest writes to fixed addresses into wake-ups of a
// goroutine, so that the writing CPU does not wait for the device.
type Doorbells interface {
	// Doorbell claims guest writes of size bytes (1, 2, 4 or 8) at a
	// guest-physical address. If match is not nil only writes of that value
	// are claimed. It returns an error wrapping errors.ErrUnsupported where
	// the engine has no such thing; the access then arrives on the bus.
	Doorbell(addr uint64, size int, match *uint64) (Doorbell, error)
}

// EventDoorbells is implemented by Doorbells that can ring an eventfd of somebody
// who waits for other things as well.
type EventDoorbells interface {
	// DoorbellTo is Doorbell with an eventfd that guest writes and Ring are
	// added to. It stays the caller's, and Wait is not to be called.
	DoorbellTo(event int, addr uint64, size int, match *uint64) (Doorbell, error)
}

// Doorbell is one claimed address.
type Doorbell interface {
	// Wait blocks until the guest has written since the last Wait, or
	// returns an error wrapping os.ErrClosed after Close.
	Wait() error
	// Ring makes one Wait return, as if the guest had written.
	Ring()
	Close() error
}

// Stateful is implemented by everything that a machine saves and loads.
// Both methods are called only while the machine is paused.
type Stateful interface {
	Save() (State, error)
	Load(State) error
}
