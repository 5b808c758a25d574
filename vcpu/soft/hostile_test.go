package soft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

// hostile is a machine whose guest does whatever it can.
type hostile struct {
	hostileCode
	t       testing.TB
	mem     *memory.Memory
	e       *Engine
	chips   vcpu.ChipState // as at power-up
	stopper interface{ Set(time.Duration) }
	shut    bool
	mode    int
	seed    uint64
	pool    [256][pageSize]byte // code, made once
}

func newHostile(t testing.TB, cpus int, seed uint64) *hostile {
	mem, unguard, err := guardedMemory(hostileSize)
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(mem, Config{CPUs: cpus})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Close()
		unguard()
		mem.Close()
	})
	h := &hostile{t: t, mem: mem, e: e}
	h.seedAs(seed)
	if h.chips, err = e.SaveChips(); err != nil {
		t.Fatal(err)
	}
	for i := range h.pool {
		h.fill(h.pool[i][:])
	}
	h.stopper = e.Clock().NewTimer(e.kick)
	return h
}

func (h *hostile) put(at uint64, v ...uint64) {
	p := make([]byte, 8*len(v))
	for i, x := range v {
		binary.LittleEndian.PutUint64(p[8*i:], x)
	}
	h.write(at, p)
}

func (h *hostile) write(at uint64, p []byte) {
	if err := h.mem.Write(at, p); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hostile) seedAs(seed uint64) {
	h.seed = seed
	h.hostileCode = hostileCode{rand.New(rand.NewPCG(seed, 1))}
}

// round gives the machine new code.
func (h *hostile) round(seed uint64) {
	h.seedAs(seed)
	for range 16 {
		h.fill(h.pool[h.IntN(len(h.pool))][:])
	}
	for i, p := range h.Perm(len(h.pool)) {
		h.write(uint64(i)*pageSize, h.pool[p][:])
	}
}

// reset gives it new states, and often new tables.
func (h *hostile) reset(first bool) {
	h.shut = false
	if first || h.IntN(16) == 0 {
		h.mode = h.IntN(len(hostileModes))
		h.pageTables(h.mode)
		first = true
	}
	mode := h.mode
	if first || h.IntN(4) == 0 {
		h.tables(mode > 4)
		if mode == 0 { // vectors of real mode
			for v := range uint64(256) {
				h.put(4*v, uint64(h.Uint32()&0xf000ffff)|h.Uint64()<<32)
			}
		}
	}
	for i, c := range h.e.cpus {
		s := h.state(mode, i == 0)
		if i > 0 && h.IntN(2) == 0 {
			s = h.state(h.IntN(len(hostileModes)), false)
		}
		// Not every such state is one that a CPU can have; Validate and SetState say so.
		if err := c.SetState(&s); err != nil {
			s.MSRs, s.LAPIC = nil, nil
			if err = c.SetState(&s); err != nil && !errors.Is(err, vcpu.ErrState) && !errors.Is(err, vcpu.ErrMissing) {
				h.t.Fatalf("seed %d: %v", h.seed, err)
			}
		}
	}
	if err := h.e.LoadChips(h.chips); err != nil {
		h.t.Fatalf("seed %d: %v", h.seed, err)
	}
	r := h.e.Runner()
	if err := r.SetSingleStep(h.IntN(40) == 0); err != nil {
		h.t.Fatal(err)
	}
}

