package soft

// The instructions, by group. Order matters only for opcodes that two groups share,
// see also.
func init() {
	registerSSE()
}
