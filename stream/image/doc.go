// Package image is the format in which a disk is published for streaming: an
// immutable set of files that any static web server with range requests can
// serve, of which every byte is verified before it is used.
//
//	// Publish.
//	disk, err := disk.Open("appliance.raw", disk.FileConfig{ReadOnly: true})
//	sum, err := image.Pack(ctx, disk, image.PackConfig{Dir: "public", Label: "1.0"})
//
//	// Use.
//	img, err := image.Open(ctx, source, "manifest.json", image.Config{AllowUnsigned: true})
//	n, err := img.Find(ctx, off)
//	c, err := img.Chunk(ctx, n)
//	... fetch c.PackLen bytes at c.PackOff of img.Pack(c.Pack).Name into frame ...
//	err = image.Decode(buf[:c.Len], c, frame)
//
// A published image consists of
//
//   - a manifest: a small JSON document with the size of the disk, the list of
//     packs and the hash of the index, which may be signed with ed25519;
//   - an index: one entry per chunk in the order of the disk, in pages of about
//     8 KiB, and a directory of the pages with the hash of each. The manifest
//     has the hash of the directory, so the three form a hash tree, and a page
//     is fetched only when an entry of it is needed;
//   - packs: zstd frames back to back, one per chunk. A pack is a valid .zst
//     file.
//
// Index and packs are named by the SHA-256 of their content and never change. A
// later version of an image refers to the packs of the earlier one and adds new
// packs for new chunks only.
//
// The disk is cut into chunks where its content says, so that content which
// moves between versions still gives the same chunks; see cut.go for the
// algorithm, which is part of the format's version. What lies between chunks
// reads as zeroes.
package image
