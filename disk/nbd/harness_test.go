package nbd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
)

// testLog writes to the test's log while the test runs.
func testLog(t testing.TB) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.done = true
	})
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct {
	mu   sync.Mutex
	t    testing.TB
	done bool
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.done {
		w.t.Logf("%s", p)
	}
	return len(p), nil
}

// listen listens on a TCP port or Unix socket of the test's own.
func listen(t testing.TB, network string) net.Listener {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = socketPath(t)
	}
	l, err := net.Listen(network, addr)
	require.NoError(t, err)
	return l
}

// socketPath is a short name for a Unix socket.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// serve runs a server until the test ends, and returns how to reach it.
func serve(t testing.TB, network string, s *Server) ClientConfig {
	t.Helper()
	l := listen(t, network)
	return serveOn(t, l, s)
}

func serveOn(t testing.TB, l net.Listener, s *Server) ClientConfig {
	t.Helper()
	cfg := ClientConfig{Network: l.Addr().Network(), Address: l.Addr().String()}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.ErrorIs(t, <-ended, ErrServerClosed)
	})
	return cfg
}

func dial(t testing.TB, cfg ClientConfig) *Client {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = testLog(t)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	c, err := Dial(context.Background(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

func memory(t testing.TB, size int64) *disk.Memory {
	t.Helper()
	m, err := disk.NewMemory("memory", size)
	require.NoError(t, err)
	return m
}

// certificates makes an authority and, signed by it, what a server and a client
// show. They lie in a directory under the names that QEMU and libnbd expect.
type certificates struct {
	dir            string
	server, client *tls.Config
}

var makeCertificates = sync.OnceValues(func() (certificates, error) {
	dir, err := os.MkdirTemp("", "nbdtls")
	if err != nil {
		return certificates{}, err
	}
	c := certificates{dir: dir}
	now := time.Now()
	write := func(name, kind string, der []byte) error {
		return os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
	}
	sign := func(name string, tmpl, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		if parent == nil {
			parent, by = tmpl, key
		}
		tmpl.NotBefore, tmpl.NotAfter = now.Add(-time.Hour), now.Add(24*time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, by)
		if err != nil {
			return nil, nil, err
		}
		secret, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, nil, err
		}
		if err := write(name+"-cert.pem", "CERTIFICATE", der); err != nil {
			return nil, nil, err
		}
		if err := write(name+"-key.pem", "PRIVATE KEY", secret); err != nil {
			return nil, nil, err
		}
		cert, err := x509.ParseCertificate(der)
		return cert, key, err
	}
	ca, key, err := sign("ca", &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	if err != nil {
		return c, err
	}
	for i, name := range []string{"server", "client"} {
		_, _, err := sign(name, &x509.Certificate{
			SerialNumber: big.NewInt(int64(2 + i)), Subject: pkix.Name{CommonName: name},
			DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}, ca, key)
		if err != nil {
			return c, err
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	load := func(name string) (tls.Certificate, error) {
		return tls.LoadX509KeyPair(filepath.Join(dir, name+"-cert.pem"), filepath.Join(dir, name+"-key.pem"))
	}
	server, err := load("server")
	if err != nil {
		return c, err
	}
	client, err := load("client")
	if err != nil {
		return c, err
	}
	c.server = &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	c.client = &tls.Config{Certificates: []tls.Certificate{client}, RootCAs: pool, ServerName: "localhost"}
	return c, nil
})

func testCertificates(t testing.TB) certificates {
	t.Helper()
	c, err := makeCertificates()
	require.NoError(t, err)
	return c
}

func TestMain(m *testing.M) {
	if address := os.Getenv(serverEnv); address != "" {
		fmt.Fprintln(os.Stderr, serverMain(address))
		os.Exit(1)
	}
	code := m.Run()
	if c, err := makeCertificates(); err == nil {
		os.RemoveAll(c.dir)
	}
	os.Exit(code)
}
