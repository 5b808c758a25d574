// Package nbd speaks the Network Block Device protocol, as client and as
// server: [Dial] makes a disk of what a server exports, and [Server] exports
// disks.
//
//	cfg, err := nbd.ParseURI("nbd://storage.example/root")
//	if err != nil {
//		return err
//	}
//	root, err := nbd.Dial(ctx, cfg)
//	if err != nil {
//		return err
//	}
//	defer root.Close()
//	dev, err := disk.NewDevice(root, disk.Config{})
//
// The other way round:
//
//	s := &nbd.Server{Exports: []nbd.Export{{Name: "root", Backend: img}}}
//	err := s.Serve(listener)
//
// Both speak the fixed newstyle handshake, with TLS if it is wanted,
// structured replies and the metadata context base:allocation, as described
// in doc/proto.md of https://github.com/NetworkBlockDevice/nbd. Neither trusts
// its peer: what breaks the protocol ends the connection.
package nbd
