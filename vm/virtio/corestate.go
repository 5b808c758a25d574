package virtio

import (
	"fmt"

	"github.com/vmkit-go/vmkit/vm/device"
)

// coreState is the saved form of core, the same for both transports.
type coreState struct {
	Type           Type         `json:"type"`
	Status         uint32       `json:"status"`
	DeviceSel      uint32       `json:"device_feature_select"`
	DriverSel      uint32       `json:"driver_feature_select"`
	DriverFeatures uint64       `json:"driver_features"`
	QueueSel       uint16       `json:"queue_select"`
	Queues         []queueState `json:"queues"`
	ConfigVector   uint16       `json:"config_vector"`
	Generation     uint32       `json:"generation"`
	ConfigPending  bool         `json:"config_pending"`
	Device         device.State `json:"device"`
}

type queueState struct {
	Size    uint16 `json:"size"`
	Enabled bool   `json:"enabled"`
	Desc    uint64 `json:"desc"`
	Avail   uint64 `json:"avail"`
	Used    uint64 `json:"used"`
	Vector  uint16 `json:"vector"`
	Next    uint16 `json:"next"`
	// Kept are heads of chains in flight that the device keeps.
	Kept []uint16 `json:"kept,omitempty"`
}

// save is called with mu held.
func (t *core) save() (coreState, error) {
	if !t.paused {
		return coreState{}, fmt.Errorf("%w %q: save while running", ErrDevice, t.host.Name)
	}
	st := coreState{
		Type: t.dev.Type(), Status: t.status.Load(),
		DeviceSel: t.deviceSel, DriverSel: t.driverSel, DriverFeatures: t.driverFeatures,
		QueueSel: t.queueSel, ConfigVector: t.configVector, Generation: t.generation.Load(),
	}
	t.configMu.Lock()
	st.ConfigPending = t.configPending
	t.configMu.Unlock()
	for _, r := range t.queues {
		st.Queues = append(st.Queues, queueState{
			Size: r.Size, Enabled: r.Enabled, Desc: r.Desc, Avail: r.Avail, Used: r.Used, Vector: r.Vector,
		})
	}
	var err error
	t.eachRunner(func(i int, r *runner) {
		next, kept, e := r.queue.Save()
		if e != nil && err == nil {
			err = fmt.Errorf("%s: %w", t.host.Name, e)
		}
		st.Queues[i].Next, st.Queues[i].Kept = next, kept
	})
	if err != nil {
		return coreState{}, err
	}
	if st.Device, err = t.dev.Save(); err != nil {
		return coreState{}, fmt.Errorf("%s: %w", t.host.Name, err)
	}
	return st, nil
}

// check validates st against the device before anything is changed. vectors
// is the number of MSI-X vectors.
func (t *core) check(st *coreState, vectors int) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%s: %w: %w", t.host.Name, ErrState, fmt.Errorf(format, args...))
	}
	if st.Type != t.dev.Type() {
		return fail("device type %d, want %d", st.Type, t.dev.Type())
	}
	if len(st.Queues) != len(t.maxSizes) {
		return fail("%d queues, want %d", len(st.Queues), len(t.maxSizes))
	}
	s := st.Status &^ StatusNeedsReset
	for _, step := range statusSteps {
		if s&step.bit != 0 && s&step.need != step.need {
			return fail("status %#x", st.Status)
		}
	}
	if s&^(StatusAcknowledge|StatusDriver|StatusFeaturesOK|StatusDriverOK|StatusFailed) != 0 {
		return fail("status %#x", st.Status)
	}
	if s&StatusFeaturesOK != 0 && (st.DriverFeatures&^t.offered != 0 || st.DriverFeatures&FeatureVersion1 == 0) {
		return fail("features %#x of %#x", st.DriverFeatures, t.offered)
	}
	badVector := func(v uint16) bool { return v != noVector && int(v) >= vectors }
	if badVector(st.ConfigVector) {
		return fail("configuration vector %d of %d", st.ConfigVector, vectors)
	}
	for i, q := range st.Queues {
		if badVector(q.Vector) {
			return fail("queue %d: vector %d of %d", i, q.Vector, vectors)
		}
		if q.Enabled && s&StatusFeaturesOK == 0 {
			return fail("queue %d enabled before FEATURES_OK", i)
		}
	}
	return nil
}

// load replaces the device's state by a checked one. It is called with mu
// held and leaves the device paused. On an error the device is reset.
func (t *core) load(st *coreState) error {
	if t.closed {
		return fmt.Errorf("%w %q: load after close", ErrDevice, t.host.Name)
	}
	if !t.paused {
		return fmt.Errorf("%w %q: load while running", ErrDevice, t.host.Name)
	}
	t.resetLocked()
	if err := t.dev.Load(st.Device); err != nil {
		t.dev.Reset()
		return fmt.Errorf("%s: %w", t.host.Name, err)
	}
	t.deviceSel, t.driverSel, t.driverFeatures = st.DeviceSel, st.DriverSel, st.DriverFeatures
	t.queueSel, t.configVector = st.QueueSel, st.ConfigVector
	t.generation.Store(st.Generation)
	t.configMu.Lock()
	t.configPending = st.ConfigPending
	t.configMu.Unlock()
	for i, q := range st.Queues {
		t.queues[i] = queueRegs{Size: q.Size, Enabled: q.Enabled, Desc: q.Desc, Avail: q.Avail, Used: q.Used, Vector: q.Vector}
	}
	t.status.Store(st.Status)
	if st.Status&StatusDriverOK != 0 && st.Status&StatusNeedsReset == 0 {
		if err := t.activate(st.Queues); err != nil {
			t.resetLocked()
			return fmt.Errorf("%s: %w: %w", t.host.Name, ErrState, err)
		}
	}
	return nil
}
