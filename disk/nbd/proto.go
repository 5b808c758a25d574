package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Names and values are those of the NBD protocol, doc/proto.md of the NBD
// project. Everything on the wire is big-endian.
const (
	magicInit       uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     uint64 = 0x49484156454f5054 // "IHAVEOPT"
	magicOldstyle   uint64 = 0x0000420281861253
	magicOptReply   uint64 = 0x0003e889045565a9
	magicRequest    uint32 = 0x25609513
	magicSimple     uint32 = 0x67446698
	magicStructured uint32 = 0x668e33ef
)

// Handshake flags of the server and of the client have the same values.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options.
const (
	optExportName      uint32 = 1
	optAbort           uint32 = 2
	optList            uint32 = 3
	optStartTLS        uint32 = 5
	optInfo            uint32 = 6
	optGo              uint32 = 7
	optStructuredReply uint32 = 8
	optListMetaContext uint32 = 9
	optSetMetaContext  uint32 = 10
)

// Types of replies to options.
const (
	repAck         uint32 = 1
	repServer      uint32 = 2
	repInfo        uint32 = 3
	repMetaContext uint32 = 4

	repErr        uint32 = 1 << 31
	repErrUnsup          = repErr + 1
	repErrPolicy         = repErr + 2
	repErrInvalid        = repErr + 3
	repErrTLSReqd        = repErr + 5
	repErrUnknown        = repErr + 6
	repErrTooBig         = repErr + 9
)

// Kinds of information about an export.
const (
	infoExport      uint16 = 0
	infoName        uint16 = 1
	infoDescription uint16 = 2
	infoBlockSize   uint16 = 3
)

// Transmission flags.
const (
	flagHasFlags        uint16 = 1 << 0
	flagReadOnly        uint16 = 1 << 1
	flagSendFlush       uint16 = 1 << 2
	flagSendFUA         uint16 = 1 << 3
	flagSendTrim        uint16 = 1 << 5
	flagSendWriteZeroes uint16 = 1 << 6
	flagSendDF          uint16 = 1 << 7
	flagCanMultiConn    uint16 = 1 << 8
	flagSendCache       uint16 = 1 << 10
	flagSendFastZero    uint16 = 1 << 11
)

// Commands.
const (
	cmdRead        uint16 = 0
	cmdWrite       uint16 = 1
	cmdDisc        uint16 = 2
	cmdFlush       uint16 = 3
	cmdTrim        uint16 = 4
	cmdCache       uint16 = 5
	cmdWriteZeroes uint16 = 6
	cmdBlockStatus uint16 = 7
)

// Command flags.
const (
	cmdFlagFUA      uint16 = 1 << 0
	cmdFlagNoHole   uint16 = 1 << 1
	cmdFlagDF       uint16 = 1 << 2
	cmdFlagReqOne   uint16 = 1 << 3
	cmdFlagFastZero uint16 = 1 << 4
)

// Structured replies.
const (
	replyFlagDone uint16 = 1 << 0

	replyNone        uint16 = 0
	replyOffsetData  uint16 = 1
	replyOffsetHole  uint16 = 2
	replyBlockStatus uint16 = 5
	replyErrorBit    uint16 = 1 << 15
	replyError       uint16 = replyErrorBit + 1
	replyErrorOffset uint16 = replyErrorBit + 2
)

// Flags of the metadata context base:allocation.
const (
	stateHole uint32 = 1 << 0
	stateZero uint32 = 1 << 1

	contextAllocation = "base:allocation"
)

const (
	requestLen    = 28
	simpleLen     = 16
	structuredLen = 20

	// maxString is the longest string, such as an export's name.
	maxString = 4096
	// defaultMaxPayload is what a READ or WRITE may carry where nothing
	// else was agreed.
	defaultMaxPayload = 32 << 20
)

// Errno is an error value of the protocol. Values resemble those of Linux.
type Errno uint32

// The error values that the protocol defines.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

func (e Errno) String() string {
	switch e {
	case EPERM:
		return "operation not permitted"
	case EIO:
		return "input/output error"
	case ENOMEM:
		return "out of memory"
	case EINVAL:
		return "invalid argument"
	case ENOSPC:
		return "no space left on device"
	case EOVERFLOW:
		return "value too large"
	case ENOTSUP:
		return "operation not supported"
	case ESHUTDOWN:
		return "server is shutting down"
	}
	return fmt.Sprintf("error %d", uint32(e))
}

// ErrProtocol is wrapped by the error for a peer that broke the protocol. The
// connection to such a peer is dropped.
var ErrProtocol = errors.New("NBD protocol violation")

// violation is an error that wraps ErrProtocol.
func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

var optionNames = map[uint32]string{
	optExportName: "EXPORT_NAME", optAbort: "ABORT", optList: "LIST", optStartTLS: "STARTTLS", optInfo: "INFO", optGo: "GO",
	optStructuredReply: "STRUCTURED_REPLY", optListMetaContext: "LIST_META_CONTEXT", optSetMetaContext: "SET_META_CONTEXT",
}

func optionName(opt uint32) string {
	if s, ok := optionNames[opt]; ok {
		return s
	}
	return fmt.Sprintf("option %d", opt)
}

var commandNames = [...]string{"READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS"}

func commandName(cmd uint16) string {
	if int(cmd) < len(commandNames) {
		return commandNames[cmd]
	}
	return fmt.Sprintf("command %d", cmd)
}

// appendRequest appends the header of a request.
func appendRequest(b []byte, flags, cmd uint16, cookie, off uint64, n uint32) []byte {
	be := binary.BigEndian
	b = be.AppendUint32(b, magicRequest)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, cmd)
	b = be.AppendUint64(b, cookie)
	b = be.AppendUint64(b, off)
	return be.AppendUint32(b, n)
}

// appendOption appends the header of an option.
func appendOption(b []byte, opt uint32, n int) []byte {
	be := binary.BigEndian
	b = be.AppendUint64(b, magicOption)
	b = be.AppendUint32(b, opt)
	return be.AppendUint32(b, uint32(n))
}

// appendString appends s with its length in 32 bits before it.
func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// takeString takes a string with its length before it from the front of b.
func takeString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; n > maxString || uint64(n) > uint64(len(b)) {
		return "", nil, false
	}
	return string(b[:n]), b[n:], true
}
