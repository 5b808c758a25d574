package soft

// dropDeadFlags makes operations that compute flags which nobody can see into those
// that do not. Flags can be seen by every micro-operation that is not known to leave
// them alone, and wherever an instruction may fault.
func (l *lowerer) dropDeadFlags() {
	seen := true
	for i := len(l.ops) - 1; i >= 0; i-- {
		u := &l.ops[i]
		switch k := u.kind; {
		case k >= kindAdd64 && k <= kindXor32:
			if !seen {
				u.kind += kindAdd64N - kindAdd64
			}
			seen = false
		case k >= kindCmp64 && k <= kindTest8:
			if !seen {
				u.kind = kindNop
			}
			seen = false
		case k >= kindShl64 && k <= kindIMul32 || k >= kindCmpJ64:
			seen = false
		case k >= kindNop && k <= kindSx32to64, k == kindNot64, k == kindNot32, k == kindMerge8, k == kindMerge16:
			// neither
		default:
			seen = true
		}
	}
}
