// Device gives a guest a virtio device of this program's own: an entropy
// source (virtio 1.2, section 5.4) that is not random at all. Debian's kernel
// drives it with the driver it has, and a command in the guest reads it:
//
//	$ go run ./examples/device
//	This is not random: it's vmkit.
//	This is not random: it's vmkit.
//
// Where the host's KVM cannot run a kernel the guest runs in software, which takes
// some seconds longer.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"sync"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/guest"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// text has a length that divides the size of the kernel's reads.
const text = "This is not random: it's vmkit.\n"

// source is the device. A transport for it, PCI or MMIO, is the machine's
// business.
type source struct {
	mu     sync.Mutex // held while guest memory is touched
	queue  *virtio.Queue
	paused bool
	chain  virtio.Chain // reused, so that a request allocates nothing
	served uint64       // bytes
}

var _ virtio.Device = (*source)(nil)

func (s *source) Type() virtio.Type          { return virtio.TypeEntropy }
func (s *source) Features() uint64           { return 0 }
func (s *source) QueueSizes() []uint16       { return []uint16{8} }
func (s *source) ReadConfig(uint32, []byte)  {}
func (s *source) WriteConfig(uint32, []byte) {}
func (s *source) Attach(*virtio.Host) error  { return nil }
func (s *source) Close() error               { return nil }

// Activate is called when the driver is ready.
func (s *source) Activate(_ uint64, queues []*virtio.Queue) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = queues[0]
	return nil
}

// Notify answers what the driver has put into the queue: buffers to fill. The
// queue has checked that they lie in guest memory, whatever the guest did.
func (s *source) Notify(int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queue == nil || s.paused {
		return
	}
	for s.queue.Pop(&s.chain) {
		n := 0
		for n < int(s.chain.WriteLen) {
			n += s.chain.CopyOut([]byte(text), n)
		}
		s.queue.Push(&s.chain, uint32(n))
		s.served += uint64(n)
	}
	s.queue.Publish() // one interrupt for all of them
}

func (s *source) Pause()  { s.pause(true) }
func (s *source) Resume() { s.pause(false) }

func (s *source) pause(v bool) {
	s.mu.Lock()
	s.paused = v
	s.mu.Unlock()
}

// Reset forgets the driver.
func (s *source) Reset() {
	s.mu.Lock()
	s.queue, s.served = nil, 0
	s.mu.Unlock()
}

// Save and Load carry the device's own state; that of its queue and registers
// is the transport's.
func (s *source) Save() (device.State, error)   { return device.EncodeState(1, s.served) }
func (s *source) Load(state device.State) error { return state.Decode(1, &s.served) }

// run boots a guest with the device and has it read from there to out.
func run(ctx context.Context, transport vm.Transport, out io.Writer) error {
	kernel, err := debian.FetchKernel(ctx, os.Stderr)
	if err != nil {
		return err
	}
	image, err := os.Open(kernel.Image)
	if err != nil {
		return err
	}
	defer image.Close()
	initrd, err := guest.Initramfs(ctx, guest.Config{Kernel: kernel, Command: []string{"head", "-c", "64", "/dev/hwrng"}})
	if err != nil {
		return err
	}
	console, result, err := guest.Console(guest.Streams{Stdout: out, Stderr: os.Stderr})
	if err != nil {
		return err
	}
	m, err := vm.New(vm.Config{
		Memory:    256 << 20,
		Boot:      boot.Linux{Kernel: image, Initrd: bytes.NewReader(initrd), Cmdline: "quiet panic=-1"},
		Devices:   []virtio.Device{new(source), console},
		Transport: transport,
	})
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Run(ctx); err != nil {
		return err
	}
	if status, err := result.Status(); err != nil || status != 0 {
		return fmt.Errorf("the guest's command ended with %d, %v", status, err)
	}
	return nil
}

func main() {
	if err := run(context.Background(), vm.PCI, os.Stdout); err != nil {
		log.Fatal("device: ", err)
	}
}
