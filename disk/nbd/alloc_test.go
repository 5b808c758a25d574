package nbd

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A request costs no allocation, neither at the client nor at the server.
func TestAllocs(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: with the race detector, pools drop what they hold")
	}
	for _, structured := range []bool{false, true} {
		cfg := serve(t, "unix", &Server{Exports: []Export{{Backend: memory(t, 1<<20)}}})
		cfg.SimpleReplies = !structured
		c := dial(t, cfg)
		p := make([]byte, 4096)
		for name, fn := range map[string]func() error{
			"read":  func() error { _, err := c.ReadAt(p, 8192); return err },
			"write": func() error { _, err := c.WriteAt(p, 8192); return err },
			"flush": c.Flush,
		} {
			// Pools and slabs fill first, and may be emptied by a collection.
			for range 300 {
				require.NoError(t, fn())
			}
			n := testing.AllocsPerRun(500, func() { require.NoError(t, fn()) })
			require.LessOrEqual(t, n, 0.0, "%s, structured replies: %v", name, structured)
		}
	}
}
