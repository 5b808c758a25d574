package fetch

import (
	"net/http"
	"time"
)

// SetTransport makes h talk to a test's transport.
func SetTransport(h *HTTP, rt http.RoundTripper) { h.client.Transport = rt }

// Order names the mirrors in the order in which h would ask them at a time.
func Order(h *HTTP, at time.Time) (names []string) {
	for _, m := range h.order(at) {
		names = append(names, m.base)
	}
	return names
}
