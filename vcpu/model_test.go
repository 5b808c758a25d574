package vcpu

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// testHost is about an Intel server: everything that v3 needs and more.
func testHost() CPUID {
	return CPUID{
		{Function: 0, EAX: 0x1f, EBX: 0x756e6547, ECX: 0x6c65746e, EDX: 0x49656e69},
		{Function: 1, EAX: 0x806f8, EBX: 0x12080800, ECX: 0xfffa3223 | 1<<31, EDX: 0x1f8bfbff},
		{Function: 4, Index: 0, Indexed: true, EAX: 0xfc004121},
		{Function: 4, Index: 3, Indexed: true, EAX: 0xfc1fc163},
		{Function: 4, Index: 4, Indexed: true},
		{Function: 6, EAX: 0x77},
		{Function: 7, Index: 0, Indexed: true, EAX: 2, EBX: 0xf1bf27eb, ECX: 0x1b415f6e, EDX: 0xffd84432},
		{Function: 0xb, Index: 0, Indexed: true, ECX: 1 << 8},
		{Function: 0xd, Index: 0, Indexed: true, EAX: 0x2e7, EBX: 2696, ECX: 2696},
		{Function: 0xd, Index: 1, Indexed: true, EAX: 0xf, ECX: 0x800},
		{Function: 0xd, Index: 2, Indexed: true, EAX: 256, EBX: 576},
		{Function: 0xd, Index: 5, Indexed: true, EAX: 64, EBX: 1088},
		{Function: 0x1f, Index: 0, Indexed: true},
		{Function: 0x40000000, EAX: 0x40000001, EBX: 0x4b4d564b, ECX: 0x564b4d56, EDX: 0x4d},
		{Function: 0x40000001, EAX: 0x1007afb},
		{Function: 0x80000000, EAX: 0x80000008},
		{Function: 0x80000001, ECX: 0x121, EDX: 0x2c100800},
		{Function: 0x80000007, EDX: 0x100},
		{Function: 0x80000008, EAX: 0x3034, EBX: 0x200},
	}
}

func TestParseModel(t *testing.T) {
	for _, n := range []string{"host", "x86-64-v1", "x86-64-v2", "x86-64-v3"} {
		m, err := ParseModel(n)
		if err != nil || m.String() != n {
			t.Errorf("%s: %v, %v", n, m, err)
		}
	}
	if m, err := ParseModel(""); m != ModelHost || err != nil {
		t.Error(m, err)
	}
	if _, err := ParseModel("x86-64-v9"); !errors.Is(err, ErrModel) {
		t.Error(err)
	}
	if _, err := Model(9).Apply(testHost()); !errors.Is(err, ErrModel) {
		t.Error(err)
	}
}

func TestModelsMask(t *testing.T) {
	host := testHost()
	for _, c := range []struct {
		m       Model
		has, no []string
	}{
		{ModelV1, []string{"sse2", "lm", "nx", "x2apic", "hypervisor", "kvm_clocksource2"}, []string{"sse3", "cx16", "avx", "xsave", "bmi1", "lahf_lm", "avx512f", "spec_ctrl"}},
		{ModelV2, []string{"sse4_2", "cx16", "popcnt", "lahf_lm"}, []string{"avx", "xsave", "movbe", "bmi1", "lzcnt"}},
		{ModelV3, []string{"avx2", "bmi2", "fma", "movbe", "lzcnt", "xsave", "xsave_avx"}, []string{"avx512f", "aes", "xsaves", "xsave_opmask", "pku"}},
		{ModelHost, []string{"avx512f", "aes", "xsaves"}, nil},
	} {
		got, err := c.m.Apply(host)
		if err != nil {
			t.Fatal(err)
		}
		features := missingFeatures(got, nil)
		for _, f := range c.has {
			if !slices.Contains(features, f) {
				t.Errorf("%s lacks %s", c.m, f)
			}
		}
		for _, f := range c.no {
			if slices.Contains(features, f) {
				t.Errorf("%s has %s", c.m, f)
			}
		}
		if m := Missing(got, host); len(m) != 0 {
			t.Errorf("%s on its own host: missing %q", c.m, m)
		}
		if err := got.Validate(); err != nil {
			t.Error(err)
		}
	}
}

