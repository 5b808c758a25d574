// Package netdev connects guests to networks: frame endpoints (a tap
// interface of the host, an in-process pipe) and the virtio network device
// over any of them.
//
//	tap, err := netdev.OpenTap(netdev.TapConfig{Name: "tap0"})
//	if err != nil {
//		return err
//	}
//	defer tap.Close() // after the machine
//	nic, err := netdev.NewDevice(tap, netdev.Config{})
//
// Anything else that moves frames (a switch, a user-space NAT, a recorder)
// takes part by implementing [Endpoint], or by holding the other end of a
// [Pipe].
package netdev

import (
	"errors"
	"os"
)

// ErrClosed is returned by the methods of a closed endpoint. It is
// [os.ErrClosed].
var ErrClosed = os.ErrClosed

// ErrUnsupported is wrapped by errors for what the host or an endpoint cannot
// do. It is [errors.ErrUnsupported].
var ErrUnsupported = errors.ErrUnsupported

// Sizes of frames, in bytes.
const (
	// MinFrame is the length of an Ethernet header. Shorter frames are
	// dropped; frames need no padding.
	MinFrame = 14
	// MaxFrame is the length of the longest frame that an endpoint carries:
	// a 64 KiB segmentation-offload packet with room for link headers.
	MaxFrame = 65536 + 64
	// MaxPieces is the largest number of buffers that one frame may be
	// scattered over. With the header it is the host's IOV_MAX.
	MaxPieces = 1023
)

// Frame is one Ethernet frame, without preamble, padding or check sequence,
// and what is still to be done to it.
type Frame struct {
	// Header is the metadata: checksum and segmentation that were left to
	// the receiver.
	Header Header
	// Data holds the frame (to write) or room for it (to read), in order.
	// Empty pieces are allowed; there are at most MaxPieces.
	Data [][]byte
	// Len is set by Read to the length of the frame. Write ignores it and
	// sends all of Data.
	Len int
}

// Caps says what an endpoint can do. It does not change while the endpoint
// is open.
type Caps struct {
	// Queues is the number of queue pairs, at least 1.
	Queues int
	// Offload is what writers may leave to the endpoint.
	Offload Offload
	// MTU is the largest payload of an unsegmented frame, in bytes, without
	// the Ethernet header. 0 means that the endpoint does not mind.
	MTU int
}

// Settings is what the user of an endpoint is ready for. Until Configure is
// called, one queue is used and no offload.
type Settings struct {
	// Queues is how many queue pairs the user reads, from queue 0 on; frames
	// arrive on no other. It is between 1 and Caps.Queues.
	Queues int
	// Offload is what frames returned by Read may have left undone. TSO and
	// USO need OffloadChecksum.
	Offload Offload
}

// Endpoint is one end of something that carries Ethernet frames. Its methods
// may be called from any goroutine, and queues work independently of each
// other.
//
// An endpoint is stateless in the eyes of a saved machine: frames that it
// holds may be lost, as on any network, and whatever saves a machine saves
// its device, never the endpoint.
type Endpoint interface {
	// Caps says what the endpoint can do.
	Caps() Caps
	// Queue returns queue pair i, 0 <= i < Caps().Queues; the same one at
	// each call.
	Queue(i int) Queue
	// Configure says what its user is ready for. Frames already on their
	// way may still follow the settings before.
	Configure(Settings) error
	// WatchLink registers the one function to be called, on any goroutine,
	// whenever the link goes up or down, and returns the state now. nil
	// removes it. The function must not call the endpoint.
	WatchLink(f func(up bool)) (up bool)
	// Close releases the endpoint. Blocked and later calls return errors
	// wrapping ErrClosed. Closing twice is harmless.
	Close() error
}

// Queue is one pair of a receive and a transmit queue. One goroutine may read
// and another write at the same time; two readers, or two writers, must
// exclude each other. Neither Read nor Write keeps a reference to frames or
// their data, and neither touches them while it blocks.
type Queue interface {
	// Read receives frames into the Data of frames, in order, and returns
	// how many. With wait it blocks until there is at least one; it never
	// waits for a second. Without wait it returns 0 if there is none. A
	// frame longer than its Data is truncated, with Len telling how much
	// was stored.
	Read(frames []Frame, wait bool) (n int, err error)

	// Write sends frames, in order, and returns how many were taken. With
	// wait it blocks while there is no room for the first; without, it may
	// return 0. A frame that the endpoint cannot carry (too short, too
	// long, headers that contradict its contents, link down) is dropped
	// and counts as taken. An error means that the endpoint works no more.
	Write(frames []Frame, wait bool) (n int, err error)

	// Interrupt with true makes blocked and later calls of Read and Write
	// return without waiting, until Interrupt with false. It is how a user
	// gets its goroutines back.
	Interrupt(on bool)
}

// waiter is a Queue that can wait for an eventfd beside its frames.
type waiter interface {
	// Wait blocks until there is a frame to read, event is readable, or the
	// queue is interrupted. It may return early.
	Wait(event int) error
}
