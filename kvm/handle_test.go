package kvm

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHandleRace closes a handle under calls in progress, many times: the descriptor is
// closed exactly once, and no call gets past acquire afterwards.
func TestHandleRace(t *testing.T) {
	for range 200 {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var freed atomic.Int32
		h := &handle{name: "test", fd: fd, free: func() error { freed.Add(1); return nil }}
		var closed atomic.Int32
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for h.acquire() {
					if freed.Load() != 0 {
						t.Error("a call is in progress after the descriptor was closed")
					}
					h.release()
				}
			})
			wg.Go(func() {
				switch err := h.close(); {
				case err == nil:
					closed.Add(1)
				case !errors.Is(err, ErrClosed):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if closed.Load() != 1 || freed.Load() != 1 {
			t.Fatalf("closed %d times, freed %d times", closed.Load(), freed.Load())
		}
	}
}

// TestInstruction decodes what the kernel tells about an emulation failure, and hostile
// values of it.
func TestInstruction(t *testing.T) {
	e := InternalErrorExit{Suberror: InternalErrorEmulation, NData: 4}
	e.Data[0] = 1
	e.Data[1] = 0x0706050403020103 // size 3, then bytes
	e.Data[2] = 0x0f0e0d0c0b0a0908
	if got := e.Instruction(); string(got) != "\x01\x02\x03" {
		t.Errorf("% x", got)
	}
	e.Data[1] |= 0xff
	if got := e.Instruction(); len(got) != 15 || got[14] != 0x0f {
		t.Errorf("% x", got)
	}
	for _, bad := range []InternalErrorExit{{}, {Suberror: InternalErrorEmulation, NData: 2}, {Suberror: InternalErrorDeliveryEV, NData: 16}} {
		if got := bad.Instruction(); got != nil {
			t.Errorf("%+v: % x", bad, got)
		}
	}
	m := MMIOExit{Len: 1 << 31}
	if n := len(m.Bytes()); n != 8 {
		t.Errorf("%d bytes of a write of 2 GiB", n)
	}
}
