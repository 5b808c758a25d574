package wakeup

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWoke(t *testing.T) {
	var l Loop
	l.Woke()
	require.True(t, l.scheduled.IsZero(), "a first wait is a long one")
	l.woke = time.Now().Add(time.Hour)
	l.Woke()
	first := l.scheduled
	require.False(t, first.IsZero(), "two waits in short order")
	l.woke, l.scheduled = time.Now().Add(time.Hour), time.Now().Add(time.Hour)
	first = l.scheduled
	l.Woke()
	require.Equal(t, first, l.scheduled, "scheduled a moment ago")

	first = time.Now().Add(-time.Second)
	l.woke, l.scheduled = time.Now().Add(time.Hour), first
	l.Woke()
	require.Greater(t, l.scheduled, first)

	l.woke, l.scheduled = time.Now().Add(-time.Second), time.Now().Add(-time.Second)
	stale := l.scheduled
	l.Woke()
	require.Equal(t, stale, l.scheduled, "a long wait gave the processor up")

	require.Zero(t, testing.AllocsPerRun(100, l.Woke))
}
