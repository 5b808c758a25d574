package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/buffers"
)

// ClientConfig says which export of which server [Dial] opens. Network and
// Address are needed, or Dial; everything else has a useful zero value.
type ClientConfig struct {
	// Network and Address are those of net.Dial: "tcp" and "host:port", or
	// "unix" and a path. "" for Network is "tcp".
	Network, Address string
	// Export is the export's name; "" asks for the server's default.
	Export string
	// TLS, if not nil, is required of the server, by STARTTLS. An empty
	// ServerName is filled in from Address.
	TLS *tls.Config
	// Dialer replaces net.Dial where a connection is not made by Network
	// and Address; these only name the server then.
	Dialer func(ctx context.Context) (net.Conn, error)

	// ReadOnly opens a writable export for reading.
	ReadOnly bool
	// Connections is how many connections to share the requests between,
	// if the server says that they see each other's writes. 0 means 1.
	Connections int

	// Timeout bounds how long a request waits for a server that is away,
	// and for an answer of one that is there; a server that does not answer
	// in time is taken to be away. 0 means a minute, negative no bound.
	Timeout time.Duration
	// HandshakeTimeout bounds a connection's negotiation. 0 means 10 s.
	HandshakeTimeout time.Duration

	// Unflushed is how many bytes of acknowledged changes are kept until
	// they have been flushed, to make them again when the server comes back
	// without them. Half of it starts a flush. 0 means 32 MiB. If it is
	// negative nothing is kept: a connection lost with unflushed changes
	// makes every later Flush fail.
	Unflushed int64
	// NoFlush accepts a writable export of a server that cannot flush. Its
	// acknowledgements are then taken for durable, and Flush does nothing.
	NoFlush bool

	// SimpleReplies leaves out structured replies, and with them block
	// status, for servers that get them wrong.
	SimpleReplies bool
	// Log is told about connections lost and made. nil discards it.
	Log *slog.Logger
}

