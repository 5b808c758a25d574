package qcow2_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/qcow2"
)

// A linked clone takes the changes; the disk below stays as it is.
func Example() {
	dir, err := os.MkdirTemp("", "qcow2")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	base, err := disk.Create(filepath.Join(dir, "base.img"), 1<<30, disk.FileConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer base.Close()
	file, err := disk.Create(filepath.Join(dir, "clone.qcow2"), 0, disk.FileConfig{})
	if err != nil {
		log.Fatal(err)
	}
	err = qcow2.Create(file, qcow2.CreateConfig{Size: base.Size(), BackingName: "base.img", BackingFormat: "raw"})
	if err != nil {
		log.Fatal(err)
	}
	clone, err := qcow2.Open(file, qcow2.Config{Backing: base})
	if err != nil {
		log.Fatal(err)
	}
	defer clone.Close()
	if _, err := clone.WriteAt([]byte("changed"), 4096); err != nil {
		log.Fatal(err)
	}
	if err := clone.Flush(); err != nil {
		log.Fatal(err)
	}
	for _, b := range []disk.Backend{clone, base} {
		p := make([]byte, 7)
		if _, err := b.ReadAt(p, 4096); err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%q\n", p)
	}
	// Output:
	// "changed"
	// "\x00\x00\x00\x00\x00\x00\x00"
}

// An image is opened with its chain when the caller allows each file.
func ExampleOpenFile() {
	image, err := qcow2.OpenFile("clone.qcow2", qcow2.FileConfig{
		Allow: func(path, format string) bool { return path == "base.img" && format == qcow2.FormatRaw },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer image.Close()
	// Output:
	// disk clone.qcow2: open: no such file or directory
}
