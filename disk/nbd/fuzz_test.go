package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/disk"
)

// script is a connection whose peer says what is in it, whatever it hears,
// and hangs up.
type script struct{ *bytes.Reader }

func (script) Write(p []byte) (int, error)        { return len(p), nil }
func (script) Close() error                       { return nil }
func (script) LocalAddr() net.Addr                { return &net.UnixAddr{} }
func (script) RemoteAddr() net.Addr               { return &net.UnixAddr{} }
func (script) SetDeadline(time.Time) error        { return nil }
func (script) SetReadDeadline(time.Time) error    { return nil }
func (script) SetWriteDeadline(t time.Time) error { return nil }

// FuzzServer says anything to a server.
func FuzzServer(f *testing.F) {
	be := binary.BigEndian
	requests := bytes.Join([][]byte{
		requestBytes(0, cmdWrite, 1, 100, 4, 1, 2, 3, 4),
		requestBytes(cmdFlagFUA, cmdWrite, 2, 0, 1, 9),
		requestBytes(0, cmdRead, 3, 0, 100000),
		requestBytes(cmdFlagDF, cmdRead, 4, 0, 512),
		requestBytes(cmdFlagReqOne, cmdBlockStatus, 5, 0, 1<<18),
		requestBytes(cmdFlagNoHole, cmdWriteZeroes, 6, 1, 1<<17),
		requestBytes(0, cmdTrim, 7, 0, 1<<16),
		requestBytes(0, cmdCache, 8, 0, 1<<16),
		requestBytes(0, cmdFlush, 9, 0, 0),
		requestBytes(0, cmdDisc, 0, 0, 0),
	}, nil)
	f.Add(append(goBytes(true), requests...))
	f.Add(append(goBytes(false), requests...))
	hello := be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	f.Add(bytes.Join([][]byte{hello, optionBytes(optList, nil), optionBytes(optStartTLS, nil), optionBytes(optExportName, []byte("disk")), requests}, nil))
	f.Add(bytes.Join([][]byte{
		hello, optionBytes(optStructuredReply, nil), optionBytes(optListMetaContext, be.AppendUint32(appendString(nil, "disk"), 0)),
		optionBytes(optInfo, append(be.AppendUint16(appendString(nil, "disk"), 3), 0, 1, 0, 2, 0, 3)), optionBytes(optAbort, nil),
	}, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := disk.NewMemory("memory", 1<<18)
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{Exports: []Export{{Name: "disk", Backend: m, FastZero: true}}, MaxRequests: 4}
		// Any error will do.
		_ = s.ServeConn(script{bytes.NewReader(data)})
		if len(s.conns) > 0 {
			t.Fatal("the connection is still there")
		}
	})
}