// complete checks the configuration and fills in what is not given.
func (c ClientConfig) complete() (ClientConfig, error) {
	if c.Network == "" {
		c.Network = "tcp"
	}
	switch {
	case c.Address == "" && c.Dialer == nil:
		return c, errors.New("no address")
	case len(c.Export) > maxString:
		return c, fmt.Errorf("export name of %d bytes: the most is %d", len(c.Export), maxString)
	}
	if c.TLS != nil && c.TLS.ServerName == "" {
		c.TLS = c.TLS.Clone()
		if host, _, err := net.SplitHostPort(c.Address); err == nil {
			c.TLS.ServerName = host
		} else {
			c.TLS.ServerName = "localhost"
		}
	}
	c.Connections = min(max(c.Connections, 1), 64)
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	if c.HandshakeTimeout <= 0 {
		c.HandshakeTimeout = 10 * time.Second
	}
	if c.Unflushed == 0 {
		c.Unflushed = 32 << 20
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

func (c *ClientConfig) dial(ctx context.Context) (net.Conn, error) {
	if c.Dialer != nil {
		return c.Dialer(ctx)
	}
	d := net.Dialer{Timeout: c.HandshakeTimeout}
	return d.DialContext(ctx, c.Network, c.Address)
}

const (
	maxPiece = 4 << 20 // of a READ or WRITE
	maxRange = 1 << 30 // of anything without payload
)

// Client is an export of an NBD server as a [disk.Backend]; it implements
// [disk.Vectored] and [disk.Mapper] too. All methods are safe for concurrent
// use, and requests run side by side.
//
// A connection that is lost is made again, for as long as the client is open,
// and requests that had no answer are made again. So that this loses nothing
// even if the server was restarted, or its host was, the client keeps a copy
// of every change until it is flushed, makes those that the server may have
// lost again before anything else, and flushes by itself when the copies take
// too much room. What it cannot rule out is that a server which is alive, but
// was cut off, still carries out a request of the old connection later.
//
// Requests that find no server in time fail with an error that wraps
// disk.ErrUnavailable; they may be tried again. For Flush, too, this says that
// nothing is lost yet. A Flush that the server itself refused fails for good.
// Requests are not limited by the size of the server's blocks, nor by its
// longest payload: they are cut and padded as needed.
type Client struct {
	cfg   ClientConfig
	name  string
	first ExportInfo // as it was when Dial returned
	info  disk.Info
	piece int64
	block int64 // the server's minimum

	// rmw is held for writing while a part of a block is replaced.
	rmw sync.RWMutex

	log     *unflushed // nil if nothing is kept
	changes atomic.Uint64
	flushes sync.Mutex // guards what follows
	sticky  error
	clean   uint64        // changes that are flushed
	ownEnd  chan struct{} // of the client's own flush; nil if none runs
	ownErr  error

	mu      sync.Mutex
	session *session // nil while there is none
	changed chan struct{}
	reason  error // why there is none
	closed  bool

	ctx      context.Context
	cancel   context.CancelFunc
	stopped  chan struct{}
	requests sync.Pool
}

// Dial opens the export that cfg describes. The context only bounds the
// opening. The server must be there; later it may come and go.
func Dial(ctx context.Context, cfg ClientConfig) (*Client, error) {
	name := cfg.uri()
	fail := func(err error) (*Client, error) {
		return nil, &disk.Error{Op: "open", Name: name, Err: err}
	}
	cfg, err := cfg.complete()
	if err != nil {
		return fail(err)
	}
	s, err := connect(ctx, &cfg)
	if err != nil {
		return fail(err)
	}
	t := s.terms
	c := &Client{cfg: cfg, name: name, first: t.ExportInfo, changed: make(chan struct{}), stopped: make(chan struct{}), session: s}
	c.block = int64(t.MinBlock)
	c.piece = int64(min(t.MaxPayload, maxPiece))
	c.info = disk.Info{
		Name:      name,
		ReadOnly:  cfg.ReadOnly || t.ReadOnly,
		BlockSize: min(max(t.PreferredBlock, 512), 64<<10),
	}
	c.info.OptimalIO = max(min(int(c.piece), 1<<20), c.info.BlockSize)
	if t.Trim && !c.info.ReadOnly {
		c.info.DiscardUnit = c.info.BlockSize
	}
	if !c.info.ReadOnly && !t.Flush && !cfg.NoFlush {
		s.fail(os.ErrClosed)
		s.routines.Wait()
		return fail(errors.New("the server cannot flush, so no write would be safe; open it read-only, or accept that"))
	}
	if t.Flush && cfg.Unflushed > 0 {
		c.log = &unflushed{limit: cfg.Unflushed, block: t.MinBlock}
	}
	c.requests.New = func() any { return &request{done: make(chan struct{}, 1)} }
	c.ctx, c.cancel = context.WithCancel(context.Background())
	go c.supervise(s)
	return c, nil
}

// Size is the number of bytes.
func (c *Client) Size() int64 { return c.first.Size }

// Info describes the disk. Its name is an NBD URI.
func (c *Client) Info() disk.Info { return c.info }

// Export is what the server said about the export when it was opened.
func (c *Client) Export() ExportInfo { return c.first }

// Close ends the connections; requests in flight fail with os.ErrClosed.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.cancel()
	s := c.session
	c.notify()
	c.mu.Unlock()
	if s != nil {
		for _, conn := range s.conns {
			conn.leave()
		}
		s.fail(os.ErrClosed)
	}
	<-c.stopped
	return nil
}

// notify wakes who waits for a change of session or closed. The caller holds
// mu.
func (c *Client) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Client) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// check is for a change of n bytes at off.
func (c *Client) check(off, n int64) error {
	switch {
	case c.isClosed():
		return os.ErrClosed
	case c.info.ReadOnly:
		return disk.ErrReadOnly
	case off < 0 || n < 0 || n > c.first.Size || off > c.first.Size-n:
		return fmt.Errorf("%w: size is %d", disk.ErrRange, c.first.Size)
	}
	return nil
}

func (c *Client) wrap(op string, off, n int64, err error) error {
	if err == nil {
		return nil
	}
	return &disk.Error{Op: op, Name: c.name, Off: off, Len: n, Err: err}
}

// ReadAt implements io.ReaderAt.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	r := c.request()
	defer c.requests.Put(r)
	r.one[0] = p
	n, err := c.readV(r, r.one[:], off)
	r.one[0] = nil
	return n, err
}

