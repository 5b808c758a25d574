package virtio

import "encoding/binary"

// Control events (virtio 1.2, section 5.3.6.2).
const (
	consoleDeviceReady = 0
	consoleDeviceAdd   = 1
	consolePortReady   = 3
	consoleConsolePort = 4
	consoleResize      = 5
	consolePortOpen    = 6
	consolePortName    = 7
)

// Messages that a port has for the driver, in the order in which they go out.
// They are kept as bits and made from the port's state when the driver has a
// buffer, so that no guest can make them pile up.
const (
	sendAdd = 1 << iota
	sendConsole
	sendName
	sendOpen
	sendResize
)

// announce marks messages for sending. Before the driver knows the port there
// is nothing to tell it.
func (p *consolePort) announce(bits uint8) {
	if p.ready {
		p.toSend |= bits
	}
}

// takeControl handles the driver's messages. mu is held; what it returns, if
// not nil, is to be called without it.
func (d *Console) takeControl() (event func()) {
	q := d.queues[consoleCtrlTx]
	if q == nil {
		return nil
	}
	var changed []*consolePort
	for q.Pop(&d.chain) {
		var b [8]byte
		n := d.chain.CopyIn(b[:], 0)
		q.Push(&d.chain, 0)
		id := binary.LittleEndian.Uint32(b[0:])
		value := binary.LittleEndian.Uint16(b[6:])
		if n < len(b) {
			continue
		}
		if binary.LittleEndian.Uint16(b[4:]) == consoleDeviceReady {
			if value == 1 {
				for _, p := range d.ports {
					p.toSend |= sendAdd
				}
			}
			continue
		}
		if id >= uint32(len(d.ports)) {
			continue
		}
		p := d.ports[id]
		switch binary.LittleEndian.Uint16(b[4:]) {
		case consolePortReady:
			p.ready = value == 1
			p.toSend = 0
			if !p.ready {
				break
			}
			if id == 0 {
				p.announce(sendConsole | sendOpen)
				if d.cols != 0 || d.rows != 0 {
					p.announce(sendResize)
				}
			} else {
				p.announce(sendName | sendOpen)
			}
		case consolePortOpen:
			if open := value == 1; open != p.guestOpen {
				p.guestOpen = open
				changed = append(changed, p)
			}
		}
	}
	q.Publish()
	d.sendControl()
	for _, p := range changed {
		d.receive(p)
	}
	if len(changed) == 0 {
		return nil
	}
	opened := make([]bool, len(changed))
	for i, p := range changed {
		opened[i] = p.guestOpen
	}
	return func() {
		for i, p := range changed {
			if p.cfg.Opened != nil {
				p.cfg.Opened(opened[i])
			}
		}
	}
}

// sendControl sends the messages that wait, as far as the driver has buffers.
// mu is held.
func (d *Console) sendControl() {
	q := d.queues[consoleCtrlRx]
	if q == nil {
		return
	}
	defer q.Publish()
	for _, p := range d.ports {
		for bit := uint8(sendAdd); bit <= sendResize; bit <<= 1 {
			if p.toSend&bit == 0 {
				continue
			}
			if !q.Pop(&d.chain) {
				return
			}
			p.toSend &^= bit
			msg := d.control(p, bit)
			if uint32(len(msg)) > d.chain.WriteLen {
				msg = nil // the driver must offer more (section 5.3.6.2.2); it has lost this one
			}
			q.Push(&d.chain, uint32(d.chain.CopyOut(msg, 0)))
		}
	}
}

// control makes a message in d.msg.
func (d *Console) control(p *consolePort, bit uint8) []byte {
	msg := d.msg[:8]
	le := binary.LittleEndian
	le.PutUint32(msg[0:], uint32(p.index))
	event, value := uint16(0), uint16(1)
	switch bit {
	case sendAdd:
		event = consoleDeviceAdd
	case sendConsole:
		event = consoleConsolePort
	case sendName:
		event = consolePortName
		msg = append(msg, p.cfg.Name...)
	case sendOpen:
		event = consolePortOpen
		if !p.hostOpen {
			value = 0
		}
	case sendResize:
		// Linux took the two the other way round until the fix "virtio_console:
		// fix order of fields cols and rows" of 2025, which is in its stable
		// releases.
		event = consoleResize
		msg = le.AppendUint16(msg, d.cols)
		msg = le.AppendUint16(msg, d.rows)
	}
	le.PutUint16(msg[4:], event)
	le.PutUint16(msg[6:], value)
	return msg
}
