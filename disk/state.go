package disk

import (
	"fmt"

	"github.com/vmkit-go/vmkit/vm/device"
)

const stateVersion = 1

// savedState is a Device in saved state. The disk's content is not part of it.
type savedState struct {
	Capacity  uint64 `json:"capacity"` // sectors
	Queues    int    `json:"queues"`
	QueueSize int    `json:"queueSize"`
	BlockSize int    `json:"blockSize"`
	ReadOnly  bool   `json:"readOnly"`
	Serial    string `json:"serial"`
	Writeback bool   `json:"writeback"`
	Epoch     uint16 `json:"epoch"`
}

// Save returns the device's state, without the content of the disk.
func (d *Device) Save() (device.State, error) {
	return device.EncodeState(stateVersion, savedState{
		Capacity:  d.capacity.Load(),
		Queues:    d.cfg.Queues,
		QueueSize: d.cfg.QueueSize,
		BlockSize: d.cfg.BlockSize,
		ReadOnly:  d.cfg.ReadOnly,
		Serial:    d.cfg.Serial,
		Writeback: d.writeback.Load(),
		Epoch:     d.epoch,
	})
}

// Load takes over state that a device of the same configuration saved. The
// backend must hold at least what the guest knew as the disk's size; that its
// content is the right one is the caller's care.
func (d *Device) Load(st device.State) error {
	var s savedState
	err := st.Decode(stateVersion, &s)
	switch {
	case err != nil:
	case s.Capacity > d.sectors():
		err = fmt.Errorf("saved disk has %d sectors, this one %d", s.Capacity, d.sectors())
	case s.Queues != d.cfg.Queues || s.QueueSize != d.cfg.QueueSize:
		err = fmt.Errorf("saved device has %d queues of %d, this one %d of %d",
			s.Queues, s.QueueSize, d.cfg.Queues, d.cfg.QueueSize)
	case s.BlockSize != d.cfg.BlockSize:
		err = fmt.Errorf("saved block size is %d, this one's %d", s.BlockSize, d.cfg.BlockSize)
	case s.ReadOnly != d.cfg.ReadOnly:
		err = fmt.Errorf("saved disk has read-only %v, this one %v", s.ReadOnly, d.cfg.ReadOnly)
	case s.Serial != d.cfg.Serial:
		err = fmt.Errorf("saved serial is %q, this one's %q", s.Serial, d.cfg.Serial)
	}
	if err != nil {
		return fmt.Errorf("disk %s: load: %w", d.info.Name, err)
	}
	d.capacity.Store(s.Capacity)
	d.writeback.Store(s.Writeback)
	d.epoch = s.Epoch
	return nil
}
