//go:build race

package virtiotest

const raceEnabled = true
