package netdev

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

var _ virtio.Device = (*Device)(nil)

const baseFeatures = virtio.FeatureVersion1 | featMAC | featStatus | featCtrlVQ | featCtrlRx | featCtrlRxExtra | featCtrlMAC | featAnnounce | featGuestOffloads

// both runs f free-running and recording, with and without EVENT_IDX.
func both(t *testing.T, f func(t *testing.T, direct bool, features uint64)) {
	for _, direct := range []bool{true, false} {
		for _, event := range []uint64{0, virtio.FeatureEventIdx} {
			t.Run(fmt.Sprintf("direct=%t,eventidx=%t", direct, event != 0), func(t *testing.T) { f(t, direct, event) })
		}
	}
}

func TestTransmit(t *testing.T) {
	both(t, func(t *testing.T, direct bool, f uint64) {
		a, b := newPipe(t, PipeConfig{})
		g := newGuest(t, a, Config{MAC: testMAC}, direct)
		g.activate(f|baseFeatures, 64)
		for i := range 150 {
			want := testFrame(broadcast, 60+i, byte(i))
			g.send(1, Header{}, want)
			_, got := read1(t, b.Queue(0))
			require.Equal(t, want, got)
			_, n, ok := g.rings[1].Used1()
			require.True(t, ok)
			require.Zero(t, n)
		}
		require.Zero(t, g.queues[1].InFlight())
	})
}

func TestReceiveMergeable(t *testing.T) {
	both(t, func(t *testing.T, direct bool, f uint64) {
		a, b := newPipe(t, PipeConfig{})
		g := newGuest(t, a, Config{MAC: testMAC}, direct)
		g.activate(f|baseFeatures|featMrgRxBuf|featGuestCsum|featGuestTSO4, 256)
		for i := range 150 {
			for g.rings[0].Free() > 0 {
				g.offer(0, 700)
			}
			g.notify(0)
			h := Header{}
			n := 60 + i*200
			if n > 1514 {
				h = Header{Flags: NeedsChecksum, GSOType: GSOTCPv4, GSOSize: 1448, HdrLen: 54, CsumStart: 34, CsumOffset: 16}
			}
			want := testFrame(broadcast, n, byte(i))
			write1(t, b.Queue(0), h, want)
			got, frame := g.mustRecv(0)
			require.Equal(t, want, frame)
			require.EqualValues(t, (n+HeaderLen+699)/700, got.NumBuffers)
			got.NumBuffers = 0
			require.Equal(t, h, got)
		}
	})
}

func TestReceiveWaitsForBuffers(t *testing.T) {
	both(t, func(t *testing.T, direct bool, f uint64) {
		a, b := newPipe(t, PipeConfig{})
		g := newGuest(t, a, Config{MAC: testMAC}, direct)
		g.activate(f|baseFeatures|featMrgRxBuf, 64)
		const frames = 100
		for i := range frames {
			write1(t, b.Queue(0), Header{}, testFrame(broadcast, 1400, byte(i)))
		}
		// Each frame takes several of these, which come one by one.
		for i := range frames {
			var frame []byte
			g.eventually(func() (ok bool) {
				if _, frame, ok = g.recv(0); !ok && g.rings[0].Free() > 50 {
					g.offer(0, uint32(200+i))
					g.notify(0)
				}
				return ok
			}, "a frame")
			require.Equal(t, testFrame(broadcast, 1400, byte(i)), frame)
		}
	})
}

func TestReceiveFrameLargerThanRing(t *testing.T) {
	both(t, func(t *testing.T, direct bool, f uint64) {
		a, b := newPipe(t, PipeConfig{})
		g := newGuest(t, a, Config{MAC: testMAC}, direct)
		g.activate(f|baseFeatures|featMrgRxBuf, 16)
		for range 16 {
			g.offer(0, 50)
		}
		g.notify(0)
		write1(t, b.Queue(0), Header{}, testFrame(broadcast, 1400, 1)) // lost
		want := testFrame(broadcast, 400, 2)
		write1(t, b.Queue(0), Header{}, want)
		_, frame := g.mustRecv(0)
		require.Equal(t, want, frame)
	})
}

