// Command peer is both ends of the network benchmark: the server on the host
// and the client in the guest. It uses plain blocking sockets, so that it
// measures the network and little of itself.
//
//	peer server 10.0.0.1
//	peer client 10.0.0.1 SECONDS
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const port = 7000

// What a connection is for: its first byte.
const (
	echo   = 'e' // every byte comes back
	sink   = 's' // bytes are counted, and the count comes back at the end
	source = 'g' // bytes come until the client has enough
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: peer server ADDR | peer client ADDR SECONDS")
	}
	addr, err := netip.ParseAddr(args[1])
	if err != nil {
		return err
	}
	sa := &unix.SockaddrInet4{Port: port, Addr: addr.As4()}
	if args[0] == "server" {
		return server(sa)
	}
	if len(args) != 3 {
		return errors.New("how many seconds?")
	}
	seconds, err := strconv.ParseFloat(args[2], 64)
	if err != nil {
		return err
	}
	return client(sa, time.Duration(seconds*float64(time.Second)))
}

// conn is a blocking TCP socket.
type conn int

func (c conn) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(c), p)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (c conn) Write(p []byte) (int, error) {
	for done := 0; ; {
		n, err := unix.Write(int(c), p[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		if done += n; done == len(p) {
			return done, nil
		}
	}
}

func server(sa unix.Sockaddr) error {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := unix.Bind(l, sa); err != nil {
		return err
	}
	if err := unix.Listen(l, 8); err != nil {
		return err
	}
	for {
		fd, _, err := unix.Accept(l)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		go func() {
			serve(conn(fd)) // a client that goes away is no matter
			unix.Close(fd)
		}()
	}
}

func serve(c conn) error {
	if err := unix.SetsockoptInt(int(c), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	buf := make([]byte, 128<<10)
	if _, err := c.Read(buf[:1]); err != nil {
		return err
	}
	switch buf[0] {
	case echo:
		for {
			n, err := c.Read(buf)
			if err != nil {
				return err
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return err
			}
		}
	case sink:
		total := uint64(0)
		for {
			n, err := c.Read(buf)
			if err != nil {
				break
			}
			total += uint64(n)
		}
		_, err := c.Write(binary.LittleEndian.AppendUint64(nil, total))
		return err
	case source:
		for {
			if _, err := c.Write(buf); err != nil {
				return err
			}
		}
	}
	return nil
}

func dial(sa unix.Sockaddr, what byte) (conn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, sa); err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return 0, err
	}
	_, err = conn(fd).Write([]byte{what})
	return conn(fd), err
}

func client(sa unix.Sockaddr, d time.Duration) error {
	buf := make([]byte, 128<<10)
	// Request-response, after a warm-up.
	c, err := dial(sa, echo)
	if err != nil {
		return err
	}
	var rate float64
	for _, d := range []time.Duration{d / 4, d} {
		n := 0
		begin := time.Now()
		for time.Since(begin) < d {
			if _, err := c.Write(buf[:1]); err != nil {
				return err
			}
			if _, err := c.Read(buf[:1]); err != nil {
				return err
			}
			n++
		}
		rate = float64(n) / time.Since(begin).Seconds()
	}
	fmt.Printf("result rr %.1f\n", rate)
	unix.Close(int(c))

	// Guest to host, after a warm-up on another connection, as below: the
	// server's count is of a whole one.
	for _, d := range []time.Duration{d / 4, d} {
		if rate, err = send(sa, d, buf); err != nil {
			return err
		}
	}
	fmt.Printf("result tx %.2f\n", rate)

	// Host to guest.
	for _, d := range []time.Duration{d / 4, d} {
		if rate, err = receive(sa, d, buf); err != nil {
			return err
		}
	}
	fmt.Printf("result rx %.2f\n", rate)
	return nil
}

// send streams to the server for d, and returns the rate at which it arrived in
// MB/s.
func send(sa unix.Sockaddr, d time.Duration, buf []byte) (float64, error) {
	c, err := dial(sa, sink)
	if err != nil {
		return 0, err
	}
	defer unix.Close(int(c))
	begin := time.Now()
	for time.Since(begin) < d {
		if _, err := c.Write(buf); err != nil {
			return 0, err
		}
	}
	if err := unix.Shutdown(int(c), unix.SHUT_WR); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(c, buf[:8]); err != nil {
		return 0, err
	}
	return float64(binary.LittleEndian.Uint64(buf)) / 1e6 / time.Since(begin).Seconds(), nil
}

// receive has the server stream for d, and returns the rate in MB/s.
func receive(sa unix.Sockaddr, d time.Duration, buf []byte) (float64, error) {
	c, err := dial(sa, source)
	if err != nil {
		return 0, err
	}
	defer unix.Close(int(c))
	total := 0
	begin := time.Now()
	for time.Since(begin) < d {
		n, err := c.Read(buf)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return float64(total) / 1e6 / time.Since(begin).Seconds(), nil
}
