package virtio

import (
	"fmt"

	"github.com/vmkit-go/vmkit/vm/device"
)

// consoleState is version 1 of the saved state.
type consoleState struct {
	Cols  uint16             `json:"cols"`
	Rows  uint16             `json:"rows"`
	Ports []consolePortState `json:"ports"`
}

type consolePortState struct {
	Name      string `json:"name"`
	Ready     bool   `json:"ready"`
	GuestOpen bool   `json:"guest_open"`
	HostOpen  bool   `json:"host_open"`
	ToSend    uint8  `json:"to_send"`
	Pending   []byte `json:"pending"`
	TxDone    uint32 `json:"tx_done"`
}

// Save returns the state: what the guest knows of the ports, and the input
// that it has not got. Output that the device has taken is the host's, and
// goes to Out.
func (d *Console) Save() (device.State, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := consoleState{Cols: d.cols, Rows: d.rows}
	for _, p := range d.ports {
		st.Ports = append(st.Ports, consolePortState{
			Name: p.cfg.Name, Ready: p.ready, GuestOpen: p.guestOpen, HostOpen: p.hostOpen,
			ToSend: p.toSend, Pending: p.pending, TxDone: p.txDone,
		})
	}
	return device.EncodeState(1, st)
}

// Load replaces the state by a saved one.
func (d *Console) Load(s device.State) error {
	var st consoleState
	if err := s.Decode(1, &st); err != nil {
		return err
	}
	if err := d.checkState(&st); err != nil {
		return err
	}
	var opened []func(bool)
	d.mu.Lock()
	d.cols, d.rows = st.Cols, st.Rows
	for i, ps := range st.Ports {
		p := d.ports[i]
		p.ready, p.guestOpen = ps.Ready, ps.GuestOpen
		p.toSend, p.txDone = ps.ToSend, ps.TxDone
		if p.hostOpen = true; !ps.HostOpen {
			p.announce(sendOpen) // the new In has not ended yet
		}
		p.restore(ps.Pending)
		if p.guestOpen && p.cfg.Opened != nil {
			opened = append(opened, p.cfg.Opened)
		}
	}
	d.mu.Unlock()
	for _, f := range opened {
		f(true)
	}
	return nil
}

func (d *Console) checkState(st *consoleState) error {
	if len(st.Ports) != len(d.ports) {
		return fmt.Errorf("%w: %d console ports, want %d", ErrState, len(st.Ports), len(d.ports))
	}
	for i, ps := range st.Ports {
		switch p := d.ports[i]; {
		case ps.Name != p.cfg.Name:
			return fmt.Errorf("%w: console port %d is %q, want %q", ErrState, i, ps.Name, p.cfg.Name)
		case len(ps.Pending) > portBuffer:
			return fmt.Errorf("%w: console port %d: %d bytes of input, at most %d", ErrState, i, len(ps.Pending), portBuffer)
		case ps.ToSend >= sendResize<<1:
			return fmt.Errorf("%w: console port %d: messages %#x", ErrState, i, ps.ToSend)
		}
	}
	return nil
}