func TestReceiveNotMergeable(t *testing.T) {
	both(t, func(t *testing.T, direct bool, f uint64) {
		a, b := newPipe(t, PipeConfig{})
		g := newGuest(t, a, Config{MAC: testMAC}, direct)
		g.activate(f|baseFeatures, 32)
		g.offer(0, 5) // holds not even a header
		g.offer(0, 200)
		g.offer(0, 2000)
		g.offer(0, 2000)
		g.notify(0)
		write1(t, b.Queue(0), Header{}, testFrame(broadcast, 1000, 1)) // too long for the second buffer: lost
		want := testFrame(broadcast, 1500, 2)
		write1(t, b.Queue(0), Header{}, testFrame(broadcast, 100, 3))
		write1(t, b.Queue(0), Header{}, want)
		g.eventually(func() bool { _, n, ok := g.rings[0].Used1(); return ok && n == 0 }, "the bad buffer")
		_, frame := g.mustRecv(0)
		require.Equal(t, testFrame(broadcast, 100, 3), frame)
		_, frame = g.mustRecv(0)
		require.Equal(t, want, frame)
	})
}

func TestPauseGivesBuffersBack(t *testing.T) {
	both(t, func(t *testing.T, direct bool, f uint64) {
		a, b := newPipe(t, PipeConfig{})
		g := newGuest(t, a, Config{MAC: testMAC}, direct)
		g.activate(f|baseFeatures|featMrgRxBuf, 64)
		for range 20 {
			g.offer(0, 1600)
		}
		g.notify(0)
		for i := range 10 {
			g.dev.Pause()
			require.Zero(t, g.queues[0].InFlight())
			_, _, err := g.queues[0].Save()
			require.NoError(t, err)
			before := g.irqs[0].Load()
			write1(t, b.Queue(0), Header{}, testFrame(broadcast, 100, byte(i)))
			g.send(1, Header{}, testFrame(broadcast, 200, byte(i)))
			_, _, ok := g.recv(0)
			require.False(t, ok)
			require.Equal(t, before, g.irqs[0].Load())
			g.dev.Resume()
			for q := range g.queues {
				g.dev.Notify(q)
			}
			_, frame := g.mustRecv(0)
			require.Equal(t, testFrame(broadcast, 100, byte(i)), frame)
			_, got := read1(t, b.Queue(0))
			require.Equal(t, testFrame(broadcast, 200, byte(i)), got)
		}
	})
}

func TestFullEndpoint(t *testing.T) {
	a, b := newPipe(t, PipeConfig{Buffer: minPipeBuffer})
	g := newGuest(t, a, Config{MAC: testMAC}, true)
	g.activate(baseFeatures, 256)
	// More than the pipe holds: the rest waits in the guest.
	for i := range 120 {
		g.send(1, Header{}, testFrame(broadcast, 1500, byte(i)))
	}
	require.Positive(t, g.rings[1].Free())
	g.dev.Pause()
	require.Zero(t, g.queues[1].InFlight())
	g.dev.Resume()
	g.dev.Notify(1)
	for i := range 120 {
		_, got := read1(t, b.Queue(0))
		require.Equal(t, testFrame(broadcast, 1500, byte(i)), got, "frame %d", i)
	}
	g.eventually(func() bool { _, _, _ = g.rings[1].Used1(); return g.rings[1].Free() == 256 }, "all answers")
	g.dev.Reset()
}

