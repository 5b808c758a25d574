package kvmcpu

import (
	"testing"

	"github.com/vmkit-go/vmkit/vcpu"
)

func TestPortOut(t *testing.T) {
	for _, chips := range []Chips{ChipsKernel, ChipsNone} {
		m := newMachine(t, 1<<20, Config{Chips: chips})
		m.real16([]byte{
			0xb0, 0x41, // mov al, 'A'
			0xe6, 0x80, // out 0x80, al
			0xf4, // hlt
		})
		if e := m.run(); e.Reason != vcpu.ExitIO || e.Port != 0x80 || !e.Write || string(e.Data) != "A" {
			t.Fatalf("%+v", e)
		}
	}
}

func TestProbe(t *testing.T) {
	needKVM(t)
	r, err := Probe("")
	must(t, err)
	t.Log(r)
	if r.MIPS <= 0 || r.Native != (len(r.Reasons) == 0) {
		t.Errorf("%+v", r)
	}
}
