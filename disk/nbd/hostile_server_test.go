package nbd

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
)

func optionBytes(opt uint32, data []byte) []byte {
	return append(appendOption(nil, opt, len(data)), data...)
}

// goBytes is a handshake up to the transmission, for the default export.
func goBytes(structured bool) []byte {
	be := binary.BigEndian
	b := be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	if structured {
		b = append(b, optionBytes(optStructuredReply, nil)...)
		b = append(b, optionBytes(optSetMetaContext, appendString(be.AppendUint32(appendString(nil, ""), 1), contextAllocation))...)
	}
	return append(b, optionBytes(optGo, be.AppendUint16(appendString(nil, ""), 0))...)
}

func requestBytes(flags, cmd uint16, cookie, off uint64, n uint32, data ...byte) []byte {
	return append(appendRequest(nil, flags, cmd, cookie, off, n), data...)
}

// talk sends everything to a server, hangs up, and returns what it said and
// what ServeConn returned.
func talk(t *testing.T, s *Server, say []byte) ([]byte, error) {
	t.Helper()
	l := listen(t, "unix")
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	nc, err := l.Accept()
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- s.ServeConn(nc) }()
	go func() {
		// The server may hang up first.
		_, _ = client.Write(say)
		_ = client.(*net.UnixConn).CloseWrite()
	}()
	heard, _ := io.ReadAll(client)
	return heard, <-ended
}

func TestHostileClient(t *testing.T) {
	be := binary.BigEndian
	flags := be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, c := range []struct {
		name string
		say  []byte
		want string // in the error; "" for a client that just leaves
	}{
		{"nothing", nil, ""},
		{"flags only", flags, ""},
		{"half a flag", flags[:2], "unexpected EOF"},
		{"unknown flags", []byte{0xff, 0, 0, 3}, "client's flags"},
		{"http", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "client's flags"},
		{"wrong option magic", join(flags, make([]byte, 16)), "option begins with"},
		{"huge option", join(flags, appendOption(nil, optGo, 1<<31)), "GO with 2147483648 bytes"},
		{"half an option", join(flags, appendOption(nil, optGo, 100), make([]byte, 50)), "unexpected EOF"},
		{"endless options", join(flags, bytes.Repeat(optionBytes(77, nil), maxOptions+1)), "more than 1024 options"},
		{"unknown export", join(flags, optionBytes(optExportName, []byte("x\x00y"))), `export "x?y", which is not there`},
		{"abort", join(flags, optionBytes(optAbort, nil)), ""},
		{"wrong request magic", join(goBytes(true), make([]byte, requestLen)), "request begins with"},
		{"half a request", join(goBytes(true), requestBytes(0, cmdRead, 1, 0, 512)[:20]), "unexpected EOF"},
		{"huge write", join(goBytes(true), requestBytes(0, cmdWrite, 1, 0, 1<<32-1)), "WRITE of 4294967295 bytes"},
		{"half a write", join(goBytes(true), requestBytes(0, cmdWrite, 1, 0, 512, 1, 2, 3)), "payload of a WRITE"},
		{"polite", join(goBytes(true), requestBytes(0, cmdDisc, 0, 0, 0)), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := &Server{Exports: []Export{{Name: "disk", Backend: memory(t, 1<<20)}}}
			_, err := talk(t, s, c.say)
			if c.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.want)
			}
			require.Empty(t, s.conns)
		})
	}
}