func TestBadTransmitHeaders(t *testing.T) {
	a, b := newPipe(t, PipeConfig{})
	g := newGuest(t, a, Config{MAC: testMAC}, true)
	g.activate(baseFeatures|featCsum|featHostTSO4, 64)
	for _, tt := range []struct {
		name string
		h    Header
		n    int
	}{
		{"too short", Header{}, 13},
		{"too long", Header{}, MaxFrame + 1},
		{"checksum before the payload", Header{Flags: NeedsChecksum, CsumStart: 13, CsumOffset: 16}, 100},
		{"checksum past the end", Header{Flags: NeedsChecksum, CsumStart: 34, CsumOffset: 65}, 100},
		{"checksum overflows 16 bits", Header{Flags: NeedsChecksum, CsumStart: 65535, CsumOffset: 65535}, 100},
		{"GSO without checksum", Header{GSOType: GSOTCPv4, GSOSize: 1000, CsumStart: 34, CsumOffset: 16}, 3000},
		{"GSO of no size", Header{Flags: NeedsChecksum, GSOType: GSOTCPv4, CsumStart: 34, CsumOffset: 16}, 3000},
		{"GSO type not negotiated", Header{Flags: NeedsChecksum, GSOType: GSOTCPv6, GSOSize: 1000, CsumStart: 54, CsumOffset: 16}, 3000},
		{"ECN not negotiated", Header{Flags: NeedsChecksum, GSOType: GSOTCPv4 | GSOECN, GSOSize: 1000, CsumStart: 34, CsumOffset: 16}, 3000},
		{"ECN alone", Header{Flags: NeedsChecksum, GSOType: GSOECN, GSOSize: 1000, CsumStart: 34, CsumOffset: 16}, 3000},
		{"UFO", Header{Flags: NeedsChecksum, GSOType: GSOUDP, GSOSize: 1000, CsumStart: 34, CsumOffset: 6}, 3000},
		{"unknown GSO type", Header{Flags: NeedsChecksum, GSOType: 9, GSOSize: 1000, CsumStart: 34, CsumOffset: 16}, 3000},
		{"headers past the end", Header{Flags: NeedsChecksum, GSOType: GSOTCPv4, GSOSize: 1000, HdrLen: 3001, CsumStart: 34, CsumOffset: 16}, 3000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g.send(1, tt.h, testFrame(broadcast, tt.n, 0))
			g.send(1, Header{}, testFrame(broadcast, 60, 1))
			_, got := read1(t, b.Queue(0))
			require.Len(t, got, 60, "only the good frame arrives")
			for range 2 {
				_, n, ok := g.rings[1].Used1()
				require.True(t, ok)
				require.Zero(t, n)
			}
		})
	}
}

func TestControl(t *testing.T) {
	a, _ := newPipe(t, PipeConfig{Queues: 4})
	g := newGuest(t, a, Config{MAC: testMAC}, true)
	g.activate(baseFeatures|featMQ|featGuestCsum|featGuestTSO4, 64)
	const ctrl = 8
	_, _, pairs, _ := g.config()
	require.EqualValues(t, 4, pairs)
	macs := func(n int) []byte {
		b := binary.LittleEndian.AppendUint32(nil, uint32(n))
		for i := range n {
			b = append(b, 2, 0, 0, 1, byte(i>>8), byte(i))
		}
		return b
	}
	for _, tt := range []struct {
		name       string
		class, cmd byte
		data       []byte
		ok         bool
	}{
		{"promiscuous off", 0, 0, []byte{0}, true},
		{"all multicast", 0, 1, []byte{1}, true},
		{"rx mode without data", 0, 0, nil, false},
		{"rx mode with too much", 0, 0, []byte{0, 0}, false},
		{"unknown rx mode", 0, 6, []byte{0}, false},
		{"tables", 1, 0, append(macs(3), macs(2)...), true},
		{"empty tables", 1, 0, append(macs(0), macs(0)...), true},
		{"full tables", 1, 0, append(macs(64), macs(64)...), true},
		{"overfull tables", 1, 0, append(macs(500), macs(600)...), true},
		{"one table", 1, 0, macs(3), false},
		{"table cut off", 1, 0, append(macs(3), macs(3)[:21]...), false},
		{"bytes after tables", 1, 0, append(append(macs(3), macs(3)...), 0), false},
		{"huge count", 1, 0, []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, false},
		{"address", 1, 1, []byte{2, 2, 2, 2, 2, 2}, true},
		{"multicast address", 1, 1, []byte{1, 2, 2, 2, 2, 2}, false},
		{"short address", 1, 1, []byte{2, 2, 2, 2, 2}, false},
		{"vlan", 2, 0, []byte{1, 0}, false},
		{"announce ack", 3, 0, nil, true},
		{"no queue pairs", 4, 0, []byte{0, 0}, false},
		{"two queue pairs", 4, 0, []byte{2, 0}, true},
		{"four queue pairs", 4, 0, []byte{4, 0}, true},
		{"five queue pairs", 4, 0, []byte{5, 0}, false},
		{"one queue pair", 4, 0, []byte{1, 0}, true},
		{"offloads", 5, 0, binary.LittleEndian.AppendUint64(nil, featGuestCsum), true},
		{"offloads not negotiated", 5, 0, binary.LittleEndian.AppendUint64(nil, featGuestTSO6), false},
		{"offloads too short", 5, 0, []byte{0, 0, 0, 0}, false},
		{"unknown class", 77, 0, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := byte(ctrlErr)
			if tt.ok {
				want = ctrlOK
			}
			require.Equal(t, want, g.command(ctrl, tt.class, tt.cmd, tt.data))
		})
	}
	mac, _, _, _ := g.config()
	require.Equal(t, [6]byte{2, 2, 2, 2, 2, 2}, mac)
	require.EqualValues(t, OffloadChecksum, g.dev.accept.Load())
	require.True(t, g.dev.filter.Load().uni.all)
	g.dev.Reset()
	mac, _, _, _ = g.config()
	require.Equal(t, [6]byte(testMAC), mac)
}

