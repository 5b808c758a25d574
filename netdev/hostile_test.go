package netdev

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// TestHostile lets a hostile driver at a device with two queue pairs, whose
// endpoint receives and sends all the while.
func TestHostile(t *testing.T) {
	for _, record := range []bool{false, true} {
		t.Run(fmt.Sprintf("record=%t", record), func(t *testing.T) { testHostile(t, record) })
	}
}

// recorded is a device whose inbox lets nothing into guest memory early, as
// that of a recording machine, though it delivers at once.
type recorded struct{ *Device }

func (d recorded) Attach(h *virtio.Host) error {
	g := *h
	g.Inbox = recordingInbox{h.Inbox}
	return d.Device.Attach(&g)
}

type recordingInbox struct{ device.Inbox }

func (b recordingInbox) Open(name string, r device.Receiver) (device.Port, error) {
	p, err := b.Inbox.Open(name, r)
	return recordingPort{p}, err
}

type recordingPort struct{ device.Port }

func (recordingPort) Direct() bool { return false }

func (recordingPort) Prompt() bool { return false }

func testHostile(t *testing.T, record bool) {
	var mu sync.Mutex
	var peers []Endpoint
	t.Cleanup(func() {
		for _, p := range peers {
			require.NoError(t, p.Close())
		}
	})
	in := make([]byte, MaxFrame)
	virtiotest.Hostile(t, virtiotest.HostileConfig{
		Steps: virtiotest.HostileSteps() / 2,
		New: func() (virtio.Device, error) {
			a, b, err := Pipe(PipeConfig{Queues: 2})
			if err != nil {
				return nil, err
			}
			mu.Lock()
			defer mu.Unlock()
			peers = append(peers, a, b)
			d, err := NewDevice(a, Config{QueueSize: 16, MAC: testMAC})
			if record && err == nil {
				return recorded{d}, nil
			}
			return d, err
		},
		Request: hostileRequest,
		Outside: func(r *rand.Rand) {
			mu.Lock()
			p := peers[len(peers)-1]
			mu.Unlock()
			q := p.Queue(r.IntN(2))
			for range r.IntN(8) {
				if n, err := q.Read([]Frame{{Data: [][]byte{in}}}, false); n == 0 || err != nil {
					break
				}
			}
			for range r.IntN(6) {
				h, f := randomFrame(r)
				if _, err := q.Write([]Frame{{Header: h, Data: [][]byte{f}}}, false); err != nil {
					t.Error(err)
				}
			}
		},
	})
}

// randomFrame is one that makes sense, half the time.
func randomFrame(r *rand.Rand) (Header, []byte) {
	udp := r.IntN(3) == 0
	f, _, l4 := packet(r.IntN(2) == 0, udp, r.IntN(2), r.IntN(1<<r.IntN(16)))
	var h Header
	if r.IntN(2) == 0 {
		h = Header{Flags: NeedsChecksum, CsumStart: uint16(l4), CsumOffset: 16}
		if udp {
			h.CsumOffset = 6
		}
		if r.IntN(2) == 0 {
			h.GSOSize = uint16(1 + r.IntN(1500))
			h.GSOType = []GSOType{GSOTCPv4, GSOTCPv6, GSOUDPL4, GSOTCPv4 | GSOECN}[r.IntN(4)]
		}
	}
	if r.IntN(4) == 0 {
		f = f[:r.IntN(len(f))]
	}
	return h, f
}

// hostileRequest makes buffers for any of the queues.
func hostileRequest(r *rand.Rand, m *virtiotest.Machine, q int) []virtiotest.Buf {
	at := uint64(virtiotest.Scratch + r.IntN(virtiotest.ScratchSize-1<<18))
	switch {
	case q == 4 || q == 2 && r.IntN(8) == 0: // control
		cmd := []byte{byte(r.IntN(6)), byte(r.IntN(3))}
		data := make([]byte, r.IntN(24))
		for i := range data {
			if r.IntN(3) == 0 {
				data[i] = byte(r.Uint32() >> (r.IntN(8)))
			}
		}
		switch r.IntN(3) {
		case 0:
			cmd, data = []byte{4, 0}, []byte{byte(1 + r.IntN(3)), 0}
		case 1:
			cmd, data = []byte{5, 0}, []byte{byte(r.Uint32()) &^ 0x70, byte(r.IntN(8)), 0, 0, 0, 0, 0, 0}
		}
		if m.Mem.Write(at, append(cmd, data...)) != nil {
			return []virtiotest.Buf{{Addr: at, Len: 2}}
		}
		return []virtiotest.Buf{{Addr: at, Len: 2}, {Addr: at + 2, Len: uint32(len(data))}, {Addr: at + 4096, Len: 1, Write: true}}
	case q%2 == 0: // receive
		var bufs []virtiotest.Buf
		for range 1 + r.IntN(3) {
			bufs = append(bufs, virtiotest.Buf{Addr: at, Len: uint32(1 + r.IntN(4096)), Write: true})
			at += 4096
		}
		return bufs
	}
	h, f := randomFrame(r)
	if r.IntN(8) == 0 {
		h.CsumStart = uint16(r.Uint32())
		h.GSOType = GSOType(r.IntN(8))
	}
	b := make([]byte, HeaderLen)
	h.put(b)
	b = append(b, f...)
	if m.Mem.Write(at, b) != nil {
		return []virtiotest.Buf{{Addr: at, Len: HeaderLen}}
	}
	cut := uint32(r.IntN(len(b)))
	return []virtiotest.Buf{{Addr: at, Len: cut}, {Addr: at + uint64(cut), Len: uint32(len(b)) - cut}}
}

