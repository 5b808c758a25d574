package vm_test

import (
	"bytes"
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// fakePowerOff turns the machine off, and then counts as fast as it can.
func fakePowerOff() []byte {
	return append(fakeOut(platform.PortPM1aControl, 1<<13|platform.SleepTypeS5<<10), fakeLoop('i')...)
}

// onFake makes cfg's machine run on a fake, which it returns through e.
func onFake(cfg vm.Config, e **fake) vm.Config {
	return vm.WithEngine(cfg, func(mem *memory.Memory, cfg vm.Config, id vcpu.CPUID) (vcpu.Engine, error) {
		eng, err := newFake(mem, cfg, id)
		*e = eng.(*fake)
		return eng, err
	})
}

// hurdle is a device that says where its events are delivered.
type hurdle struct {
	*virtio.RNG
	port   device.Port
	e      **fake
	inside chan bool
}

func (h *hurdle) Attach(host *virtio.Host) error {
	port, err := host.Inbox.Open("hurdle", h)
	h.port = port
	if err != nil {
		return err
	}
	return h.RNG.Attach(host)
}

func (h *hurdle) Deliver(uint64, []byte) { h.inside <- (*h.e).inRun }

func newHurdle(t *testing.T, e **fake) *hurdle {
	rng, err := virtio.NewRNG(virtio.RNGConfig{})
	require.NoError(t, err)
	return &hurdle{RNG: rng, e: e, inside: make(chan bool, 10)}
}

// TestTurnsInbox: events reach a machine whose CPUs take turns between two of
// its instructions, wake it, and are delivered at once while it is paused.
func TestTurnsInbox(t *testing.T) {
	var e *fake
	h := newHurdle(t, &e)
	m, err := vm.New(onFake(vm.Config{
		CPUs: 2, Memory: 16 << 20, Devices: []virtio.Device{h},
		Boot: fakeCode(fakeLoop(append(append([]byte{'i'}, fakeStore('s', 0x9000)...), 'h')...)),
	}, &e))
	require.NoError(t, err)
	defer m.Close()
	require.Equal(t, 0, m.Threads())
	require.True(t, h.port.Prompt())
	require.False(t, h.port.Direct())
	h.port.Post(0, nil)
	require.False(t, <-h.inside, "delivered by a machine that does not run")
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- m.Run(ctx) }()
	for count(t, m) == 0 {
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		h.port.Post(0, nil)
		require.True(t, <-h.inside)
		require.NoError(t, m.Pause())
		h.port.Post(0, nil)
		require.False(t, <-h.inside)
		require.NoError(t, m.Resume())
	}
	cancel()
	require.ErrorIs(t, <-ran, context.Canceled)
	h.port.Post(0, nil)
	require.False(t, <-h.inside)
	require.NoError(t, m.Close())
	require.True(t, e.closed)
	h.port.Post(0, nil) // the fake panics if it hears of it
}

// TestTurnsRepeat: the time that such a guest sees, and how far it gets, are
// the same in each run.
func TestTurnsRepeat(t *testing.T) {
	// It reads the power management timer and the clock's seconds, turns
	// itself off, and counts on; the PM timer's interrupt is on.
	code := fakeCode(
		fakeOut(platform.PortPM1aEvent, 1<<16), // enable TMR_EN, clear nothing
		bytes.Repeat([]byte{'i'}, 5000),
		fakeIn(platform.PortPMTimer), fakeStore('S', 0x9000),
		fakeOutb(platform.PortRTCIndex, 9), fakeInb(platform.PortRTCData), fakeStore('S', 0x9008),
		fakePowerOff())
	start := time.Date(2031, 3, 4, 5, 6, 7, 0, time.UTC)
	var first vcpu.State
	for i := range 3 {
		var e *fake
		m, err := vm.New(onFake(vm.Config{CPUs: 3, Memory: 16 << 20, Boot: code, StartTime: start}, &e))
		require.NoError(t, err)
		if i == 1 {
			runtime.GOMAXPROCS(1 + runtime.GOMAXPROCS(0))
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) - 1)
		}
		require.NoError(t, m.Run(t.Context()))
		ticks, err := m.Memory().Uint64(0x9000)
		require.NoError(t, err)
		require.EqualValues(t, 5002*platform.PMTimerHz/uint64(time.Second), ticks)
		year, err := m.Memory().Uint64(0x9008)
		require.NoError(t, err)
		require.EqualValues(t, 0x31, year&0xff)
		// Not one instruction after the one that turned it off.
		state := e.cpus[0].state
		require.EqualValues(t, 5000, state.Regs.R8)
		if i == 0 {
			first = state
		}
		require.Equal(t, first, state)
		require.NoError(t, m.Close())
	}
}

