package virtio_test

import (
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// shout is a device of its own: it answers each request with its text in upper
// case.
type shout struct {
	queue *virtio.Queue
	chain virtio.Chain
}

func (d *shout) Type() virtio.Type             { return 0x3f }
func (d *shout) Features() uint64              { return 0 }
func (d *shout) QueueSizes() []uint16          { return []uint16{16} }
func (d *shout) ReadConfig(_ uint32, p []byte) { clear(p) }
func (d *shout) WriteConfig(uint32, []byte)    {}
func (d *shout) Attach(*virtio.Host) error     { return nil }
func (d *shout) Pause()                        {}
func (d *shout) Resume()                       {}
func (d *shout) Reset()                        { d.queue = nil }
func (d *shout) Close() error                  { return nil }
func (d *shout) Save() (device.State, error)   { return device.EncodeState(1, struct{}{}) }
func (d *shout) Load(s device.State) error     { return s.Decode(1, &struct{}{}) }
func (d *shout) Activate(_ uint64, q []*virtio.Queue) error {
	d.queue = q[0]
	return nil
}

func (d *shout) Notify(int) {
	for d.queue.Pop(&d.chain) {
		var text [64]byte
		n := d.chain.CopyIn(text[:], 0)
		n = d.chain.CopyOut([]byte(strings.ToUpper(string(text[:n]))), 0)
		d.queue.Push(&d.chain, uint32(n))
	}
	d.queue.Publish()
}

// A device of one's own, tried out with a driver that needs no guest.
func ExampleDevice() {
	m, err := virtiotest.NewMachine(&shout{}, virtiotest.Config{PCI: true})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	request, answer := m.Alloc(64), m.Alloc(64)
	if err := m.Mem.Write(request, []byte("hello")); err != nil {
		log.Fatal(err)
	}
	n, err := m.Do(0, virtiotest.Buf{Addr: request, Len: 5}, virtiotest.Buf{Addr: answer, Len: 64, Write: true})
	if err != nil {
		log.Fatal(err)
	}
	text := make([]byte, n)
	if err := m.Mem.Read(answer, text); err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(text))
	// Output: HELLO
}

// A console on the standard streams with a port that carries commands to an
// agent in the guest, which finds it as /dev/virtio-ports/agent.
func ExampleNewConsole() {
	agent := strings.NewReader("uname -r\n")
	console, err := virtio.NewConsole(virtio.ConsoleConfig{
		In: os.Stdin, Out: os.Stdout,
		Ports: []virtio.ConsolePort{{Name: "agent", In: agent, Out: os.Stdout, CloseAtEOF: true}},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(console.QueueSizes()), "queues") // and into vm.Config.Devices
	// Output: 6 queues
}
