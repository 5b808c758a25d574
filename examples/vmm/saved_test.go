package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const counted = 40

// counter counts on the console and on disk, and reads its input at the end.
var counter = fmt.Sprintf(`
i=0
while [ $i -lt %d ]; do
	echo $i; echo $i >>/root/count; sync; usleep 100000; i=$((i+1))
done
echo bye >&2; exit 9`, counted)

// A guest that was saved goes on in another process where it was: nothing is
// missing and nothing comes twice, on its console or its disk.
func TestSaveLoad(t *testing.T) {
	needNative(t)
	for _, transport := range []string{"pci", "mmio"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			testSaveLoad(t, transport)
		})
	}
}

func testSaveLoad(t *testing.T, transport string) {
	image := rootDisk(t)
	dir := t.TempDir()
	socket, saved := filepath.Join(dir, "socket"), filepath.Join(dir, "saved")
	var out, errs transcript
	start := func(args ...string) *exec.Cmd {
		cmd := command(t, args...)
		cmd.Stdout, cmd.Stderr = &out, &errs
		require.NoError(t, cmd.Start())
		return cmd
	}
	first := start("run", "-cpus", "2", "-transport", transport, "-disk", image, "-control", socket, "--", "sh", "-c", counter)
	out.await(t, "\n10\n")
	r := run(t, "save", "-control", socket, saved)
	require.Equal(t, 0, r.status, "%s", r.stderr)
	require.NoError(t, first.Wait(), "%s", &errs)
	require.NotContains(t, out.String(), fmt.Sprintf("\n%d\n", counted-1), "saved too late to show anything")

	if transport == "pci" {
		damaged(t, saved)
	}
	second := start("load", saved)
	_ = second.Wait()
	require.Equal(t, 9, second.ProcessState.ExitCode(), "%s", &errs)
	var want strings.Builder
	for i := range counted {
		fmt.Fprintln(&want, i)
	}
	require.Equal(t, want.String(), out.String())
	require.True(t, strings.HasSuffix(errs.String(), "bye\n"), "%s", &errs)
	clean(t, image)
	text, err := tool(t, "debugfs", "-R", "cat /root/count", image)
	require.NoError(t, err)
	_, text, _ = strings.Cut(text, "\n") // debugfs's version
	require.Equal(t, want.String(), text)
}

// damaged checks that a damaged copy of a saved guest is refused.
func damaged(t *testing.T, saved string) {
	options, err := os.ReadFile(filepath.Join(saved, "options.json"))
	require.NoError(t, err)
	machine, err := os.ReadFile(filepath.Join(saved, "machine"))
	require.NoError(t, err)
	change := func(key string, v any) []byte {
		var all map[string]any
		require.NoError(t, json.Unmarshal(options, &all))
		all[key] = v
		out, err := json.Marshal(all)
		require.NoError(t, err)
		return out
	}
	flip := func(at int) []byte {
		bad := bytes.Clone(machine)
		bad[at] ^= 0x10
		return bad
	}
	for name, bad := range map[string]struct {
		options, machine []byte
		want             string
	}{
		"no options":       {nil, machine, "options.json"},
		"garbled options":  {[]byte("{nonsense"), machine, "options.json"},
		"no CPUs":          {change("cpus", 0), machine, "0 CPUs"},
		"more CPUs":        {change("cpus", 3), machine, "CPUs"},
		"less memory":      {change("memory", 256<<20), machine, "memory"},
		"other transport":  {change("transport", "mmio"), machine, "transport"},
		"no transport":     {change("transport", "isa"), machine, "transport"},
		"no disk":          {change("disks", nil), machine, "devices"},
		"missing disk":     {change("disks", []savedDisk{{Path: "/nonexistent"}}), machine, "/nonexistent"},
		"no machine":       {options, nil, "machine"},
		"an empty machine": {options, []byte{}, "state"},
		"half a machine":   {options, machine[:len(machine)/2], "state"},
		"a flipped bit":    {options, flip(len(machine) / 3), "state"},
		"a flipped header": {options, flip(3), "state"},
		"garbage":          {options, bytes.Repeat([]byte("garbage "), 10000), "state"},
	} {
		dir := t.TempDir()
		for file, data := range map[string][]byte{"options.json": bad.options, "machine": bad.machine} {
			if data != nil {
				require.NoError(t, os.WriteFile(filepath.Join(dir, file), data, 0o600))
			}
		}
		r := run(t, "load", dir)
		oneLine(t, name, r, bad.want)
	}
}
