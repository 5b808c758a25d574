package soft

import (
	"fmt"
	"math/bits"

	"github.com/vmkit-go/vmkit/vcpu"
)

// savedMSRs are the MSRs that make up a CPU's state, in the order in which they are
// written, without those that State has fields for. The TSC deadline comes last: it
// counts on the TSC and on the mode of the local APIC's timer.
var savedMSRs = func() []uint32 {
	list := []uint32{
		msrTSCAdjust, msrUcodeRev, msrSysenterCS, msrSysenterESP, msrSysenterEIP, msrMCGStatus, msrMiscEnable, msrPAT,
	}
	for i := range uint32(2 * mtrrRanges) {
		list = append(list, msrMTRRPhys+i)
	}
	list = append(list, mtrrFixed[:]...)
	return append(list, msrMTRRDefType,
		msrSTAR, msrLSTAR, msrCSTAR, msrSFMASK, msrKernelGS, msrTSCAux,
		msrSYSCFG, msrHWCR, msrNBCFG, msrTSCDeadline)
}()

// hostMSRs are MSRs of other engines' states that say something about a host or about
// what the CPU does not have, and that no guest depends on here: SMBASE, PLATFORM_INFO,
// ARCH_CAPABILITIES, PERF_STATUS, MCG_CTL, PERF_CAPABILITIES, the ratio of a nested
// TSC, DE_CFG. Those that describe VMX belong to them.
var hostMSRs = map[uint32]bool{
	0x9e: true, 0xce: true, 0x10a: true, 0x198: true, 0x17b: true, 0x345: true, 0xc0000104: true, msrDECFG: true,
}

// fieldMSRs have a field of their own in vcpu.State.
var fieldMSRs = map[uint32]bool{
	msrTSC: true, msrAPICBase: true, msrEFER: true, msrFSBase: true, msrGSBase: true,
}

func (c *CPU) saveMSRs() []vcpu.MSR {
	out := make([]vcpu.MSR, 0, len(savedMSRs)+4*int(c.msr.banks))
	for _, index := range savedMSRs {
		var v uint64
		if index == msrTSCDeadline {
			for i := range 4 * uint32(c.msr.banks) {
				out = append(out, vcpu.MSR{Index: msrMCBase + i, Value: c.msr.bank[i]})
			}
			v = c.e.chips.LAPIC(c.id).Deadline()
		} else {
			v = *c.msr.stored(index)
		}
		out = append(out, vcpu.MSR{Index: index, Value: v})
	}
	return out
}

// checkMSRs puts the MSRs of a state into m, as far as they are stored there, and checks
// all of them. One that the CPU does not have may be zero, which is what its lack reads
// as on the engine where it was.
func (c *CPU) checkMSRs(m *msrs, list []vcpu.MSR) error {
	for _, r := range list {
		if isBank(r.Index) {
			m.banks = max(m.banks, uint8((r.Index-msrMCBase)/4)+1)
		}
	}
	for _, r := range list {
		if fieldMSRs[r.Index] {
			return fmt.Errorf("%w: MSR %#x has a field of its own", vcpu.ErrState, r.Index)
		}
		if r.Index == msrTSCDeadline || hostMSRs[r.Index] || r.Index >= 0x480 && r.Index <= 0x493 {
			continue
		}
		p := m.stored(r.Index)
		switch {
		case p == nil && r.Value == 0:
		case p == nil:
			return fmt.Errorf("%w: MSR %#x, which is %#x", vcpu.ErrMissing, r.Index, r.Value)
		case r.Index != msrMCGStatus && !isBank(r.Index) && !c.validMSR(r.Index, r.Value):
			return fmt.Errorf("%w: MSR %#x cannot be %#x", vcpu.ErrState, r.Index, r.Value)
		default:
			*p = r.Value
		}
	}
	return nil
}

// loadMSRs gives the CPU what checkMSRs has made of list. The local APIC and the TSC must
// be loaded.
func (c *CPU) loadMSRs(m *msrs, list []vcpu.MSR) {
	c.msr = *m
	for _, r := range list {
		if r.Index == msrTSCDeadline {
			c.e.chips.LAPIC(c.id).SetDeadline(r.Value)
		}
	}
}

// The TSC counts the machine's clock, scaled if its frequency is another.

// tscHz is the TSC's frequency.
func (c *CPU) tscHz() uint64 {
	if c.tscRate != 0 {
		return c.tscRate
	}
	return TSCHz
}

// ticks is the TSC without its offset when the machine has executed count instructions.
func (c *CPU) ticks(count int64) uint64 {
	t := c.e.tscAt(count)
	if c.tscRate != 0 {
		return scale(t, c.tscRate, TSCHz)
	}
	return t
}

// tscAt is the TSC when the machine has executed count instructions.
func (c *CPU) tscAt(count int64) uint64 { return c.ticks(count) + c.tscOffset }

// clockOf is the time of the machine's clock at which ticks has a value, rounded up.
func (c *CPU) clockOf(ticks uint64) uint64 {
	if c.tscRate == 0 {
		return ticks
	}
	t := scale(ticks, TSCHz, c.tscRate)
	if scale(t, c.tscRate, TSCHz) < ticks {
		t++
	}
	return t
}

// scale is v*mul/div without overflow in between.
func scale(v, mul, div uint64) uint64 {
	hi, lo := bits.Mul64(v, mul)
	if hi >= div {
		return ^uint64(0)
	}
	q, _ := bits.Div64(hi, lo, div)
	return q
}

// setRate sets the TSC's frequency, of which 0 means that of the engine.
func (c *CPU) setRate(hz uint64) {
	if hz == 0 {
		hz = c.e.tscHz
	}
	if c.tscRate = hz; hz == TSCHz {
		c.tscRate = 0
	}
}

// setTSC sets the TSC and its frequency.
func (c *CPU) setTSC(v, hz uint64) {
	c.setRate(hz)
	c.tscOffset = v - c.ticks(c.e.instructions())
	c.e.tscChanged(c)
}
