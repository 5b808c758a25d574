package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOutput(t *testing.T) {
	r, w := io.Pipe()
	var broken atomic.Int32
	o := newOutput(w, func() { broken.Add(1) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 {
			_, err := o.Write([]byte("0123456789"))
			require.NoError(t, err)
		}
	}()
	p := make([]byte, 10)
	_, err := io.ReadFull(r, p)
	require.NoError(t, err)
	select {
	case <-done:
		t.Fatal("Write does not wait for the stream")
	case <-time.After(20 * time.Millisecond):
	}
	o.end()
	<-done // without a reader
	drained := make(chan struct{})
	go func() { o.drain(t.Context()); close(drained) }()
	rest := make([]byte, 20)
	_, err = io.ReadFull(r, rest)
	require.NoError(t, err)
	require.Equal(t, bytes.Repeat([]byte("0123456789"), 2), rest)
	<-drained

	// A drain ends with its context, and when the reader is gone.
	_, _ = o.Write([]byte("never read"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	o.drain(ctx)
	r.CloseWithError(errors.New("gone"))
	o.drain(t.Context())
	_, _ = o.Write([]byte("dropped"))
	o.drain(t.Context())
	require.EqualValues(t, 1, broken.Load())
}

func TestEscape(t *testing.T) {
	exits, helps := 0, 0
	e := &escapeReader{onExit: func() { exits++ }, onHelp: func() { helps++ }}
	read := func(in string) string {
		// A byte at a time, so that escapes span reads.
		var all []byte
		for i := range len(in) {
			e.r = bytes.NewReader([]byte{in[i]})
			p := make([]byte, 8)
			n, _ := e.Read(p)
			all = append(all, p[:n]...)
		}
		return string(all)
	}
	require.Equal(t, "abc", read("abc"))
	require.Equal(t, "a\x01b", read("a\x01\x01b"))
	require.Equal(t, "ac", read("a\x01hc"))
	require.Equal(t, 1, helps)
	require.Equal(t, "ac", read("a\x01qc"))
	require.Zero(t, exits)
	require.Equal(t, "a", read("a\x01x"))
	require.Equal(t, 1, exits)

	// A pipe's end is the end of the terminal's input.
	e = &escapeReader{r: bytes.NewReader([]byte("exit\n")), repeatEnd: time.Millisecond}
	all, err := io.ReadAll(io.LimitReader(e, 8))
	require.NoError(t, err)
	require.Equal(t, "exit\n\x04\x04\x04", string(all))
}
