package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits on what a server may send while options are negotiated.
const (
	maxOptReply   = 16 << 10
	maxOptReplies = 256
	maxExports    = 1 << 14 // in a list
)

// ExportInfo describes an export of a server.
type ExportInfo struct {
	// Name is what to ask for; Description is for people.
	Name, Description string
	// Size is in bytes.
	Size int64
	// MinBlock, PreferredBlock and MaxPayload are the server's constraints
	// in bytes: requests are multiples of MinBlock and aligned to it, and a
	// read or write carries at most MaxPayload.
	MinBlock, PreferredBlock, MaxPayload int
	// What the server can do. BlockStatus and Structured are as negotiated.
	ReadOnly, Flush, FUA, Trim, WriteZeroes, FastZero, Cache, MultiConn, Structured, BlockStatus bool
}

// terms is what a client and a server have agreed on for one connection.
type terms struct {
	ExportInfo
	context uint32 // ID of base:allocation, if BlockStatus
}

// clientHandshake negotiates over conn as a client.
type clientHandshake struct {
	cfg  *ClientConfig
	conn net.Conn
	buf  []byte
	// noZeroes means that EXPORT_NAME is answered without padding.
	noZeroes bool
}

// dialConn connects to the server of cfg and negotiates up to, and with, the
// choice of the export.
func dialConn(ctx context.Context, cfg *ClientConfig) (net.Conn, *terms, error) {
	h, stop, err := startHandshake(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	t, err := h.negotiate()
	// From here on the context has no say.
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = h.conn.SetDeadline(time.Time{})
	}
	if err != nil {
		h.conn.Close()
		return nil, nil, handshakeError(ctx, err)
	}
	return h.conn, t, nil
}

// startHandshake connects and negotiates up to, and with, TLS. The context
// ends the connection until stop is called.
func startHandshake(ctx context.Context, cfg *ClientConfig) (*clientHandshake, func() bool, error) {
	conn, err := cfg.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	raw := conn
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	h := &clientHandshake{cfg: cfg, conn: conn}
	err = conn.SetDeadline(time.Now().Add(cfg.HandshakeTimeout))
	if err == nil {
		err = h.greet()
	}
	if err == nil && cfg.TLS != nil {
		err = h.startTLS(ctx)
	}
	if err != nil {
		stop()
		conn.Close()
		return nil, nil, handshakeError(ctx, err)
	}
	return h, stop, nil
}

// handshakeError says why a handshake has ended.
func handshakeError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("handshake: %w", context.Cause(ctx))
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("server hung up: %w", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("handshake: %w", err)
}

// read reads n bytes, which are valid until the next read.
func (h *clientHandshake) read(n int) ([]byte, error) {
	if cap(h.buf) < n {
		h.buf = make([]byte, n)
	}
	b := h.buf[:n]
	_, err := io.ReadFull(h.conn, b)
	return b, err
}

func (h *clientHandshake) greet() error {
	b, err := h.read(16)
	if err != nil {
		return err
	}
	be := binary.BigEndian
	if m := be.Uint64(b); m != magicInit {
		return violation("server begins with %#016x: not an NBD server", m)
	}
	switch m := be.Uint64(b[8:]); m {
	case magicOption:
	case magicOldstyle:
		return violation("server speaks the old style of the protocol, without options")
	default:
		return violation("server's second magic number is %#016x", m)
	}
	if b, err = h.read(2); err != nil {
		return err
	}
	flags := be.Uint16(b)
	if flags&flagFixedNewstyle == 0 {
		return violation("server does not know the fixed newstyle handshake (flags %#x)", flags)
	}
	h.noZeroes = flags&flagNoZeroes != 0
	_, err = h.conn.Write(be.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes))))
	return err
}

// OptionError is a server's refusal of an option.
type OptionError struct {
	Option  string // such as "GO"
	Code    uint32 // NBD_REP_ERR_*
	Message string // the server's words, if any
}

func (e *OptionError) Error() string {
	what := ""
	switch e.Code {
	case repErrUnsup:
		what = "not supported"
	case repErrPolicy:
		what = "forbidden by policy"
	case repErrInvalid:
		what = "invalid"
	case repErrTLSReqd:
		what = "TLS is required"
	case repErrUnknown:
		what = "no such export"
	case repErrTooBig:
		what = "too big"
	default:
		what = fmt.Sprintf("error %#x", e.Code)
	}
	if e.Message != "" {
		return fmt.Sprintf("server refuses %s: %s (%q)", e.Option, what, e.Message)
	}
	return fmt.Sprintf("server refuses %s: %s", e.Option, what)
}