// Requests that are wrong, but do not end the connection, are answered with
// the error values of the protocol.
func TestRefusedRequests(t *testing.T) {
	for _, c := range []struct {
		name     string
		simple   bool
		readOnly bool
		request  []byte
		want     Errno
	}{
		{name: "unknown command", request: requestBytes(0, 99, 1, 0, 0), want: EINVAL},
		{name: "unknown flag", request: requestBytes(1<<9, cmdRead, 1, 0, 512), want: EINVAL},
		{name: "flag of another command", request: requestBytes(cmdFlagNoHole, cmdRead, 1, 0, 512), want: EINVAL},
		{name: "write with unknown flag", request: requestBytes(1<<9, cmdWrite, 1, 0, 2, 1, 2), want: EINVAL},
		{name: "DF without structured replies", simple: true, request: requestBytes(cmdFlagDF, cmdRead, 1, 0, 512), want: EINVAL},
		{name: "fast zero, not offered", request: requestBytes(cmdFlagFastZero, cmdWriteZeroes, 1, 0, 512), want: EINVAL},
		{name: "read past the end", request: requestBytes(0, cmdRead, 1, 1<<20-1, 2), want: EINVAL},
		{name: "read far past the end", request: requestBytes(0, cmdRead, 1, 1<<64-1, 2), want: EINVAL},
		{name: "huge read", request: requestBytes(0, cmdRead, 1, 0, 1<<32-1), want: EINVAL},
		{name: "write past the end", request: requestBytes(0, cmdWrite, 1, 1<<20-1, 2, 1, 2), want: ENOSPC},
		{name: "trim past the end", request: requestBytes(0, cmdTrim, 1, 1<<20, 1), want: ENOSPC},
		{name: "zero past the end", request: requestBytes(0, cmdWriteZeroes, 1, 1, 1<<20), want: ENOSPC},
		{name: "flush with a range", request: requestBytes(0, cmdFlush, 1, 0, 1), want: EINVAL},
		{name: "status past the end", request: requestBytes(0, cmdBlockStatus, 1, 0, 1<<20+1), want: EINVAL},
		{name: "status of nothing", request: requestBytes(0, cmdBlockStatus, 1, 0, 0), want: EINVAL},
		{name: "status without a context", simple: true, request: requestBytes(0, cmdBlockStatus, 1, 0, 512), want: EINVAL},
		{name: "cache past the end", request: requestBytes(0, cmdCache, 1, 1<<20, 1), want: EINVAL},
		{name: "write to read-only", readOnly: true, request: requestBytes(0, cmdWrite, 1, 0, 1, 1), want: EPERM},
		{name: "trim of read-only", readOnly: true, request: requestBytes(0, cmdTrim, 1, 0, 1), want: EPERM},
		{name: "zero of read-only", readOnly: true, request: requestBytes(0, cmdWriteZeroes, 1, 0, 1), want: EPERM},
		{name: "flush of read-only", readOnly: true, request: requestBytes(0, cmdFlush, 1, 0, 0)},
		{name: "read", request: requestBytes(0, cmdRead, 1, 1<<20-1, 1)},
		{name: "unfragmented read", request: requestBytes(cmdFlagDF, cmdRead, 1, 0, 1<<20)},
		{name: "read of nothing", request: requestBytes(0, cmdRead, 1, 1<<20, 0)},
		{name: "write of nothing", request: requestBytes(0, cmdWrite, 1, 1<<20, 0)},
		{name: "cache", request: requestBytes(0, cmdCache, 1, 0, 1<<20)},
		{name: "FUA where it means nothing", request: requestBytes(cmdFlagFUA, cmdFlush, 1, 0, 0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := &Server{Exports: []Export{{Backend: memory(t, 1<<20), ReadOnly: c.readOnly}}}
			before, err := talk(t, s, goBytes(!c.simple))
			require.NoError(t, err)
			heard, err := talk(t, s, append(goBytes(!c.simple), c.request...))
			require.NoError(t, err, "the connection was ended")
			reply := heard[len(before):]
			be := binary.BigEndian
			got := Errno(0)
			switch magic := be.Uint32(reply); {
			case magic == magicSimple:
				got = Errno(be.Uint32(reply[4:]))
			case be.Uint16(reply[6:]) == replyError:
				got = Errno(be.Uint32(reply[structuredLen:]))
			}
			require.Equal(t, c.want, got)
			if c.want != 0 && !c.simple {
				require.Len(t, reply, structuredLen+6)
			}
		})
	}
}

