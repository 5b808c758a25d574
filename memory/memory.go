// Package memory is guest-physical memory.
package memory

// Memory is a machine's guest-physical memory.
type Memory struct{}
