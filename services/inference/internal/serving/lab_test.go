package serving

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	workspace = "ws_1"
	longTime  = 60 * time.Second // for what has to come, however slow the machine is
)

var td = spiffeid.RequireTrustDomainFromString("mesh.test")

// lab is a Server with its listeners, and the authority that its replicas have their certificates of.
type lab struct {
	*Server
	t       testing.TB
	ca      *svid.Authority
	addr    string // of the scoring listener
	replica string // of the replicas' one
	roots   *x509.CertPool
	log     *requests
	client  *http.Client // HTTP/1.1
	h2      *http.Client
}

// requests is a Log in memory.
type requests struct {
	mu   sync.Mutex
	list []*telemetryv1.ScoringRequest
}

func (l *requests) Append(r *telemetryv1.ScoringRequest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, _ := proto.Clone(r).(*telemetryv1.ScoringRequest)
	l.list = append(l.list, c)
}

func (l *requests) all() []*telemetryv1.ScoringRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*telemetryv1.ScoringRequest(nil), l.list...)
}

// last is the newest record.
func (l *requests) last(t testing.TB) *telemetryv1.ScoringRequest {
	t.Helper()
	all := l.all()
	if len(all) == 0 {
		t.Fatal("nothing was recorded")
	}
	return all[len(all)-1]
}

