package mirror_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/mirror"
)

// A disk moves to another file while it is written to.
func ExampleDisk_Start() {
	source, err := disk.NewMemory("old", 1<<20)
	if err != nil {
		log.Fatal(err)
	}
	d, err := mirror.New(source, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	if _, err := d.WriteAt([]byte("before"), 0); err != nil { // as a guest would
		log.Fatal(err)
	}
	target, err := disk.NewMemory("new", 1<<20)
	if err != nil {
		log.Fatal(err)
	}
	move, err := d.Start(context.Background(), target, mirror.Config{})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := d.WriteAt([]byte("during"), 100); err != nil {
		log.Fatal(err)
	}
	if err := move.Wait(context.Background()); err != nil {
		log.Fatal(err)
	}
	_ = source.Close() // it is not used any more
	p := make([]byte, 106)
	if _, err := target.ReadAt(p, 0); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s %s %s\n", d.Current().Info().Name, p[:6], p[100:])
	// Output: new before during
}

// A program that may have been killed in the middle of a move opens its disk on
// the side that counts, and goes on with the move.
func ExampleOpenJournal() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	create := func(name string, size int64) *disk.File {
		f, err := disk.Create(filepath.Join(dir, name), size, disk.FileConfig{})
		if err != nil {
			log.Fatal(err)
		}
		return f
	}
	small := create("journal", mirror.JournalSize)
	defer small.Close()
	j, err := mirror.OpenJournal(small)
	if err != nil {
		log.Fatal(err)
	}
	var b disk.Backend
	var target string
	if r, ok := j.Record(); ok {
		if b, err = disk.Open(r.Current(), disk.FileConfig{}); err != nil {
			log.Fatal(err)
		}
		if !r.Moved {
			target = r.Target
		}
	} else {
		b = create("disk.img", 1<<20)
	}
	d, err := mirror.New(b, j)
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	fmt.Printf("resume: %q\n", target)
	// Output: resume: ""
}
