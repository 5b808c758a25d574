// Package mirror moves a disk that is in use from one backend to another. A
// guest reads and writes throughout and notices nothing but a pause of a few
// milliseconds at the end.
//
//	d, err := mirror.New(source, nil) // a disk.Backend, for disk.NewDevice
//	...
//	move, err := d.Start(ctx, target, mirror.Config{})
//	...
//	err = move.Wait(ctx) // nil: target is in use, and source is the caller's
//
// While a move is under way, every change goes to both sides, except where the
// target has not got the old content yet, and a copier brings it the rest. The
// source alone is read, flushed and believed until the switch: changes wait
// while those in flight end, the target is flushed, the journal records that
// it counts from now on, and the waiting changes go there.
//
// # Crashes
//
// A [Journal], kept on a small disk of its own, makes a move survive the end of
// the process and of the host. It says which side counts, and holds a superset
// of what differs between the two, so that a move goes on where it was:
//
//	j, err := mirror.OpenJournal(small)
//	name := "old.img"
//	if r, ok := j.Record(); ok {
//		name = r.Current()
//	}
//	... open name ...
//	d, err := mirror.New(current, j)
//	... and d.Start with r.Target, if r says that a move is unfinished
//
// New refuses the side that does not count. Until a move is resumed, the disk
// notes what changes. While a journal holds an unfinished move, its source must
// not be changed except through a Disk with this journal; Journal.Clear forgets
// the move.
package mirror
