package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/vm"
)

// A stock kernel reads what the device serves.
func TestRun(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	for _, transport := range []vm.Transport{vm.PCI, vm.MMIO} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		var out bytes.Buffer
		require.NoError(t, run(ctx, transport, &out), "%v", transport)
		// The kernel has taken some for itself before.
		require.Equal(t, 64, out.Len(), "%v", transport)
		require.Contains(t, text+text+text, out.String(), "%v", transport)
	}
}

func TestState(t *testing.T) {
	have, loaded := source{served: 4711}, source{}
	state, err := have.Save()
	require.NoError(t, err)
	require.NoError(t, loaded.Load(state))
	require.Equal(t, have.served, loaded.served)
	state.Version++
	require.Error(t, loaded.Load(state))
}

func TestShort(t *testing.T) {
	src, err := os.ReadFile("main.go")
	if os.IsNotExist(err) {
		t.Skip("the example's source is not here")
	}
	require.NoError(t, err)
	require.Less(t, strings.Count(string(src), "\n"), 150)
}
