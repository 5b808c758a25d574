package main

import (
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// feed gives a report the events of a step, as go test -json prints them.
func feed(t *testing.T, a *all, step, events string) *report {
	t.Helper()
	r := &report{all: a, w: io.Discard, step: step, held: map[test]*strings.Builder{}}
	for line := range strings.Lines(events) {
		var e event
		require.NoError(t, json.Unmarshal([]byte(line), &e), line)
		r.event(e)
	}
	r.rest()
	return r
}

func TestReport(t *testing.T) {
	a := &all{seen: map[test]*outcome{}}
	r := feed(t, a, "host", `
{"Action":"run","Package":"github.com/vmkit-go/vmkit/p","Test":"TestA"}
{"Action":"pass","Package":"github.com/vmkit-go/vmkit/p","Test":"TestA"}
{"Action":"output","Package":"github.com/vmkit-go/vmkit/p","Test":"TestB","Output":"=== RUN   TestB\n"}
{"Action":"output","Package":"github.com/vmkit-go/vmkit/p","Test":"TestB","Output":"    x_test.go:1: no KVM here\n"}
{"Action":"skip","Package":"github.com/vmkit-go/vmkit/p","Test":"TestB"}
{"Action":"skip","Package":"github.com/vmkit-go/vmkit/q"}
{"Action":"pass","Package":"github.com/vmkit-go/vmkit/p"}`[1:])
	require.Empty(t, r.failed)
	require.Equal(t, 1, r.passed)
	require.Equal(t, 1, r.skipped)
	require.False(t, a.everywhereSkipped(), "TestB ran nowhere")

	feed(t, a, "nested", `{"Action":"pass","Package":"github.com/vmkit-go/vmkit/p","Test":"TestB"}`)
	require.True(t, a.everywhereSkipped())
}

func TestReportFailures(t *testing.T) {
	for want, events := range map[string]string{
		"p.TestA": `{"Action":"fail","Package":"github.com/vmkit-go/vmkit/p","Test":"TestA"}
{"Action":"fail","Package":"github.com/vmkit-go/vmkit/p"}`,
		// A crash ends a package without a verdict on its tests.
		"p": `{"Action":"run","Package":"github.com/vmkit-go/vmkit/p","Test":"TestA"}
{"Action":"output","Package":"github.com/vmkit-go/vmkit/p","Test":"TestA","Output":"panic: x\n"}
{"Action":"fail","Package":"github.com/vmkit-go/vmkit/p"}`,
		"build": `{"Action":"build-fail","ImportPath":"github.com/vmkit-go/vmkit/p"}`,
	} {
		r := feed(t, &all{seen: map[test]*outcome{}}, "host", events)
		require.Equal(t, []string{want}, r.failed)
	}
}

func TestMatches(t *testing.T) {
	require.True(t, matches(module+"/internal/nestedkvm/wire", notNested))
	require.False(t, matches(module+"/internal/nestedkvmx", notNested))
	require.Equal(t, []string{module + "/kvm"}, without([]string{module + "/kvm", module + "/internal/build"}, notRace))
}

func TestARM64Packages(t *testing.T) {
	a := &all{ctx: t.Context(), pkgs: []string{
		module + "/vcpu/kvmcpu", module + "/vcpu/soft/float", module + "/disk", module + "/vm/boot", module + "/internal/x86diff",
	}}
	pkgs, err := a.arm64Packages()
	require.NoError(t, err)
	require.Equal(t, []string{module + "/vcpu/soft/float", module + "/vm/boot", module + "/internal/x86diff"}, pkgs)
}

func TestNestedPackages(t *testing.T) {
	a := &all{ctx: t.Context(), pkgs: []string{module + "/kvm", module + "/internal/rtc", module + "/internal/build"}}
	pkgs, err := a.nestedPackages()
	require.NoError(t, err)
	require.Equal(t, []string{module + "/kvm"}, pkgs)
}
