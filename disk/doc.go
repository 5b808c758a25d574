// Package disk has block backends and the virtio-blk device that shows one to
// a guest.
//
// A [Backend] is a disk as the host sees it: a raw file or block device
// ([Open]), memory ([NewMemory]), or anything else that implements the
// interface. A [Device] is the virtio-blk device over any of them:
//
//	img, err := disk.Open("root.img", disk.FileConfig{})
//	if err != nil {
//		return err
//	}
//	defer img.Close()
//	dev, err := disk.NewDevice(img, disk.Config{Serial: "root"})
//
// What a file contains never decides how it is read: Open is for raw images
// only, so that a guest that writes another format's header into its disk
// gains nothing.
package disk