// A client that wants TLS gets nothing said before it counted, and one that
// must have it gets nothing without.
func TestTLSRequired(t *testing.T) {
	s := &Server{Exports: []Export{{Name: "secret", Backend: memory(t, 1<<20)}}, TLS: testCertificates(t).server}
	be := binary.BigEndian
	flags := be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	for _, opt := range []uint32{optList, optGo, optInfo, optStructuredReply, optSetMetaContext, optListMetaContext, 99} {
		heard, err := talk(t, s, append(flags, optionBytes(opt, nil)...))
		require.NoError(t, err)
		require.Equal(t, repErrTLSReqd, be.Uint32(heard[18+12:]), optionName(opt))
		require.NotContains(t, string(heard), "secret")
	}
	_, err := talk(t, s, append(flags, optionBytes(optExportName, []byte("secret"))...))
	require.ErrorContains(t, err, "did not start TLS")
	// What is sent in the clear behind STARTTLS is no part of the session.
	_, err = talk(t, s, append(append(flags, optionBytes(optStartTLS, nil)...), goBytes(true)[4:]...))
	require.ErrorContains(t, err, "TLS")
}

// A client that stalls in the handshake is dropped; one that stalls later
// holds no more than its limits.
func TestStallingClients(t *testing.T) {
	const size = 8 << 20
	cfg := serve(t, "unix", &Server{Exports: []Export{{Backend: memory(t, size)}}, HandshakeTimeout: 50 * time.Millisecond})
	nc, err := net.Dial(cfg.Network, cfg.Address)
	require.NoError(t, err)
	_, err = io.ReadAll(nc)
	require.NoError(t, err)
	require.NoError(t, nc.Close())

	// Many large reads, and nobody who takes the replies.
	s := &Server{Exports: []Export{{Backend: memory(t, size)}}, MaxBytes: 4 << 20}
	cfg = serve(t, "unix", s)
	nc, err = net.Dial(cfg.Network, cfg.Address)
	require.NoError(t, err)
	defer nc.Close()
	say := goBytes(true)
	for i := range uint64(100) {
		say = append(say, requestBytes(cmdFlagDF, cmdRead, i, 0, 1<<20)...)
	}
	_, err = nc.Write(say)
	require.NoError(t, err)
	held := func() (n int64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			c.mu.Lock()
			n += c.bytes
			c.mu.Unlock()
		}
		return n
	}
	require.Eventually(t, func() bool { return held() > 2<<20 }, time.Minute, time.Millisecond)
	for range 50 {
		require.LessOrEqual(t, held(), s.MaxBytes)
		time.Sleep(time.Millisecond)
	}
}

func TestServerConfig(t *testing.T) {
	m := memory(t, 1<<20)
	for _, c := range []struct {
		exports []Export
		want    string
	}{
		{nil, "without exports"},
		{[]Export{{Name: "a"}}, "no backend"},
		{[]Export{{Name: "a", Backend: m}, {Name: "a", Backend: m}}, "two NBD exports"},
		{[]Export{{Name: string(make([]byte, 5000)), Backend: m}}, "longer than"},
	} {
		require.ErrorContains(t, (&Server{Exports: c.exports}).Serve(listen(t, "unix")), c.want)
	}
}

// What a Backend fails with reaches the client as the protocol has it.
func TestErrnos(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Errno
	}{
		{disk.ErrReadOnly, EPERM}, {disk.ErrNoSpace, ENOSPC}, {disk.ErrRange, ENOSPC}, {io.ErrUnexpectedEOF, EIO},
		{net.ErrClosed, EIO}, {disk.ErrUnavailable, EIO},
	} {
		require.Equal(t, c.want, errnoOf(&disk.Error{Op: "write", Err: c.err}, cmdWrite), "%v", c.err)
	}
	require.Equal(t, EINVAL, errnoOf(disk.ErrRange, cmdRead))
	// Nothing of the server's affairs leaks.
	b := &failing{Backend: memory(t, 1<<20)}
	c := dial(t, serve(t, "unix", &Server{Exports: []Export{{Backend: b}}, Log: testLog(t)}))
	_, err := c.ReadAt(make([]byte, 100000), 0)
	require.ErrorContains(t, err, "input/output error")
	require.NotContains(t, err.Error(), "secret")
}

type failing struct{ disk.Backend }

func (f *failing) ReadAt([]byte, int64) (int, error) {
	return 0, &disk.Error{Op: "read", Name: "/secret/path", Err: io.ErrUnexpectedEOF}
}
