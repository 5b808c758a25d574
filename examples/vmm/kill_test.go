package main

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// writer writes and fsyncs one file after the other, forever, and says the
// name of each that is safe.
const writer = `
n=0
while :; do
	f=$1-$n
	yes "$f" | head -c $((n * 7919 % 60000 + 1)) | dd of=/root/$f bs=4k conv=fsync 2>/dev/null
	echo $f
	n=$((n + 1))
done`

// content is what writer puts into file n.
func content(name string, n int) []byte {
	size := n*7919%60000 + 1
	return bytes.Repeat([]byte(name+"\n"), size/(len(name)+1)+1)[:size]
}

const (
	killRounds     = 10
	killRoundsFast = 3
)

// When vmm is killed during guest writes, the disk is consistent once its
// journal was replayed, and every file that the guest had fsynced is whole:
// round after round on one disk.
func TestKill(t *testing.T) {
	needNative(t)
	image := rootDisk(t)
	random := rand.New(rand.NewPCG(1, 2))
	safe := map[string][]byte{}
	rounds := killRoundsFast
	if full() {
		rounds = killRounds
	}
	for round := range rounds {
		cmd := command(t, "run", "-disk", image, "--", "sh", "-c", writer, "sh", fmt.Sprintf("r%d", round))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		// The kill comes at any time after some files, without waiting for
		// the next one.
		n, kill := 0, 3+random.IntN(25)
		for lines := bufio.NewScanner(out); lines.Scan(); n++ {
			name := fmt.Sprintf("r%d-%d", round, n)
			require.Equal(t, name, lines.Text())
			safe[name] = content(name, n)
			if n == kill {
				require.NoError(t, cmd.Process.Kill())
			}
		}
		_ = cmd.Wait()
		require.Greater(t, n, kill)
		require.Equal(t, -1, cmd.ProcessState.ExitCode(), "ended by something else than the kill")

		// -p replays the journal, and refuses what needs more than that.
		text, err := tool(t, "e2fsck", "-p", image)
		t.Logf("round %d: killed after %d files: %s", round, n, text)
		if err != nil {
			require.Equal(t, 1, err.(interface{ ExitCode() int }).ExitCode(), "%s", text)
		}
		clean(t, image)
		dir := t.TempDir()
		text, err = tool(t, "debugfs", "-R", "rdump /root "+dir, image)
		require.NoError(t, err, "%s", text)
		for name, want := range safe {
			have, err := os.ReadFile(filepath.Join(dir, "root", name))
			require.NoError(t, err, "round %d: a file that was fsynced is missing", round)
			require.True(t, bytes.Equal(want, have), "round %d: %s has %d bytes, not the %d that were fsynced", round, name, len(have), len(want))
		}
	}
}