// FuzzClientHandshake answers a client's handshake with anything.
func FuzzClientHandshake(f *testing.F) {
	be := binary.BigEndian
	hello := be.AppendUint16(be.AppendUint64(be.AppendUint64(nil, magicInit), magicOption), flagFixedNewstyle|flagNoZeroes)
	export := be.AppendUint16(be.AppendUint64(be.AppendUint16(nil, infoExport), 1<<20), flagHasFlags|flagSendFlush)
	blocks := be.AppendUint32(be.AppendUint32(be.AppendUint32(be.AppendUint16(nil, infoBlockSize), 512), 4096), 1<<20)
	f.Add(bytes.Join([][]byte{
		hello, optReply(optStructuredReply, repAck, nil),
		optReply(optSetMetaContext, repMetaContext, append(be.AppendUint32(nil, 1), contextAllocation...)), optReply(optSetMetaContext, repAck, nil),
		optReply(optGo, repInfo, export), optReply(optGo, repInfo, blocks), optReply(optGo, repAck, nil),
	}, nil))
	f.Add(bytes.Join([][]byte{
		hello, optReply(optStructuredReply, repErrUnsup, nil), optReply(optGo, repErrUnsup, []byte("no")),
		be.AppendUint16(be.AppendUint64(nil, 1<<20), flagHasFlags|flagReadOnly),
	}, nil))
	f.Add(bytes.Join([][]byte{
		hello, optReply(optList, repServer, append(appendString(nil, "a"), "words"...)), optReply(optList, repAck, nil),
		optReply(optStructuredReply, repAck, nil), optReply(optInfo, repInfo, export), optReply(optInfo, repAck, nil),
	}, nil))
	f.Add(be.AppendUint64(be.AppendUint64(nil, magicInit), magicOldstyle))
	f.Fuzz(func(t *testing.T, data []byte) {
		dialed := false
		cfg := ClientConfig{Timeout: time.Millisecond, Dialer: func(context.Context) (net.Conn, error) {
			if dialed {
				return nil, io.EOF
			}
			dialed = true
			return script{bytes.NewReader(data)}, nil
		}}
		if c, err := Dial(context.Background(), cfg); err == nil {
			if i := c.Info(); i.BlockSize < 512 || i.BlockSize&(i.BlockSize-1) != 0 || c.Size() < 0 {
				t.Errorf("%+v, %d bytes", i, c.Size())
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		dialed = false
		_, _ = List(context.Background(), cfg)
	})
}

// FuzzClientReplies answers a client's requests with anything. Where a READ
// succeeds, every byte has been set.
func FuzzClientReplies(f *testing.F) {
	const off, n = 8192, 4096
	// The requests below have these cookies.
	const read, write, status, flush = 1 << 16, 2<<16 | 1, 3<<16 | 2, 4<<16 | 3
	data := bytes.Repeat([]byte{1}, n)
	f.Add(true, bytes.Join([][]byte{
		dataChunk(0, read, off+100, data[:100]), appendSimple(nil, 0, write), holeChunk(0, read, off, 100),
		append(appendChunk(nil, 1, replyBlockStatus, status, 12), 0, 0, 0, 7, 0, 0, 16, 0, 0, 0, 0, 3),
		dataChunk(1, read, off+200, data[:n-200]), errorChunk(1, flush, 5, "no"),
	}, nil))
	f.Add(true, bytes.Join([][]byte{errorChunk(0, read, 5, "bad"), appendChunk(nil, 1, replyNone, read, 0), appendChunk(nil, 1, replyNone, write, 0)}, nil))
	f.Add(false, bytes.Join([][]byte{appendSimple(nil, 0, read), data, appendSimple(nil, 28, write), appendSimple(nil, 108, flush)}, nil))
	f.Fuzz(func(t *testing.T, structured bool, data []byte) {
		s := &session{began: time.Now(), dead: make(chan struct{})}
		terms := &terms{ExportInfo: ExportInfo{Structured: structured}, context: 7}
		c := newClientConn(s, script{bytes.NewReader(data)}, terms)
		s.conns = []*clientConn{c}
		got := bytes.Repeat([]byte{0xee}, n)
		var rs []*request
		for _, r := range []*request{
			{cmd: cmdRead, off: off, n: n, bufs: [][]byte{got[:1000], got[1000:]}},
			{cmd: cmdWrite, off: 0, n: 8, bufs: [][]byte{make([]byte, 8)}},
			{cmd: cmdBlockStatus, off: 0, n: 1 << 20},
			{cmd: cmdFlush},
		} {
			r.done = make(chan struct{}, 1)
			r.reset()
			if !c.start(r) {
				t.Fatal("not started")
			}
			rs = append(rs, r)
		}
		c.run()
		for _, r := range rs {
			<-r.done
		}
		if r := rs[0]; !r.lost && r.err == nil && !r.whole() {
			t.Error("a READ has succeeded that was not answered")
		}
		if r := rs[2]; !r.lost && r.err == nil && (!r.hasExtent || r.extent.from == 0) {
			t.Error("a BLOCK_STATUS has succeeded that was not answered")
		}
		if s.err == nil || errors.Is(s.err, io.EOF) && !errors.Is(s.err, io.ErrUnexpectedEOF) {
			t.Errorf("the session ended with %v", s.err)
		}
		if len(rs[0].covered) > maxFragments {
			t.Errorf("%d fragments", len(rs[0].covered))
		}
	})
}
