package nbd_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/nbd"
)

// A disk is exported on a Unix socket and used from there.
func Example() {
	if err := example(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// 1048576 bytes, read back: hello
}

func example() error {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		return err
	}
	store, err := disk.NewMemory("store", 1<<20)
	if err != nil {
		return err
	}
	server := &nbd.Server{Exports: []nbd.Export{{Name: "root", Backend: store}}}
	go server.Serve(l)
	defer server.Close()

	cfg, err := nbd.ParseURI("nbd+unix:///root?socket=" + l.Addr().String())
	if err != nil {
		return err
	}
	root, err := nbd.Dial(context.Background(), cfg)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.WriteAt([]byte("hello"), 4096); err != nil {
		return err
	}
	if err := root.Flush(); err != nil {
		return err
	}
	p := make([]byte, 5)
	if _, err := root.ReadAt(p, 4096); err != nil {
		return err
	}
	fmt.Printf("%d bytes, read back: %s\n", root.Size(), p)
	return nil
}
