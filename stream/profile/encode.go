package profile

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// The format is lines of text, so that profiles can be compared and reviewed:
//
//	vmkit-profile 1
//	runs 3
//	HASH MICROSECONDS SEEN PHASE     one per chunk
//	sum SHA-256                      of all lines before
//
// There is one way to write a profile, and nothing else is read.
const (
	magic = "vmkit-profile 1"
	// maxLine is longer than any line can be: hash, time, seen, phase.
	maxLine = 64 + 1 + 12 + 1 + 8 + 1 + MaxPhase + 1
)

// ErrFormat is wrapped by the errors for a file that is not a profile, or is a
// damaged one.
var ErrFormat = errors.New("not a valid profile")

// WriteTo writes the profile to w, and returns the number of bytes. It
// implements io.WriterTo.
func (p *Profile) WriteTo(w io.Writer) (int64, error) {
	if err := p.Check(); err != nil {
		return 0, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nruns %d\n", magic, p.Runs)
	for i := range p.Entries {
		e := &p.Entries[i]
		fmt.Fprintf(&b, "%x %d %d %s\n", e.Hash, e.At.Microseconds(), e.Seen, e.Phase)
	}
	fmt.Fprintf(&b, "sum %x\n", sha256.Sum256(b.Bytes()))
	return b.WriteTo(w)
}

// Read reads a profile up to the end of r. The name, that of a file or a URL,
// is for its errors, which wrap ErrFormat if the content is to blame. It reads
// no more than a profile can have.
func Read(r io.Reader, name string) (*Profile, error) {
	d := decoder{r: bufio.NewReaderSize(r, 64<<10)}
	p, err := d.decode()
	if err != nil {
		return nil, fmt.Errorf("profile %s: line %d, offset %d: %w", name, d.line, d.off, err)
	}
	return p, nil
}

type decoder struct {
	r       *bufio.Reader
	line    int   // number of the line in hand
	off     int64 // its offset
	nextOff int64
}

// next returns the next line without its end. It is valid until the next call.
func (d *decoder) next() ([]byte, error) {
	d.line++
	d.off = d.nextOff
	l, err := d.r.ReadSlice('\n')
	d.nextOff += int64(len(l))
	switch {
	case errors.Is(err, bufio.ErrBufferFull) || len(l) > maxLine:
		return nil, fmt.Errorf("%w: the line is too long", ErrFormat)
	case err == io.EOF:
		return nil, fmt.Errorf("%w: it ends in the middle", ErrFormat)
	case err != nil:
		return nil, err
	}
	return l, nil
}

func (d *decoder) decode() (*Profile, error) {
	sum := sha256.New()
	l, err := d.next()
	if err != nil {
		return nil, err
	}
	if string(l) != magic+"\n" {
		return nil, fmt.Errorf("%w: the first line is not %q", ErrFormat, magic)
	}
	sum.Write(l)
	if l, err = d.next(); err != nil {
		return nil, err
	}
	sum.Write(l)
	p := &Profile{}
	rest, ok := strings.CutPrefix(strings.TrimSuffix(string(l), "\n"), "runs ")
	if p.Runs, err = number(rest, MaxRuns); err != nil || !ok {
		return nil, fmt.Errorf("%w: want \"runs NUMBER\"", ErrFormat)
	}
	seen := make(map[[32]byte]struct{})
	for {
		if l, err = d.next(); err != nil {
			return nil, err
		}
		if bytes.HasPrefix(l, []byte("sum ")) {
			break
		}
		sum.Write(l)
		if len(p.Entries) == MaxEntries {
			return nil, fmt.Errorf("%w: more than %d entries", ErrFormat, MaxEntries)
		}
		e, err := parseEntry(string(l[:len(l)-1]))
		if err == nil {
			err = e.check(p.Runs)
		}
		if n := len(p.Entries); err == nil && n > 0 && e.compare(&p.Entries[n-1]) <= 0 {
			err = errors.New("not in the order of time and hash")
		}
		if _, ok := seen[e.Hash]; err == nil && ok {
			err = fmt.Errorf("chunk %x comes twice", e.Hash)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
		seen[e.Hash] = struct{}{}
		p.Entries = append(p.Entries, e)
	}
	if string(l) != fmt.Sprintf("sum %x\n", sum.Sum(nil)) {
		return nil, fmt.Errorf("%w: its checksum does not match", ErrFormat)
	}
	d.line, d.off = d.line+1, d.nextOff
	if _, err := d.r.ReadByte(); err != io.EOF {
		if err == nil {
			err = fmt.Errorf("%w: something follows its end", ErrFormat)
		}
		return nil, err
	}
	return p, nil
}

func parseEntry(l string) (e Entry, err error) {
	f := strings.Split(l, " ")
	if len(f) != 4 {
		return e, fmt.Errorf("a line of %d fields: want 4", len(f))
	}
	h, err := hex.DecodeString(f[0])
	if err != nil || len(h) != len(e.Hash) || f[0] != strings.ToLower(f[0]) {
		return e, errors.New("the hash is not 64 lower-case hexadecimal digits")
	}
	copy(e.Hash[:], h)
	us, err := number(f[1], int64(MaxTime/time.Microsecond))
	if err != nil {
		return e, fmt.Errorf("time: %w", err)
	}
	if e.Seen, err = number(f[2], MaxRuns); err != nil {
		return e, fmt.Errorf("seen: %w", err)
	}
	e.At, e.Phase = time.Duration(us)*time.Microsecond, f[3]
	return e, nil
}

// number reads a decimal number from 0 to limit, written in the one way that
// WriteTo writes it.
func number(s string, limit int64) (int, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > limit || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("%.40q is not a number from 0 to %d", s, limit)
	}
	return int(n), nil
}
