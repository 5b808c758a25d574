package vcpu

// State is the whole architectural state of one CPU.
type State struct{}

// ChipState is the state of the interrupt chips that CPUs share.
type ChipState struct{}
