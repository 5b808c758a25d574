package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
)

// fakeServer accepts connections one after the other and has fn serve each.
func fakeServer(t testing.TB, fn func(nc net.Conn)) ClientConfig {
	t.Helper()
	l := listen(t, "unix")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			fn(nc)
			nc.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return ClientConfig{Network: "unix", Address: l.Addr().String(), HandshakeTimeout: time.Minute}
}

const fakeSize = 1 << 20

// fakeHandshake does the server's part of a handshake.
func fakeHandshake(nc net.Conn, size uint64, structured bool) bool {
	be := binary.BigEndian
	b := be.AppendUint64(nil, magicInit)
	b = be.AppendUint64(b, magicOption)
	b = be.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
	if _, err := nc.Write(b); err != nil {
		return false
	}
	if _, err := io.ReadFull(nc, make([]byte, 4)); err != nil {
		return false
	}
	for {
		head := make([]byte, 16)
		if _, err := io.ReadFull(nc, head); err != nil {
			return false
		}
		opt := be.Uint32(head[8:])
		if _, err := io.CopyN(io.Discard, nc, int64(be.Uint32(head[12:]))); err != nil {
			return false
		}
		var out []byte
		switch {
		case opt == optStructuredReply && structured:
			out = optReply(opt, repAck, nil)
		case opt == optSetMetaContext && structured:
			out = optReply(opt, repMetaContext, append(be.AppendUint32(nil, 7), contextAllocation...))
			out = append(out, optReply(opt, repAck, nil)...)
		case opt == optGo:
			info := be.AppendUint16(nil, infoExport)
			info = be.AppendUint64(info, size)
			info = be.AppendUint16(info, flagHasFlags|flagSendFlush|flagSendTrim|flagSendWriteZeroes)
			out = optReply(opt, repInfo, info)
			out = append(out, optReply(opt, repAck, nil)...)
		default:
			out = optReply(opt, repErrUnsup, nil)
		}
		if _, err := nc.Write(out); err != nil {
			return false
		}
		if opt == optGo {
			return true
		}
	}
}

func optReply(opt, typ uint32, data []byte) []byte {
	be := binary.BigEndian
	b := be.AppendUint64(nil, magicOptReply)
	b = be.AppendUint32(b, opt)
	b = be.AppendUint32(b, typ)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func readRequest(nc net.Conn) (cmd uint16, cookie, off uint64, n uint32, ok bool) {
	be := binary.BigEndian
	var b [requestLen]byte
	if _, err := io.ReadFull(nc, b[:]); err != nil {
		return 0, 0, 0, 0, false
	}
	cmd, cookie, off, n = be.Uint16(b[6:]), be.Uint64(b[8:]), be.Uint64(b[16:]), be.Uint32(b[24:])
	if cmd == cmdWrite {
		if _, err := io.CopyN(io.Discard, nc, int64(n)); err != nil {
			return 0, 0, 0, 0, false
		}
	}
	return cmd, cookie, off, n, true
}

func dataChunk(flags uint16, cookie, off uint64, data []byte) []byte {
	b := appendChunk(nil, flags, replyOffsetData, cookie, uint32(8+len(data)))
	return append(binary.BigEndian.AppendUint64(b, off), data...)
}

func holeChunk(flags uint16, cookie, off uint64, n uint32) []byte {
	b := appendChunk(nil, flags, replyOffsetHole, cookie, 12)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(b, off), n)
}

func errorChunk(flags uint16, cookie uint64, errno uint32, msg string) []byte {
	be := binary.BigEndian
	b := appendChunk(nil, flags, replyError, cookie, uint32(6+len(msg)))
	b = be.AppendUint32(b, errno)
	return append(be.AppendUint16(b, uint16(len(msg))), msg...)
}

