package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/vmkit-go/vmkit/stream/fetch"
)

// A range from the second of two mirrors, since the first is out of order.
func ExampleHTTP() {
	broken := httptest.NewServer(http.NotFoundHandler())
	defer broken.Close()
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("0123456789"))
	}))
	defer good.Close()

	src, err := fetch.NewHTTP(fetch.HTTPConfig{Mirrors: []string{broken.URL, good.URL}})
	if err != nil {
		log.Fatal(err)
	}
	defer src.Close()
	p := make([]byte, 4)
	err = src.Fetch(context.Background(), "digits", 3, p, func(p []byte) error {
		if p[0] != '3' {
			return errors.New("not what was asked for")
		}
		return nil
	})
	fmt.Printf("%s %v, %d failure\n", p, err, src.Stats()[0].Failed)
	// Output: 3456 <nil>, 1 failure
}
