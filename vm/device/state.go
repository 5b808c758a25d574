package device

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// ErrStateVersion is wrapped by the error for saved state of a version that
// this build does not know.
var ErrStateVersion = errors.New("unknown state version")

// State is the saved state of one device. Data is JSON; its layout belongs to
// the device and is named by Version.
type State struct {
	Version int             `json:"version"`
	Data    json.RawMessage `json:"data"`
}

// EncodeState makes a State from v, which must marshal to JSON.
func EncodeState(version int, v any) (State, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return State{}, fmt.Errorf("encode state: %w", err)
	}
	return State{Version: version, Data: data}, nil
}

// Decode fills v from s if s has the given version. Unknown fields, trailing
// data and other versions are errors; a loaded device must still check every
// value, since saved state is outside input.
func (s State) Decode(version int, v any) error {
	if s.Version != version {
		return fmt.Errorf("%w: have %d, want %d", ErrStateVersion, s.Version, version)
	}
	dec := json.NewDecoder(bytes.NewReader(s.Data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("decode state: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("decode state: data after the end")
	}
	return nil
}