// Replies to a READ of 4096 bytes at 8192 that break the protocol end the
// connection, and the request fails with the reason once its time is up.
func TestHostileReplies(t *testing.T) {
	be := binary.BigEndian
	const off, n = 8192, 4096
	good := bytes.Repeat([]byte{0x5a}, n)
	for _, c := range []struct {
		name   string
		simple bool
		status bool // the request is a BLOCK_STATUS
		reply  func(cookie uint64) []byte
		want   string
	}{
		{name: "garbage", reply: func(uint64) []byte { return bytes.Repeat([]byte("garbage!"), 8) }, want: "reply begins with"},
		{name: "unknown cookie", reply: func(k uint64) []byte { return dataChunk(1, k+1<<16, off, good) }, want: "not in flight"},
		{name: "cookie out of range", reply: func(uint64) []byte { return dataChunk(1, ^uint64(0), off, good) }, want: "not in flight"},
		{name: "twice", reply: func(k uint64) []byte { return append(dataChunk(1, k, off, good), dataChunk(1, k, off, good)...) }, want: "not in flight"},
		{name: "before the request", reply: func(k uint64) []byte { return dataChunk(1, k, off-1, good) }, want: "the reply has 4096 bytes at 8191"},
		{name: "past the request", reply: func(k uint64) []byte { return dataChunk(1, k, off+1, good) }, want: "the reply has 4096 bytes at 8193"},
		{name: "far away", reply: func(k uint64) []byte { return dataChunk(1, k, 1<<63+off, good) }, want: "the reply has"},
		{name: "huge chunk", reply: func(k uint64) []byte {
			return be.AppendUint64(appendChunk(nil, 1, replyOffsetData, k, 1<<32-1), off)
		}, want: "the reply has 4294967287 bytes"},
		{name: "empty chunk", reply: func(k uint64) []byte { return dataChunk(1, k, off, nil) }, want: "reply chunk of type 0x1 with 8 bytes"},
		{name: "overlap", reply: func(k uint64) []byte {
			return append(dataChunk(0, k, off, good[:2000]), dataChunk(1, k, off+1999, good[:2097])...)
		}, want: "twice"},
		{name: "overlap backwards", reply: func(k uint64) []byte {
			return append(dataChunk(0, k, off+1000, good[:2000]), dataChunk(1, k, off, good[:1001])...)
		}, want: "twice"},
		{name: "overlapping hole", reply: func(k uint64) []byte {
			return append(dataChunk(0, k, off+100, good[:100]), holeChunk(1, k, off, n)...)
		}, want: "twice"},
		{name: "missing part", reply: func(k uint64) []byte { return dataChunk(1, k, off, good[:4000]) }, want: "lacks a part"},
		{name: "missing middle", reply: func(k uint64) []byte {
			return append(dataChunk(0, k, off, good[:1000]), dataChunk(1, k, off+1001, good[:3095])...)
		}, want: "lacks a part"},
		{name: "nothing", reply: func(k uint64) []byte { return appendChunk(nil, 1, replyNone, k, 0) }, want: "lacks a part"},
		{name: "empty hole", reply: func(k uint64) []byte { return holeChunk(1, k, off, 0) }, want: "the reply has 0 bytes"},
		{name: "huge hole", reply: func(k uint64) []byte { return holeChunk(1, k, off, 1<<32-1) }, want: "the reply has"},
		{name: "long hole chunk", reply: func(k uint64) []byte { return appendChunk(nil, 1, replyOffsetHole, k, 13) }, want: "type 0x2 with 13"},
		{name: "none without done", reply: func(k uint64) []byte { return appendChunk(nil, 0, replyNone, k, 0) }, want: "type 0x0"},
		{name: "none with payload", reply: func(k uint64) []byte { return appendChunk(nil, 1, replyNone, k, 5) }, want: "type 0x0 with 5"},
		{name: "unknown type", reply: func(k uint64) []byte { return appendChunk(nil, 1, 99, k, 4) }, want: "type 0x63"},
		{name: "error 0", reply: func(k uint64) []byte { return errorChunk(1, k, 0, "") }, want: "type 0x8001"},
		{name: "short error", reply: func(k uint64) []byte { return appendChunk(nil, 1, replyError, k, 5) }, want: "type 0x8001 with 5"},
		{name: "huge error", reply: func(k uint64) []byte { return appendChunk(nil, 1, replyError, k, 1<<30) }, want: "type 0x8001 with 1073741824"},
		{name: "error message too long", reply: func(k uint64) []byte {
			b := errorChunk(1, k, 5, "hello")
			be.PutUint16(b[structuredLen+4:], 6)
			return b
		}, want: "type 0x8001"},
		{name: "endless errors", reply: func(k uint64) []byte { return bytes.Repeat(errorChunk(0, k, 5, "no"), 1000) }, want: "type 0x8001"},
		{name: "simple reply", reply: func(k uint64) []byte { return append(appendSimple(nil, 0, k), good...) }, want: "simple reply to a READ"},
		{name: "block status", reply: func(k uint64) []byte {
			return append(appendChunk(nil, 1, replyBlockStatus, k, 12), make([]byte, 12)...)
		}, want: "type 0x5"},
		{name: "structured", simple: true, reply: func(k uint64) []byte { return dataChunk(1, k, off, good) }, want: "not agreed on"},
		{name: "simple, cut off", simple: true, reply: func(k uint64) []byte { return append(appendSimple(nil, 0, k), good[:100]...) }, want: "hung up"},
		{name: "simple, unknown cookie", simple: true, reply: func(k uint64) []byte { return appendSimple(nil, 0, k^1) }, want: "not in flight"},
		{name: "status without one", status: true, reply: func(k uint64) []byte { return appendChunk(nil, 1, replyNone, k, 0) }, want: "no status"},
		{name: "status of another context", status: true, reply: func(k uint64) []byte {
			return append(appendChunk(nil, 1, replyBlockStatus, k, 12), 0, 0, 0, 8, 0, 0, 16, 0, 0, 0, 0, 0)
		}, want: "metadata context 8"},
		{name: "status of nothing", status: true, reply: func(k uint64) []byte {
			return append(appendChunk(nil, 1, replyBlockStatus, k, 12), 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0)
		}, want: "length 0"},
		{name: "status twice", status: true, reply: func(k uint64) []byte {
			b := append(appendChunk(nil, 0, replyBlockStatus, k, 12), 0, 0, 0, 7, 0, 0, 16, 0, 0, 0, 0, 0)
			return append(b, b...)
		}, want: "type 0x5"},
		{name: "status of odd length", status: true, reply: func(k uint64) []byte { return appendChunk(nil, 1, replyBlockStatus, k, 16) }, want: "type 0x5 with 16"},
		{name: "huge status", status: true, reply: func(k uint64) []byte { return appendChunk(nil, 1, replyBlockStatus, k, 1<<31+4) }, want: "type 0x5 with 2147483652"},
		{name: "data for status", status: true, reply: func(k uint64) []byte { return dataChunk(1, k, off, good) }, want: "type 0x1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := fakeServer(t, func(nc net.Conn) {
				if !fakeHandshake(nc, fakeSize, !c.simple) {
					return
				}
				_, cookie, _, _, ok := readRequest(nc)
				if !ok {
					return
				}
				// The client may hang up in the middle.
				_, _ = nc.Write(c.reply(cookie))
			})
			cfg.Timeout = 150 * time.Millisecond
			client := dial(t, cfg)
			if c.status {
				failsWith(t, c.want, func() error { _, err := client.Extent(off); return err })
				return
			}
			got := make([]byte, n)
			read := func() error { _, err := client.ReadAt(got, off); return err }
			if c.name == "twice" {
				// The first reply of each connection is a good one, and the
				// next request may get the next connection.
				for range 2 {
					clear(got)
					insist(t, read)
					require.Equal(t, good, got)
				}
				return
			}
			failsWith(t, c.want, read)
		})
	}
}