func TestFilter(t *testing.T) {
	own, other := [6]byte(testMAC), [6]byte{2, 9, 9, 9, 9, 9}
	multi, multi2 := [6]byte{1, 0, 0x5e, 0, 0, 1}, [6]byte{1, 0, 0x5e, 0, 0, 2}
	all := [][6]byte{own, other, multi, multi2, broadcast}
	for _, tt := range []struct {
		name string
		f    filter
		want []bool // of all
	}{
		{"promiscuous", filter{promisc: true, noUni: true}, []bool{true, true, true, true, true}},
		{"own", filter{}, []bool{true, false, false, false, true}},
		{"no broadcast", filter{noBroadcast: true}, []bool{true, false, false, false, false}},
		{"tables", filter{uni: table{macs: [][6]byte{other}}, multi: table{macs: [][6]byte{multi}}}, []bool{true, true, true, false, true}},
		{"overfull", filter{uni: table{all: true}, multi: table{all: true}}, []bool{true, true, true, true, true}},
		{"all multicast", filter{allMulti: true}, []bool{true, false, true, true, true}},
		{"no multicast", filter{allMulti: true, noMulti: true}, []bool{true, false, false, false, true}},
		{"no unicast", filter{allUni: true, noUni: true}, []bool{false, false, false, false, true}},
		{"all unicast", filter{allUni: true}, []bool{true, true, false, false, true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.f.own = own
			for i, dst := range all {
				require.Equal(t, tt.want[i], tt.f.accepts(dst), "%x", dst)
			}
		})
	}
	both(t, func(t *testing.T, direct bool, f uint64) {
		a, b := newPipe(t, PipeConfig{})
		g := newGuest(t, a, Config{MAC: testMAC}, direct)
		g.activate(f|baseFeatures|featMrgRxBuf, 64)
		require.EqualValues(t, ctrlOK, g.command(2, 0, 0, []byte{0}))
		for range 8 {
			g.offer(0, 1600)
		}
		g.notify(0)
		for _, dst := range all {
			write1(t, b.Queue(0), Header{}, testFrame(dst, 60, 0))
		}
		for _, dst := range [][6]byte{own, broadcast} {
			_, frame := g.mustRecv(0)
			require.Equal(t, dst[:], frame[:6])
		}
	})
}

