package virtio

import (
	"fmt"
	"sync"

	"github.com/vmkit-go/vmkit/vm/device"
)

// Interrupt status bits (virtio 1.2, sections 4.1.4.5 and 4.2.2).
const (
	isrQueue  = 1
	isrConfig = 2
)

// irqLine is an interrupt status register and the level-triggered line that
// follows it: the line is up while any bit is set.
type irqLine struct {
	line device.Line // nil: the register alone

	mu    sync.Mutex
	isr   uint32
	off   bool // INTx disabled
	level bool // as last set on line
}

func (l *irqLine) status() uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isr
}

// raise sets bits of the status.
func (l *irqLine) raise(bits uint32) {
	l.mu.Lock()
	l.isr |= bits
	l.drive()
	l.mu.Unlock()
}

// lower clears bits and returns the status before.
func (l *irqLine) lower(bits uint32) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.isr
	l.isr &^= bits
	l.drive()
	return old
}

// disable keeps the line down whatever the status, or ends that.
func (l *irqLine) disable(off bool) {
	l.mu.Lock()
	l.off = off
	l.drive()
	l.mu.Unlock()
}

// drive brings the line in step. Setting it fails only when the engine is
// gone, and then there is nobody left to interrupt.
func (l *irqLine) drive() {
	if level := l.isr != 0 && !l.off; level != l.level && l.line != nil {
		l.level = level
		_ = l.line.Set(level)
	}
}

func checkISR(name string, isr uint32) error {
	if isr&^(isrQueue|isrConfig) != 0 {
		return fmt.Errorf("%s: %w: interrupt status %#x", name, ErrState, isr)
	}
	return nil
}
