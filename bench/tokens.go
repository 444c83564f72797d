package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

const (
	// tokenClients ask for tokens, each from an address of its own: one address may ask for 50 a second.
	tokenClients = 512
	tokenWorkers = 16
)

// askers are clients on many addresses of loopback, each with a connection that it keeps.
type askers struct {
	clients []*http.Client
	next    atomic.Int64
	url     string
	form    string
}

func newAskers(n int, roots *x509.CertPool, address string, form url.Values) *askers {
	a := &askers{url: address, form: form.Encode()}
	for i := range n {
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, byte(i/200), byte(1+i%200))}}
		a.clients = append(a.clients, &http.Client{Timeout: time.Minute, Transport: &http.Transport{
			DialContext: d.DialContext, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Hour,
		}})
	}
	return a
}

func (a *askers) close() {
	for _, c := range a.clients {
		c.CloseIdleConnections()
	}
}

// ask gets one token.
func (a *askers) ask(ctx context.Context, c *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url, strings.NewReader(a.form))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK || !strings.Contains(string(b), `"access_token"`) {
		return fmt.Errorf("%s: %d %.300s", a.url, res.StatusCode, b)
	}
	return nil
}

// warm opens the connections.
func (a *askers) warm(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make([]error, tokenWorkers)
	for w := range tokenWorkers {
		wg.Go(func() {
			for i := w; i < len(a.clients) && errs[w] == nil; i += tokenWorkers {
				errs[w] = a.ask(ctx, a.clients[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// rate asks for tokens from 16 workers for a time, and notes how long each took.
func (a *askers) rate(ctx context.Context, each time.Duration, took *[]time.Duration) (float64, error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	var all []time.Duration
	begun := time.Now()
	for range tokenWorkers {
		wg.Go(func() {
			var mine []time.Duration
			var err error
			for time.Since(begun) < each && err == nil {
				start := time.Now()
				err = a.ask(ctx, a.clients[int(a.next.Add(1))%len(a.clients)])
				mine = append(mine, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
			first = errors.Join(first, err)
		})
	}
	wg.Wait()
	*took = append(*took, all...)
	return float64(len(all)) / time.Since(begun).Seconds(), first
}

// percentile of durations, 0 to 1.
func percentile(d []time.Duration, p float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, int(p*float64(len(d))))]
}

// tokensDex compares tokens for a client's secret with the cheapest that Dex gives (bench/dex says which and why), both with ES256 and SQLite,
// both over HTTPS from the same clients; ours through the gateway.
func tokensDex(ctx context.Context, o options) error {
	dex, root, stop, err := startDex(ctx, o)
	if err != nil {
		return err
	}
	defer func() { _ = stop() }()
	theirRoots := x509.NewCertPool()
	theirRoots.AddCert(root)
	theirs := newAskers(tokenClients, theirRoots, dex+"/token", url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {"bench"}, "client_secret": {"bench-secret"}, "connector_id": {"mock"}, "scope": {"openid"},
		"subject_token": {"x"}, "subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
	})
	defer theirs.close()

	in, err := newClientOf(ctx, o, "installation")
	if err != nil {
		return err
	}
	defer func() { _ = errors.Join(in.admin.Close(), in.stop()) }()
	directory := identityv1.NewDirectoryServiceClient(in.admin.Conn())
	sp, err := directory.CreateServicePrincipal(ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: "bench"})
	if err != nil {
		return err
	}
	secret, err := directory.AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: sp.GetName()})
	if err != nil {
		return err
	}
	ours := newAskers(tokenClients, in.roots, in.hello.Gateway+"/oauth2/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {secret.GetClientId()}, "client_secret": {secret.GetSecret()}})
	defer ours.close()
	if err := errors.Join(theirs.warm(ctx), ours.warm(ctx)); err != nil {
		return err
	}
	var ourTimes, theirTimes []time.Duration
	value, ratio, err := o.paired(ctx,
		func(ctx context.Context) (float64, error) { return ours.rate(ctx, o.each, &ourTimes) },
		func(ctx context.Context) (float64, error) { return theirs.rate(ctx, o.each, &theirTimes) })
	if err != nil {
		return err
	}
	fmt.Fprintf(o.log, "  a token: ours p50 %v p99 %v, Dex's p50 %v p99 %v, from %d workers\n", percentile(ourTimes, 0.5), percentile(ourTimes, 0.99), percentile(theirTimes, 0.5), percentile(theirTimes, 0.99), tokenWorkers)
	o.print("tokens-dex", value, "tokens/s", ratio, "Dex's token exchange, ES256 and SQLite")
	o.print("tokens-dex-p99", float64(percentile(ourTimes, 0.99))/1e6, "ms", float64(percentile(ourTimes, 0.99))/float64(percentile(theirTimes, 0.99)), "Dex's p99")
	return nil
}

// startDex builds Dex from its own module, with cgo for SQLite, and starts it.
func startDex(ctx context.Context, o options) (address string, root *x509.Certificate, stop func() error, err error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return "", nil, nil, err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "dex")
	build := exec.CommandContext(ctx, "go", "build", "-o", bin, ".")
	build.Dir = "dex"
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	build.Stdout, build.Stderr = o.log, o.log
	if err := build.Run(); err != nil {
		return "", nil, nil, fmt.Errorf("Dex is not built (it needs a C compiler): %w", err)
	}
	cmd := exec.CommandContext(ctx, bin)
	cmd.Env = append(os.Environ(), "GOGC="+o.gogc)
	cmd.Stderr = o.log
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, nil, err
	}
	stop = func() error { _ = in.Close(); return cmd.Wait() }
	var said struct {
		URL  string
		Root []byte
	}
	if err = json.NewDecoder(out).Decode(&said); err == nil {
		root, err = x509.ParseCertificate(said.Root)
	}
	if err != nil {
		return "", nil, nil, errors.Join(fmt.Errorf("Dex said nothing: %w", err), stop())
	}
	return said.URL, root, stop, nil
}