// FuzzControl feeds the control queue.
func FuzzControl(f *testing.F) {
	f.Add([]byte{0, 0, 1})
	f.Add([]byte{1, 0, 1, 0, 0, 0, 2, 2, 2, 2, 2, 2, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6})
	f.Add([]byte{1, 1, 2, 2, 2, 2, 2, 2})
	f.Add([]byte{3, 0})
	f.Add([]byte{4, 0, 2, 0})
	f.Add([]byte{5, 0, 2, 0, 0, 0, 0, 0, 0, 0})
	a, _ := newPipe(f, PipeConfig{Queues: 2})
	g := newGuest(f, a, Config{MAC: testMAC}, true)
	g.activate(baseFeatures|featMQ|featGuestCsum|featGuestTSO4, 64)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 2 || len(b) > 0x4000 {
			return
		}
		g.t = t
		g.command(4, b[0], b[1], b[2:])
		if n := g.dev.current; n < 1 || n > 2 {
			t.Fatalf("%d queue pairs", n)
		}
	})
}

// FuzzTransmit feeds headers and frames of the guest, and checks that what
// leaves the device obeys the rules that endpoints rely on.
func FuzzTransmit(f *testing.F) {
	for seed := range uint64(20) {
		h, p := randomFrame(rand.New(rand.NewPCG(seed, 1)))
		b := make([]byte, HeaderLen)
		h.put(b)
		f.Add(append(b, p...))
	}
	a, b := newPipe(f, PipeConfig{})
	g := newGuest(f, a, Config{MAC: testMAC}, true)
	g.activate(baseFeatures|featCsum|featHostTSO4|featHostUSO, 64)
	if err := b.Configure(Settings{Queues: 1, Offload: OffloadAll}); err != nil {
		f.Fatal(err)
	}
	const allowed = OffloadChecksum | OffloadTSO4 | OffloadUSO
	in := []Frame{{Data: [][]byte{make([]byte, MaxFrame)}}}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) == 0 || len(p) > MaxFrame+1000 {
			return
		}
		g.t = t
		g.next = bufBase
		if err := g.mem.Write(bufBase, p); err != nil {
			t.Fatal(err)
		}
		if _, err := g.rings[1].Add(virtiotest.Buf{Addr: bufBase, Len: uint32(len(p))}); err != nil {
			t.Fatal(err)
		}
		g.notify(1)
		if _, n, ok := g.rings[1].Used1(); !ok || n != 0 {
			t.Fatal("not answered", n, ok)
		}
		n, err := b.Queue(0).Read(in, false)
		if err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			if err := in[0].Header.Check(in[0].Len, allowed); err != nil {
				t.Fatal(err)
			}
			if got := in[0].Data[0][:in[0].Len]; string(got) != string(p[HeaderLen:]) {
				t.Fatal("frame differs")
			}
		}
	})
}

// FuzzLoad feeds saved state: what loads can be saved again to the same.
func FuzzLoad(f *testing.F) {
	a, _ := newPipe(f, PipeConfig{Queues: 2})
	g := newGuest(f, a, Config{MAC: testMAC}, true)
	st, err := g.dev.Save()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(st.Data))
	g.activate(baseFeatures|featMrgRxBuf|featMQ|featGuestCsum, 64)
	g.dev.Pause()
	if st, err = g.dev.Save(); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(st.Data))
	g.dev.Reset()
	g.dev.Resume()
	f.Fuzz(func(t *testing.T, b []byte) {
		g.dev.Reset()
		if g.dev.Load(device.State{Version: stateVersion, Data: b}) != nil {
			return
		}
		one, err := g.dev.Save()
		if err != nil {
			t.Fatal(err)
		}
		if err := g.dev.Load(one); err != nil {
			t.Fatalf("%v: %s", err, one.Data)
		}
		two, err := g.dev.Save()
		if err != nil || string(one.Data) != string(two.Data) {
			t.Fatalf("%v: %s, then %s", err, one.Data, two.Data)
		}
	})
}
