package main

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStreamOptions(t *testing.T) {
	var o options
	require.NoError(t, o.addDisk("https://host/manifest.json,cache=/c,overlay=/o,record=/r,fail=3s,lease=1m,ro"))
	require.Equal(t, []diskOption{{path: "https://host/manifest.json", readOnly: true,
		stream: &streamOption{cache: "/c", overlay: "/o", record: "/r", fail: 3 * time.Second, lease: time.Minute}}}, o.disks)
	for _, s := range []string{
		"http://host/m.json,what=1", "http://host/m.json,fail=soon", "http://host/m.json,lease=-1s", "http://host/m.json,key=" + filepath.Join(t.TempDir(), "none"),
	} {
		require.Error(t, o.addDisk(s), s)
	}
	_, err := describeDisk(o.disks[0])
	require.ErrorContains(t, err, "cannot be saved")
}
