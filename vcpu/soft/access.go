package soft

import (
	"encoding/binary"

	"github.com/vmkit-go/vmkit/vcpu"
)

// An access to a device leaves the guest. A read aborts its instruction, which
// changes nothing; the caller of Run serves it, and the instruction runs again, before
// anything else, and finds the answer. Writes are posted: the instruction completes, and
// its writes are the next exits. Answers are kept until the instruction has run to its
// end, since it may read more than once.

// maxAccesses bounds what one instruction asks of devices: XRSTOR from a device's
// registers reads 64-bit words.
const maxAccesses = 128

// deviceAccess is one access of an instruction to a device.
type deviceAccess struct {
	port  bool
	write bool
	size  uint8
	addr  uint64
	value uint64
}

// access is what an instruction has asked of devices.
type access struct {
	gpa uint64 // of the access that touch found to be a device's

	answers [maxAccesses]deviceAccess // reads, in order
	known   int                       // answers that there are
	used    int                       // of these, used by the instruction that runs

	ask    deviceAccess // the read that the instruction waits for
	asking bool

	posted [maxAccesses]deviceAccess
	first  int // the next to be written
	count  int // posted in all

	buf [8]byte // Exit.Data
}

// pending reports whether an exit is due before another instruction runs.
func (a *access) pending() bool { return a.asking || a.first < a.count }

// retired says that the instruction is complete.
func (a *access) retired() { a.known, a.used = 0, 0 }

// readDevice reads the register that touch has found.
func (c *CPU) readDevice(size uint8) (uint64, stop) {
	if v, ok := c.e.readChip(c, c.access.gpa, size); ok {
		return v, next
	}
	return c.askDevice(deviceAccess{size: size, addr: c.access.gpa})
}

// writeDevice writes to it.
func (c *CPU) writeDevice(size uint8, v uint64) stop {
	if c.e.writeChip(c, c.access.gpa, size, v) {
		return leave
	}
	return c.post(deviceAccess{write: true, size: size, addr: c.access.gpa, value: v})
}

// askDevice gives the answer to a read if it is there, or else aborts.
func (c *CPU) askDevice(d deviceAccess) (uint64, stop) {
	a := &c.access
	if a.used < a.known {
		got := &a.answers[a.used]
		if got.port == d.port && got.addr == d.addr && got.size == d.size {
			a.used++
			return got.value, next
		}
		// What the instruction asks has changed under it; begin again.
		a.known, a.used = 0, 0
	}
	if a.known == maxAccesses {
		return 0, c.gp()
	}
	a.ask, a.asking, a.used = d, true, 0
	return 0, abort
}

// post queues a write. The block has to end after the instruction.
func (c *CPU) post(d deviceAccess) stop {
	a := &c.access
	if a.count == maxAccesses {
		return c.gp()
	}
	a.posted[a.count] = d
	a.count++
	return leave
}

// exit describes the access that is due. There is one.
func (a *access) exit(e *vcpu.Exit) {
	d := &a.ask
	if !a.asking {
		d = &a.posted[a.first]
		binary.LittleEndian.PutUint64(a.buf[:], d.value)
	}
	*e = vcpu.Exit{Reason: vcpu.ExitMMIO, Write: d.write, Addr: d.addr, Data: a.buf[:d.size:d.size]}
	if d.port {
		*e = vcpu.Exit{Reason: vcpu.ExitIO, Write: d.write, Port: uint16(d.addr), Size: d.size, Count: 1, Data: e.Data}
	}
}

// served takes the caller's answer to the last exit.
func (a *access) served() {
	if !a.asking {
		a.first++
		if a.first == a.count {
			a.first, a.count = 0, 0
		}
		return
	}
	a.ask.value = binary.LittleEndian.Uint64(a.buf[:]) & maskOf(a.ask.size)
	a.answers[a.known] = a.ask
	a.known++
	a.asking = false
}
