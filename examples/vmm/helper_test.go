package main

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"
)

// transcript is what a command prints while it runs.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (tr *transcript) Write(p []byte) (int, error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.text.Write(p)
}

func (tr *transcript) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.text.String()
}

// await waits until text was printed by the command that is running.
func (tr *transcript) await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(bootLimit); !strings.Contains(tr.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the guest does not print %q:\n%s", text, tr)
		}
	}
}

// oneLine checks that vmm failed with one clear line.
func oneLine(t *testing.T, name string, r result, want string) {
	t.Helper()
	line, rest, _ := strings.Cut(r.stderr, "\n")
	if r.status == 0 || r.stdout != "" || !strings.HasPrefix(line, "vmm: ") || rest != "" || !strings.Contains(line, want) {
		t.Errorf("%s: status %d, stdout %q, stderr %q; want one line about %q", name, r.status, r.stdout, r.stderr, want)
	}
}
