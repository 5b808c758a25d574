// Package stream gives a guest a disk that has not arrived yet.
//
// A [Disk] is a read-only [disk.Backend] over a published image (package
// stream/image). What the guest asks for comes first, from connections of its
// own; then what is next to it; then what a profile of earlier boots says is
// needed next (stream/profile); then the rest. What has come is kept in a cache
// (stream/cache), and never fetched again.
//
//	c, err := cache.Open("/var/cache/vmkit", cache.Config{})
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	d, err := stream.Open(ctx, "https://example.org/appliance/manifest.json", stream.Config{
//		Cache: c,
//		Image: image.Config{Keys: keys},
//	})
//	if err != nil {
//		return err
//	}
//	defer d.Close()
//	root, err := disk.NewDevice(d, disk.Config{})
//
// Every chunk is compared with its hash before a byte of it is used. When the
// server is away, requests wait until it is back, or fail after a time; see
// [Config.FailAfter].
//
// Writes need another disk on top, such as a clone of disk/qcow2.
package stream
