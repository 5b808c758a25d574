package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vmkit-go/vmkit/disk"
)

// Limits on what a client may send while options are negotiated.
const (
	maxOption  = 64 << 10
	maxOptions = 1024
	maxQueries = 64
)

// contextID is the metadata context base:allocation on the wire.
const contextID = 1

// errLeft is the end of a client that chose no export.
var errLeft = errors.New("client left")

// serverHandshake is what a client and this server have agreed on so far.
type serverHandshake struct {
	noZeroes   bool
	secure     bool // TLS runs
	structured bool
	context    *Export // for which base:allocation was selected
	buf        []byte
}

// handshake negotiates until the client has chosen an export.
func (c *serverConn) handshake() error {
	limit := c.srv.HandshakeTimeout
	if limit <= 0 {
		limit = 10 * time.Second
	}
	if err := c.setDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	err := c.haggle()
	if err != nil && !errors.Is(err, errLeft) {
		return fmt.Errorf("handshake: %w", err)
	}
	if err == nil {
		err = c.setDeadline(time.Time{})
	}
	return err
}

// setDeadline sets a deadline unless the server is ending, which uses it to
// say so.
func (c *serverConn) setDeadline(t time.Time) error {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	if c.srv.ending {
		return ErrServerClosed
	}
	return c.raw.SetDeadline(t)
}

func (c *serverConn) haggle() error {
	h := &c.agreed
	be := binary.BigEndian
	b := be.AppendUint64(nil, magicInit)
	b = be.AppendUint64(b, magicOption)
	b = be.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
	if _, err := c.nc.Write(b); err != nil {
		return err
	}
	b, err := c.take(4)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return errLeft // someone looked whether there is a server
		}
		return err
	}
	flags := be.Uint32(b)
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return violation("client's flags are %#x", flags)
	}
	h.noZeroes = flags&flagNoZeroes != 0
	for range maxOptions {
		if b, err = c.take(16); err != nil {
			if errors.Is(err, io.EOF) {
				return errLeft
			}
			return err
		}
		magic, opt, n := be.Uint64(b), be.Uint32(b[8:]), be.Uint32(b[12:])
		if magic != magicOption {
			return violation("option begins with %#016x", magic)
		}
		if n > maxOption {
			return violation("%s with %d bytes", optionName(opt), n)
		}
		if b, err = c.take(int(n)); err != nil {
			return err
		}
		done, err := c.option(opt, b)
		if err != nil || done {
			return err
		}
	}
	return violation("more than %d options", maxOptions)
}

// take reads n bytes, valid until the next call. Nothing is read ahead, so
// that nothing sent in the clear is taken for sent by TLS.
func (c *serverConn) take(n int) ([]byte, error) {
	h := &c.agreed
	if cap(h.buf) < n {
		h.buf = make([]byte, n)
	}
	b := h.buf[:n]
	_, err := io.ReadFull(c.nc, b)
	return b, err
}

func (c *serverConn) answer(opt, typ uint32, data []byte) error {
	be := binary.BigEndian
	b := be.AppendUint64(nil, magicOptReply)
	b = be.AppendUint32(b, opt)
	b = be.AppendUint32(b, typ)
	b = be.AppendUint32(b, uint32(len(data)))
	_, err := c.nc.Write(append(b, data...))
	return err
}

func (c *serverConn) refuse(opt, code uint32, why string) error {
	return c.answer(opt, code, []byte(why))
}

// option handles one option, and reports whether it was the last.
func (c *serverConn) option(opt uint32, data []byte) (done bool, err error) {
	h := &c.agreed
	if c.srv.TLS != nil && !c.srv.TLSOptional && !h.secure {
		switch opt {
		case optStartTLS, optAbort:
		case optExportName:
			return false, violation("client did not start TLS")
		default:
			return false, c.refuse(opt, repErrTLSReqd, "TLS is required")
		}
	}
	switch opt {
	case optExportName:
		return true, c.exportName(data)
	case optAbort:
		// It may have hung up already.
		_ = c.answer(opt, repAck, nil)
		return false, errLeft
	case optList:
		return false, c.list(data)
	case optStartTLS:
		return false, c.startTLS(data)
	case optInfo, optGo:
		return c.describe(opt, data)
	case optStructuredReply:
		if len(data) > 0 {
			return false, c.refuse(opt, repErrInvalid, "")
		}
		h.structured = true
		return false, c.answer(opt, repAck, nil)
	case optListMetaContext, optSetMetaContext:
		return false, c.metaContext(opt, data)
	}
	return false, c.refuse(opt, repErrUnsup, "")
}

func (c *serverConn) startTLS(data []byte) error {
	h := &c.agreed
	switch {
	case c.srv.TLS == nil:
		return c.refuse(optStartTLS, repErrPolicy, "this server has no TLS")
	case h.secure || len(data) > 0:
		return c.refuse(optStartTLS, repErrInvalid, "")
	}
	if err := c.answer(optStartTLS, repAck, nil); err != nil {
		return err
	}
	conn := tls.Server(c.nc, c.srv.TLS)
	if err := conn.HandshakeContext(context.Background()); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	// What was said in the clear does not count.
	c.nc = conn
	c.agreed = serverHandshake{noZeroes: h.noZeroes, secure: true}
	return nil
}

func (c *serverConn) list(data []byte) error {
	if len(data) > 0 {
		return c.refuse(optList, repErrInvalid, "")
	}
	for i := range c.srv.Exports {
		e := &c.srv.Exports[i]
		if err := c.answer(optList, repServer, append(appendString(nil, e.Name), e.Description...)); err != nil {
			return err
		}
	}
	return c.answer(optList, repAck, nil)
}