func TestMultiQueue(t *testing.T) {
	both(t, func(t *testing.T, direct bool, f uint64) {
		a, b := newPipe(t, PipeConfig{Queues: 3})
		g := newGuest(t, a, Config{MAC: testMAC}, direct)
		g.activate(f|baseFeatures|featMrgRxBuf|featMQ, 64)
		require.NoError(t, b.Configure(Settings{Queues: 3}))
		for q := 0; q < 6; q += 2 {
			for range 16 {
				g.offer(q, 1600)
			}
			g.notify(q) // the receiver may have found none already
		}
		for _, pairs := range []int{1, 3, 2, 3, 1} {
			require.EqualValues(t, ctrlOK, g.command(6, 4, 0, []byte{byte(pairs), 0}))
			for i := range 3 {
				want := testFrame(broadcast, 60, byte(i))
				write1(t, b.Queue(i), Header{}, want)
				_, got := g.mustRecv(2 * (i % pairs))
				require.Equal(t, want, got)
				g.offer(2*(i%pairs), 1600)
				g.notify(2 * (i % pairs))
			}
			for i := range pairs {
				want := testFrame(broadcast, 70, byte(i))
				g.send(2*i+1, Header{}, want)
				_, got := read1(t, b.Queue(i))
				require.Equal(t, want, got)
				_, _, ok := g.rings[2*i+1].Used1()
				require.True(t, ok)
			}
		}
	})
}

func TestLink(t *testing.T) {
	a, b := newPipe(t, PipeConfig{})
	g := newGuest(t, a, Config{MAC: testMAC}, true)
	g.activate(baseFeatures|featMrgRxBuf, 64)
	_, status, _, _ := g.config()
	require.EqualValues(t, statusLinkUp, status)
	g.offer(0, 1600)
	g.notify(0)
	g.dev.SetLink(false)
	require.EqualValues(t, 1, g.conf.Load())
	_, status, _, _ = g.config()
	require.Zero(t, status)
	// A pulled cable carries nothing either way.
	g.send(1, Header{}, testFrame(broadcast, 60, 1))
	_, _, ok := g.rings[1].Used1()
	require.True(t, ok)
	n, err := b.Queue(0).Read([]Frame{{Data: [][]byte{make([]byte, 100)}}}, false)
	require.NoError(t, err)
	require.Zero(t, n)
	g.dev.SetLink(true)
	g.dev.SetLink(true)
	require.EqualValues(t, 2, g.conf.Load())
	require.NoError(t, b.Close())
	g.eventually(func() bool { return g.conf.Load() == 3 }, "a change of the configuration")
	_, status, _, _ = g.config()
	require.Zero(t, status)
	g.send(1, Header{}, testFrame(broadcast, 60, 1))
}

func TestSaveLoad(t *testing.T) {
	for _, direct := range []bool{true, false} {
		a, b := newPipe(t, PipeConfig{Queues: 2, MTU: 1400})
		f := baseFeatures | featMrgRxBuf | featMQ | featMTU | featGuestCsum | featGuestTSO4
		g := newGuest(t, a, Config{}, direct)
		g.activate(f, 64)
		require.EqualValues(t, ctrlOK, g.command(4, 0, 0, []byte{0}))
		require.EqualValues(t, ctrlOK, g.command(4, 4, 0, []byte{2, 0}))
		require.EqualValues(t, ctrlOK, g.command(4, 5, 0, binary.LittleEndian.AppendUint64(nil, featGuestCsum)))
		require.EqualValues(t, ctrlOK, g.command(4, 1, 0, []byte{1, 0, 0, 0, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0}))
		_, err := g.dev.Save()
		require.Error(t, err, "not paused")
		// A frame that finds one small buffer waits in the device.
		g.offer(0, 100)
		g.notify(0)
		want := testFrame(broadcast, 500, 3)
		write1(t, b.Queue(0), Header{}, want)
		g.eventually(func() bool {
			g.dev.pairs[0].rx.mu.Lock()
			defer g.dev.pairs[0].rx.mu.Unlock()
			return len(g.dev.pairs[0].rx.backlog) == 1
		}, "a held frame")
		g.dev.Pause()
		st, err := g.dev.Save()
		require.NoError(t, err)

		// A second device on another network takes over memory and rings.
		a2, b2 := newPipe(t, PipeConfig{Queues: 2, MTU: 1500})
		dev, err := NewDevice(a2, Config{})
		require.NoError(t, err)
		old := g.dev
		g.dev = dev
		var conf int
		require.NoError(t, dev.Attach(&virtio.Host{Name: "net0", Memory: g.mem, Inbox: g.box, ConfigChanged: func() { conf++ }}))
		dev.Pause()
		require.NoError(t, dev.Load(st))
		for i := range g.queues {
			next, _, err := g.queues[i].Save()
			require.NoError(t, err)
			g.queues[i] = g.queue(i, f, next)
		}
		require.NoError(t, dev.Activate(f, g.queues))
		st2, err := dev.Save()
		require.NoError(t, err)
		require.JSONEq(t, string(st.Data), string(st2.Data))
		dev.Resume()
		for q := range g.queues {
			dev.Notify(q)
		}
		require.Equal(t, old.MAC(), dev.MAC())
		g.eventually(func() bool { _, s, _, _ := g.config(); return s == statusLinkUp|statusAnnounce }, "announcement")
		require.EqualValues(t, ctrlOK, g.command(4, 3, 0, nil))
		_, s, _, mtu := g.config()
		require.EqualValues(t, statusLinkUp, s)
		require.EqualValues(t, 1400, mtu)
		for range 8 {
			g.offer(0, 300)
		}
		g.notify(0)
		_, frame := g.mustRecv(0)
		require.Equal(t, want, frame)
		_, frame = read1(t, b2.Queue(0))
		require.Equal(t, rarp([6]byte(dev.MAC())), frame)
		write1(t, b2.Queue(0), Header{}, testFrame([6]byte{2, 3, 4, 5, 6, 7}, 60, 3))
		g.mustRecv(0)
		dev.Reset()
		require.NoError(t, dev.Close())
		g.dev = old
	}
}

