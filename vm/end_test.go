package vm_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/vm"
)

// out8 and out16 are the code of a port write.
func out8(port uint16, v byte) []byte {
	return []byte{0x66, 0xba, byte(port), byte(port >> 8), 0xb0, v, 0xee}
}

func out16(port, v uint16) []byte {
	return []byte{0x66, 0xba, byte(port), byte(port >> 8), 0x66, 0xb8, byte(v), byte(v >> 8), 0x66, 0xef}
}

// onEngines runs a test on the engine in software, and on KVM where that can run
// a kernel.
func onEngines(t *testing.T, f func(t *testing.T, engine string)) {
	t.Run(vm.EngineSoft, func(t *testing.T) { f(t, vm.EngineSoft) })
	t.Run(vm.EngineKVM, func(t *testing.T) {
		kvmtest.NeedNative(t, kvmtest.Open(t))
		f(t, vm.EngineKVM)
	})
}

// spin is a jump to itself.
var spin = []byte{0xeb, 0xfe}

// Every way in which a guest can end is told apart.
func TestEnds(t *testing.T) { onEngines(t, testEnds) }

func testEnds(t *testing.T, engine string) {
	for _, tt := range []struct {
		name string
		code []byte
		want error
	}{
		{"power-off", out16(0x604, 1<<13|5<<10), nil},
		{"reset register", out8(0x610, 1), vm.ErrReset},
		{"keyboard controller", out8(0x64, 0xfe), vm.ErrReset},
		{"panic", out8(0x505, 1), vm.ErrCrash},
		{"triple fault", []byte{0x0f, 0x0b}, vm.ErrTripleFault}, // ud2 without an IDT
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := vm.New(vm.Config{Engine: engine, Memory: 16 << 20, Boot: flat{code: append(tt.code, spin...)}})
			require.NoError(t, err)
			defer m.Close()
			err = m.Run(t.Context())
			if tt.want == nil {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, tt.want)
			}
			require.ErrorContains(t, m.Run(t.Context()), "has ended")
			require.NoError(t, m.Close())
			require.ErrorIs(t, m.Run(t.Context()), vm.ErrClosed)
		})
	}
}

// A guest that looks for the power button sees when it is pressed.
func TestPowerButton(t *testing.T) { onEngines(t, testPowerButton) }

func testPowerButton(t *testing.T, engine string) {
	// 1: inc qword [0x9000]; mov dx, 0x600; in ax, dx; test ah, 1; jz 1b
	code := []byte{
		0x48, 0xff, 0x04, 0x25, 0x00, 0x90, 0, 0, 0x66, 0xba, 0x00, 0x06, 0x66, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xed,
	}
	m, err := vm.New(vm.Config{Engine: engine, Memory: 16 << 20, Boot: flat{code: append(code, out16(0x604, 1<<13|5<<10)...)}})
	require.NoError(t, err)
	defer m.Close()
	runUntil(t, m, func() bool {
		v, err := m.Memory().Uint64(0x9000)
		return err != nil || v > 100
	})
	m.PressPowerButton()
	require.NoError(t, m.Run(t.Context()))
}

// runUntil runs m until cond is true, and expects it to go on that long.
func runUntil(t *testing.T, m *vm.Machine, cond func() bool) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		for !cond() && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	require.ErrorIs(t, m.Run(ctx), context.Canceled)
}

// A run that its context ends leaves the machine paused, and it can go on.
func TestRunAgain(t *testing.T) { onEngines(t, testRunAgain) }

func testRunAgain(t *testing.T, engine string) {
	// 1: inc qword [0x9000]; cmp byte [0x9008], 0; je 1b; power off
	code := []byte{
		0x48, 0xff, 0x04, 0x25, 0x00, 0x90, 0, 0,
		0x80, 0x3c, 0x25, 0x08, 0x90, 0, 0, 0,
		0x74, 0xee,
	}
	m, err := vm.New(vm.Config{Engine: engine, CPUs: 2, Memory: 16 << 20, Boot: flat{code: append(code, out16(0x604, 1<<13|5<<10)...)}})
	require.NoError(t, err)
	defer m.Close()
	counter := func() uint64 {
		v, err := m.Memory().Uint64(0x9000)
		require.NoError(t, err)
		return v
	}
	require.ErrorContains(t, m.Resume(), "call Run")
	for range 3 {
		before := counter()
		runUntil(t, m, func() bool { return counter() > before })
		now := counter()
		time.Sleep(5 * time.Millisecond)
		require.Equal(t, now, counter(), "a paused CPU ran")
	}
	done := make(chan error, 1)
	go func() { done <- m.Run(t.Context()) }()
	for m.Resume() != nil { // until Run has begun
		time.Sleep(time.Millisecond)
	}
	for range 20 {
		require.NoError(t, m.Pause())
		now := counter()
		time.Sleep(time.Millisecond)
		require.Equal(t, now, counter(), "a paused CPU ran")
		require.NoError(t, m.Resume())
	}
	require.NoError(t, m.Memory().PutUint8(0x9008, 1))
	require.NoError(t, <-done)
}

// A guest that prints more than anybody reads is held up, but can be paused
// and closed.
func TestSlowSerial(t *testing.T) { onEngines(t, testSlowSerial) }

func testSlowSerial(t *testing.T, engine string) {
	release := make(chan struct{})
	code := append(out8(0x3f8, 'x'), 0xeb, 0xfe-7) // for ever
	m, err := vm.New(vm.Config{Engine: engine, Memory: 16 << 20, Boot: flat{code: code}, Serial: vm.Serial{Out: blockedWriter(release)}})
	require.NoError(t, err)
	for range 2 { // a blocked guest shows in nothing but time
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		require.ErrorIs(t, m.Run(ctx), context.DeadlineExceeded)
		cancel()
	}
	done := make(chan error, 1)
	go func() { done <- m.Run(t.Context()) }()
	time.Sleep(300 * time.Millisecond)
	err = m.Close()
	require.ErrorContains(t, err, "serial", "Close says what was not written")
	require.ErrorIs(t, <-done, vm.ErrClosed)
	close(release)
}

type blockedWriter chan struct{}

func (w blockedWriter) Write(p []byte) (int, error) {
	<-w
	return len(p), nil
}