// mesh is a server's side of mutual TLS with the real checks of pkg/svid.
func newMesh(t testing.TB, ca *svid.Authority) *svid.Source {
	t.Helper()
	id, err := svid.ServiceID(td, "inference")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	k, err := svid.NewKeeper(svid.KeeperConfig{Dir: dir, ID: id, Issue: func(_ context.Context, _ crypto.Signer, csr []byte) ([][]byte, [][]byte, error) {
		chain, _, err := ca.SignCSR(csr, id, time.Hour, time.Now())
		var bundle [][]byte
		for _, c := range ca.Bundle() {
			bundle = append(bundle, c.Raw)
		}
		return chain, bundle, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = k.Run(ctx) }()
	ready, stop := context.WithTimeout(ctx, longTime)
	defer stop()
	if err := k.Ready(ready); err != nil {
		t.Fatal(err)
	}
	w, err := svid.NewWorkloadServer(svid.WorkloadConfig{Keeper: k, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	src, err := svid.NewSource(ready, svid.SourceConfig{Addr: w.Addr(), TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close(); _ = w.Close(); cancel(); <-done })
	return src
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// newLab starts a Server; change may adjust its Config.
func newLab(t testing.TB, change ...func(*Config)) *lab {
	t.Helper()
	ca, err := svid.NewAuthority(td, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key, err := svid.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.SignServer(key.Public(), []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	log := &requests{}
	cfg := Config{
		MeshTLS: newMesh(t, ca).ServerTLS, TrustDomain: td.Name(), Log: log, Installation: "test", Version: "1.2.3", Logger: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Certificate: func() (*tls.Certificate, error) { return &tls.Certificate{Certificate: chain, PrivateKey: key}, nil },
	}
	for _, c := range change {
		c(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	public, replicas := listen(t), listen(t)
	l := &lab{Server: s, t: t, ca: ca, addr: public.Addr().String(), replica: replicas.Addr().String(), roots: x509.NewCertPool(), log: log}
	l.roots.AddCert(ca.Root())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx, public, replicas); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	one, two := new(http.Protocols), new(http.Protocols)
	one.SetHTTP1(true)
	two.SetHTTP2(true)
	l.client = &http.Client{Transport: &http.Transport{TLSClientConfig: l.tls(), Protocols: one, MaxIdleConnsPerHost: 64}}
	l.h2 = &http.Client{Transport: &http.Transport{TLSClientConfig: l.tls(), Protocols: two}}
	t.Cleanup(func() { l.client.CloseIdleConnections(); l.h2.CloseIdleConnections(); cancel(); wg.Wait() })
	return l
}

func (l *lab) tls(protos ...string) *tls.Config {
	return &tls.Config{RootCAs: l.roots, MinVersion: tls.VersionTLS12, NextProtos: protos}
}

// testLog has what the server logs printed with the test.
type testLog struct{ testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.Log(string(p))
	return len(p), nil
}

// answering is what a worker does with a request; it writes the answer itself.
type answering func(w *bufio.Writer, r *http.Request, body []byte)

// echo answers with what came.
func echo(w *bufio.Writer, r *http.Request, body []byte) {
	reply(w, 200, r.Header.Get("Content-Type"), body)
}

func reply(w io.Writer, status int, contentType string, body []byte, headers ...string) {
	fmt.Fprintf(w, "HTTP/1.1 %d X\r\nContent-Length: %d\r\n", status, len(body))
	if contentType != "" {
		fmt.Fprintf(w, "Content-Type: %s\r\n", contentType)
	}
	for _, h := range headers {
		fmt.Fprintf(w, "%s\r\n", h)
	}
	fmt.Fprintf(w, "\r\n%s", body)
}

// agent is one run's agent: it has a certificate and brings workers.
type agent struct {
	l    *lab
	run  string
	cert tls.Certificate
	wg   sync.WaitGroup
	mu   sync.Mutex
	open []net.Conn

	served atomic.Int64
}

// certificate of a run, in a workspace.
func (l *lab) certificate(ca *svid.Authority, id spiffeid.ID) tls.Certificate {
	l.t.Helper()
	key, err := svid.NewKey()
	if err != nil {
		l.t.Fatal(err)
	}
	chain, err := ca.Sign(key.Public(), id, time.Hour, time.Now())
	if err != nil {
		l.t.Fatal(err)
	}
	return tls.Certificate{Certificate: chain, PrivateKey: key}
}

func (l *lab) newAgent(run string) *agent {
	l.t.Helper()
	id, err := svid.RunID(td, workspace, run)
	if err != nil {
		l.t.Fatal(err)
	}
	a := &agent{l: l, run: run, cert: l.certificate(l.ca, id)}
	l.t.Cleanup(a.stop)
	return a
}

// dial connects as an agent does, up to the line that says which worker it is.
func (l *lab) dial(cert tls.Certificate, protos ...string) (*tls.Conn, error) {
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: protos, Certificates: []tls.Certificate{cert},
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			opts := x509.VerifyOptions{Roots: l.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
			if _, err := cs.PeerCertificates[0].Verify(opts); err != nil {
				return err
			}
			if len(cs.PeerCertificates[0].URIs) != 1 || cs.PeerCertificates[0].URIs[0].Path != "/service/inference" {
				return errors.New("not inference")
			}
			return nil
		},
	}}
	ctx, cancel := context.WithTimeout(context.Background(), longTime)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", l.replica)
	if err != nil {
		return nil, err
	}
	return c.(*tls.Conn), nil
}

// connect brings a connection to where it is a worker's.
func (a *agent) connect(n int) (net.Conn, *bufio.Reader, error) {
	c, err := a.l.dial(a.cert, pool.Protocol)
	if err != nil {
		return nil, nil, err
	}
	r := bufio.NewReader(c)
	_ = c.SetDeadline(time.Now().Add(longTime))
	if _, err := fmt.Fprintf(c, "{\"worker\":%d}\n", n); err != nil {
		_ = c.Close()
		return nil, nil, err
	}
	line, err := r.ReadString('\n')
	if err != nil || line != "ok\n" {
		_ = c.Close()
		return nil, nil, fmt.Errorf("answered %q, %w", line, err)
	}
	_ = c.SetDeadline(time.Time{})
	a.mu.Lock()
	a.open = append(a.open, c)
	a.mu.Unlock()
	return c, r, nil
}

// work brings a worker that answers until its connection ends.
func (a *agent) work(n int, do answering) net.Conn {
	a.l.t.Helper()
	c, r, err := a.connect(n)
	if err != nil {
		a.l.t.Fatal(err)
	}
	a.wg.Go(func() {
		defer func() { _ = c.Close() }()
		w := bufio.NewWriterSize(c, 64<<10)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			body, err := io.ReadAll(req.Body)
			if err != nil {
				return
			}
			a.served.Add(1)
			do(w, req, body)
			if w.Flush() != nil {
				return
			}
		}
	})
	return c
}

func (a *agent) stop() {
	a.mu.Lock()
	for _, c := range a.open {
		_ = c.Close()
	}
	a.open = nil
	a.mu.Unlock()
	a.wg.Wait()
}

// ready waits until the run has n workers.
func (l *lab) ready(run string, n int) {
	l.t.Helper()
	end := time.After(longTime)
	for l.Ready(run) != n {
		select {
		case <-l.Changed():
		case <-end:
			l.t.Fatalf("%s has %d workers, want %d", run, l.Ready(run), n)
		}
	}
}

func key(secret, label string) Credential {
	return Credential{Hash: sha256.Sum256([]byte(secret)), Label: label}
}

// simple is an endpoint with two keys and one deployment on the runs.
func simple(uid string, runs ...string) *Endpoint {
	return &Endpoint{
		UID: uid, WorkspaceUID: workspace, Name: "subscriptions/s/resourceGroups/g/workspaces/w/endpoints/" + strings.ReplaceAll(uid, "_", "-"),
		Kind: inferencev1.Endpoint_KIND_LOCAL, Auth: inferencev1.Endpoint_AUTH_KEY,
		Credentials: []Credential{key("primary", "key-primary"), key("secondary", "key-secondary")},
		Others:      []Credential{key("token", "token")},
		Deployments: map[string]*Deployment{"blue": {
			ID: "blue", UID: "dep_" + uid, Model: "m", ModelVersion: "1", QueueLength: 100, Timeout: longTime, Replicas: runs,
		}},
		Traffic: []Share{{Deployment: "blue", Percent: 100}},
	}
}

// serving is a lab with the endpoint ep_1, whose one replica has a worker that does as told.
func serving(t testing.TB, do answering, change ...func(*Config)) (*lab, *agent) {
	t.Helper()
	l := newLab(t, change...)
	l.Expect("run_1", workspace, "dep_ep_1")
	l.Set(simple("ep_1", "run_1"))
	a := l.newAgent("run_1")
	a.work(0, do)
	l.ready("run_1", 1)
	return l, a
}

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   string
}

// call sends a request with the headers given in pairs.
func (l *lab) call(c *http.Client, method, path, body string, headers ...string) answer {
	l.t.Helper()
	a, err := l.try(c, method, path, strings.NewReader(body), headers...)
	if err != nil {
		l.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

func (l *lab) try(c *http.Client, method, path string, body io.Reader, headers ...string) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), longTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "https://"+l.addr+path, body)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(got)}, err
}

const bearer = "Authorization"

func (a answer) reason(t testing.TB) string {
	t.Helper()
	var e struct {
		Error struct{ Code, Reason, Message string }
	}
	if err := json.NewDecoder(bytes.NewReader([]byte(a.body))).Decode(&e); err != nil {
		t.Fatalf("%d %q is no error of ours: %v", a.status, a.body, err)
	}
	if e.Error.Code == "" || e.Error.Message == "" {
		t.Errorf("an error without code or message: %s", a.body)
	}
	return e.Error.Reason
}

// raw sends bytes over a TLS connection and gives what comes until the other end closes. With end the own side is closed first.
func (l *lab) raw(send string, end bool) string {
	l.t.Helper()
	c, err := tls.Dial("tcp", l.addr, l.tls("http/1.1"))
	if err != nil {
		l.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(longTime))
	if _, err := io.WriteString(c, send); err != nil {
		l.t.Fatal(err)
	}
	if end {
		_ = c.CloseWrite()
	}
	got, err := io.ReadAll(c)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		l.t.Fatalf("the connection stays open: %v", err)
	}
	return string(got)
}

// waiting answers once hold is closed.
func waiting(hold <-chan struct{}) answering {
	return func(w *bufio.Writer, r *http.Request, body []byte) {
		<-hold
		echo(w, r, body)
	}
}

// eventually waits until ok holds.
func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	end := time.Now().Add(longTime)
	for !ok() {
		if time.Now().After(end) {
			t.Fatal("it does not come")
		}
		time.Sleep(time.Millisecond)
	}
}