func TestLoadRejects(t *testing.T) {
	a, _ := newPipe(t, PipeConfig{})
	g := newGuest(t, a, Config{MAC: testMAC}, true)
	g.activate(baseFeatures|featMrgRxBuf, 64)
	g.dev.Pause()
	good, err := g.dev.Save()
	require.NoError(t, err)
	require.Error(t, g.dev.Load(good), "active")
	g.dev.Reset()
	require.NoError(t, g.dev.Load(good))
	for _, tt := range [][2]string{
		{`"queues":1`, `"queues":2`},
		{`"queues":1`, `"queues":-1`},
		{`"mtu":0`, `"mtu":1500`},
		{`"pairs":1`, `"pairs":0`},
		{`"pairs":1`, `"pairs":2`},
		{`"offloads":4`, `"offloads":1`},
		{`"offloads":4`, `"offloads":-1`},
		{`"mac":"AgAAAAAB"`, `"mac":"AQAAAAAB"`},
		{`"mac":"AgAAAAAB"`, `"mac":"AgAAAAA="`},
		{`"promisc":true`, `"promisc":true,"uni":["AAA="]`},
		{`"promisc":true`, `"promisc":7`},
		{`"pairs":1`, `"pairs":1,"backlog":[{"pair":1,"data":"AAAA"}]`},
		{`"pairs":1`, `"pairs":1,"backlog":[{"pair":0,"data":"AAAA"}]`},
		{`"pairs":1`, `"pairs":1,"more":1`},
	} {
		bad := good
		bad.Data = bytes.Replace(good.Data, []byte(tt[0]), []byte(tt[1]), 1)
		if bytes.Equal(bad.Data, good.Data) {
			continue // that field had another value
		}
		require.Error(t, g.dev.Load(bad), "%v", tt)
	}
	bad := good
	bad.Version = 99
	require.ErrorContains(t, g.dev.Load(bad), "unknown state version")
}

func TestNewDeviceRejects(t *testing.T) {
	a, _ := newPipe(t, PipeConfig{Queues: 2})
	for _, cfg := range []Config{
		{MAC: []byte{1, 2, 3, 4, 5, 6}},
		{MAC: []byte{2, 2, 3}},
		{Queues: 3},
		{Queues: -1},
		{QueueSize: 100},
		{QueueSize: 1024},
		{MTU: 60},
		{MTU: 70000},
	} {
		_, err := NewDevice(a, cfg)
		require.Error(t, err, "%+v", cfg)
	}
	_, err := NewDevice(nil, Config{})
	require.Error(t, err)
}

