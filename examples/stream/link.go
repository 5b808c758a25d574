package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// link is a network link whose rate all connections share.
type link struct {
	rate  int64         // bytes per second; 0 is unlimited
	delay time.Duration // round-trip time

	mu   sync.Mutex
	free time.Time // when what was sent so far will have passed
}

// linkPiece is how much goes at once, so that connections take turns: some
// packets.
const linkPiece = 8 << 10

// reserve books the link for n bytes from now on, after what is booked already,
// and returns how long it takes until they have passed.
func (l *link) reserve(now time.Time, n int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	return l.free.Sub(now)
}

// wait is the delay of a request; it reports whether ctx still lasts.
func (l *link) wait(ctx context.Context) bool {
	if l.delay <= 0 {
		return true
	}
	select {
	case <-time.After(l.delay):
		return true
	case <-ctx.Done():
		return false
	}
}

// listener makes connections that send over the link.
func (l *link) listener(in net.Listener) net.Listener {
	if l.rate <= 0 {
		return in
	}
	return shapedListener{in, l}
}

type shapedListener struct {
	net.Listener
	link *link
}

func (l shapedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return shapedConn{c, l.link}, nil
}

// shapedConn hides the methods of a TCP connection that would pass the link by,
// such as ReadFrom.
type shapedConn struct {
	net.Conn
	link *link
}

func (c shapedConn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		piece := p[done:min(done+linkPiece, len(p))]
		time.Sleep(c.link.reserve(time.Now(), len(piece)))
		n, err := c.Conn.Write(piece)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// parseRate reads a rate in bits (bit, kbit, Mbit, Gbit) or bytes (B, kB, MB,
// GB) per second, and returns bytes per second.
func parseRate(s string) (int64, error) {
	for _, u := range []struct {
		suffix string
		bytes  float64
	}{
		{"Gbit", 1e9 / 8}, {"Mbit", 1e6 / 8}, {"kbit", 1e3 / 8}, {"bit", 1.0 / 8},
		{"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
	} {
		num, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(num, 64)
		if n := v * u.bytes; err == nil && n >= 1 && n < 1e15 {
			return int64(n), nil
		}
		break
	}
	return 0, fmt.Errorf("bad rate %q: want a number and bit, kbit, Mbit, Gbit, B, kB, MB or GB", s)
}
