package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// DefaultPort is the TCP port of NBD.
const DefaultPort = "10809"

// ParseURI turns an NBD URI, as nbdinfo and qemu-img take it, into a
// configuration for [Dial]:
//
//	nbd://HOST[:PORT]/EXPORT                 TCP
//	nbds://HOST[:PORT]/EXPORT                TCP with TLS
//	nbd+unix:///EXPORT?socket=PATH           Unix socket
//	nbds+unix:///EXPORT?socket=PATH          Unix socket with TLS
//
// Without a name the server's default export is meant. With TLS, the system's
// roots decide whether the server is who it says, or, with the parameter
// tls-certificates=DIR, the file ca-cert.pem there; client-cert.pem and
// client-key.pem, if present, are shown to the server.
func ParseURI(uri string) (ClientConfig, error) {
	cfg, err := parseURI(uri)
	if err != nil {
		return ClientConfig{}, fmt.Errorf("NBD URI %q: %w", uri, err)
	}
	return cfg, nil
}

// IsURI reports whether s looks like an NBD URI rather than a file's name.
func IsURI(s string) bool {
	for _, scheme := range []string{"nbd", "nbds", "nbd+unix", "nbds+unix"} {
		if strings.HasPrefix(s, scheme+"://") {
			return true
		}
	}
	return false
}

func parseURI(uri string) (ClientConfig, error) {
	var cfg ClientConfig
	u, err := url.Parse(uri)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // the URI is named once
		}
		return cfg, err
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return cfg, err
	}
	for k := range query {
		if k != "socket" && k != "tls-certificates" {
			return cfg, fmt.Errorf("unknown parameter %q", k)
		}
	}
	cfg.Export = strings.TrimPrefix(u.Path, "/")
	socket := query.Get("socket")
	switch u.Scheme {
	case "nbd", "nbds":
		if socket != "" {
			return cfg, errors.New("a socket goes with nbd+unix")
		}
		if u.Hostname() == "" {
			return cfg, errors.New("no host")
		}
		port := u.Port()
		if port == "" {
			port = DefaultPort
		}
		cfg.Network, cfg.Address = "tcp", net.JoinHostPort(u.Hostname(), port)
	case "nbd+unix", "nbds+unix":
		if socket == "" {
			return cfg, errors.New("no socket=PATH")
		}
		if u.Host != "" {
			return cfg, errors.New("a Unix socket has no host")
		}
		cfg.Network, cfg.Address = "unix", socket
	default:
		return cfg, fmt.Errorf("scheme %q: want nbd, nbds, nbd+unix or nbds+unix", u.Scheme)
	}
	dir := query.Get("tls-certificates")
	if !strings.HasPrefix(u.Scheme, "nbds") {
		if dir != "" {
			return cfg, errors.New("tls-certificates goes with nbds")
		}
		return cfg, nil
	}
	cfg.TLS = &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}
	if cfg.TLS.ServerName == "" {
		cfg.TLS.ServerName = "localhost"
	}
	if dir == "" {
		return cfg, nil
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		return cfg, err
	}
	cfg.TLS.RootCAs = x509.NewCertPool()
	if !cfg.TLS.RootCAs.AppendCertsFromPEM(ca) {
		return cfg, fmt.Errorf("%s: no certificate", filepath.Join(dir, "ca-cert.pem"))
	}
	cert, key := filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem")
	if _, err := os.Stat(cert); errors.Is(err, os.ErrNotExist) {
		return cfg, nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return cfg, err
	}
	cfg.TLS.Certificates = []tls.Certificate{pair}
	return cfg, nil
}

// uri is the URI of what c connects to.
func (c *ClientConfig) uri() string {
	scheme := "nbd"
	if c.TLS != nil {
		scheme = "nbds"
	}
	u := url.URL{Scheme: scheme, Host: c.Address, Path: "/" + c.Export}
	if c.Network == "unix" {
		u.Scheme, u.Host = scheme+"+unix", ""
		u.RawQuery = "socket=" + strings.ReplaceAll(url.QueryEscape(c.Address), "%2F", "/")
		return u.Scheme + "://" + u.EscapedPath() + "?" + u.RawQuery
	}
	u.Host = strings.TrimSuffix(c.Address, ":"+DefaultPort)
	return u.String()
}
