package decode

import "testing"

// TestSegmentPrefixes: 64-bit code has FS and GS alone, whatever follows them.
func TestSegmentPrefixes(t *testing.T) {
	for _, tc := range []struct {
		name string
		mode Mode
		code []byte
		seg  uint8
	}{
		{"FS", Mode64, []byte{0x64, 0x8b, 0x06}, 4},
		{"FS, then DS", Mode64, []byte{0x64, 0x3e, 0x8b, 0x06}, 4},
		{"GS, then CS", Mode64, []byte{0x65, 0x2e, 0x8b, 0x06}, 5},
		{"FS, then GS", Mode64, []byte{0x64, 0x65, 0x8b, 0x06}, 5},
		{"DS", Mode64, []byte{0x3e, 0x8b, 0x06}, NoSeg},
		{"FS, then DS, in 32 bits", Mode32, []byte{0x64, 0x3e, 0x8b, 0x06}, 3},
	} {
		var in Inst
		if _, err := Decode(tc.code, tc.mode, &in); err != nil || in.Seg != tc.seg {
			t.Errorf("%s: segment %d, %v", tc.name, in.Seg, err)
		}
	}
}
