package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
)

// trust are the flags that say which manifests to accept.
type trust struct {
	keys     []ed25519.PublicKey
	unsigned bool
}

func (t *trust) define(f *flag.FlagSet) {
	f.Func("key", "accept images signed with the key in this `file` (from stream keygen), and no others; may be repeated", func(path string) error {
		key, err := readKey(path, "public", ed25519.PublicKeySize)
		t.keys = append(t.keys, key)
		return err
	})
	f.BoolVar(&t.unsigned, "unsigned", false, "accept any image although -key is given")
}

// config accepts everything only if there is nothing to hold it to.
func (t *trust) config() image.Config {
	return image.Config{Keys: t.keys, AllowUnsigned: t.unsigned || len(t.keys) == 0}
}

// openImage opens the image whose manifest is at a URL or path, or in a
// directory.
func openImage(ctx context.Context, location string, t trust) (*image.Image, error) {
	if isDir(location) {
		location = manifestIn(location)
	}
	base, name, remote, err := fetch.Split(location)
	if err != nil {
		return nil, err
	}
	var src image.Source = fetch.Dir(base)
	if remote {
		if src, err = fetch.NewHTTP(fetch.HTTPConfig{Mirrors: []string{base}}); err != nil {
			return nil, err
		}
	}
	return image.Open(ctx, src, name, t.config())
}

// A key file is one line: what it is, and the key in base64.
const keyPrefix = "vmkit-ed25519-"

func writeKey(path, kind string, key []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s%s %s\n", keyPrefix, kind, base64.StdEncoding.EncodeToString(key))
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

func readKey(path, kind string, size int) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	enc, ok := strings.CutPrefix(strings.TrimSpace(string(text)), keyPrefix+kind+" ")
	if !ok {
		return nil, fmt.Errorf("%s is not a %s key", path, kind)
	}
	key, err := base64.StdEncoding.DecodeString(enc)
	if err != nil || len(key) != size {
		return nil, fmt.Errorf("%s holds a damaged %s key", path, kind)
	}
	return key, nil
}
