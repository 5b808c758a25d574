// Package qcow2 reads and writes disk images in QEMU's qcow2 format, versions
// 2 and 3, over any [disk.Backend], and makes linked clones of other disks.
//
//	base, err := disk.Open("base.img", disk.FileConfig{ReadOnly: true})
//	...
//	file, err := disk.Create("clone.qcow2", 0, disk.FileConfig{})
//	...
//	err = qcow2.Create(file, qcow2.CreateConfig{
//		Size: base.Size(), BackingName: "base.img", BackingFormat: "raw",
//	})
//	...
//	clone, err := qcow2.Open(file, qcow2.Config{Backing: base})
//
// An [Image] is a disk.Backend. A backing file is never opened because an image
// names it: [Open] takes the backing disk from its caller, and [OpenFile] opens
// those files that its caller lists or allows.
//
// # What survives what
//
// The image's tables in the container follow the data: an L2 entry is written
// only when the cluster that it refers to, its copied parts and its refcount are
// durable, and a cluster is free for another use only when no durable entry
// refers to it. Therefore the image is consistent after a power cut at any
// moment, and every byte is what was flushed last or something written since.
//
// The price is that tables are written by Flush, Close, and when much is
// waiting, but not by each write: a write that needed a new cluster survives a
// kill -9 of the process after the next Flush only, as with QEMU. Overwrites of
// clusters that were allocated before survive at once.
//
// While a version 3 image has been changed and not closed, its dirty bit is set.
// Opening such an image for writing checks it, gives back leaked clusters, and
// with lazy refcounts computes the refcounts anew. Version 2 has no such bit;
// there, clusters leaked in a crash are found by [Check].
package qcow2
