//go:build !linux

package soft

import "github.com/vmkit-go/vmkit/memory"

// guardedMemory makes guest memory, without the guards that it has on Linux.
func guardedMemory(size uint64) (*memory.Memory, func(), error) {
	m, err := memory.New(memory.Config{Size: size})
	return m, func() {}, err
}
