package chip_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/internal/chip"
	"github.com/vmkit-go/vmkit/internal/chip/chiptest"
	"github.com/vmkit-go/vmkit/vm/device"
)

// tape is a port whose samples come from a list.
type tape struct{ values []byte }

func (p *tape) Post(uint64, []byte) {}
func (p *tape) Direct() bool        { return false }
func (p *tape) Prompt() bool        { return false }
func (p *tape) Sample(b []byte, _ func([]byte) error) error {
	if len(p.values) == 0 {
		return errors.New("the tape has ended")
	}
	clear(b)
	b[0], p.values = p.values[0], p.values[1:]
	return nil
}

func TestSamplerReadsThroughThePort(t *testing.T) {
	c := chip.NewSampler(&tape{[]byte{7, 9}}, func() int64 { t.Error("the host's clock was read"); return 0 })
	for i, want := range []int64{7, 9, 9} { // the last time told, once the tape has ended
		if got := c.Now(); got != want {
			t.Errorf("reading %d: %d, want %d", i, got, want)
		}
	}
}

func TestTimer(t *testing.T) {
	var fired atomic.Int32
	timer := chip.HostClock().NewTimer(func() { fired.Add(1) })
	await := func(n int32) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); fired.Load() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("fired %d times, want %d", fired.Load(), n)
			}
		}
	}
	timer.Stop()
	timer.Set(-time.Second)
	await(1)
	timer.Set(time.Hour)
	timer.Set(time.Millisecond) // in place of it
	await(2)
	for _, halt := range []func(device.Timer){
		func(t device.Timer) { t.Stop() },
		func(t device.Timer) { t.Close() },
		func(t device.Timer) { t.Close(); t.Set(0) },
	} {
		const d = 20 * time.Millisecond
		for late := true; late; { // where the host was too busy, once more
			var fired atomic.Int32
			timer := chip.HostClock().NewTimer(func() { fired.Add(1) })
			begin := time.Now()
			timer.Set(d)
			halt(timer)
			late = time.Since(begin) >= d
			time.Sleep(2 * d)
			if fired.Load() != 0 && !late {
				t.Error("fired after it was stopped")
			}
		}
	}
}

func TestPin(t *testing.T) {
	var line chiptest.Line
	var log bytes.Buffer
	p := chip.NewPin("uart", &line, slog.New(slog.NewTextHandler(&log, nil)))
	p.Set(true)
	p.Set(true)
	if !line.Level() || !p.Level() || line.Rises() != 1 {
		t.Error("not high")
	}
	line.Fail()
	p.Set(false)
	if !strings.Contains(log.String(), "line is broken") || !strings.Contains(log.String(), "uart") {
		t.Errorf("log: %q", log.String())
	}
	p = chip.NewPin("uart", nil, nil) // leads nowhere
	p.Set(true)
	p = chip.NewPin("uart", &line, nil)
	p.Force(false) // an error that nobody logs
}
