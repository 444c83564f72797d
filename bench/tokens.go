package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
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

// askers are clients on many addresses of loopback, each with a connection that it keeps. They share the machine with the server that they
// ask, so they do little: the request is a row of bytes that is made once, and the answer is read and checked without net/http. Whoever is
// measured has the same ones.
type askers struct {
	clients []*asker
	next    atomic.Int64
	request []byte
	pid     int             // of the server
	took    []time.Duration // of each token
	cpu     time.Duration   // of the server, in all rounds
}

// asker is one connection, used by one goroutine at a time.
type asker struct {
	mu   sync.Mutex
	dial func(context.Context) (net.Conn, error)
	conn net.Conn
	in   *bufio.Reader
	body []byte
}

// newAskers makes them; own is what they prove themselves with on TLS, or nothing.
func newAskers(n int, roots *x509.CertPool, address string, form url.Values, own ...tls.Certificate) (*askers, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	body := form.Encode()
	a := &askers{request: fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", u.Path, u.Host, len(body), body)}
	conf := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, ServerName: u.Hostname(), Certificates: own}
	for i := range n {
		d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, byte(i/200), byte(1+i%200))}}, Config: conf}
		a.clients = append(a.clients, &asker{dial: func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", u.Host) }})
	}
	return a, nil
}

func (a *askers) close() {
	for _, c := range a.clients {
		if c.conn != nil {
			_ = c.conn.Close()
		}
	}
}

// ask gets one token.
func (a *askers) ask(ctx context.Context, c *asker) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		conn, err := c.dial(ctx)
		if err != nil {
			return err
		}
		// One bound for the whole of the bench: a timer for each request would be work too.
		_ = conn.SetDeadline(time.Now().Add(time.Hour))
		c.conn, c.in = conn, bufio.NewReaderSize(conn, 4<<10)
	}
	if _, err := c.conn.Write(a.request); err != nil {
		return err
	}
	return c.answer()
}

// answer reads one answer, which has to be 200 and have a length and a token of three parts in it.
func (c *asker) answer() error {
	status, err := c.in.ReadString('\n')
	if err != nil {
		return err
	}
	length := -1
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}
		if name, value, ok := bytes.Cut(line, []byte(": ")); ok && bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(value)); err != nil {
				return err
			}
		}
	}
	if length < 0 || length > 64<<10 {
		return fmt.Errorf("an answer without a length, or of %d bytes: %q", length, status)
	}
	c.body = slices.Grow(c.body[:0], length)[:length]
	if _, err := io.ReadFull(c.in, c.body); err != nil {
		return err
	}
	_, token, _ := bytes.Cut(c.body, []byte(`"access_token":"`))
	token, _, whole := bytes.Cut(token, []byte(`"`))
	if !strings.HasPrefix(status, "HTTP/1.1 200 ") || !whole || len(token) < 200 || bytes.Count(token, []byte(".")) != 2 {
		return fmt.Errorf("no token: %q %.300q", status, c.body)
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

// rate asks for tokens from 16 workers for a time, and notes how long each took and what the server worked meanwhile.
func (a *askers) rate(ctx context.Context, each time.Duration) (float64, error) {
	before, err := cpuOf(a.pid)
	if err != nil {
		return 0, err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	begun, had := time.Now(), len(a.took)
	for range tokenWorkers {
		wg.Go(func() {
			mine := make([]time.Duration, 0, 1<<12)
			var err error
			for time.Since(begun) < each && err == nil {
				start := time.Now()
				err = a.ask(ctx, a.clients[int(a.next.Add(1))%len(a.clients)])
				mine = append(mine, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			a.took = append(a.took, mine...)
			first = errors.Join(first, err)
		})
	}
	wg.Wait()
	took := time.Since(begun)
	after, err := cpuOf(a.pid)
	a.cpu += after - before
	return float64(len(a.took)-had) / took.Seconds(), errors.Join(first, err)
}

// cpuEach is what the server worked for a token.
func (a *askers) cpuEach() time.Duration { return a.cpu / time.Duration(max(1, len(a.took))) }

// cpuOf is the CPU time of a process, user and system, by proc(5): fields 14 and 15 of stat, in hundredths of a second.
func cpuOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(b, []byte(") ")) // after the name, from field 3 on
	f := strings.Fields(string(rest))
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f))
	}
	var ticks int64
	for _, s := range f[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// percentile of durations, 0 to 1.
func percentile(d []time.Duration, p float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, int(p*float64(len(d))))]
}

// tokensDex is for a client's secret, through the gateway.
func tokensDex(ctx context.Context, o options) error {
	return tokensBesideDex(ctx, o, "tokens-dex", false)
}

// tokensDirectDex is for a client's certificate, at identity's own port.
func tokensDirectDex(ctx context.Context, o options) error {
	return tokensBesideDex(ctx, o, "tokens-direct-dex", true)
}

