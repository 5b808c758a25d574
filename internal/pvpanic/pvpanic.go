// Package pvpanic is QEMU's pvpanic device (docs/specs/pvpanic.rst): one port
// through which a guest's kernel reports that it has crashed.
//
//	p := pvpanic.New(pvpanic.Config{OnCrash: crashed})
//	err := ports.Map(pvpanic.Base, pvpanic.Size, p)
package pvpanic

import (
	"fmt"

	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vm/device"
)

// The device's place on the port bus.
const (
	Base = platform.PortPvpanic
	Size = 1
)

// Events, as bits of the port. A read gives those that the host listens to.
const (
	eventPanicked    = 1 << 0
	eventCrashLoaded = 1 << 1
)

// Config has a callback for each event. They are called on the CPU's
// goroutine, as often as the guest likes, and must not block. An event whose
// callback is nil is not offered to the guest, and ignored.
type Config struct {
	// OnCrash says that the guest's kernel has panicked and will do nothing
	// about it.
	OnCrash func()
	// OnCrashLoaded says that it has panicked and now runs a crash kernel of
	// its own, which should be let finish.
	OnCrashLoaded func()
}

// Device is the device. Its methods may be called from any goroutine.
type Device struct {
	cfg Config
}

var (
	_ device.Handler  = (*Device)(nil)
	_ device.Stateful = (*Device)(nil)
)

// New returns a device.
func New(cfg Config) *Device { return &Device{cfg: cfg} }

// Read gives the events offered.
func (d *Device) Read(_ uint64, p []byte) {
	clear(p)
	if len(p) == 0 {
		return
	}
	if d.cfg.OnCrash != nil {
		p[0] |= eventPanicked
	}
	if d.cfg.OnCrashLoaded != nil {
		p[0] |= eventCrashLoaded
	}
}

// Write reports events.
func (d *Device) Write(_ uint64, p []byte) {
	if len(p) == 0 {
		return
	}
	if p[0]&eventPanicked != 0 && d.cfg.OnCrash != nil {
		d.cfg.OnCrash()
	}
	if p[0]&eventCrashLoaded != 0 && d.cfg.OnCrashLoaded != nil {
		d.cfg.OnCrashLoaded()
	}
}

// stateVersion names the layout of the state, which is empty.
const stateVersion = 1

// Save returns the device's state: nothing but its version.
func (d *Device) Save() (device.State, error) {
	return device.EncodeState(stateVersion, struct{}{})
}

// Load takes a state from Save.
func (d *Device) Load(s device.State) error {
	var empty struct{}
	if err := s.Decode(stateVersion, &empty); err != nil {
		return fmt.Errorf("pvpanic: %w", err)
	}
	return nil
}