// option sends an option and passes each reply before the last one to fn. A
// refusal is an *OptionError.
func (h *clientHandshake) option(opt uint32, data []byte, most int, fn func(typ uint32, data []byte) error) error {
	if _, err := h.conn.Write(append(appendOption(nil, opt, len(data)), data...)); err != nil {
		return err
	}
	name := optionName(opt)
	for range most {
		b, err := h.read(20)
		if err != nil {
			return err
		}
		be := binary.BigEndian
		magic, got, typ, n := be.Uint64(b), be.Uint32(b[8:]), be.Uint32(b[12:]), be.Uint32(b[16:])
		if magic != magicOptReply {
			return violation("reply to %s begins with %#016x", name, magic)
		}
		if got != opt {
			return violation("reply to %s is for %s", name, optionName(got))
		}
		if n > maxOptReply {
			return violation("reply to %s has %d bytes", name, n)
		}
		if b, err = h.read(int(n)); err != nil {
			return err
		}
		switch {
		case typ == repAck:
			return nil // whatever it carries is none of ours
		case typ&repErr != 0:
			return &OptionError{Option: name, Code: typ, Message: clean(string(b))}
		case fn == nil:
			return violation("reply of type %d to %s", typ, name)
		}
		if err := fn(typ, b); err != nil {
			return err
		}
	}
	return violation("more than %d replies to %s", most, name)
}

