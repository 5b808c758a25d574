//go:build race

package vm_test

// raceEnabled says that the race detector is on.
const raceEnabled = true
