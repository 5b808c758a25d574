package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"
)

var serveCommand = command{
	name: "serve", args: "DIR",
	about: "serve the directory DIR over HTTP, as fast or slow as told",
	help: `
Any web server does as well. This one can also behave like a link of a given
rate and delay: the rate is shared by all connections, and each request waits
for the delay as it would for a round trip. With -leases it is a depot: images
can be checked out and in, and new versions need a signature if -key is given.
`,
	define: func(f *flag.FlagSet) func(context.Context, []string) error {
		listen := f.String("listen", "127.0.0.1:8000", "`address` to listen on; port 0 picks one")
		var link link
		f.Func("rate", "rate of the link, such as 25Mbit or 3MB; unlimited if not given", func(s string) (err error) {
			link.rate, err = parseRate(s)
			return err
		})
		f.DurationVar(&link.delay, "delay", 0, "round-trip time of the link, such as 20ms")
		leases := f.String("leases", "", "be a depot, which keeps its leases in this `file`")
		var t trust
		t.define(f)
		verbose := f.Bool("v", false, "log each request")
		return func(ctx context.Context, args []string) error {
			if len(args) != 1 {
				return usage("want one directory")
			}
			if !isDir(args[0]) {
				return fmt.Errorf("%s is not a directory", args[0])
			}
			files := http.FileServer(http.Dir(args[0]))
			if *leases != "" {
				var err error
				if files, err = newDepot(args[0], *leases, t); err != nil {
					return err
				}
			}
			l, err := net.Listen("tcp", *listen)
			if err != nil {
				return err
			}
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if *verbose {
					log.Printf("%s %s %s %s", r.RemoteAddr, r.Method, r.URL.Path, r.Header.Get("Range"))
				}
				if !link.wait(r.Context()) {
					return
				}
				files.ServeHTTP(w, r)
			})
			s := &http.Server{Handler: handler, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute}
			stop := context.AfterFunc(ctx, func() { s.Close() })
			defer stop()
			fmt.Printf("serving %s on http://%s/\n", args[0], l.Addr())
			if err := s.Serve(link.listener(l)); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		}
	},
}
