package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
)

func TestRun(t *testing.T) {
	kvmtest.Open(t) // skips without KVM
	var out bytes.Buffer
	if err := run(&out); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "Hello from long mode!\n"; got != want {
		t.Errorf("it prints %q, not %q", got, want)
	}
}

func TestShort(t *testing.T) {
	src, err := os.ReadFile("main.go")
	if os.IsNotExist(err) {
		t.Skip("the example's source is not here")
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(src), "\n"); n >= 80 {
		t.Errorf("the example has %d lines; it is to stay below 80", n)
	}
}
