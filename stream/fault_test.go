package stream_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/stream"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
)

// faults are what servers and networks do.
var faults = map[string]http.HandlerFunc{
	"500": func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "overloaded", http.StatusInternalServerError)
	},
	"403": func(w http.ResponseWriter, r *http.Request) { http.Error(w, "expired", http.StatusForbidden) },
	"404": http.NotFound,
	"416": func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "no such range", http.StatusRequestedRangeNotSatisfiable)
	},
	"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) },
	"empty":    func(w http.ResponseWriter, r *http.Request) {},
	"stall": func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	},
	"reset": func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
	"garbage": func(w http.ResponseWriter, r *http.Request) {
		var from, to int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", from, to))
		w.WriteHeader(206)
		w.Write(bytes.Repeat([]byte("wrong"), (to-from+5)/5)[:to-from+1])
	},
	"short": func(w http.ResponseWriter, r *http.Request) {
		var from, to int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", from, to))
		w.Header().Set("Content-Length", fmt.Sprint(to-from+1))
		w.WriteHeader(206)
		w.Write([]byte("x"))
	},
}

// TestFaultyServer streams from a server with one fault, and from one with all,
// in many of its answers. The guest's reads wait, and get the right bytes.
func TestFaultyServer(t *testing.T) {
	p := publish(t, 3<<20, image.PackConfig{})
	files := http.FileServer(http.Dir(p.dir))
	names := []string{"all"}
	for name := range faults {
		names = append(names, name)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			r := rand.New(rand.NewPCG(5, 6))
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				mu.Lock()
				fault := faults[name]
				if name == "all" {
					fault = faults[names[1+r.IntN(len(names)-1)]]
				}
				good := r.IntN(3) > 0 || !strings.HasSuffix(req.URL.Path, ".pack")
				mu.Unlock()
				if good {
					files.ServeHTTP(w, req)
				} else {
					fault(w, req)
				}
			}))
			t.Cleanup(server.Close)
			c := openCache(t, t.TempDir())
			var d *stream.Disk
			for d == nil {
				var err error
				d, err = stream.Open(t.Context(), server.URL+"/manifest.json", stream.Config{
					Cache: c, Image: image.Config{AllowUnsigned: true}, RetryMin: time.Millisecond, RetryMax: 5 * time.Millisecond,
					HTTP: fetch.HTTPConfig{Stall: 50 * time.Millisecond, Attempts: 2, Backoff: time.Millisecond},
				})
				if err != nil { // on a busy host any server seems to stall
					require.ErrorIs(t, err, fetch.ErrStall)
				}
			}
			t.Cleanup(func() { d.Close() })
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(uint64(w), 9))
					for range 20 {
						off := r.Int64N(d.Size())
						buf := make([]byte, 1+r.Int64N(min(50_000, d.Size()-off)))
						if _, err := d.ReadAt(buf, off); err != nil || !bytes.Equal(buf, p.want[off:][:len(buf)]) {
							t.Errorf("%d bytes at %d: wrong content, or %v", len(buf), off, err)
						}
					}
				})
			}
			wg.Wait()
			require.NoError(t, d.Complete(t.Context()))
			requireContent(t, d, p.want)
			require.NoError(t, d.Close())
		})
	}
}