// TestReceiveLateDelivery holds events back, as a machine may that has just
// been told to record.
func TestReceiveLateDelivery(t *testing.T) {
	both(t, func(t *testing.T, direct bool, f uint64) {
		a, b := newPipe(t, PipeConfig{})
		g := newGuest(t, a, Config{MAC: testMAC}, direct)
		g.activate(f|baseFeatures|featMrgRxBuf, 64)
		for range 32 {
			g.offer(0, 1600)
		}
		g.box.hold.Store(true)
		g.notify(0)
		for i := range 5 {
			write1(t, b.Queue(0), Header{}, testFrame(broadcast, 100, byte(i)))
		}
		for i := range 5 {
			var frame []byte
			g.eventually(func() (ok bool) {
				if _, frame, ok = g.recv(0); !ok {
					g.box.release()
				}
				return ok
			}, "a frame")
			require.Equal(t, testFrame(broadcast, 100, byte(i)), frame)
		}
		// A pause does not wait for events that are held.
		write1(t, b.Queue(0), Header{}, testFrame(broadcast, 100, 9))
		g.eventually(func() bool {
			g.box.mu.Lock()
			defer g.box.mu.Unlock()
			return len(g.box.held) > 0
		}, "an event")
		g.dev.Pause()
		require.Zero(t, g.queues[0].InFlight())
		g.box.release()
		_, _, ok := g.recv(0)
		require.False(t, ok, "the guest sees nothing while paused")
		g.dev.Resume()
	})
}

// TestDeviceAllocs pins the steady state: nothing is allocated for a frame in
// either direction.
func TestDeviceAllocs(t *testing.T) {
	a, b := newPipe(t, PipeConfig{})
	g := newGuest(t, a, Config{MAC: testMAC}, true)
	g.activate(baseFeatures|virtio.FeatureEventIdx|featMrgRxBuf|featCsum|featHostTSO4|featGuestCsum|featGuestTSO4, 64)
	require.NoError(t, b.Configure(Settings{Queues: 1, Offload: OffloadAll}))
	const tx, rx = bufBase, bufBase + 1<<20
	frame, _, l4 := packet(false, false, 0, 9000)
	h := Header{Flags: NeedsChecksum, GSOType: GSOTCPv4, GSOSize: 1000, CsumStart: uint16(l4), CsumOffset: 16}
	p := make([]byte, HeaderLen)
	h.put(p)
	require.NoError(t, g.mem.Write(tx, append(p, frame...)))
	out := []Frame{{Header: h, Data: [][]byte{frame}}}
	in := []Frame{{Data: [][]byte{make([]byte, 20000)}}}
	send := virtiotest.Buf{Addr: tx, Len: uint32(HeaderLen + len(frame))}
	recv := virtiotest.Buf{Addr: rx, Len: 2048, Write: true}
	round := func() {
		if _, err := g.rings[1].Add(send); err != nil {
			t.Error(err)
		}
		g.notify(1)
		if n, err := b.Queue(0).Read(in, false); n != 1 || err != nil {
			t.Error(n, err)
		}
		if _, _, ok := g.rings[1].Used1(); !ok {
			t.Error("no answer")
		}
		for g.rings[0].Free() > 0 {
			if _, err := g.rings[0].Add(recv); err != nil {
				t.Error(err)
			}
		}
		g.notify(0)
		if n, err := b.Queue(0).Write(out, false); n != 1 || err != nil {
			t.Error(n, err)
		}
		for got := 0; got < 5; {
			if _, _, ok := g.rings[0].Used1(); ok {
				got++
			} else {
				runtime.Gosched()
			}
		}
	}
	for range 50 {
		round()
	}
	require.Zero(t, testing.AllocsPerRun(200, round))
}

// Closing a device leaves the endpoint to whoever opened it: the next one may have it.
func TestCloseKeepsEndpoint(t *testing.T) {
	a, b := newPipe(t, PipeConfig{})
	for i := range 2 {
		g := newGuest(t, a, Config{MAC: testMAC}, true)
		g.activate(baseFeatures|featMrgRxBuf, 64)
		g.offer(0, 300)
		g.notify(0)
		want := testFrame([6]byte(testMAC), 60, byte(i))
		write1(t, b.Queue(0), Header{}, want)
		_, frame := g.mustRecv(0)
		require.Equal(t, want, frame)
		g.dev.Reset()
		require.NoError(t, g.dev.Close())
	}
}
