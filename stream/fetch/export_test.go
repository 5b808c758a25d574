package fetch

import "net/http"

// SetTransport makes h talk to a test's transport.
func SetTransport(h *HTTP, rt http.RoundTripper) { h.client.Transport = rt }
