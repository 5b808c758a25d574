package thin_test

import (
	"errors"
	"fmt"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/thin"
)

// Two guests share a pool. When it is full their writes are held until it has
// grown.
func Example() {
	store, err := disk.NewMemory("pool", 0)
	if err != nil {
		panic(err)
	}
	if err := thin.Format(store, thin.Layout{Capacity: 128 << 10}); err != nil {
		panic(err)
	}
	pool, err := thin.Open(store, thin.Config{})
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	for _, name := range []string{"web1", "web2"} {
		if err := pool.Create(name, 10<<30); err != nil {
			panic(err)
		}
	}
	d, err := pool.OpenDisk("web1", thin.DiskConfig{})
	if err != nil {
		panic(err)
	}
	defer d.Close()
	_, err = d.WriteAt(make([]byte, 192<<10), 1<<30)
	fmt.Println("full:", errors.Is(err, disk.ErrNoSpace))
	if err := pool.Grow(1 << 20); err != nil {
		panic(err)
	}
	_, err = d.WriteAt(make([]byte, 192<<10), 1<<30)
	u := pool.Usage()
	fmt.Println("grown:", err, u.Allocated>>10, "KiB of", u.Promised>>30, "GiB promised")
	// Output:
	// full: true
	// grown: <nil> 192 KiB of 20 GiB promised
}
