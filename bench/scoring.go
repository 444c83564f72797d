package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
)

// oneRow is what is scored: thirty features.
var oneRow = []byte(`{"data": [[` + strings.Repeat("12.345, ", 29) + `12.345]]}`)

// httpLoad is some callers of one URL, each with a connection of its own.
type httpLoad struct {
	client  *http.Client
	url     string
	key     string
	callers int
	each    time.Duration

	mu   sync.Mutex
	took []time.Duration // of all rounds
}

func newHTTPLoad(url, key string, roots *x509.CertPool, callers int, each time.Duration) *httpLoad {
	t := &http.Transport{MaxIdleConnsPerHost: callers, MaxConnsPerHost: callers, DisableCompression: true}
	if roots != nil {
		t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, ServerName: "localhost"}
	}
	return &httpLoad{client: &http.Client{Transport: t, Timeout: 30 * time.Second}, url: url, key: key, callers: callers, each: each}
}

func (l *httpLoad) call(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, bytes.NewReader(oneRow))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+l.key)
	res, err := l.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", l.url, res.Status)
	}
	return nil
}

// round is calls a second over one round. Any error ends it.
func (l *httpLoad) round(ctx context.Context) (float64, error) {
	var calls atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	var over atomic.Bool
	begin := time.Now()
	timer := time.AfterFunc(l.each, func() { over.Store(true) })
	defer timer.Stop()
	for range l.callers {
		wg.Go(func() {
			took := make([]time.Duration, 0, 1<<14)
			for !over.Load() && failed.Load() == nil {
				at := time.Now()
				if err := l.call(ctx); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				took = append(took, time.Since(at))
			}
			calls.Add(int64(len(took)))
			l.mu.Lock()
			l.took = append(l.took, took...)
			l.mu.Unlock()
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(calls.Load()) / time.Since(begin).Seconds(), nil
}

// percentile of all calls so far, in microseconds.
func (l *httpLoad) percentile(p float64) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.took)
	if len(l.took) == 0 {
		return 0
	}
	return float64(l.took[int(p*float64(len(l.took)-1))]) / float64(time.Microsecond)
}

// scoreNginx is the scoring listener, with its key check and its log, before a replica in Go that echoes; beside nginx with TLS and
// auth_request before a server in Go that echoes. Backends, the server that auth_request asks, and the callers are in this process.
func scoreNginx(ctx context.Context, o options) error {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		if _, e := os.Stat("/usr/sbin/nginx"); e != nil {
			fmt.Fprintln(o.log, "score-nginx: skipped, there is no nginx here (Debian: apt-get install nginx-light)")
			return nil
		}
		nginx = "/usr/sbin/nginx"
	}
	const callers = 16
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, err := newInstallation(ctx, o, computev1.Compute_KIND_SELF_HOSTED)
	if err != nil {
		return err
	}
	if err := in.deploy(ctx, "", 16, func() error { return in.echoReplica(ctx, callers) }); err != nil {
		return err
	}
	peer, stop, err := startNginx(ctx, nginx, in.key)
	if err != nil {
		return err
	}
	defer stop()
	ours := newHTTPLoad(in.scoring, in.key, in.roots, callers, o.each)
	theirs := newHTTPLoad(peer.url, in.key, peer.roots, callers, o.each)
	v, r, err := o.paired(ctx, ours.round, theirs.round)
	if err != nil {
		return err
	}
	o.print("score-nginx", v, "requests/s", r, fmt.Sprintf("nginx with TLS and auth_request before a Go server that echoes, %d callers; ours with key check and request log", callers))
	a, b := ours.percentile(0.99), theirs.percentile(0.99)
	o.print("score-nginx-p99", a, "us", a/b, fmt.Sprintf("the same nginx, whose p99 is %.0f us", b))
	return in.takeDown(ctx)
}

type proxy struct {
	url   string
	roots *x509.CertPool
}