// exportName is how clients without GO choose; there is no way to refuse.
func (c *serverConn) exportName(data []byte) error {
	h := &c.agreed
	e := c.srv.export(string(data))
	if e == nil {
		return fmt.Errorf("client asks for export %q, which is not there", clean(string(data)))
	}
	be := binary.BigEndian
	b := be.AppendUint64(nil, uint64(e.Backend.Size()))
	b = be.AppendUint16(b, c.flags(e))
	if !h.noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	if _, err := c.nc.Write(b); err != nil {
		return err
	}
	c.choose(e)
	return nil
}

// describe handles INFO and GO.
func (c *serverConn) describe(opt uint32, data []byte) (done bool, err error) {
	be := binary.BigEndian
	name, rest, ok := takeString(data)
	if !ok || len(rest) < 2 || len(rest) != 2+2*int(be.Uint16(rest)) {
		return false, c.refuse(opt, repErrInvalid, "malformed")
	}
	e := c.srv.export(name)
	if e == nil {
		return false, c.refuse(opt, repErrUnknown, fmt.Sprintf("there is no export %q", clean(name)))
	}
	b := be.AppendUint16(nil, infoExport)
	b = be.AppendUint64(b, uint64(e.Backend.Size()))
	b = be.AppendUint16(b, c.flags(e))
	if err := c.answer(opt, repInfo, b); err != nil {
		return false, err
	}
	var told [4]bool
	for rest = rest[2:]; len(rest) > 0; rest = rest[2:] {
		kind := be.Uint16(rest)
		if int(kind) >= len(told) || told[kind] {
			continue
		}
		told[kind] = true
		b := be.AppendUint16(nil, kind)
		switch kind {
		case infoName:
			b = append(b, e.Name...)
		case infoDescription:
			if e.Description == "" {
				continue
			}
			b = append(b, e.Description...)
		case infoBlockSize:
			// Backends take any alignment.
			b = be.AppendUint32(b, 1)
			b = be.AppendUint32(b, uint32(preferredBlock(e.Backend)))
			b = be.AppendUint32(b, defaultMaxPayload)
		default:
			continue
		}
		if err := c.answer(opt, repInfo, b); err != nil {
			return false, err
		}
	}
	if err := c.answer(opt, repAck, nil); err != nil || opt == optInfo {
		return false, err
	}
	c.choose(e)
	return true, nil
}

func preferredBlock(b disk.Backend) int {
	n := b.Info().BlockSize
	if n < 512 || n > 64<<10 || n&(n-1) != 0 {
		return 4096
	}
	return n
}

// flags are the transmission flags of an export.
func (c *serverConn) flags(e *Export) uint16 {
	// One Backend serves all connections, and its Flush covers whatever was
	// completed before: that is what CAN_MULTI_CONN stands for.
	flags := flagHasFlags | flagSendFlush | flagCanMultiConn | flagSendCache
	if c.agreed.structured {
		flags |= flagSendDF
	}
	info := e.Backend.Info()
	if e.ReadOnly || info.ReadOnly {
		return flags | flagReadOnly
	}
	flags |= flagSendFUA | flagSendWriteZeroes
	if info.DiscardUnit > 0 {
		flags |= flagSendTrim
	}
	if e.FastZero {
		flags |= flagSendFastZero
	}
	return flags
}

// metaContext handles LIST_META_CONTEXT and SET_META_CONTEXT.
func (c *serverConn) metaContext(opt uint32, data []byte) error {
	h := &c.agreed
	if opt == optSetMetaContext {
		h.context = nil
	}
	be := binary.BigEndian
	name, rest, ok := takeString(data)
	if !ok || len(rest) < 4 || !h.structured {
		return c.refuse(opt, repErrInvalid, "malformed, or without structured replies")
	}
	e := c.srv.export(name)
	if e == nil {
		return c.refuse(opt, repErrUnknown, fmt.Sprintf("there is no export %q", clean(name)))
	}
	n := be.Uint32(rest)
	rest = rest[4:]
	if n > maxQueries {
		return c.refuse(opt, repErrTooBig, "")
	}
	// Without a query, a list is of all there is.
	match := n == 0 && opt == optListMetaContext
	for range n {
		var query string
		if query, rest, ok = takeString(rest); !ok {
			return c.refuse(opt, repErrInvalid, "malformed query")
		}
		match = match || query == contextAllocation || opt == optListMetaContext && query == "base:"
	}
	if len(rest) > 0 {
		return c.refuse(opt, repErrInvalid, "malformed queries")
	}
	if match {
		id := uint32(0)
		if opt == optSetMetaContext {
			id, h.context = contextID, e
		}
		if err := c.answer(opt, repMetaContext, append(be.AppendUint32(nil, id), contextAllocation...)); err != nil {
			return err
		}
	}
	return c.answer(opt, repAck, nil)
}

// choose ends the negotiation.
func (c *serverConn) choose(e *Export) {
	c.export = e
	c.backend = e.Backend
	c.size = e.Backend.Size()
	c.readOnly = e.ReadOnly || e.Backend.Info().ReadOnly
	c.structured = c.agreed.structured
	c.status = c.agreed.context == e
	c.immediate, _ = e.Backend.(disk.Immediate)
	c.mapper, _ = e.Backend.(disk.Mapper)
	c.agreed.buf = nil
}