// failsWith repeats a request until it fails for the reason wanted: on a busy
// host it may fail first because no answer came in time.
func failsWith(t *testing.T, want string, request func() error) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		err := request()
		require.ErrorIs(t, err, disk.ErrUnavailable)
		if strings.Contains(err.Error(), want) {
			return
		}
		if time.Now().After(end) {
			require.ErrorContains(t, err, want)
		}
	}
}

// insist repeats a request until it works: on a busy host any server seems to
// be away, for a while.
func insist(t *testing.T, request func() error) {
	t.Helper()
	for err := request(); err != nil; err = request() {
		require.ErrorIs(t, err, disk.ErrUnavailable)
	}
}

// Replies in any order and in many pieces are put together.
func TestFragmentedReply(t *testing.T) {
	want := make([]byte, 64<<10)
	for i := range want {
		want[i] = byte(i>>8) + byte(i)
	}
	clear(want[4096:8192])
	cfg := fakeServer(t, func(nc net.Conn) {
		if !fakeHandshake(nc, fakeSize, true) {
			return
		}
		for {
			cmd, cookie, off, n, ok := readRequest(nc)
			if !ok || cmd != cmdRead {
				return
			}
			var out []byte
			// Odd blocks, backwards, then the even ones.
			blocks := int(n) / 1024
			for pass := 1; pass >= 0; pass-- {
				for i := blocks - 1; i >= 0; i-- {
					at := off + uint64(i)*1024
					switch {
					case i%2 != pass:
					case at >= 4096 && at < 8192:
						out = append(out, holeChunk(0, cookie, at, 1024)...)
					default:
						out = append(out, dataChunk(0, cookie, at, want[at:][:1024])...)
					}
				}
			}
			out = append(out, appendChunk(nil, 1, replyNone, cookie, 0)...)
			if _, err := nc.Write(out); err != nil {
				return
			}
		}
	})
	c := dial(t, cfg)
	got := bytes.Repeat([]byte{0xff}, len(want))
	_, err := c.ReadVAt([][]byte{got[:777], got[777:30000], nil, got[30000:]}, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
}

// A reply in a great many pieces is refused before it costs much.
func TestTooFragmentedReply(t *testing.T) {
	cfg := fakeServer(t, func(nc net.Conn) {
		if !fakeHandshake(nc, fakeSize, true) {
			return
		}
		_, cookie, off, _, ok := readRequest(nc)
		for i := uint64(0); ok && i < 4096; i += 2 {
			_, err := nc.Write(dataChunk(0, cookie, off+i, []byte{1}))
			ok = err == nil
		}
	})
	cfg.Timeout = 200 * time.Millisecond
	client := dial(t, cfg)
	failsWith(t, "pieces", func() error { _, err := client.ReadAt(make([]byte, 4096), 0); return err })
}

func TestHostileHandshake(t *testing.T) {
	be := binary.BigEndian
	greeting := func(flags uint16) []byte {
		b := be.AppendUint64(be.AppendUint64(nil, magicInit), magicOption)
		return be.AppendUint16(b, flags)
	}
	info := func(b []byte) []byte { return optReply(optGo, repInfo, b) }
	export := func(size uint64, flags uint16) []byte {
		return info(be.AppendUint16(be.AppendUint64(be.AppendUint16(nil, infoExport), size), flags))
	}
	blocks := func(a, b, c uint32) []byte {
		return info(be.AppendUint32(be.AppendUint32(be.AppendUint32(be.AppendUint16(nil, infoBlockSize), a), b), c))
	}
	ack := optReply(optGo, repAck, nil)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, c := range []struct {
		name  string
		begin []byte // instead of a greeting
		reply []byte // to GO
		want  string
	}{
		{name: "nothing", begin: []byte{}, want: "hung up"},
		{name: "ssh", begin: []byte("SSH-2.0-OpenSSH_9.2p1 Debian"), want: "not an NBD server"},
		{name: "wrong magic", begin: be.AppendUint64(be.AppendUint64(nil, magicInit), 1), want: "second magic"},
		{name: "old style", begin: be.AppendUint64(be.AppendUint64(nil, magicInit), magicOldstyle), want: "old style"},
		{name: "not fixed", begin: greeting(0), want: "fixed newstyle"},
		{name: "wrong reply magic", reply: make([]byte, 20), want: "reply to GO begins with"},
		{name: "for another option", reply: optReply(optList, repAck, nil), want: "is for LIST"},
		{name: "huge reply", reply: optReply(optGo, repInfo, make([]byte, maxOptReply+1)), want: "has 16385 bytes"},
		{name: "endless replies", reply: bytes.Repeat(info([]byte{0, 9}), 10000), want: "more than 256 replies"},
		{name: "no size", reply: ack, want: "does not tell the size"},
		{name: "short export", reply: info([]byte{0, 0, 1}), want: "NBD_INFO_EXPORT has 1 bytes"},
		{name: "short block size", reply: info([]byte{0, 3, 1}), want: "NBD_INFO_BLOCK_SIZE has 1 bytes"},
		{name: "short info", reply: info([]byte{0}), want: "1 bytes to GO"},
		{name: "unknown reply", reply: optReply(optGo, repServer, nil), want: "reply of type 2"},
		{name: "huge size", reply: join(export(1<<63, flagHasFlags), ack), want: "export of 9223372036854775808 bytes"},
		{name: "no flags", reply: join(export(1<<20, 0), ack), want: "transmission flags 0x0"},
		{name: "block size 0", reply: blocks(0, 0, 0), want: "minimum block size 0"},
		{name: "odd block size", reply: blocks(3, 4096, 1<<20), want: "minimum block size 3"},
		{name: "large block size", reply: blocks(1<<20, 1<<20, 1<<20), want: "minimum block size 1048576"},
		{name: "preferred below minimum", reply: blocks(4096, 512, 1<<20), want: "preferred block size 512"},
		{name: "maximum below minimum", reply: blocks(512, 4096, 256), want: "maximum block size 256"},
		{name: "ragged size", reply: join(export(1000, flagHasFlags), blocks(512, 4096, 1<<20), ack), want: "no multiple"},
		{name: "refused", reply: optReply(optGo, repErrUnknown, []byte("nope\x1b[31m")), want: `no such export ("nope?[31m")`},
		{name: "policy", reply: optReply(optGo, repErrPolicy, nil), want: "policy"},
		{name: "tls", reply: optReply(optGo, repErrTLSReqd, nil), want: "TLS is required"},
		{name: "cut off", reply: ack[:10], want: "hung up"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := fakeServer(t, func(nc net.Conn) {
				if c.begin != nil {
					_, _ = nc.Write(c.begin)
					return
				}
				if _, err := nc.Write(greeting(flagFixedNewstyle)); err != nil {
					return
				}
				// The client's flags, and GO.
				if _, err := io.ReadFull(nc, make([]byte, 4+16)); err != nil {
					return
				}
				_, _ = io.CopyN(io.Discard, nc, 12)
				_, _ = nc.Write(c.reply)
			})
			cfg.SimpleReplies = true
			_, err := Dial(context.Background(), cfg)
			require.ErrorContains(t, err, c.want)
			de, ok := err.(*disk.Error)
			require.True(t, ok)
			require.Equal(t, "open", de.Op)
		})
	}
	t.Run("stalls", func(t *testing.T) {
		cfg := fakeServer(t, func(nc net.Conn) { _, _ = io.Copy(io.Discard, nc) })
		cfg.HandshakeTimeout = 50 * time.Millisecond
		_, err := Dial(context.Background(), cfg)
		require.Error(t, err)
		cfg.HandshakeTimeout = time.Minute
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(20*time.Millisecond, cancel)
		_, err = Dial(ctx, cfg)
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("refused", func(t *testing.T) {
		_, err := Dial(context.Background(), ClientConfig{Network: "unix", Address: socketPath(t)})
		require.ErrorContains(t, err, "no such file")
		_, err = Dial(context.Background(), ClientConfig{})
		require.ErrorContains(t, err, "no address")
	})
}
