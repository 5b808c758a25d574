package main

import (
	"context"
	"crypto/ed25519"
	"flag"
	"fmt"
)

var keygenCommand = command{
	name: "keygen", args: "NAME",
	about: "make a key pair for signing images",
	help:  "It writes NAME.key, for pack -sign, and NAME.pub, for whoever opens the image.",
	define: func(*flag.FlagSet) func(context.Context, []string) error {
		return func(_ context.Context, args []string) error {
			if len(args) != 1 {
				return usage("want one name")
			}
			pub, key, err := ed25519.GenerateKey(nil)
			if err != nil {
				return err
			}
			if err := writeKey(args[0]+".key", "private", key.Seed(), 0o600); err != nil {
				return err
			}
			if err := writeKey(args[0]+".pub", "public", pub, 0o644); err != nil {
				return err
			}
			fmt.Printf("wrote %s.key (keep it secret) and %s.pub\n", args[0], args[0])
			return nil
		}
	},
}