// tokensBesideDex compares tokens of a service principal's with the cheapest that Dex gives (bench/dex says which and why), both with ES256 and SQLite, both
// over HTTPS from the same clients.
func tokensBesideDex(ctx context.Context, o options, name string, direct bool) error {
	theirs, stop, err := dexAskers(ctx, o)
	if err != nil {
		return err
	}
	defer stop()
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
	var ours *askers
	if direct {
		own, form, e := certified(ctx, directory, sp.GetName())
		if e != nil {
			return e
		}
		ours, err = newAskers(tokenClients, in.roots, in.hello.Direct+"/oauth2/token", form, own)
	} else {
		ours, err = newAskers(tokenClients, in.roots, in.hello.Gateway+"/oauth2/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {secret.GetClientId()}, "client_secret": {secret.GetSecret()}})
	}
	if err != nil {
		return err
	}
	ours.pid = in.pid
	return besideDex(ctx, o, name, ours, theirs)
}

// dexAskers starts Dex and makes who asks it for tokens; stop ends both.
func dexAskers(ctx context.Context, o options) (theirs *askers, stop func(), err error) {
	dex, root, err := startDex(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	theirs, err = newAskers(tokenClients, roots, dex.Gateway+"/token", url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {"bench"}, "client_secret": {"bench-secret"}, "connector_id": {"mock"}, "scope": {"openid"},
		"subject_token": {"x"}, "subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
	})
	if err != nil {
		return nil, nil, errors.Join(err, dex.stop())
	}
	theirs.pid = dex.pid
	return theirs, func() { theirs.close(); _ = dex.stop() }, nil
}

// certified registers a certificate of a new key for a service principal, and gives it with the form of a request for its tokens.
func certified(ctx context.Context, directory identityv1.DirectoryServiceClient, name string) (own tls.Certificate, form url.Values, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return own, nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return own, nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if _, err := directory.AddServicePrincipalKey(ctx, &identityv1.AddServicePrincipalKeyRequest{Name: name, Pem: string(text)}); err != nil {
		return own, nil, err
	}
	sp, err := directory.GetServicePrincipal(ctx, &identityv1.GetServicePrincipalRequest{Name: name})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, url.Values{"grant_type": {"client_credentials"}, "client_id": {sp.GetUid()}}, err
}

// besideDex measures one way to a token in turn with Dex's.
func besideDex(ctx context.Context, o options, name string, ours, theirs *askers) error {
	defer ours.close()
	if err := errors.Join(theirs.warm(ctx), ours.warm(ctx)); err != nil {
		return err
	}
	theirs.took, theirs.cpu = nil, 0
	value, ratio, err := o.paired(ctx,
		func(ctx context.Context) (float64, error) { return ours.rate(ctx, o.each) },
		func(ctx context.Context) (float64, error) { return theirs.rate(ctx, o.each) })
	if err != nil {
		return err
	}
	our99, their99 := percentile(ours.took, 0.99), percentile(theirs.took, 0.99)
	fmt.Fprintf(o.log, "  a token: ours p50 %v p99 %v, Dex's p50 %v p99 %v, from %d workers\n", percentile(ours.took, 0.5), our99, percentile(theirs.took, 0.5), their99, tokenWorkers)
	o.print(name, value, "tokens/s", ratio, "Dex's token exchange, ES256 and SQLite")
	o.print(name+"-p99", float64(our99)/1e6, "ms", float64(our99)/float64(their99), "Dex's p99")
	o.print(name+"-cpu", float64(ours.cpuEach())/1e3, "us of the server's CPU a token", float64(ours.cpuEach())/float64(theirs.cpuEach()), "Dex's, which says more than a rate where other work shares the machine")
	return nil
}

// startDex builds Dex from its own module, with cgo for SQLite, and starts it.
func startDex(ctx context.Context, o options) (p *process, root *x509.Certificate, err error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "dex")
	build := exec.CommandContext(ctx, "go", "build", "-o", bin, ".")
	build.Dir = "dex"
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	build.Stdout, build.Stderr = o.log, o.log
	if err := build.Run(); err != nil {
		return nil, nil, fmt.Errorf("Dex is not built (it needs a C compiler): %w", err)
	}
	cmd := exec.CommandContext(ctx, bin)
	cmd.Env = append(os.Environ(), "GOGC="+o.gogc)
	cmd.Stderr = o.log
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	p = &process{pid: cmd.Process.Pid, stop: func() error { _ = in.Close(); return cmd.Wait() }}
	var said struct {
		URL  string
		Root []byte
	}
	if err = json.NewDecoder(out).Decode(&said); err == nil {
		root, err = x509.ParseCertificate(said.Root)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("Dex said nothing: %w", err), p.stop())
	}
	p.Gateway = said.URL
	return p, root, nil
}
