package netdev_test

import (
	"fmt"
	"log"

	"github.com/vmkit-go/vmkit/netdev"
)

// A program holds the other end of a pipe to be the network of a guest.
func ExamplePipe() {
	guest, here, err := netdev.Pipe(netdev.PipeConfig{MTU: 1500})
	if err != nil {
		log.Fatal(err)
	}
	defer guest.Close()
	defer here.Close()
	// nic, err := netdev.NewDevice(guest, netdev.Config{}) would give it to a
	// machine. Here it is used by hand.
	hello := []byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5hello")
	if _, err := guest.Queue(0).Write([]netdev.Frame{{Data: [][]byte{hello}}}, true); err != nil {
		log.Fatal(err)
	}

	buf := make([]byte, netdev.MaxFrame)
	frames := []netdev.Frame{{Data: [][]byte{buf}}}
	if _, err := here.Queue(0).Read(frames, true); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%x says %s\n", buf[6:12], buf[14:frames[0].Len])
	// Output: 020000000001 says hello
}

func ExampleOpenTap() {
	tap, err := netdev.OpenTap(netdev.TapConfig{Name: "tap0", Queues: 2})
	if err != nil {
		fmt.Println(err) // it says what to do
		return
	}
	defer tap.Close() // after the machine
	nic, err := netdev.NewDevice(tap, netdev.Config{})
	if err != nil {
		log.Fatal(err)
	}
	_ = nic // goes into the Devices of a machine, which closes it
}
