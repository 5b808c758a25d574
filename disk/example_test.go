package disk_test

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/vmkit-go/vmkit/disk"
)

func Example() {
	dir, err := os.MkdirTemp("", "disk")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "root.img")

	img, err := disk.Create(path, 1<<30, disk.FileConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer img.Close()
	dev, err := disk.NewDevice(img, disk.Config{Serial: "root", Queues: 2})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(dev.QueueSizes()), "queues")

	// dev goes into a machine. Meanwhile nobody else gets at the image.
	_, err = disk.Open(path, disk.FileConfig{ReadOnly: true})
	fmt.Println(errors.Is(err, disk.ErrLocked))
	// Output:
	// 2 queues
	// true
}

func ExampleBackend() {
	// Anything that implements Backend can be a guest's disk.
	var b disk.Backend
	b, err := disk.NewMemory("scratch", 4<<20)
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	if _, err := b.WriteAt([]byte("hello"), 1<<20); err != nil {
		log.Fatal(err)
	}
	p := make([]byte, 7)
	if _, err := b.ReadAt(p, 1<<20-1); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%q\n", p)
	_, err = b.WriteAt([]byte("past the end"), 4<<20-4)
	fmt.Println(err)
	// Output:
	// "\x00hello\x00"
	// disk scratch: write 12 bytes at offset 4194300: out of range: size is 4194304
}