// WriteAt implements io.WriterAt.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	r := c.request()
	defer c.requests.Put(r)
	r.one[0] = p
	n, err := c.writeV(r, r.one[:], off)
	r.one[0] = nil
	return n, err
}

// ReadVAt implements [disk.Vectored].
func (c *Client) ReadVAt(bufs [][]byte, off int64) (int, error) {
	r := c.request()
	defer c.requests.Put(r)
	return c.readV(r, bufs, off)
}

// WriteVAt implements [disk.Vectored].
func (c *Client) WriteVAt(bufs [][]byte, off int64) (int, error) {
	r := c.request()
	defer c.requests.Put(r)
	return c.writeV(r, bufs, off)
}

func (c *Client) request() *request { return c.requests.Get().(*request) }

func (c *Client) readV(r *request, bufs [][]byte, off int64) (int, error) {
	want := buffers.Len(bufs)
	switch {
	case off < 0:
		return 0, c.wrap("read", off, want, disk.ErrRange)
	case c.isClosed():
		return 0, c.wrap("read", off, want, os.ErrClosed)
	}
	n := min(want, max(0, c.first.Size-off))
	for done := int64(0); done < n; {
		at := off + done
		k := min(n-done, c.piece-at%c.block)
		var err error
		if at%c.block == 0 && k%c.block == 0 {
			r.bufs = buffers.AppendPart(r.vec[:0], bufs, done, k)
			err = c.transfer(r, cmdRead, at, k)
		} else {
			err = c.readPadded(r, bufs, done, at, k)
		}
		if err != nil {
			return int(done), c.wrap("read", off, want, err)
		}
		done += k
	}
	if n < want {
		return int(n), io.EOF
	}
	return int(n), nil
}

// readPadded reads k bytes at the offset at, which do not fill blocks, into
// what is at done in bufs.
func (c *Client) readPadded(r *request, bufs [][]byte, done, at, k int64) error {
	from, to := c.blocks(at, k)
	p := make([]byte, to-from)
	r.bufs = append(r.vec[:0], p)
	if err := c.transfer(r, cmdRead, from, to-from); err != nil {
		return err
	}
	p = p[at-from:][:k]
	for _, b := range buffers.AppendPart(nil, bufs, done, k) {
		p = p[copy(b, p):]
	}
	return nil
}

// blocks extends a range to whole blocks.
func (c *Client) blocks(off, n int64) (from, to int64) {
	return off &^ (c.block - 1), (off + n + c.block - 1) &^ (c.block - 1)
}

// transfer carries out r, whose bufs are set, and forgets them.
func (c *Client) transfer(r *request, cmd uint16, off, n int64) error {
	r.cmd, r.flags, r.off, r.n = cmd, 0, off, uint32(n)
	err := c.roundTrip(r)
	r.vec = r.bufs[:0]
	clear(r.bufs[:cap(r.bufs)])
	r.bufs = nil
	return err
}

func (c *Client) writeV(r *request, bufs [][]byte, off int64) (int, error) {
	n := buffers.Len(bufs)
	if err := c.check(off, n); err != nil {
		return 0, c.wrap("write", off, n, err)
	}
	for done := int64(0); done < n; {
		at := off + done
		k := min(n-done, c.piece-at%c.block)
		if err := c.writePiece(r, bufs, done, at, k); err != nil {
			return int(done), c.wrap("write", off, n, err)
		}
		done += k
	}
	return int(n), nil
}

// writePiece writes the k bytes that are at done in bufs.
func (c *Client) writePiece(r *request, bufs [][]byte, done, at, k int64) error {
	from, to := c.blocks(at, k)
	if from == at && to == at+k {
		if c.block > 1 {
			c.rmw.RLock()
			defer c.rmw.RUnlock()
		}
		r.bufs = buffers.AppendPart(r.vec[:0], bufs, done, k)
		return c.change(r, cmdWrite, 0, at, k)
	}
	c.rmw.Lock()
	defer c.rmw.Unlock()
	p := make([]byte, to-from)
	last := to - from - c.block
	for _, edge := range []int64{0, last} {
		if edge == 0 && at == from && last > 0 || edge == last && at+k == to && last > 0 {
			continue // replaced as a whole
		}
		r.bufs = append(r.vec[:0], p[edge:][:c.block])
		if err := c.transfer(r, cmdRead, from+edge, c.block); err != nil {
			return err
		}
		if last == 0 {
			break
		}
	}
	rest := p[at-from:][:k]
	for _, b := range buffers.AppendPart(nil, bufs, done, k) {
		rest = rest[copy(rest, b):]
	}
	r.bufs = append(r.vec[:0], p)
	return c.change(r, cmdWrite, 0, from, to-from)
}

