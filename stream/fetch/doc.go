// Package fetch gets ranges of files from where an image is published: a
// directory, or web servers.
//
//	src, err := fetch.NewHTTP(fetch.HTTPConfig{Mirrors: []string{"https://a.example/img", "https://b.example/img"}})
//	img, err := image.Open(ctx, src, "manifest.json", image.Config{Keys: keys})
//
// Every fault of a server that can be told from outside has an error of its
// own, and is survived if another mirror or a later attempt has the right bytes.
package fetch
