package kvmcpu

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/vcpu"
)

// TestHostileStates loads states with random damage, as a hostile saved
// machine would, and runs what is accepted: whatever it does, it ends with
// an exit or an error, and the CPU takes a good state afterwards.
func TestHostileStates(t *testing.T) { eachChips(t, testHostileStates) }

func testHostileStates(t *testing.T, chips Chips) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	m := newMachine(t, 4<<20, Config{Chips: chips})
	good := busyState(t, m)
	m.start(good)
	good = m.state()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(7, seed))
	flip := func(p *uint64) { *p ^= 1 << r.Uint32N(64) }
	var refused, failed, ran int
	limit := time.Now().Add(3 * time.Second)
	for i := 0; i < 2000 && time.Now().Before(limit); i++ {
		s := throughJSON(t, good)
		for range 1 + r.IntN(3) {
			g := &s.Segments
			seg := []*vcpu.Segment{&g.CS, &g.DS, &g.ES, &g.FS, &g.GS, &g.SS, &g.TR, &g.LDT}[r.IntN(8)]
			switch r.IntN(16) {
			case 0:
				flip(&s.Regs.RIP)
			case 1:
				flip(&s.Regs.RFLAGS)
			case 2:
				flip(&s.Control.CR0)
			case 3:
				flip(&s.Control.CR3)
			case 4:
				flip(&s.Control.CR4)
			case 5:
				flip(&s.Control.EFER)
			case 6:
				flip(&s.Control.APICBase)
			case 7:
				flip(&seg.Base)
			case 8:
				seg.Type, seg.DPL = uint8(r.IntN(17)), uint8(r.IntN(5))
				seg.System, seg.Present, seg.Long, seg.Unusable = r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0
			case 9:
				s.XSAVE[r.IntN(576)] ^= 1 << r.IntN(8)
			case 10:
				flip(&s.MSRs[r.IntN(len(s.MSRs))].Value)
			case 11:
				s.MSRs[r.IntN(len(s.MSRs))].Index = r.Uint32()
			case 12:
				s.LAPIC[r.IntN(len(s.LAPIC))] ^= 1 << r.IntN(8)
			case 13:
				s.Events.Exception = vcpu.Exception{
					Pending: r.IntN(2) == 0, Injected: r.IntN(2) == 0, Vector: uint8(r.IntN(33)),
					HasErrorCode: r.IntN(2) == 0, ErrorCode: r.Uint32(), HasPayload: r.IntN(2) == 0, Payload: r.Uint64(),
				}
			case 14:
				s.Events.Interrupt = vcpu.Interrupt{Injected: true, Soft: r.IntN(2) == 0, Vector: uint8(r.Uint32())}
				s.Events.SMI = vcpu.SMI{Active: r.IntN(2) == 0, Pending: r.IntN(2) == 0, Init: r.IntN(2) == 0}
			case 15:
				s.MP, s.Events.SIPI = vcpu.MPState(r.IntN(6)), uint8(r.Uint32())
				s.Events.TripleFault = r.IntN(2) == 0
			}
		}
		if err := m.cpu.SetState(&s); err != nil {
			refused++
		} else {
			kick := time.AfterFunc(time.Millisecond, m.cpu.Kick)
			var e vcpu.Exit
			if err := m.cpu.Run(&e); err != nil {
				failed++
			} else {
				ran++
			}
			if !kick.Stop() {
				for range 3 { // take the kick, if it has not been
					if e.Reason == vcpu.ExitKick {
						break
					}
					m.cpu.Kick()
					if err := m.cpu.Run(&e); err != nil {
						break
					}
				}
			}
		}
		if i%50 == 0 {
			if err := m.cpu.SetState(&good); err != nil {
				t.Fatalf("after %d states: %v", i, err)
			}
			got := m.state()
			sameState(t, "afterwards", &good, &got)
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d refused, %d failed, %d ran", refused, failed, ran)
}