// TestTurnsStartTime: without a StartTime, it is the host's.
func TestTurnsStartTime(t *testing.T) {
	var e *fake
	m, err := vm.New(onFake(vm.Config{
		Memory: 16 << 20,
		Boot: fakeCode(fakeOutb(platform.PortRTCIndex, 9), fakeInb(platform.PortRTCData), fakeStore('S', 0x9000),
			fakePowerOff()),
	}, &e))
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Run(t.Context()))
	year, err := m.Memory().Uint64(0x9000)
	require.NoError(t, err)
	require.EqualValues(t, time.Now().UTC().Year()%100, (year>>4&15)*10+year&15)
}

// TestTurnsSaveLoad: all CPUs of such a machine, and the timer, go on where
// they were.
func TestTurnsSaveLoad(t *testing.T) {
	code := fakeCode(fakeLoop(append(append([]byte{'i'}, fakeStore('s', 0x9000)...),
		append(fakeIn(platform.PortPMTimer), fakeStore('S', 0x9008)...)...)...))
	cfg := vm.Config{CPUs: 2, Memory: 16 << 20, StartTime: time.Unix(1e9, 0)}
	var e *fake
	boot := onFake(cfg, &e)
	boot.Boot = code
	m, err := vm.New(boot)
	require.NoError(t, err)
	defer m.Close()
	// CPU 1 runs as well, from another place and count.
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	second := e.cpus[0].state
	second.Regs.R8 = 1 << 40
	require.NoError(t, e.cpus[1].SetState(&second))
	go func() { ran <- m.Run(ctx) }()
	for count(t, m) == 0 {
		time.Sleep(time.Millisecond)
	}
	var saved bytes.Buffer
	require.NoError(t, m.Save(&saved)) // running
	cancel()
	require.ErrorIs(t, <-ran, context.Canceled)

	var e2 *fake
	m2, err := vm.Load(onFake(cfg, &e2), bytes.NewReader(saved.Bytes()))
	require.NoError(t, err)
	defer m2.Close()
	require.EqualValues(t, 0, e2.now)
	at := [2]uint64{e2.cpus[0].state.Regs.R8, e2.cpus[1].state.Regs.R8}
	require.Positive(t, at[0])
	require.Greater(t, at[1], uint64(1<<40))
	ticks := func(m *vm.Machine) uint64 {
		n, err := m.Memory().Uint64(0x9008)
		require.NoError(t, err)
		return n
	}
	before := ticks(m2)
	runUntil(t, m2, func() bool { return ticks(m2) != before })
	after := ticks(m2)
	require.Greater(t, after, before)
	require.Less(t, after-before, 10+uint64(e2.now)*platform.PMTimerHz/uint64(time.Second))
	require.Greater(t, e2.cpus[0].state.Regs.R8, at[0])
	require.Greater(t, e2.cpus[1].state.Regs.R8, at[1])
}

// A slow reader of the serial port does not keep such a machine from pausing.
func TestTurnsSlowSerial(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	var e *fake
	m, err := vm.New(onFake(vm.Config{
		Memory: 16 << 20, Serial: vm.Serial{Out: blockedWriter(release)},
		Boot: fakeCode(fakeLoop(append(fakeOutb(platform.PortCOM1, 'x'), append([]byte{'i'}, fakeStore('s', 0x9000)...)...)...)),
	}, &e))
	require.NoError(t, err)
	last := uint64(0)
	runUntil(t, m, func() bool { // until it is stuck
		before := last
		last = count(t, m)
		time.Sleep(10 * time.Millisecond)
		return last > 0 && last == before
	})
	stuck := count(t, m)
	require.GreaterOrEqual(t, stuck, uint64(64<<10))
	require.ErrorContains(t, m.Close(), "serial", "Close says what was not written")
}
