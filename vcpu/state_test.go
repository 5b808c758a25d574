package vcpu

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fill gives every field a value, so that a field which does not survive JSON
// is noticed.
func fill(r *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(r, v.Field(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(r, v.Index(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		for i := range 3 {
			fill(r, v.Index(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(r, v.Elem())
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(int64(r.Uint64()))
	default:
		v.SetUint(r.Uint64() | 1)
	}
}

func TestStateJSON(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var s, s2 State
	var c, c2 ChipState
	fill(r, reflect.ValueOf(&s).Elem())
	fill(r, reflect.ValueOf(&c).Elem())
	for _, x := range []struct{ in, out any }{{&s, &s2}, {&c, &c2}} {
		b, err := json.Marshal(x.in)
		must(t, err)
		must(t, json.Unmarshal(b, x.out))
		if d := cmp.Diff(x.in, x.out); d != "" {
			t.Error(d)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, bsp := range []bool{true, false} {
		s := PowerUp(bsp)
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		want string
		do   func(*State)
	}{
		{"RFLAGS", func(s *State) { s.Regs.RFLAGS = 0 }},
		{"RFLAGS", func(s *State) { s.Regs.RFLAGS |= 1 << 63 }},
		{"paging without", func(s *State) { s.Control.CR0 = CR0PG }},
		{"NW without", func(s *State) { s.Control.CR0 = CR0NW }},
		{"upper half", func(s *State) { s.Control.CR0 = 1 << 40 }},
		{"CR4", func(s *State) { s.Control.CR4 = 1 << 40 }},
		{"CR8", func(s *State) { s.Control.CR8 = 16 }},
		{"EFER", func(s *State) { s.Control.EFER = 2 }},
		{"LMA", func(s *State) { s.Control.EFER = EFERLMA }},
		{"without PAE", func(s *State) {
			s.Control.CR0, s.Control.EFER = CR0PE|CR0PG, EFERLME|EFERLMA
		}},
		{"x2APIC", func(s *State) { s.Control.APICBase = APICBaseX2APIC }},
		{"APIC_BASE", func(s *State) { s.Control.APICBase |= 1 }},
		{"PDPTR", func(s *State) { s.Control.PDPTRs = make([]uint64, 5) }},
		{"SS: type", func(s *State) { s.Segments.SS.Type = 16 }},
		{"TR: base", func(s *State) { s.Segments.TR.Base = 1 << 60 }},
		{"GDT", func(s *State) { s.GDT.Base = 1 << 60 }},
		{"DR6", func(s *State) { s.Debug.DR6 = 1 << 32 }},
		{"XCR0", func(s *State) { s.XCRs = []XCR{{0, 4}} }},
		{"XCR0 twice", func(s *State) { s.XCRs = []XCR{{0, 1}, {0, 1}} }},
		{"XCRs", func(s *State) { s.XCRs = make([]XCR, 100) }},
		{"XSAVE area of 5", func(s *State) { s.XSAVE = make([]byte, 5) }},
		{"XSAVE area of", func(s *State) { s.XSAVE = make([]byte, 1<<20) }},
		{"MXCSR", func(s *State) { s.XSAVE = make([]byte, 4096); s.XSAVE[27] = 1 }},
		{"XCOMP_BV", func(s *State) { s.XSAVE = make([]byte, 4096); s.XSAVE[527] = 0x80 }},
		{"twice", func(s *State) { s.MSRs = make([]MSR, 2) }},
		{"MSRs", func(s *State) { s.MSRs = make([]MSR, 5000) }},
		{"local APIC", func(s *State) { s.LAPIC = make([]byte, 1024) }},
		{"MP", func(s *State) { s.MP = 9 }},
		{"exception", func(s *State) { s.Events.Exception.Vector = 32 }},
		{"NMI", func(s *State) { s.Events.NMI.Pending = 3 }},
		{"both", func(s *State) { s.Events.ShadowSTI, s.Events.ShadowMOVSS = true, true }},
		{"TSC", func(s *State) { s.TSCHz = 5 }},
	} {
		s := PowerUp(true)
		c.do(&s)
		err := s.Validate()
		if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q, got %v", c.want, err)
		}
	}
}

func TestChipValidate(t *testing.T) {
	for _, c := range []ChipState{
		{PICs: &[2]PIC{1: {InitState: 4}}},
		{IOAPIC: &IOAPIC{IRR: 1 << 24}},
		{PIT: &PIT{Channels: [3]PITChannel{2: {Mode: 9}}}},
	} {
		if err := c.Validate(); !errors.Is(err, ErrState) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	ok := ChipState{PICs: new([2]PIC), IOAPIC: new(IOAPIC), PIT: new(PIT), Clock: new(Clock)}
	must(t, ok.Validate())
}

// FuzzState loads hostile saved states.
func FuzzState(f *testing.F) {
	s := PowerUp(true)
	b, _ := json.Marshal(&s)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var s State
		if json.Unmarshal(b, &s) == nil {
			_ = s.Validate()
		}
	})
}
