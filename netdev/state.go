package netdev

import (
	"errors"
	"fmt"

	"github.com/vmkit-go/vmkit/vm/device"
)

const stateVersion = 1

// state is the device's saved state.
type state struct {
	Queues    int         `json:"queues"` // queue pairs that exist
	MTU       int         `json:"mtu"`
	Permanent []byte      `json:"permanentMAC"`
	MAC       []byte      `json:"mac"`
	Unplugged bool        `json:"unplugged"` // by SetLink
	Announce  bool        `json:"announce"`  // asked for, not yet acknowledged
	Active    bool        `json:"active"`
	Pairs     int         `json:"pairs"` // queue pairs in use
	Offloads  uint64      `json:"offloads"`
	Filter    filterState `json:"filter"`
	Backlog   []heldFrame `json:"backlog,omitempty"`
}

type filterState struct {
	Promisc     bool     `json:"promisc"`
	AllMulti    bool     `json:"allMulti"`
	AllUni      bool     `json:"allUni"`
	NoMulti     bool     `json:"noMulti"`
	NoUni       bool     `json:"noUni"`
	NoBroadcast bool     `json:"noBroadcast"`
	UniAll      bool     `json:"uniAll"`
	MultiAll    bool     `json:"multiAll"`
	Uni         [][]byte `json:"uni,omitempty"`
	Multi       [][]byte `json:"multi,omitempty"`
}

// heldFrame is a received frame, after its header, that waits for buffers.
type heldFrame struct {
	Pair int    `json:"pair"`
	Data []byte `json:"data"`
}

// Save implements [device.Stateful].
func (d *Device) Save() (device.State, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.active && !d.paused {
		return device.State{}, errors.New("net: save: the device is not paused")
	}
	f := d.filter.Load()
	s := state{
		Queues: len(d.pairs), MTU: d.cfg.MTU, Permanent: d.cfg.MAC,
		Active: d.active || d.loaded, Pairs: d.current, Offloads: d.offloads,
		Filter: filterState{
			Promisc: f.promisc, AllMulti: f.allMulti, AllUni: f.allUni,
			NoMulti: f.noMulti, NoUni: f.noUni, NoBroadcast: f.noBroadcast,
			UniAll: f.uni.all, MultiAll: f.multi.all,
			Uni: f.uni.list(), Multi: f.multi.list(),
		},
	}
	for i, p := range d.pairs {
		p.rx.mu.Lock()
		for _, b := range p.rx.backlog {
			s.Backlog = append(s.Backlog, heldFrame{i, b})
		}
		p.rx.mu.Unlock()
	}
	d.confMu.Lock()
	defer d.confMu.Unlock()
	s.MAC = d.mac[:]
	s.Unplugged = d.unplugged&unpluggedHere != 0
	s.Announce = d.status&statusAnnounce != 0
	return device.EncodeState(stateVersion, &s)
}

func (t *table) list() [][]byte {
	var l [][]byte
	for i := range t.macs {
		l = append(l, t.macs[i][:])
	}
	return l
}

// Load implements [device.Stateful]. The device must have as many queue pairs
// as the saved one; its MTU and addresses become those of the saved one. The
// endpoint may be another.
func (d *Device) Load(st device.State) error {
	var s state
	if err := st.Decode(stateVersion, &s); err != nil {
		return fmt.Errorf("net: %w", err)
	}
	if err := d.load(&s); err != nil {
		return fmt.Errorf("net: load: %w", err)
	}
	return nil
}

func (d *Device) load(s *state) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	flt := &filter{
		promisc: s.Filter.Promisc, allMulti: s.Filter.AllMulti, allUni: s.Filter.AllUni,
		noMulti: s.Filter.NoMulti, noUni: s.Filter.NoUni, noBroadcast: s.Filter.NoBroadcast,
		uni: table{all: s.Filter.UniAll}, multi: table{all: s.Filter.MultiAll},
	}
	switch {
	case d.active:
		return errors.New("the device is active")
	case d.host == nil:
		return errors.New("the device is not attached")
	case s.Queues != len(d.pairs):
		return fmt.Errorf("saved with %d queue pairs, have %d", s.Queues, len(d.pairs))
	case s.MTU != 0 && (s.MTU < minMTU || s.MTU > maxMTU) || (s.MTU != 0) != (d.cfg.MTU != 0):
		return fmt.Errorf("saved with MTU %d, have %d", s.MTU, d.cfg.MTU)
	case !goodMAC(s.Permanent) || !goodMAC(s.MAC):
		return fmt.Errorf("MAC addresses %x, %x", s.Permanent, s.MAC)
	case s.Pairs < 1 || s.Pairs > len(d.pairs):
		return fmt.Errorf("%d of %d queue pairs in use", s.Pairs, len(d.pairs))
	case s.Offloads&^guestOffloadBits != 0:
		return fmt.Errorf("offloads %#x", s.Offloads)
	case !flt.uni.load(s.Filter.Uni) || !flt.multi.load(s.Filter.Multi):
		return errors.New("bad address table")
	case !s.Active && len(s.Backlog) != 0:
		return errors.New("frames of an inactive device")
	}
	for _, f := range s.Backlog {
		if f.Pair < 0 || f.Pair >= len(d.pairs) || len(f.Data) < HeaderLen+MinFrame || len(f.Data) > HeaderLen+MaxFrame {
			return fmt.Errorf("frame of %d bytes for queue pair %d", len(f.Data), f.Pair)
		}
	}
	d.forget()
	for _, f := range s.Backlog {
		r := &d.pairs[f.Pair].rx
		r.mu.Lock()
		b := r.hold(len(f.Data))
		copy(b, f.Data)
		r.mu.Unlock()
		if b == nil {
			d.forget()
			return fmt.Errorf("too many frames for queue pair %d", f.Pair)
		}
	}
	d.cfg.MTU = s.MTU
	d.cfg.MAC = s.Permanent
	d.current, d.offloads = s.Pairs, s.Offloads
	flt.own = [6]byte(s.MAC)
	d.filter.Store(flt)
	d.loaded = s.Active
	d.announce.Store(s.Active)
	d.confMu.Lock()
	copy(d.mac[:], s.MAC)
	d.unplugged &^= unpluggedHere
	if s.Unplugged {
		d.unplugged |= unpluggedHere
	}
	d.status = statusLinkUp
	if d.unplugged != 0 {
		d.status = 0
	}
	d.link.Store(d.unplugged == 0)
	if s.Announce {
		d.status |= statusAnnounce
	}
	d.confMu.Unlock()
	return nil
}

func (t *table) load(list [][]byte) bool {
	if len(list) > maxMACs {
		return false
	}
	for _, a := range list {
		if len(a) != 6 {
			return false
		}
		t.macs = append(t.macs, [6]byte(a))
	}
	return true
}
