package netdev

import (
	"encoding/binary"
)

// Control commands (virtio 1.2, section 5.1.6.5): class and command as one
// number.
const (
	ctrlPromisc     = 0x000
	ctrlAllMulti    = 0x001
	ctrlAllUni      = 0x002
	ctrlNoMulti     = 0x003
	ctrlNoUni       = 0x004
	ctrlNoBroadcast = 0x005
	ctrlMACTable    = 0x100
	ctrlMACAddr     = 0x101
	ctrlAnnounceAck = 0x300
	ctrlMQPairs     = 0x400
	ctrlOffloads    = 0x500
)

const (
	ctrlOK  = 0
	ctrlErr = 1
)

// maxCommand is more than any command that is understood: two address tables
// in full.
const maxCommand = 2 + 2*(4+6*maxMACs)

// control serves the control queue. d.mu is held.
func (d *Device) control() {
	if d.ctrl == nil {
		return
	}
	c := &d.chain
	for d.ctrl.Pop(c) {
		var buf [maxCommand]byte
		cmd := buf[:c.CopyIn(buf[:], 0)]
		ack := []byte{ctrlErr}
		if c.WriteLen > 0 && len(cmd) >= 2 &&
			d.command(int(cmd[0])<<8|int(cmd[1]), cmd[2:], uint64(c.ReadLen)-2, func(p []byte, off int) bool { return c.CopyIn(p, off) == len(p) }) {
			ack[0] = ctrlOK
		}
		d.ctrl.Push(c, uint32(c.CopyOut(ack, 0)))
	}
	d.ctrl.Publish()
}

// command carries out one command and reports whether that was possible. p is
// the first part of its n bytes of data; at reads the command from any offset.
func (d *Device) command(cmd int, p []byte, n uint64, at func(p []byte, off int) bool) bool {
	switch cmd {
	case ctrlPromisc, ctrlAllMulti, ctrlAllUni, ctrlNoMulti, ctrlNoUni, ctrlNoBroadcast:
		need := featCtrlRx
		if cmd >= ctrlAllUni {
			need = featCtrlRxExtra
		}
		if d.features&need == 0 || n != 1 {
			return false
		}
		f := *d.filter.Load()
		on := p[0] != 0
		switch cmd {
		case ctrlPromisc:
			f.promisc = on
		case ctrlAllMulti:
			f.allMulti = on
		case ctrlAllUni:
			f.allUni = on
		case ctrlNoMulti:
			f.noMulti = on
		case ctrlNoUni:
			f.noUni = on
		case ctrlNoBroadcast:
			f.noBroadcast = on
		}
		d.filter.Store(&f)
		return true

	case ctrlMACTable:
		if d.features&featCtrlRx == 0 {
			return false
		}
		return d.setTables(p, n, at)

	case ctrlMACAddr:
		if d.features&featCtrlMAC == 0 || n != 6 || !goodMAC(p) {
			return false
		}
		d.confMu.Lock()
		copy(d.mac[:], p)
		d.confMu.Unlock()
		f := *d.filter.Load()
		f.own = [6]byte(p)
		d.filter.Store(&f)
		return true

	case ctrlAnnounceAck:
		if d.features&featAnnounce == 0 || n != 0 {
			return false
		}
		d.confMu.Lock()
		d.status &^= statusAnnounce
		d.confMu.Unlock()
		return true

	case ctrlMQPairs:
		if d.features&featMQ == 0 || n != 2 {
			return false
		}
		return d.setPairs(int(binary.LittleEndian.Uint16(p)))

	case ctrlOffloads:
		if d.features&featGuestOffloads == 0 || n != 8 {
			return false
		}
		bits := binary.LittleEndian.Uint64(p)
		if bits&^(d.features&guestOffloadBits) != 0 {
			return false
		}
		was := d.offloads
		d.offloads = bits
		if err := d.configure(); err != nil {
			d.log().Warn("net: change offloads", "device", d.host.Name, "err", err)
			d.offloads = was
			return false
		}
		return true
	}
	return false
}

// setTables takes the unicast and the multicast table.
func (d *Device) setTables(p []byte, n uint64, at func(p []byte, off int) bool) bool {
	f := *d.filter.Load()
	first, ok := f.uni.parse(p, n)
	if !ok {
		return false
	}
	// The second table may begin past what was copied, after a long first one.
	var buf [4 + 6*maxMACs]byte
	rest := n - first
	b := buf[:min(uint64(len(buf)), rest)]
	if len(b) < 4 || !at(b, int(2+first)) {
		return false
	}
	if second, ok := f.multi.parse(b, rest); !ok || second != rest {
		return false
	}
	d.filter.Store(&f)
	return true
}

// setPairs changes the number of queue pairs in use.
func (d *Device) setPairs(n int) bool {
	if n < 1 || n > len(d.pairs) {
		return false
	}
	was := d.current
	if n < was {
		d.stop(n, was)
	}
	d.current = n
	if err := d.configure(); err != nil {
		d.log().Warn("net: change queue pairs", "device", d.host.Name, "err", err)
		d.current = was
		if n < was {
			d.start(n, was)
		}
		return false
	}
	if n > was {
		d.start(was, n)
	}
	return true
}