func TestModelsNest(t *testing.T) {
	host := testHost()
	var last CPUID
	for _, m := range []Model{ModelV1, ModelV2, ModelV3, ModelHost} {
		got, err := m.Apply(host)
		must(t, err)
		if miss := missingFeatures(last, got); len(miss) != 0 {
			t.Errorf("%s lacks %q of the level below", m, miss)
		}
		again, err := m.Apply(got)
		must(t, err)
		if d := cmp.Diff(got, again); d != "" {
			t.Errorf("%s applied twice: %s", m, d)
		}
		last = got
	}
}

func TestMissingNamesEach(t *testing.T) {
	old := testHost()
	for i := range old {
		switch l := &old[i]; {
		case l.Function == 1:
			l.ECX &^= avx | fma
		case l.Function == 7:
			l.EBX &^= avx2
		case l.Function == 0x80000008:
			l.EAX = 0x3027
		case l.Function == 0xd && l.Index == 5:
			l.EBX = 2000
		}
	}
	_, err := ModelV3.Apply(old)
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "fma, avx, avx2") {
		t.Error(err)
	}
	if _, err := ModelV2.Apply(old); err != nil {
		t.Error(err)
	}
	want := []string{"52 physical address bits (have 39)", "fma", "avx", "avx2", "XSAVE component 5 of 64 bytes at 1088 (have 64 at 2000)"}
	if d := cmp.Diff(want, Missing(testHost(), old)); d != "" {
		t.Error(d)
	}
	if m := Missing(testHost(), nil); len(m) < 50 {
		t.Errorf("nothing at all: %d missing", len(m))
	}
}

func TestForCPU(t *testing.T) {
	base := testHost()
	for _, n := range []int{1, 2, 3, 8, 200} {
		for id := range n {
			c := base.ForCPU(id, n)
			must(t, c.Validate())
			l1, _ := c.Get(1, 0)
			if int(l1.EBX>>24) != id || l1.EDX>>28&1 == 1 != (n > 1) {
				t.Fatalf("%d of %d: leaf 1 %#x %#x", id, n, l1.EBX, l1.EDX)
			}
			smt, _ := c.Get(0xb, 0)
			core, _ := c.Get(0xb, 1)
			end, _ := c.Get(0xb, 2)
			if smt.EBX != 1 || smt.EAX != 0 || int(core.EBX) != n || int(core.EDX) != id || 1<<core.EAX < n || end.EBX != 0 {
				t.Fatalf("%d of %d: leaf 0xb %+v %+v", id, n, smt, core)
			}
			l3, _ := c.Get(4, 3)
			if int(l3.EAX>>14&0xfff)+1 < n {
				t.Fatalf("level 3 cache shared by %d of %d", l3.EAX>>14&0xfff+1, n)
			}
			if l1d, _ := c.Get(4, 0); l1d.EAX>>14&0xfff != 0 {
				t.Fatalf("level 1 cache shared")
			}
		}
	}
	amd := CPUID{
		{Function: 0, EAX: 0xd, EBX: 0x68747541, ECX: 0x444d4163, EDX: 0x69746e65},
		{Function: 0x80000001}, {Function: 0x80000008}, {Function: 0x8000001e},
		{Function: 0x8000001d, Index: 3, Indexed: true, EAX: 0x163},
	}
	if amd.Vendor() != "AuthenticAMD" {
		t.Fatal(amd.Vendor())
	}
	c := amd.ForCPU(5, 6)
	l8, _ := c.Get(0x80000008, 0)
	l1, _ := c.Get(0x80000001, 0)
	l1e, _ := c.Get(0x8000001e, 0)
	l1d, _ := c.Get(0x8000001d, 3)
	if l8.ECX != 0x3005 || l1.ECX != 2 || l1e.EAX != 5 || l1d.EAX>>14 != 7 {
		t.Errorf("%+v %+v %+v %+v", l8, l1, l1e, l1d)
	}
	if d := cmp.Diff(testHost(), base); d != "" {
		t.Error("the base changed", d)
	}
}
