package kvm

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// maxMSREntries is the kernel's limit of MSRs in one call: below MAX_IO_MSRS.
const maxMSREntries = 255

// maxMSRList bounds the growth of an index list; kernels have a few hundred.
const maxMSRList = 1 << 16

func getMSRList(h *handle, o *op) ([]uint32, error) {
	n := 512
	for {
		f := newFlex[msrListHeader, uint32](n)
		f.hdr.count = uint32(n)
		_, err := ioctlPtr(h, o, f.hdr)
		if err == nil {
			return f.entries[:min(int(f.hdr.count), n)], nil
		}
		// The kernel says how many there are.
		want := int(f.hdr.count)
		if !errors.Is(err, unix.E2BIG) || want <= n || want > maxMSRList {
			return nil, err
		}
		n = want
	}
}

// MSRError says which MSR the kernel did not accept; those before it were done.
type MSRError struct {
	Op    string
	Index uint32
	Data  uint64 // the value to be set
}

func (e *MSRError) Error() string {
	if e.Op == opGetMSRs.name {
		return fmt.Sprintf("kvm: %s: MSR %#x cannot be read", e.Op, e.Index)
	}
	return fmt.Sprintf("kvm: %s: MSR %#x does not take %#x", e.Op, e.Index, e.Data)
}

// oneMSR keeps buffers for one entry: a timer of a user-space local APIC reads the
// TSC each time that it is set.
var oneMSR = sync.Pool{New: func() any {
	f := newFlex[msrsHeader, MSREntry](1)
	return &f
}}

// doMSRs moves entries in pieces of the size that the kernel takes.
func doMSRs(h *handle, o *op, entries []MSREntry, get bool) (int, error) {
	done := 0
	for done < len(entries) {
		piece := entries[done:min(done+maxMSREntries, len(entries))]
		var one *flex[msrsHeader, MSREntry]
		var f flex[msrsHeader, MSREntry]
		if len(piece) == 1 {
			one = oneMSR.Get().(*flex[msrsHeader, MSREntry])
			f = *one
		} else {
			f = newFlex[msrsHeader, MSREntry](len(piece))
		}
		f.hdr.count = uint32(len(piece))
		copy(f.entries, piece)
		n, err := ioctlPtr(h, o, f.hdr)
		if err != nil {
			return done, err
		}
		n = min(n, len(piece))
		if get {
			for i := range n {
				piece[i].Data = f.entries[i].Data
			}
		}
		if one != nil {
			oneMSR.Put(one)
		}
		done += n
		if n < len(piece) {
			return done, &MSRError{Op: o.name, Index: piece[n].Index, Data: piece[n].Data}
		}
	}
	return done, nil
}

// GetMSRs is KVM_GET_MSRS: it fills in the Data of entries. It returns how many of
// them it filled; unless that is all, the error is an *MSRError for the next one.
func (v *VCPU) GetMSRs(entries []MSREntry) (int, error) {
	return doMSRs(&v.h, &opGetMSRs, entries, true)
}

// SetMSRs is KVM_SET_MSRS. It returns how many of entries were set; unless that is
// all, the error is an *MSRError for the next one.
func (v *VCPU) SetMSRs(entries []MSREntry) (int, error) {
	return doMSRs(&v.h, &opSetMSRs, entries, false)
}

// EnableUserSpaceMSR is CapX86UserSpaceMSR: accesses to MSRs that would raise #GP
// for one of reasons (MSRExitInval, ...) leave Run with ExitRDMSR or ExitWRMSR.
func (vm *VM) EnableUserSpaceMSR(reasons uint32) error {
	return vm.EnableCap(CapX86UserSpaceMSR, uint64(reasons))
}

// Flags of MSRFilterRange.
const (
	MSRFilterRead  uint32 = 1 << 0
	MSRFilterWrite uint32 = 1 << 1
)

// MaxMSRFilterRanges is how many ranges a filter can have.
const MaxMSRFilterRanges = 16

const maxMSRFilterBitmap = 0x600 // bytes

// MSRFilterRange covers the Count MSRs from Base on: the accesses named in Flags
// are allowed where Bitmap (bit n%8 of byte n/8 for Base+n) has a 1.
type MSRFilterRange struct {
	Flags  uint32
	Base   uint32
	Count  uint32
	Bitmap []byte
}

// MSRFilter decides which MSRs the guest reaches without help. A denied access
// raises #GP, or leaves Run after VM.EnableUserSpaceMSR(MSRExitFilter).
// The zero value allows everything. x2APIC MSRs cannot be denied.
type MSRFilter struct {
	DefaultDeny bool // what no range covers is denied; the kernel wants a range then
	Ranges      []MSRFilterRange
}

type msrFilterRange struct {
	flags  uint32
	count  uint32
	base   uint32
	bitmap *byte
}

type msrFilter struct {
	flags  uint32
	ranges [MaxMSRFilterRanges]msrFilterRange
}

// SetMSRFilter is KVM_X86_SET_MSR_FILTER.
func (vm *VM) SetMSRFilter(f MSRFilter) error {
	name := opSetMSRFilter.name
	if len(f.Ranges) > MaxMSRFilterRanges {
		return invalid(name, "%d ranges, of at most %d", len(f.Ranges), MaxMSRFilterRanges)
	}
	var k msrFilter
	if f.DefaultDeny {
		k.flags = 1
	}
	for i, r := range f.Ranges {
		// The kernel reads whole longs.
		need := (uint64(r.Count) + 63) / 64 * 8
		if r.Count == 0 || need > maxMSRFilterBitmap {
			return invalid(name, "range %d has %d MSRs, not 1 to %d", i, r.Count, maxMSRFilterBitmap*8)
		}
		if uint64(len(r.Bitmap)) < (uint64(r.Count)+7)/8 {
			return invalid(name, "range %d has a bitmap of %d bytes for %d MSRs", i, len(r.Bitmap), r.Count)
		}
		bitmap := make([]byte, need)
		copy(bitmap, r.Bitmap)
		k.ranges[i] = msrFilterRange{flags: r.Flags, count: r.Count, base: r.Base, bitmap: &bitmap[0]}
	}
	_, err := ioctlPtr(&vm.h, &opSetMSRFilter, &k)
	return err
}
