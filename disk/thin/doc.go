// Package thin keeps many thin-provisioned disks in one store: each disk
// promises its full size, and takes space, in extents, only where something was
// written.
//
// A store is any [disk.Backend]: an image file, a block device, memory. [Format]
// lays out an empty pool on it, [Open] opens one, and the disks inside are
// created, opened, resized and deleted by name:
//
//	store, err := disk.Create("pool.img", 0, disk.FileConfig{})
//	err = thin.Format(store, thin.Layout{Capacity: 100 << 30})
//	pool, err := thin.Open(store, thin.Config{Notify: func(e thin.Event) { log.Print(e) }})
//	err = pool.Create("web1", 40<<30)
//	d, err := pool.OpenDisk("web1", thin.DiskConfig{})
//	dev, err := disk.NewDevice(d, disk.Config{Hold: ...})
//
// When all space is taken, writes that need more fail with an error wrapping
// [disk.ErrNoSpace]; all else goes on. A guest's device can hold such writes
// until the pool was grown or somebody has discarded something. Watermarks give
// notice before that.
//
// # What is where
//
// The store begins with two copies of the superblock and the directory of disks,
// a sector of 512 bytes for each. Groups follow: a table, and the extents that
// it describes. The entry of an extent says which disk it belongs to and where
// in that disk; nothing else is kept, so that taking or freeing an extent is a
// single sector, which a store writes whole or not at all. Every sector carries
// its number and a CRC-32C.
//
// # Crashes
//
// An extent that is free on the medium holds zeroes there, and one that is about
// to be taken is first marked as unclean, durably and many at a time. After a
// crash the unclean ones are zeroed. So whatever reached the medium of what was
// written since the last flush, no disk shows what another has written, and
// extents are neither lost nor shared. Flushing a disk is one flush of the store.
package thin