// clean makes what a server says fit for a log.
func clean(s string) string {
	if len(s) > 256 {
		s = s[:256]
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func (h *clientHandshake) startTLS(ctx context.Context) error {
	if err := h.option(optStartTLS, nil, 1, nil); err != nil {
		return err
	}
	// Nothing was read ahead, so nothing sent in the clear counts from here.
	conn := tls.Client(h.conn, h.cfg.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	h.conn = conn
	return nil
}

// refused reports whether err is a refusal, after which others options may
// follow.
func refused(err error) bool {
	_, ok := errors.AsType[*OptionError](err)
	return ok
}

// negotiate agrees on the transmission.
func (h *clientHandshake) negotiate() (*terms, error) {
	t := &terms{}
	if !h.cfg.SimpleReplies {
		err := h.option(optStructuredReply, nil, 1, nil)
		if err != nil && !refused(err) {
			return nil, err
		}
		t.Structured = err == nil
	}
	if t.Structured {
		if err := h.setContext(t); err != nil && !refused(err) {
			return nil, err
		}
	}
	err := h.describe(optGo, h.cfg.Export, t)
	if oe, ok := errors.AsType[*OptionError](err); ok && oe.Code == repErrUnsup {
		err = h.exportName(t)
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// setContext asks for the metadata context base:allocation.
func (h *clientHandshake) setContext(t *terms) error {
	be := binary.BigEndian
	data := appendString(nil, h.cfg.Export)
	data = be.AppendUint32(data, 1)
	data = appendString(data, contextAllocation)
	return h.option(optSetMetaContext, data, maxOptReplies, func(typ uint32, b []byte) error {
		if typ != repMetaContext || len(b) < 4 {
			return violation("reply of type %d and %d bytes to SET_META_CONTEXT", typ, len(b))
		}
		if name := string(b[4:]); name != contextAllocation || t.BlockStatus {
			return violation("server selects the metadata context %q", clean(name))
		}
		t.context, t.BlockStatus = be.Uint32(b), true
		return nil
	})
}

// describe asks about an export by INFO, or chooses it by GO.
func (h *clientHandshake) describe(opt uint32, export string, t *terms) error {
	be := binary.BigEndian
	data := appendString(nil, export)
	data = be.AppendUint16(data, 3)
	for _, i := range []uint16{infoBlockSize, infoName, infoDescription} {
		data = be.AppendUint16(data, i)
	}
	t.Name = export
	known := false
	err := h.option(opt, data, maxOptReplies, func(typ uint32, b []byte) error {
		if typ != repInfo || len(b) < 2 {
			return violation("reply of type %d and %d bytes to %s", typ, len(b), optionName(opt))
		}
		kind, b := be.Uint16(b), b[2:]
		switch kind {
		case infoExport:
			if len(b) != 10 {
				return violation("NBD_INFO_EXPORT has %d bytes", len(b))
			}
			known = true
			return t.setExport(be.Uint64(b), be.Uint16(b[8:]))
		case infoName:
			t.Name = string(b)
		case infoDescription:
			t.Description = clean(string(b))
		case infoBlockSize:
			if len(b) != 12 {
				return violation("NBD_INFO_BLOCK_SIZE has %d bytes", len(b))
			}
			return t.setBlocks(be.Uint32(b), be.Uint32(b[4:]), be.Uint32(b[8:]))
		}
		return nil
	})
	if err == nil && !known {
		err = violation("server does not tell the size of the export")
	}
	if err != nil {
		return err
	}
	return t.complete()
}

// exportName chooses the export as servers without GO know it. A server that
// does not have it hangs up.
func (h *clientHandshake) exportName(t *terms) error {
	msg := append(appendOption(nil, optExportName, len(h.cfg.Export)), h.cfg.Export...)
	if _, err := h.conn.Write(msg); err != nil {
		return err
	}
	n := 10
	if !h.noZeroes {
		n += 124
	}
	b, err := h.read(n)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("server hung up when asked for export %q: %w", h.cfg.Export, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return err
	}
	t.Name = h.cfg.Export
	if err := t.setExport(binary.BigEndian.Uint64(b), binary.BigEndian.Uint16(b[8:])); err != nil {
		return err
	}
	return t.complete()
}

func (t *terms) setExport(size uint64, flags uint16) error {
	if size > 1<<63-1 {
		return violation("export of %d bytes", size)
	}
	if flags&flagHasFlags == 0 {
		return violation("transmission flags %#x", flags)
	}
	t.Size = int64(size)
	t.ReadOnly = flags&flagReadOnly != 0
	t.Flush = flags&flagSendFlush != 0
	t.FUA = flags&flagSendFUA != 0
	t.Trim = flags&flagSendTrim != 0
	t.WriteZeroes = flags&flagSendWriteZeroes != 0
	t.FastZero = flags&flagSendFastZero != 0
	t.Cache = flags&flagSendCache != 0
	t.MultiConn = flags&flagCanMultiConn != 0
	return nil
}

func (t *terms) setBlocks(least, preferred, most uint32) error {
	switch {
	case bits.OnesCount32(least) != 1 || least > 64<<10:
		return violation("minimum block size %d", least)
	case bits.OnesCount32(preferred) != 1 || preferred < least:
		return violation("preferred block size %d, the minimum being %d", preferred, least)
	case most < least || most != 1<<32-1 && most%least != 0:
		return violation("maximum block size %d, the minimum being %d", most, least)
	}
	t.MinBlock, t.PreferredBlock = int(least), int(min(preferred, 1<<30))
	t.MaxPayload = int(min(most, defaultMaxPayload))
	return nil
}

// complete fills in what the server left to the protocol's defaults.
func (t *terms) complete() error {
	if t.MinBlock == 0 {
		t.MinBlock, t.PreferredBlock, t.MaxPayload = 1, 4096, defaultMaxPayload
	}
	if t.Size%int64(t.MinBlock) != 0 {
		return violation("size %d is no multiple of the minimum block size %d", t.Size, t.MinBlock)
	}
	return nil
}

// abort ends a negotiation politely.
func (h *clientHandshake) abort() error {
	_, err := h.conn.Write(appendOption(nil, optAbort, 0))
	return errors.Join(err, h.conn.Close())
}

// List asks the server of cfg for its exports, and about each of them. An
// export that the server lists but does not describe has only a Name, and a
// Size of -1. cfg.Export does not matter.
func List(ctx context.Context, cfg ClientConfig) ([]ExportInfo, error) {
	fail := func(err error) ([]ExportInfo, error) {
		return nil, fmt.Errorf("NBD server %s: %w", cfg.Address, err)
	}
	cfg, err := cfg.complete()
	if err != nil {
		return fail(err)
	}
	h, stop, err := startHandshake(ctx, &cfg)
	if err != nil {
		return fail(err)
	}
	defer stop()
	list, err := h.list()
	if err != nil {
		h.conn.Close()
		return fail(handshakeError(ctx, err))
	}
	// The list is complete: how the server takes leave does not matter.
	_ = h.abort()
	return list, nil
}

func (h *clientHandshake) list() ([]ExportInfo, error) {
	var list []ExportInfo
	err := h.option(optList, nil, maxExports, func(typ uint32, b []byte) error {
		if typ != repServer {
			return violation("reply of type %d to LIST", typ)
		}
		name, rest, ok := takeString(b)
		if !ok {
			return violation("bad entry of %d bytes in the list of exports", len(b))
		}
		list = append(list, ExportInfo{Name: name, Description: clean(string(rest)), Size: -1})
		return nil
	})
	if err != nil {
		return nil, err
	}
	structured := h.option(optStructuredReply, nil, 1, nil)
	if structured != nil && !refused(structured) {
		return nil, structured
	}
	for i := range list {
		t := &terms{}
		err := h.describe(optInfo, list[i].Name, t)
		if err != nil && !refused(err) {
			return nil, err
		}
		if err != nil {
			continue
		}
		if t.Description == "" {
			t.Description = list[i].Description
		}
		t.Name, t.Structured = list[i].Name, structured == nil
		list[i] = t.ExportInfo
	}
	return list, nil
}
