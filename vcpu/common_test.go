package vcpu_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmkit-go/vmkit/vcpu"
)

func TestCommon(t *testing.T) {
	// A host with AVX, paravirtual leaves and a performance monitor, and an
	// engine with neither.
	host := vcpu.CPUID{
		{Function: 0, EAX: 0x1f, EBX: 0x68747541, EDX: 0x69746e65, ECX: 0x444d4163},
		{Function: 1, EAX: 0x800f12, EBX: 0x800, ECX: 1<<0 | 1<<19 | 1<<26 | 1<<27 | 1<<28, EDX: 1<<0 | 1<<4 | 1<<28},
		{Function: 6, EAX: 1<<2 | 1<<1, ECX: 9},
		{Function: 7, Indexed: true, EBX: 1<<5 | 1<<7, ECX: 1 << 2},
		{Function: 0xa, EAX: 0x7300802},
		{Function: 0xd, Indexed: true, EAX: 7, EBX: 832, ECX: 832},
		{Function: 0xd, Index: 1, Indexed: true, EAX: 0xf, EBX: 832, ECX: 1 << 11},
		{Function: 0xd, Index: 2, Indexed: true, EAX: 256, EBX: 576},
		{Function: 0xd, Index: 11, Indexed: true, EAX: 16, ECX: 1},
		{Function: 0x40000000, EAX: 0x40000001, EBX: 0x4b4d564b},
		{Function: 0x40000001, EAX: 1 << 3},
		{Function: 0x80000000, EAX: 0x8000001e},
		{Function: 0x80000001, ECX: 1<<0 | 1<<2, EDX: 1<<11 | 1<<20 | 1<<29},
		{Function: 0x80000008, EAX: 0x3030, EBX: 1 << 2},
		{Function: 0x8000000a, EDX: 1},
	}
	engine := vcpu.CPUID{
		{Function: 0, EAX: 0xd, EBX: 0x756e6547, EDX: 0x49656e69, ECX: 0x6c65746e},
		{Function: 1, ECX: 1<<0 | 1<<1 | 1<<19 | 1<<26, EDX: 1<<0 | 1<<4},
		{Function: 6, EAX: 1 << 2},
		{Function: 7, Indexed: true, EBX: 1 << 7},
		{Function: 0xd, Indexed: true, EAX: 3, EBX: 576, ECX: 576},
		{Function: 0x80000001, ECX: 1 << 0, EDX: 1<<11 | 1<<20 | 1<<29},
		{Function: 0x80000008, EAX: 0x3028},
	}
	want := vcpu.CPUID{
		host[0],
		{Function: 1, EAX: 0x800f12, EBX: 0x800, ECX: 1<<0 | 1<<19 | 1<<26 | 1<<27, EDX: 1<<0 | 1<<4 | 1<<28},
		{Function: 6, EAX: 1 << 2},
		{Function: 7, Indexed: true, EBX: 1 << 7},
		{Function: 0xd, Indexed: true, EAX: 3, EBX: 576, ECX: 576},
		{Function: 0xd, Index: 1, Indexed: true},
		host[11],
		{Function: 0x80000001, ECX: 1 << 0, EDX: 1<<11 | 1<<20 | 1<<29},
		{Function: 0x80000008, EAX: 0x3028},
	}
	got := host.Common(engine)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("common leaves (-want +got):\n%s", d)
	}
	if missing := vcpu.Missing(got, host); len(missing) > 0 {
		t.Errorf("the host lacks %q", missing)
	}
	engine[0] = host[0] // another vendor is said apart
	if missing := vcpu.Missing(got, engine); len(missing) > 0 {
		t.Errorf("the engine lacks %q", missing)
	}
	if d := cmp.Diff(got, got.Common(engine)); d != "" {
		t.Errorf("common twice:\n%s", d)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
}
