package main

import (
	"strings"
	"testing"
)

// oneLine checks that vmm failed with one clear line.
func oneLine(t *testing.T, name string, r result, want string) {
	t.Helper()
	line, rest, _ := strings.Cut(r.stderr, "\n")
	if r.status == 0 || r.stdout != "" || !strings.HasPrefix(line, "vmm: ") || rest != "" || !strings.Contains(line, want) {
		t.Errorf("%s: status %d, stdout %q, stderr %q; want one line about %q", name, r.status, r.stdout, r.stderr, want)
	}
}
