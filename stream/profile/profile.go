// Package profile records which parts of a disk a guest needs first, and when,
// so that a stream can have them there in time.
//
// A [Recorder] sits between a guest and its disk. When the guest is ready,
// [Recorder.Profile] turns what it saw into a [Profile], by the layout of the
// image that the disk was made from:
//
//	rec := profile.NewRecorder(img)
//	// ... boot the guest on rec ...
//	rec.Mark("service")
//	// ... wait until the service answers ...
//	p, err := rec.Profile(layout)
//	if err != nil {
//		return err
//	}
//	_, err = p.WriteTo(file)
//
// Profiles of several runs are merged into one ([Merge]), which knows how many
// of them touched a chunk. Chunks go by the hash of their content, so that a
// profile stays of use for a later version of the image.
package profile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Limits of a profile.
const (
	// MaxEntries is the largest number of chunks.
	MaxEntries = 1 << 20
	// MaxRuns is the largest number of runs.
	MaxRuns = 1 << 20
	// MaxTime is the latest time of a first touch.
	MaxTime = 24 * time.Hour
	// MaxPhase is the longest name of a phase, in bytes.
	MaxPhase = 32
)

// Entry says when a chunk was needed.
type Entry struct {
	// Hash is the SHA-256 of the chunk's content.
	Hash [32]byte
	// At is the time from the start of the guest to the first touch, in whole
	// microseconds; of several runs, the earliest.
	At time.Duration
	// Seen is the number of runs that touched the chunk, from 1 to Runs.
	Seen int
	// Phase is the phase of the run in which the earliest touch came: 1 to
	// MaxPhase letters, digits, dots, hyphens and underscores.
	Phase string
}

// Profile says which chunks guests need, in the order in which they do. The
// zero value is one of no runs.
type Profile struct {
	// Runs is the number of runs that were recorded.
	Runs int
	// Entries are ordered by At, then by Hash; no hash comes twice.
	Entries []Entry
}

// Check returns an error if the profile breaks what its fields promise.
func (p *Profile) Check() error {
	switch {
	case p.Runs < 0 || p.Runs > MaxRuns:
		return fmt.Errorf("%d runs: want at most %d", p.Runs, MaxRuns)
	case len(p.Entries) > MaxEntries:
		return fmt.Errorf("%d entries: want at most %d", len(p.Entries), MaxEntries)
	}
	seen := make(map[[32]byte]struct{}, len(p.Entries))
	for i := range p.Entries {
		e := &p.Entries[i]
		if err := e.check(p.Runs); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if i > 0 && e.compare(&p.Entries[i-1]) <= 0 {
			return fmt.Errorf("entry %d: not in the order of time and hash", i)
		}
		if _, ok := seen[e.Hash]; ok {
			return fmt.Errorf("entry %d: chunk %x comes twice", i, e.Hash)
		}
		seen[e.Hash] = struct{}{}
	}
	return nil
}

func (e *Entry) check(runs int) error {
	switch {
	case e.At < 0 || e.At > MaxTime:
		return fmt.Errorf("time %v: want 0 to %v", e.At, MaxTime)
	case e.At%time.Microsecond != 0:
		return fmt.Errorf("time %v: want whole microseconds", e.At)
	case e.Seen < 1 || e.Seen > runs:
		return fmt.Errorf("seen in %d of %d runs", e.Seen, runs)
	}
	return CheckPhase(e.Phase)
}

// CheckPhase returns an error if name cannot be that of a phase.
func CheckPhase(name string) error {
	if name == "" || len(name) > MaxPhase {
		return fmt.Errorf("name of a phase with %d bytes: want 1 to %d", len(name), MaxPhase)
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return fmt.Errorf("name of a phase %q: want letters, digits, dots, hyphens and underscores", name)
		}
	}
	return nil
}

func (e *Entry) compare(o *Entry) int {
	if c := cmp.Compare(e.At, o.At); c != 0 {
		return c
	}
	return bytes.Compare(e.Hash[:], o.Hash[:])
}

// Merge joins the profiles of different runs. The result does not depend on
// their order, nor on which of them were merged before.
func Merge(profiles ...*Profile) (*Profile, error) {
	m := &Profile{}
	at := make(map[[32]byte]int)
	for i, p := range profiles {
		if err := p.Check(); err != nil {
			return nil, fmt.Errorf("profile %d: %w", i, err)
		}
		m.Runs += p.Runs
		for _, e := range p.Entries {
			k, ok := at[e.Hash]
			if !ok {
				at[e.Hash] = len(m.Entries)
				m.Entries = append(m.Entries, e)
				continue
			}
			have := &m.Entries[k]
			have.Seen += e.Seen
			if e.At < have.At || e.At == have.At && e.Phase < have.Phase {
				have.At, have.Phase = e.At, e.Phase
			}
		}
	}
	if m.Runs > MaxRuns || len(m.Entries) > MaxEntries {
		return nil, errors.New("too many runs or entries to merge")
	}
	m.sort()
	return m, nil
}

func (p *Profile) sort() {
	slices.SortFunc(p.Entries, func(a, b Entry) int { return a.compare(&b) })
}
