package image

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of a manifest.
const (
	// MaxManifest is the greatest size of a manifest in bytes.
	MaxManifest = 8 << 20
	// MaxSize is the greatest size of a disk in bytes.
	MaxSize = 1 << 50

	maxPacks      = 1 << 16
	maxPackSize   = 1 << 40
	maxSignatures = 16
	maxLabel      = 256
	// MaxProfile is the greatest size of a boot profile in bytes.
	MaxProfile = 16 << 20
)

const (
	formatName    = "vmkit-image"
	formatVersion = 1
	cutName       = "crc32c-4k"
	frameName     = "zstd"
	// signContext keeps a signature from meaning anything elsewhere.
	signContext = "vmkit image manifest 1\n"
)

// Manifest is the signed description of a version of an image.
type Manifest struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	// Size is that of the disk in bytes.
	Size int64 `json:"size"`
	// Label is any text of its maker, such as a version.
	Label string `json:"label"`
	// Created is the time of packing, in UTC and whole seconds.
	Created time.Time `json:"created"`
	// Parent is the ID of the version whose packs this one refers to, or
	// empty.
	Parent      string   `json:"parent"`
	Chunking    Chunking `json:"chunking"`
	Compression string   `json:"compression"`
	Index       IndexRef `json:"index"`
	// Packs are numbered from 0.
	Packs []File `json:"packs"`
	// BootProfile is the profile that the image was packed with, if any.
	BootProfile *FileRef `json:"bootProfile,omitempty"`
}

// Chunking says how the disk was cut; sizes are in bytes.
type Chunking struct {
	Algorithm string `json:"algorithm"`
	Min       int    `json:"min"`
	Avg       int    `json:"avg"`
	Max       int    `json:"max"`
}

// IndexRef describes the index.
type IndexRef struct {
	File
	// Chunks is the number of entries.
	Chunks int `json:"chunks"`
	// Data is the sum of the chunks' lengths in bytes.
	Data int64 `json:"data"`
	// Directory is the length of the directory, at the end of the file, and
	// Root is its SHA-256.
	Directory int64 `json:"directory"`
	Root      Hash  `json:"root"`
}

// FileRef is a file that is verified as a whole.
type FileRef struct {
	File
	Hash Hash `json:"sha256"`
}

// envelope is the file that holds a manifest. The payload is kept as bytes, so
// that signatures do not depend on how JSON is written.
type envelope struct {
	Payload    []byte      `json:"payload"`
	Signatures []signature `json:"signatures"`
}

type signature struct {
	Key       []byte `json:"ed25519"`
	Signature []byte `json:"signature"`
}

// strictJSON decodes data into v, whose canonical form it must be.
func strictJSON(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: text after the JSON value", ErrInvalid)
	}
	again, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if !bytes.Equal(again, data) {
		return fmt.Errorf("%w: JSON is not in canonical form", ErrInvalid)
	}
	return nil
}

// seal makes a manifest's file. Nil key leaves it unsigned.
func seal(m *Manifest, key ed25519.PrivateKey) (file []byte, id Hash, err error) {
	if err := m.validate(); err != nil {
		return nil, id, err
	}
	payload, err := json.Marshal(m)
	if err != nil {
		return nil, id, err
	}
	e := envelope{Payload: payload, Signatures: []signature{}}
	if key != nil {
		e.Signatures = append(e.Signatures, signature{
			Key:       key.Public().(ed25519.PublicKey),
			Signature: ed25519.Sign(key, append([]byte(signContext), payload...)),
		})
	}
	if file, err = json.Marshal(e); err == nil && len(file) > MaxManifest {
		err = fmt.Errorf("manifest of %d bytes: the most is %d", len(file), MaxManifest)
	}
	return file, sha256.Sum256(payload), err
}

