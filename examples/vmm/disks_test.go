package main

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/nbd"
)

// A guest's root disk is on an NBD server, which is started anew while the
// guest writes.
func TestRunNBDDisk(t *testing.T) {
	needNative(t)
	image := rootDisk(t)
	store, err := disk.Open(image, disk.FileConfig{})
	require.NoError(t, err)
	socket := filepath.Join(t.TempDir(), "s")
	serve := func() *nbd.Server {
		l, err := net.Listen("unix", socket)
		require.NoError(t, err)
		s := &nbd.Server{Exports: []nbd.Export{{Name: "root", Backend: store, FastZero: true}}}
		go s.Serve(l)
		return s
	}
	s := serve()
	cmd := command(t, "run", "-disk", "nbd+unix:///root?socket="+socket, "--", "sh", "-c",
		"echo ready; for i in $(seq 2000); do echo $i >>/root/note; [ $((i % 50)) = 0 ] && sync; done; tail -n 1 /root/note")
	var out, errs transcript
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(t, cmd.Start())
	out.await(t, "ready")
	for i := range 3 {
		require.NoError(t, s.Close())
		s = serve()
		for deadline := time.Now().Add(bootLimit); strings.Count(errs.String(), "made again") <= i; time.Sleep(10 * time.Millisecond) {
			require.True(t, time.Now().Before(deadline), "%s", &errs)
		}
	}
	require.NoError(t, cmd.Wait(), "%s", &errs)
	require.Contains(t, out.String(), "2000\n")
	require.NoError(t, s.Close())
	require.NoError(t, store.Close())
	clean(t, image)
}
