package guest

import (
	"io"
	"strings"

	"github.com/vmkit-go/vmkit/vm/virtio"
)

// Streams connects a guest's command with the host. Nil is an empty input, or
// output thrown away.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Console makes the console device over which a guest runs its command. The
// result is there once the machine has ended, and all of the output once it
// is closed.
func Console(s Streams) (*virtio.Console, *Result, error) {
	if s.Stdin == nil {
		s.Stdin = strings.NewReader("")
	}
	result := new(Result)
	c, err := virtio.NewConsole(virtio.ConsoleConfig{Ports: []virtio.ConsolePort{
		{Name: PortStdin, In: s.Stdin, CloseAtEOF: true},
		{Name: PortStdout, Out: s.Stdout},
		{Name: PortStderr, Out: s.Stderr},
		{Name: PortExit, Out: result},
	}})
	return c, result, err
}
