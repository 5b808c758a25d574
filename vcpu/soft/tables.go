package soft

// init fills the tables of instructions.
func init() {
	registerSystem()
}
