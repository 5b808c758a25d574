package image_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
)

// Publish a disk in a directory, and read it back through its manifest.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "image")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	d, err := disk.NewMemory("example", 1<<30)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := d.WriteAt([]byte("hello, disk"), 512<<20); err != nil {
		log.Fatal(err)
	}
	if _, err := image.Pack(ctx, d, image.PackConfig{Dir: dir}); err != nil {
		log.Fatal(err)
	}

	img, err := image.Open(ctx, fetch.Dir(dir), "manifest.json", image.Config{AllowUnsigned: true})
	if err != nil {
		log.Fatal(err)
	}
	p := make([]byte, 11)
	if _, err := img.Reader(ctx).ReadAt(p, 512<<20); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d bytes in %d chunk: %s\n", img.Size(), img.Chunks(), p)
	// Output: 1073741824 bytes in 1 chunk: hello, disk
}
