package stream

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/vmkit-go/vmkit/stream/cache"
	"github.com/vmkit-go/vmkit/stream/image"
)

// counters are numbers that only grow, and what is derived from them. They are
// guarded by Disk.mu.
type counters struct {
	demandBytes, aheadBytes       int64
	demandRequests, aheadRequests int64
	failures                      int64
	uncached                      bool
	lastUse                       time.Time
	ticks                         [8]tick // of the last seconds, for the rate
}

type tick struct {
	second int64
	bytes  int64
}

func (c *counters) add(g []*flight, size int64, err error) {
	switch {
	case err != nil:
		c.failures++
		return
	case g[0].demand:
		c.demandBytes += size
		c.demandRequests++
	default:
		c.aheadBytes += size
		c.aheadRequests++
	}
	now := time.Now().Unix()
	t := &c.ticks[now%int64(len(c.ticks))]
	if t.second != now {
		*t = tick{second: now}
	}
	t.bytes += size
}

// rate is the bytes per second of late.
func (c *counters) rate() int64 {
	now, sum := time.Now().Unix(), int64(0)
	const over = 4
	for _, t := range c.ticks {
		if t.second < now && t.second >= now-over {
			sum += t.bytes
		}
	}
	return sum / over
}

// Status is what a [Disk] is doing. Numbers of bytes are of compressed content
// unless they say otherwise.
type Status struct {
	Name string `json:"name"`
	// ID names the version of the image, and Size is the disk's in bytes.
	ID   image.Hash `json:"id"`
	Size int64      `json:"size"`
	// Chunks is the sum of the four numbers after it: those that have not
	// come; that came because they were read; that are there, from the cache
	// or prefetched, and were not read; and that were there when they were
	// read.
	Chunks     int   `json:"chunks"`
	Absent     int64 `json:"absent"`
	Fetched    int64 `json:"fetched"`
	Prefetched int64 `json:"prefetched"`
	Used       int64 `json:"used"`
	// DemandBytes and PrefetchBytes have come by so many requests; Failures
	// counts requests that were given up.
	DemandBytes      int64 `json:"demandBytes"`
	DemandRequests   int64 `json:"demandRequests"`
	PrefetchBytes    int64 `json:"prefetchBytes"`
	PrefetchRequests int64 `json:"prefetchRequests"`
	Failures         int64 `json:"failures"`
	// Rate is in bytes per second, over the last seconds; Bandwidth is what
	// the link has shown that it can do, 0 if not known yet.
	Rate      int64 `json:"rate"`
	Bandwidth int64 `json:"bandwidth"`
	// InFlight is the bytes of prefetch requests, of which Bound may be in
	// flight.
	InFlight int64 `json:"inFlight"`
	Bound    int64 `json:"bound"`
	// Planned is the number of chunks that the profile names, of which
	// PlannedLeft have not come.
	Planned     int `json:"planned"`
	PlannedLeft int `json:"plannedLeft"`
	// Unavailable is why content cannot be had for now, or empty.
	Unavailable string `json:"unavailable,omitempty"`
	// Cache describes the cache, if there is one.
	Cache *cache.Stats `json:"cache,omitempty"`
	// Map shows the disk's chunks in order; see [Disk.Map].
	Map string `json:"map,omitempty"`
}

// Status returns what the disk is doing.
func (d *Disk) Status() Status {
	s := Status{
		Name: d.name, ID: d.img.ID(), Size: d.Size(), Chunks: d.img.Chunks(),
		Absent:     d.chunks.count[absent].Load(),
		Fetched:    d.chunks.count[fetched].Load(),
		Prefetched: d.chunks.count[prefetched].Load(),
		Used:       d.chunks.count[used].Load(),
		Bandwidth:  int64(d.rate.bandwidth()),
	}
	s.Bound, _ = d.rate.room(false)
	if err := d.down(); err != nil {
		s.Unavailable = err.Error()
	}
	if c := d.cfg.Cache; c != nil {
		st := c.Stats()
		s.Cache = &st
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &d.count
	s.DemandBytes, s.DemandRequests = c.demandBytes, c.demandRequests
	s.PrefetchBytes, s.PrefetchRequests = c.aheadBytes, c.aheadRequests
	s.Failures, s.Rate, s.InFlight = c.failures, c.rate(), d.sched.inFlight
	s.Planned = len(d.sched.plan)
	for _, p := range d.sched.plan {
		if d.chunks.get(p.n) == absent {
			s.PlannedLeft++
		}
	}
	return s
}

// Ready estimates how long to wait before the guest starts, so that everything
// that the profile names comes in time, by the bandwidth that the link has
// shown. It returns false as long as there is no telling.
func (d *Disk) Ready() (wait time.Duration, known bool) {
	bps := d.rate.bandwidth()
	d.mu.Lock()
	defer d.mu.Unlock()
	var sum float64
	for _, p := range d.sched.plan {
		if d.chunks.get(p.n) != absent {
			continue
		}
		if sum += float64(p.size); bps == 0 {
			return 0, false
		}
		due := time.Duration(sum / bps * float64(time.Second))
		wait = max(wait, due-p.at)
	}
	return wait, true
}

// The characters of [Disk.Map].
const mapChars = ".+*#"

// Map draws the chunks in the order of the disk in so many characters, each for
// the same number of chunks and showing what most of these are: '.' absent, '+'
// there and not read yet, '*' fetched because it was read, '#' there when it was
// read.
func (d *Disk) Map(width int) string {
	n := len(d.chunks.s)
	width = min(max(width, 0), n)
	out := make([]byte, width)
	for i := range out {
		var count [states]int
		best := absent
		for k := i * n / width; k < (i+1)*n/width; k++ {
			s := d.chunks.get(k)
			if count[s]++; count[s] > count[best] {
				best = s
			}
		}
		out[i] = mapChars[best]
	}
	return string(out)
}

// maxMap bounds the map that a client can ask for.
const maxMap = 1 << 16

// ServeHTTP answers GET with the Status as JSON. The parameter map=N asks for a
// map of N characters.
func (d *Disk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	s := d.Status()
	if v := r.FormValue("map"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 || n > maxMap {
			http.Error(w, "map: want a number up to "+strconv.Itoa(maxMap), http.StatusBadRequest)
			return
		}
		s.Map = d.Map(n)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(s) // the client has gone
}