// Discard implements [disk.Backend] with TRIM. What a server leaves of bytes
// trimmed is its own affair; those that are known leave them, or zeroes.
func (c *Client) Discard(off, n int64) error {
	if err := c.check(off, n); err != nil {
		return c.wrap("discard", off, n, err)
	}
	if !c.first.Trim {
		return nil
	}
	from := (off + c.block - 1) &^ (c.block - 1)
	to := (off + n) &^ (c.block - 1)
	return c.wrap("discard", off, n, c.ranges(cmdTrim, 0, from, to))
}

// WriteZeroes implements [disk.Backend].
func (c *Client) WriteZeroes(off, n int64, mayUnmap bool) error {
	if err := c.check(off, n); err != nil {
		return c.wrap("write zeroes", off, n, err)
	}
	flags := cmdFlagNoHole
	if mayUnmap {
		flags = 0
	}
	from := (off + c.block - 1) &^ (c.block - 1)
	to := (off + n) &^ (c.block - 1)
	if !c.first.WriteZeroes || from >= to {
		from, to = off+n, off+n // all of it by writing
	}
	err := c.clear(off, from-off)
	if err == nil {
		err = c.ranges(cmdWriteZeroes, flags, from, to)
	}
	if err == nil {
		err = c.clear(to, off+n-to)
	}
	return c.wrap("write zeroes", off, n, err)
}

// ranges makes changes without payload from one offset to another.
func (c *Client) ranges(cmd, flags uint16, from, to int64) error {
	if c.block > 1 {
		c.rmw.RLock()
		defer c.rmw.RUnlock()
	}
	r := c.request()
	defer c.requests.Put(r)
	for from < to {
		k := min(to-from, maxRange)
		if err := c.change(r, cmd, flags, from, k); err != nil {
			return err
		}
		from += k
	}
	return nil
}

// clear writes n zeroes at off.
func (c *Client) clear(off, n int64) error {
	r := c.request()
	defer c.requests.Put(r)
	for n > 0 {
		k := min(n, int64(len(zeroes))-off%c.block)
		if err := c.writePiece(r, [][]byte{zeroes[:k]}, 0, off, k); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

var zeroes = make([]byte, 128<<10)

// Extent implements [disk.Mapper]. Where the server does not tell, all is
// data.
func (c *Client) Extent(off int64) (disk.Extent, error) {
	size := c.first.Size
	switch {
	case c.isClosed():
		return disk.Extent{}, c.wrap("map", off, 1, os.ErrClosed)
	case off < 0 || off >= size:
		return disk.Extent{}, c.wrap("map", off, 1, fmt.Errorf("%w: size is %d", disk.ErrRange, size))
	case !c.first.BlockStatus:
		return disk.Extent{Off: off, Len: size - off, Allocated: true}, nil
	}
	r := c.request()
	defer c.requests.Put(r)
	from := off &^ (c.block - 1)
	r.cmd, r.flags, r.off, r.n = cmdBlockStatus, cmdFlagReqOne, from, uint32(min(size-from, maxRange))
	if err := c.roundTrip(r); err != nil {
		return disk.Extent{}, c.wrap("map", off, 1, err)
	}
	end := min(from+int64(r.extent.from), size)
	if end <= off {
		// The server tells less than its blocks let one ask.
		return disk.Extent{Off: off, Len: min(from+c.block, size) - off, Allocated: true}, nil
	}
	return disk.Extent{Off: off, Len: end - off, Allocated: r.extent.to&stateHole == 0, Zero: r.extent.to&stateZero != 0}, nil
}
