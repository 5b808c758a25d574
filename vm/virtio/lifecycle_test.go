package virtio_test

import (
	"encoding/binary"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// strict is a device that checks what the contract promises it about calls at
// the same time.
type strict struct {
	echo
	running [2]atomic.Int32
	parked  atomic.Bool // paused or reset
}

func (d *strict) Activate(uint64, []*virtio.Queue) error { d.parked.Store(false); return nil }
func (d *strict) Pause()                                 { d.still("Pause"); d.parked.Store(true) }
func (d *strict) Resume()                                { d.still("Resume"); d.parked.Store(false) }
func (d *strict) Reset()                                 { d.still("Reset") }

func (d *strict) still(what string) {
	if d.running[0].Load() != 0 || d.running[1].Load() != 0 {
		d.t.Errorf("%s during Notify", what)
	}
}

func (d *strict) Notify(q int) {
	if d.running[q].Add(1) != 1 {
		d.t.Error("Notify twice at once")
	}
	if d.parked.Load() {
		d.t.Error("Notify while paused")
	}
	time.Sleep(10 * time.Microsecond)
	d.running[q].Add(-1)
}

// TestLifecycle lets CPUs ring while the machine pauses, resumes, saves and
// loads, the driver resets, and a PCI BAR moves.
func TestLifecycle(t *testing.T) {
	before := runtime.NumGoroutine()
	each(t, func(t *testing.T, cfg virtiotest.Config) {
		d := &strict{echo: echo{t: t}}
		m, err := virtiotest.NewMachine(d, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		var driver sync.Mutex // no load while the driver is half-way through a start
		for cpu := range 2 {
			wg.Go(func() {
				addr, p := uint64(virtiotest.MMIOBase+0x50), make([]byte, 4)
				if cfg.PCI {
					addr, p = virtiotest.BARBase+0x6000+4*uint64(cpu), p[:2]
				} else {
					binary.LittleEndian.PutUint32(p, uint32(cpu))
				}
				for {
					select {
					case <-stop:
						return
					default:
						m.Bus.Write(addr, p)
					}
				}
			})
		}
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				m.Transport.Pause()
				driver.Lock()
				st, err := m.Transport.Save()
				if err == nil {
					err = m.Transport.Load(st)
				}
				driver.Unlock()
				if err != nil {
					t.Error(err)
				}
				m.Transport.Resume()
			}
		})
		for range 20 {
			driver.Lock()
			err := m.Start()
			driver.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			if cfg.PCI {
				_, write := config(m)
				write(4, 0, 0)
				write(4, 6, 0)
			}
			time.Sleep(100 * time.Microsecond)
		}
		close(stop)
		wg.Wait()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// TestLogBounded: a guest cannot fill the log.
func TestLogBounded(t *testing.T) {
	var lines counter
	m := virtiotest.New(t, &echo{t: t}, virtiotest.Config{
		Log: slog.New(slog.NewTextHandler(&lines, nil)),
	})
	for range 100 {
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		m.Rings[0].SetAvailIdx(500)
		m.Notify(0)
	}
	if n := lines.n.Load(); n == 0 || n > 40 {
		t.Fatalf("%d lines", n)
	}
}

type counter struct{ n atomic.Int32 }

func (c *counter) Write(p []byte) (int, error) {
	c.n.Add(1)
	return len(p), nil
}
