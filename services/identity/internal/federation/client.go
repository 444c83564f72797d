package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Bounds of what a stranger's server may take.
const (
	maxAnswer   = 256 << 10
	maxHeader   = 32 << 10
	dialTimeout = 5 * time.Second
	callTimeout = 10 * time.Second
)

// newClient makes the client for one issuer. private are hosts that may have addresses of the own network; roots and names are nil for those of the
// system.
func newClient(private []string, roots *x509.CertPool, now func() time.Time, names *net.Resolver) *http.Client {
	open := &net.Dialer{Timeout: dialTimeout, Resolver: names}
	guarded := &net.Dialer{Timeout: dialTimeout, Resolver: names, Control: guard}
	return &http.Client{
		Timeout: callTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the server redirects, which is not followed")
		},
		Transport: bounded{&http.Transport{
			Proxy: nil, // not even from the environment: it would resolve names that this process has to look at
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				host, _, err := net.SplitHostPort(addr)
				if err == nil && slices.Contains(private, strings.ToLower(host)) {
					return open.DialContext(ctx, network, addr)
				}
				return guarded.DialContext(ctx, network, addr)
			},
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Time: now},
			TLSHandshakeTimeout:    dialTimeout,
			ResponseHeaderTimeout:  callTimeout,
			MaxResponseHeaderBytes: maxHeader,
			DisableCompression:     true,
			DisableKeepAlives:      true,
			ForceAttemptHTTP2:      true,
		}},
	}
}

// bounded lets https requests out, and so much of an answer in.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" || r.URL.User != nil {
		return nil, fmt.Errorf("%s is not an https URL", r.URL.Redacted())
	}
	res, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	res.Body = &limited{ReadCloser: res.Body, left: maxAnswer}
	return res, nil
}

// limited fails where an answer is too long, so that none is taken for whole that is not.
type limited struct {
	io.ReadCloser
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if len(p) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.ReadCloser.Read(p)
	if n > l.left {
		return 0, fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	}
	l.left -= n
	return n, err
}
