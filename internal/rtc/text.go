package rtc

import (
	"encoding/hex"
	"fmt"
)

// MarshalText makes the bytes one string of hexadecimal digits.
func (c *cmos) MarshalText() ([]byte, error) {
	return hex.AppendEncode(nil, c[:]), nil
}

// UnmarshalText takes exactly what MarshalText makes.
func (c *cmos) UnmarshalText(text []byte) error {
	if len(text) != 2*len(c) {
		return fmt.Errorf("CMOS memory of %d digits, want %d", len(text), 2*len(c))
	}
	_, err := hex.Decode(c[:], text)
	return err
}