// run lets the guest do up to n steps, and checks the machine at each exit.
func (h *hostile) run(n uint64) {
	r := h.e.Runner()
	begin := h.e.Instructions()
	h.e.marks = nil // of runs that ended otherwise
	h.e.kicked.Store(false)
	h.e.At(begin+n, h.e.kick)
	h.stopper.Set(time.Duration(n)*insnTime + 50*time.Microsecond)
	var exit vcpu.Exit
	for exits := 0; exits < 200; exits++ {
		if err := r.Run(&exit); err != nil {
			h.t.Fatalf("seed %d: %v", h.seed, err)
		}
		if exit.Reason == vcpu.ExitMMIO || exit.Reason == vcpu.ExitIO {
			if !exit.Write {
				copy(exit.Data, h.bytes(8))
			}
		}
		if exits%8 == 0 {
			h.check()
		}
		switch exit.Reason {
		case vcpu.ExitKick:
			if h.e.Instructions() > begin+n {
				h.t.Fatalf("seed %d: %d steps, want %d", h.seed, h.e.Instructions()-begin, n)
			}
			h.check()
			return
		case vcpu.ExitShutdown:
			h.check()
			h.shut = true
			return
		}
		switch h.IntN(40) {
		case 0:
			h.e.Line(h.IntN(24)).Set(h.IntN(2) == 0)
		case 1:
			_ = h.e.Signal(0xfee00000|uint64(h.Uint32()&0xfffff), h.Uint32())
		case 2: // a device writes where there may be code
			h.write(uint64(h.IntN(hostileSize-16)), h.bytes(1+h.IntN(16)))
		}
	}
	h.check()
}

// check makes sure of what holds whatever a guest does.
func (h *hostile) check() {
	h.t.Helper()
	size := uint64(hostileSize)
	for _, c := range h.e.cpus {
		if c.r[regZero] != 0 {
			h.t.Fatalf("seed %d: the zero register is %#x", h.seed, c.r[regZero])
		}
		for sp := range c.tlbs {
			for i, e := range c.tlbs[sp] {
				for _, tag := range [3]uint64{e.rtag, e.wtag, c.writable[sp][i]} {
					if at := e.add + tag; tag != noTag && (at >= size || at&(pageSize-1) != 0) {
						h.t.Fatalf("seed %d: entry %d of TLB %d leads to %#x", h.seed, i, sp, at)
					}
				}
			}
		}
		var s vcpu.State
		switch err := c.State(&s); {
		case errors.Is(err, errPending):
			continue
		case err != nil:
			h.t.Fatalf("seed %d: State: %v", h.seed, err)
		}
		if err := s.Validate(); err != nil {
			h.t.Fatalf("seed %d: CPU %d: %v", h.seed, c.id, err)
		}
		if h.IntN(4) == 0 {
			if err := c.SetState(&s); err != nil {
				h.t.Fatalf("seed %d: SetState of State: %v", h.seed, err)
			}
		}
	}
	if h.e.code.uops > maxUops {
		h.t.Fatalf("seed %d: %d micro-operations", h.seed, h.e.code.uops)
	}
}

// TestHostileGuest runs random code in random states in every mode. VMKIT_HOSTILE_STEPS
// is how many instructions it executes in all, VMKIT_HOSTILE_SEED where it begins.
func TestHostileGuest(t *testing.T) {
	steps, seed := uint64(1_000_000), uint64(1)
	for name, p := range map[string]*uint64{"VMKIT_HOSTILE_STEPS": &steps, "VMKIT_HOSTILE_SEED": &seed} {
		if v := os.Getenv(name); v != "" {
			n, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			*p = n
		}
	}
	for cpus := 1; cpus <= 2; cpus++ {
		t.Run(fmt.Sprintf("%d CPUs", cpus), func(t *testing.T) {
			h := newHostile(t, cpus, seed)
			begin, runs := h.e.Instructions(), 0
			for s := seed; h.e.Instructions()-begin < steps/2; s++ {
				watchdog := time.AfterFunc(time.Minute, func() { panic(fmt.Sprintf("seed %d hangs", s)) })
				h.round(s)
				for life := range 64 {
					h.reset(life == 0)
					for i := 0; i < 4 && !h.shut; i++ {
						h.run(1 + h.Uint64N(3000))
					}
					runs++
				}
				watchdog.Stop()
			}
			t.Logf("%d instructions, %d states", h.e.Instructions()-begin, runs)
		})
	}
}