// startNginx starts one with a certificate of its own, all in a folder of its own.
func startNginx(ctx context.Context, program, key string) (*proxy, func(), error) {
	want := sha256.Sum256([]byte(key))
	mux := http.NewServeMux()
	mux.HandleFunc("POST /score", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(b)
	})
	mux.HandleFunc("GET /auth", func(w http.ResponseWriter, r *http.Request) {
		got := sha256.Sum256([]byte(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")))
		if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	backend := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = backend.Serve(l) }()
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, nil, err
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	addr := free.Addr().String()
	_ = free.Close()
	root, err := selfSigned(dir)
	if err != nil {
		return nil, nil, err
	}
	conf := fmt.Sprintf(`daemon off; worker_processes auto; pid %[1]s/pid; error_log %[1]s/error.log;
user root;
events { worker_connections 512; }
http {
  access_log %[1]s/access.log combined buffer=64k flush=1s;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  upstream backend { server %[2]s; keepalive 64; }
  server {
    listen %[3]s ssl; ssl_certificate %[1]s/cert.pem; ssl_certificate_key %[1]s/key.pem; ssl_protocols TLSv1.3; keepalive_requests 1000000;
    location = /score { auth_request /auth; proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; }
    location = /auth { internal; proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass_request_body off; proxy_set_header Content-Length ""; proxy_method GET; }
  }
}
`, dir, l.Addr(), addr)
	if os.Geteuid() != 0 {
		conf = strings.Replace(conf, "user root;\n", "", 1)
	}
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, program, "-p", dir, "-c", file)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	stop := func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		_ = backend.Close()
		_ = os.RemoveAll(dir)
	}
	p := &proxy{url: "https://" + addr + "/score", roots: x509.NewCertPool()}
	p.roots.AddCert(root)
	probe := newHTTPLoad(p.url, key, p.roots, 1, time.Second)
	for deadline := time.Now().Add(10 * time.Second); ; {
		if err = probe.call(ctx); err == nil {
			return p, stop, nil
		}
		if time.Now().After(deadline) {
			stop()
			return nil, nil, fmt.Errorf("nginx does not answer: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func selfSigned(dir string) (*x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "cert.pem"), pemOf("CERTIFICATE", der), 0o600), os.WriteFile(filepath.Join(dir, "key.pem"), pemOf("PRIVATE KEY", pkcs8), 0o600)); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// runStart is how long it takes from the call that submits a run to the first line that its command prints, as its log is followed.
func runStart(ctx context.Context, o options) error {
	in, err := newInstallation(ctx, o, computev1.Compute_KIND_LOCAL)
	if err != nil {
		return err
	}
	snapshot, err := in.folder(ctx, map[string]string{"hello.py": "print('hello')\n"})
	if err != nil {
		return err
	}
	var first, whole []float64
	for range 3 * o.rounds {
		begin := time.Now()
		r, err := in.admin.Runs().SubmitRun(ctx, &computev1.SubmitRunRequest{Parent: in.workspace, Compute: in.compute, Snapshot: snapshot, Command: []string{"python3", "hello.py"}})
		if err != nil {
			return err
		}
		logs, err := in.admin.Runs().StreamLogs(ctx, &computev1.StreamLogsRequest{Name: r.GetName(), Follow: true})
		if err != nil {
			return err
		}
		if _, err := logs.Recv(); err != nil {
			return err
		}
		first = append(first, time.Since(begin).Seconds()*1000)
		if _, err := in.admin.WaitRun(ctx, r.GetName(), nil); err != nil {
			return err
		}
		whole = append(whole, time.Since(begin).Seconds()*1000)
	}
	alone := make([]float64, 0, len(first))
	for range 3 * o.rounds {
		begin := time.Now()
		if err := exec.CommandContext(ctx, "python3", "-c", "print('hello')").Run(); err != nil {
			return err
		}
		alone = append(alone, time.Since(begin).Seconds()*1000)
	}
	v := median(first)
	o.print("run-first-line", v, "ms", v/median(alone), fmt.Sprintf("python3 -c print, alone (%.0f ms); from submit to the first line of the log; goal 300 ms; the whole run takes %.0f ms", median(alone), median(whole)))
	return errors.Join(in.admin.Close(), in.stop())
}
