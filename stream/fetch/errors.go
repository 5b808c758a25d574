package fetch

import (
	"errors"
	"fmt"
)

// Reasons for which a request fails, told apart with errors.Is. Each is about
// one answer of one server.
var (
	// ErrContent means that the check refused the bytes.
	ErrContent = errors.New("wrong content")
	// ErrShort means that the file or the answer ended too early.
	ErrShort = errors.New("ended too early")
	// ErrNoRange means that the server sent the whole file for a range of
	// it, and the file is too large for that.
	ErrNoRange = errors.New("server ignores ranges")
	// ErrForbidden means status 401 or 403, also with a refreshed URL.
	ErrForbidden = errors.New("access denied")
	// ErrNotFound means that there is no such file.
	ErrNotFound = errors.New("not found")
	// ErrRange means that the range lies outside the file.
	ErrRange = errors.New("range outside the file")
	// ErrServer means a status of 500 or above, or 429.
	ErrServer = errors.New("server error")
	// ErrStall means that no byte came for the stall timeout.
	ErrStall = errors.New("stalled")
	// ErrChanged means that the file is not the one of earlier answers.
	ErrChanged = errors.New("file has changed")
	// ErrTooLarge means that the file is larger than allowed.
	ErrTooLarge = errors.New("file too large")
	// ErrProtocol means an answer that fits no request of ours.
	ErrProtocol = errors.New("unexpected answer")
)

// Error is the error of one request, after all that could be tried: URL, Off
// and Len are those of the last attempt.
type Error struct {
	// URL is what was asked for, without its query, which may hold secrets;
	// or a path.
	URL string
	// Off and Len are the range in bytes; Len is -1 for a whole file.
	Off, Len int64
	// Attempts is the number of requests sent.
	Attempts int
	// Err is the cause.
	Err error
}

func (e *Error) Error() string {
	what := "whole file"
	if e.Len >= 0 {
		what = fmt.Sprintf("%d bytes at offset %d", e.Len, e.Off)
	}
	if e.Attempts > 1 {
		return fmt.Sprintf("fetch %s: %s: %v (attempt %d)", e.URL, what, e.Err, e.Attempts)
	}
	return fmt.Sprintf("fetch %s: %s: %v", e.URL, what, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