// parseManifest reads a manifest's file. It returns the key that signed it, nil
// if none did and that is allowed.
func parseManifest(file []byte, cfg Config) (m *Manifest, id Hash, by ed25519.PublicKey, err error) {
	if len(file) > MaxManifest {
		return nil, id, nil, fmt.Errorf("%w: %d bytes", ErrInvalid, len(file))
	}
	var e envelope
	if err := strictJSON(file, &e); err != nil {
		return nil, id, nil, err
	}
	if by, err = e.verify(cfg); err != nil {
		return nil, id, nil, err
	}
	// The version comes first: a later one may have other fields.
	var v struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if err := json.Unmarshal(e.Payload, &v); err != nil {
		return nil, id, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if v.Format != formatName || v.Version != formatVersion {
		return nil, id, nil, fmt.Errorf("%w: %q version %d; this is for %q version %d",
			ErrVersion, v.Format, v.Version, formatName, formatVersion)
	}
	m = new(Manifest)
	if err := strictJSON(e.Payload, m); err != nil {
		return nil, id, nil, err
	}
	if err := m.validate(); err != nil {
		return nil, id, nil, err
	}
	return m, sha256.Sum256(e.Payload), by, nil
}

// verify finds a good signature by an accepted key.
func (e *envelope) verify(cfg Config) (ed25519.PublicKey, error) {
	if len(e.Signatures) > maxSignatures {
		return nil, fmt.Errorf("%w: %d signatures", ErrInvalid, len(e.Signatures))
	}
	message := append([]byte(signContext), e.Payload...)
	for _, s := range e.Signatures {
		for _, key := range cfg.Keys {
			if len(key) == ed25519.PublicKeySize && bytes.Equal(key, s.Key) {
				if !ed25519.Verify(key, message, s.Signature) {
					return nil, fmt.Errorf("%w: the signature by key %x is wrong", ErrSignature, s.Key)
				}
				return key, nil
			}
		}
	}
	if cfg.AllowUnsigned {
		return nil, nil
	}
	if len(e.Signatures) == 0 {
		return nil, fmt.Errorf("%w: the manifest is not signed", ErrSignature)
	}
	return nil, fmt.Errorf("%w: signed by key %x, which is not among the %d accepted",
		ErrSignature, e.Signatures[0].Key, len(cfg.Keys))
}

func (m *Manifest) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	ch := Chunking{cutName, MinChunk, AvgChunk, MaxChunk}
	switch {
	case m.Format != formatName || m.Version != formatVersion:
		return ErrVersion
	case m.Chunking != ch || m.Compression != frameName:
		return fmt.Errorf("%w: chunks by %+v, compressed by %q", ErrVersion, m.Chunking, m.Compression)
	case m.Size < 0 || m.Size > MaxSize:
		return bad("disk of %d bytes", m.Size)
	case len(m.Label) > maxLabel || !utf8.ValidString(m.Label) || strings.ContainsFunc(m.Label, func(r rune) bool { return !unicode.IsPrint(r) }):
		return bad("label %q", m.Label)
	case !m.Created.Equal(m.Created.UTC().Truncate(time.Second)) || m.Created.Year() < 0 || m.Created.Year() > 9999:
		return bad("time %v", m.Created)
	case len(m.Packs) > maxPacks:
		return bad("%d packs", len(m.Packs))
	case m.Packs == nil:
		return bad("no list of packs")
	}
	if m.Parent != "" {
		if _, err := ParseHash(m.Parent); err != nil {
			return bad("parent: %v", err)
		}
	}
	seen := make(map[string]bool, len(m.Packs))
	for i, p := range m.Packs {
		if err := checkName(p.Name, packSuffix); err != nil {
			return bad("pack %d: %v", i, err)
		}
		if p.Size <= 0 || p.Size > maxPackSize {
			return bad("pack %d of %d bytes", i, p.Size)
		}
		if seen[p.Name] {
			return bad("pack %d is listed twice", i)
		}
		seen[p.Name] = true
	}
	x := m.Index
	if err := checkName(x.Name, indexSuffix); err != nil {
		return bad("index: %v", err)
	}
	if x.Directory < 0 || x.Directory > maxDirectory || x.Directory > x.Size {
		return bad("index of %d bytes with a directory of %d", x.Size, x.Directory)
	}
	if x.Chunks < 0 || int64(x.Chunks) > blocks(m.Size) || int64(x.Chunks) > (x.Size-x.Directory)/minEntry {
		return bad("%d chunks for a disk of %d bytes in an index of %d", x.Chunks, m.Size, x.Size)
	}
	if x.Data < 0 || x.Data > m.Size {
		return bad("%d bytes of content in a disk of %d", x.Data, m.Size)
	}
	if b := m.BootProfile; b != nil {
		if b.Name != b.Hash.String()+profileSuffix {
			return bad("profile is named %q, not by its hash", b.Name)
		}
		if b.Size < 0 || b.Size > MaxProfile {
			return bad("profile of %d bytes", b.Size)
		}
	}
	return nil
}

// Names of files are the hash of their content and one of these.
const (
	packSuffix    = ".pack"
	indexSuffix   = ".index"
	profileSuffix = ".profile"
)

// checkName keeps a manifest from naming anything but files of images.
func checkName(name, suffix string) error {
	hash, ok := strings.CutSuffix(name, suffix)
	if ok {
		_, err := ParseHash(hash)
		ok = err == nil
	}
	if !ok {
		return errors.New("file name " + fmt.Sprintf("%.100q", name) + " is not a hash and " + suffix)
	}
	return nil
}
