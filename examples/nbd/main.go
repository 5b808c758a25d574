// Nbd serves raw images to NBD clients, and says what a server has:
//
//	$ go run ./examples/nbd serve -listen 127.0.0.1:10809 disk.img &
//	$ qemu-img convert -O qcow2 nbd://127.0.0.1/disk.img copy.qcow2
//	$ go run ./examples/nbd info nbd://127.0.0.1/
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/nbd"
)

const usage = `nbd serves disk images over the network, and looks at what others serve.

usage:
  nbd serve [flags] FILE...   export raw images or block devices
  nbd info URI                list a server's exports

"nbd serve -h" lists the flags. A URI is nbd://HOST[:PORT]/,
nbd+unix:///?socket=PATH, or nbds... with TLS.
`

// usageError is what is wrong with the arguments.
type usageError string

func (e usageError) Error() string { return string(e) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return
	case !errors.As(err, new(usageError)):
		fmt.Fprintln(os.Stderr, "nbd:", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "nbd:", err)
	os.Exit(2)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return usageError("want serve or info (nbd -h says more)")
	}
	switch args[0] {
	case "serve":
		return serve(ctx, args[1:], stdout, stderr)
	case "info":
		return info(ctx, args[1:], stdout)
	case "help", "-h", "-help", "--help":
		_, err := fmt.Fprint(stdout, usage)
		return err
	}
	return usageError(fmt.Sprintf("unknown command %q (nbd -h says more)", args[0]))
}

func serve(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	fs := flag.NewFlagSet("nbd serve", flag.ContinueOnError)
	listen := fs.String("listen", "127.0.0.1:"+nbd.DefaultPort, "`address` to listen on, for TCP")
	socket := fs.String("socket", "", "listen on a Unix socket with this `path` instead")
	readOnly := fs.Bool("ro", false, "export read-only")
	direct := fs.Bool("direct", false, "pass by the host's page cache")
	tlsDir := fs.String("tls", "", "require TLS, with server-cert.pem and server-key.pem from this `directory`; if\nca-cert.pem is there too, clients need a certificate signed by it")
	verbose := fs.Bool("v", false, "say who comes and goes")
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, "usage: nbd serve [flags] FILE...\n\nEach file is exported under its base name; the first is the default.\n\n")
		fs.SetOutput(stdout)
		fs.PrintDefaults()
		return err
	case err != nil:
		return usageError(fmt.Sprintf("%v (nbd serve -h lists the flags)", err))
	case fs.NArg() == 0:
		return usageError("want a file to export")
	}
	level := slog.LevelWarn
	if *verbose {
		level = slog.LevelDebug
	}
	s := &nbd.Server{Log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))}
	if *tlsDir != "" {
		if s.TLS, err = serverTLS(*tlsDir); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
	}
	for _, path := range fs.Args() {
		img, err := disk.Open(path, disk.FileConfig{ReadOnly: *readOnly, Direct: *direct})
		if err != nil {
			return err // it names the file
		}
		defer img.Close()
		s.Exports = append(s.Exports, nbd.Export{Name: filepath.Base(path), Backend: img, FastZero: true})
	}
	network, address := "tcp", *listen
	if *socket != "" {
		network, address = "unix", *socket
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	for _, e := range s.Exports {
		fmt.Fprintf(stdout, "serving %s, %d bytes, at %v\n", e.Name, e.Backend.Size(), l.Addr())
	}
	// Asked to end, it answers what it has read, and flushes.
	down := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		down <- s.Shutdown(grace)
	})
	err = s.Serve(l)
	if !stop() {
		return <-down
	}
	return err
}

func serverTLS(dir string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"))
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{pair}}
	ca, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if errors.Is(err, os.ErrNotExist) {
		return cfg, nil
	}
	if err != nil {
		return nil, err
	}
	cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	if !cfg.ClientCAs.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s has no certificate", filepath.Join(dir, "ca-cert.pem"))
	}
	return cfg, nil
}

func info(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) == 1 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help") {
		_, err := fmt.Fprint(stdout, usage)
		return err
	}
	if len(args) != 1 {
		return usageError("want one URI")
	}
	cfg, err := nbd.ParseURI(args[0])
	if err != nil {
		return usageError(err.Error())
	}
	list, err := nbd.List(ctx, cfg)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tBYTES\tBLOCKS\tABLE TO\tDESCRIPTION")
	for _, e := range list {
		if e.Size < 0 {
			fmt.Fprintf(w, "%q\t-\t-\t-\t%s\n", e.Name, e.Description)
			continue
		}
		fmt.Fprintf(w, "%q\t%d\t%d/%d/%d\t%s\t%s\n", e.Name, e.Size, e.MinBlock, e.PreferredBlock, e.MaxPayload, abilities(e), e.Description)
	}
	return w.Flush()
}

func abilities(e nbd.ExportInfo) string {
	words := []string{"read"}
	for _, a := range []struct {
		can  bool
		word string
	}{
		{!e.ReadOnly, "write"}, {e.Flush, "flush"}, {e.FUA, "fua"}, {e.Trim, "trim"}, {e.WriteZeroes, "zero"},
		{e.FastZero, "fast-zero"}, {e.Cache, "cache"}, {e.Structured, "sparse"}, {e.MultiConn, "multi-conn"},
	} {
		if a.can {
			words = append(words, a.word)
		}
	}
	return strings.Join(words, ",")
}
