package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/stream/cache"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
	"github.com/vmkit-go/vmkit/stream/profile"
)

// Config says how to stream an image. The zero value keeps what has come in
// memory only, and prefetches by the image's own profile.
type Config struct {
	// Source is where to get the image from; nil means from the location
	// given to Open. Prefetch is the same place with connections of its own;
	// nil means that of Source.
	Source, Prefetch image.Source
	// HTTP is used for a location that is a URL; its Mirrors, if any, are
	// tried after the location.
	HTTP fetch.HTTPConfig
	// Image says which signatures are accepted.
	Image image.Config
	// ID, if not zero, is the only version of the image to accept. An
	// overlay belongs to one version.
	ID image.Hash

	// Cache keeps what has come, for this Disk and others. It stays open when
	// the Disk is closed. Without one, Memory bounds what is kept.
	Cache *cache.Cache
	// Memory bounds the chunks kept in memory, which are those that the cache
	// does not take, in bytes; 0 means 64 MiB.
	Memory int64
	// Offline means that the network is not to be used: everything must be in
	// the cache.
	Offline bool

	// Profile is used in place of the image's own.
	Profile *profile.Profile
	// NoPrefetch fetches what is asked for and nothing else.
	NoPrefetch bool
	// NoBackfill leaves what no profile names until it is asked for, or until
	// Backfill or Complete is called.
	NoBackfill bool
	// MaxInFlight bounds the compressed bytes of prefetch requests in flight;
	// 0 means 8 MiB. Below it the bound adapts to the link.
	MaxInFlight int64
	// PrefetchRequests bounds their number, 0 means 6. An HTTP source should
	// have as many connections for prefetching.
	PrefetchRequests int

	// FailAfter is the policy for outages. Zero means that a request whose
	// content cannot be had waits until it can. Otherwise it fails after this
	// time with an error that wraps disk.ErrUnavailable.
	FailAfter time.Duration
	// RetryMin and RetryMax bound the pauses between attempts in an outage;
	// 0 means 200 ms and 5 s.
	RetryMin, RetryMax time.Duration
	// Events, if not nil, is called with what happens, one call at a time. It
	// must not block for long, nor call methods of the Disk.
	Events func(Event)
	// Log gets the same as Events, if not nil.
	Log *slog.Logger
}

// Limits on what an image may ask of memory.
const (
	maxChunks = 1 << 26
	maxIndex  = cache.MaxFile
)

// ErrVersion is wrapped by the error of Open when the image there is not the
// version asked for, and that one is not in the cache either.
var ErrVersion = errors.New("another version of the image")

// Disk is a disk that is streamed. It implements [disk.Backend],
// [disk.Vectored] and [disk.Mapper]; it is read-only.
type Disk struct {
	name   string
	cfg    Config
	img    *image.Image
	source *keeper // manifest, index, profile
	demand image.Source
	ahead  image.Source
	info   disk.Info
	opened time.Time

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // requests and goroutines
	gate   sync.RWMutex   // held for writing to close work's door
	closed bool

	chunks chunkMap
	mem    *memory
	rate   *rate
	trail  outage
	events eventQueue

	kick chan struct{} // wakes the prefetcher

	mu      sync.Mutex
	flights map[image.Hash]*flight
	demands int // demand requests in flight
	sched   schedule
	count   counters
}

// Open opens the image whose manifest is at location, a URL or a path. If the
// server cannot be reached, and the cache has the version that was last seen
// there, that is used. ctx is for Open alone.
func Open(ctx context.Context, location string, cfg Config) (_ *Disk, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("stream %s: %w", location, err)
		}
	}()
	for _, n := range []int64{cfg.Memory, cfg.MaxInFlight, int64(cfg.PrefetchRequests), int64(cfg.FailAfter), int64(cfg.RetryMin), int64(cfg.RetryMax)} {
		if n < 0 {
			return nil, fmt.Errorf("negative number %d in the configuration", n)
		}
	}
	setDefault(&cfg.Memory, 64<<20)
	setDefault(&cfg.MaxInFlight, 8<<20)
	setDefault(&cfg.PrefetchRequests, 6)
	setDefault(&cfg.RetryMin, 200*time.Millisecond)
	setDefault(&cfg.RetryMax, max(5*time.Second, cfg.RetryMin))
	if cfg.Offline && cfg.Cache == nil {
		return nil, errors.New("offline without a cache")
	}
	base, name, remote, err := fetch.Split(location)
	if err != nil {
		return nil, err
	}
	if cfg.Source == nil {
		if cfg.Source, cfg.Prefetch, err = sources(base, remote, cfg); err != nil {
			return nil, err
		}
	}
	if cfg.Prefetch == nil {
		cfg.Prefetch = cfg.Source
	}
	d := &Disk{
		name: location, cfg: cfg, demand: cfg.Source, ahead: cfg.Prefetch,
		opened: time.Now(), kick: make(chan struct{}, 1), flights: map[image.Hash]*flight{},
		mem: newMemory(cfg.Memory), rate: newRate(cfg.MaxInFlight),
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.events.init(d)
	d.source = &keeper{src: cfg.Source, cache: cfg.Cache, offline: cfg.Offline}
	if d.img, err = d.source.open(ctx, location, name, cfg); err != nil {
		return nil, err
	}
	if d.img.Chunks() > maxChunks || d.img.Size() > math.MaxInt64/2 {
		return nil, fmt.Errorf("image of %d chunks: want at most %d", d.img.Chunks(), maxChunks)
	}
	d.info = disk.Info{Name: location, ReadOnly: true, BlockSize: image.BlockSize, OptimalIO: image.MaxChunk}
	if err := d.survey(ctx); err != nil {
		return nil, err
	}
	d.work.Go(d.events.run)
	d.work.Go(d.prefetcher)
	return d, nil
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// sources makes the sources for a location.
func sources(base string, remote bool, cfg Config) (demand, ahead image.Source, err error) {
	if !remote {
		return fetch.Dir(base), nil, nil
	}
	h := cfg.HTTP
	h.Mirrors = append([]string{base}, h.Mirrors...)
	setDefault(&h.PrefetchConns, cfg.PrefetchRequests)
	src, err := fetch.NewHTTP(h)
	if err != nil {
		return nil, nil, err
	}
	return src, src.Prefetch(), nil
}

// survey finds out what is in the cache, and plans what to prefetch.
func (d *Disk) survey(ctx context.Context) error {
	p := d.cfg.Profile
	if p == nil && !d.cfg.NoPrefetch {
		p = d.source.profile(ctx, d.img, d.note)
	}
	at := map[image.Hash]*profile.Entry{}
	if p != nil && !d.cfg.NoPrefetch {
		if err := p.Check(); err != nil {
			return fmt.Errorf("profile: %w", err)
		}
		for i := range p.Entries {
			at[p.Entries[i].Hash] = &p.Entries[i]
		}
		d.sched.runs = p.Runs
	}
	d.chunks.init(d.img.Chunks())
	err := d.img.Scan(ctx, func(c image.Chunk) error {
		if d.cfg.Cache != nil && d.cfg.Cache.Has(c.Hash) {
			d.chunks.set(c.N, prefetched)
		}
		if e := at[c.Hash]; e != nil {
			delete(at, c.Hash)
			d.sched.plan = append(d.sched.plan, planned{n: c.N, size: c.PackLen, at: e.At, seen: e.Seen})
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.sched.order()
	return nil
}

// ID names the version of the image.
func (d *Disk) ID() image.Hash { return d.img.ID() }

// Image is the image that is streamed.
func (d *Disk) Image() *image.Image { return d.img }
