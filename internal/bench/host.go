package main

import (
	"context"
	"fmt"
)

// onHost are the benchmarks that need no KVM. They run on this host itself,
// in this process, print with table and figure (and to stdout, not os.Stdout), and
// start nothing that outlives them. o.roundsOr(n) says how many rounds.
var onHost = map[string]func(ctx context.Context, o options) error{
	"nbd":     nbdServers,
	"upgrade": upgrade,
	"stream":  streamBench,
	"mirror":  benchMirror,
	"clones":  benchClones,
	"thin":    benchThin,
	"soft":    benchSoft,
}

// hostOrder is the order in which they run.
var hostOrder = []string{"nbd", "upgrade", "stream", "mirror", "clones", "thin", "soft"}

// runOnHost runs the benchmarks with these names.
func runOnHost(ctx context.Context, o options, names []string, out *figures) error {
	stdout = out
	for _, n := range names {
		fmt.Fprintf(out, "\n%s\n\n", n)
		if err := onHost[n](ctx, o); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	return nil
}
