//go:build race

package qcow2_test

// The race detector empties pools at random.
const raceEnabled = true
