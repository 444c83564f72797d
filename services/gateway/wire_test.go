package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// asked sends one call by hand and returns the metadata that it is answered with; nil where the connection is ended instead.
func (l *lab) asked(method, path string, more ...[2]string) map[string]string {
	l.t.Helper()
	c, err := (&tls.Dialer{Config: l.tls("h2")}).DialContext(l.t.Context(), "tcp", l.addr)
	ok(l.t, err)
	defer c.Close()
	ok(l.t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = io.WriteString(c, http2.ClientPreface)
	ok(l.t, err)
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	ok(l.t, f.WriteSettings())
	var h bytes.Buffer
	enc := hpack.NewEncoder(&h)
	for _, x := range append([][2]string{{":method", method}, {":scheme", "https"}, {":path", path}, {":authority", "localhost"}, {"content-type", "application/grpc"}, {"te", "trailers"}}, more...) {
		ok(l.t, enc.WriteField(hpack.HeaderField{Name: x[0], Value: x[1]}))
	}
	ok(l.t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: h.Bytes()}))
	ok(l.t, f.WriteData(1, true, []byte{0, 0, 0, 0, 0}))
	got := map[string]string{}
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return nil
		}
		switch fr := fr.(type) {
		case *http2.GoAwayFrame, *http2.RSTStreamFrame:
			return nil
		case *http2.MetaHeadersFrame:
			for _, x := range fr.Fields {
				got[x.Name] = x.Value
			}
			if fr.StreamEnded() {
				return got
			}
		}
	}
}

// A3: what gRPC's metadata cannot carry does not pass, and is not taken for a service that is away: the service refuses what is missing.
func TestUnreadableHeaders(t *testing.T) {
	l := newLab(t)
	l.b.get = func(context.Context, *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error) {
		return &telemetryv1.RunData{}, nil
	}
	for _, name := range []string{"authorization", "dpop", "x-request-id", "traceparent"} {
		l.b.saw(context.Background())
		if got := l.asked("POST", telemetryv1.MetricService_GetRunData_FullMethodName, [2]string{name, "Bearer \xff\xfe"}); got["grpc-status"] != "0" || l.b.seen().Get(name) != nil {
			t.Errorf("gRPC, %s: %v; %q arrived", name, got, l.b.seen().Get(name))
		}
		res, body := l.http(http.MethodGet, runPath+"/data", "", name, "Bearer \xff\xfe")
		if res.StatusCode != http.StatusOK || l.b.seen().Get(name) != nil {
			t.Errorf("REST, %s: %d %s; %q arrived", name, res.StatusCode, body, l.b.seen().Get(name))
		}
	}
	for _, name := range []string{"Authorization", "Dpop", "Origin"} {
		if res, body := l.post("grant_type=x", name, "Basic \xff"); res.StatusCode != http.StatusBadRequest || !strings.Contains(body, "invalid_request") {
			t.Errorf("the provider, %s: %d %s", name, res.StatusCode, body)
		}
	}
	if res, body := l.http(http.MethodGet, "/oauth2/authorize?client_id=\xff", ""); res.StatusCode != http.StatusBadRequest {
		t.Errorf("the provider, its query: %d %s", res.StatusCode, body)
	}
}

// A3: a path is one of ours byte by byte, or none of ours.
func TestPaths(t *testing.T) {
	l := newLab(t)
	const ours = telemetryv1.MetricService_GetRunData_FullMethodName
	if got := l.asked("POST", ours); got["grpc-status"] != "0" || l.b.seen() == nil {
		t.Fatalf("ours is answered with %v", got)
	}
	l.b.saw(context.Background())
	for name, path := range map[string]string{
		"no slash":            ours[1:],
		"two slashes":         "/" + ours,
		"one at the end":      ours + "/",
		"two between":         strings.Replace(ours, "/Get", "//Get", 1),
		"escaped":             strings.Replace(ours, "/Get", "%2fGet", 1),
		"escaped letter":      strings.Replace(ours, "GetRunData", "%47etRunData", 1),
		"capitals":            strings.ToUpper(ours),
		"small":               strings.ToLower(ours),
		"absolute":            "https://localhost" + ours,
		"a query":             ours + "?x=1",
		"a fragment":          ours + "#x",
		"a dot":               "/." + ours,
		"up and down":         "/x/.." + ours,
		"a space":             ours + " ",
		"a NUL":               ours + "\x00",
		"the service alone":   "/redoubt.telemetry.v1.MetricService",
		"the root":            "/",
		"the star":            "*",
		"health, no slash":    "grpc.health.v1.Health/Check",
		"health, two slashes": "//grpc.health.v1.Health/Check",
		"health, a third":     "/grpc.health.v1.Health/Check/",
		"for services":        telemetryv1.IngestService_Ingest_FullMethodName,
	} {
		t.Run(name, func(t *testing.T) {
			if got := l.asked("POST", path); got != nil && got["grpc-status"] != "12" {
				t.Errorf("%q is answered with %v", path, got)
			}
			if len(l.b.seen()) > 0 {
				t.Error("a service was called")
			}
		})
	}
	for _, method := range []string{"GET", "PUT", "CONNECT", "post"} {
		if got := l.asked(method, ours); got != nil && got[":status"] == "200" {
			t.Errorf("%s is answered with %v", method, got)
		}
	}
}

// D10: streams that nobody takes anything from hold a window and a message or two each, and the others go on.
func TestSlowReadersAreBounded(t *testing.T) {
	l := newLab(t)
	const streams, size = 16, 64 << 20
	piece := &telemetryv1.WatchMetricsResponse{}
	for range 1000 {
		piece.Metrics = append(piece.Metrics, &telemetryv1.Metric{Key: strings.Repeat("k", 250)})
	}
	var sent atomic.Int64
	l.b.watch = func(_ *telemetryv1.WatchMetricsRequest, s grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error {
		for n := 0; n < size; n += 256 << 10 {
			if err := s.Send(piece); err != nil {
				return err
			}
			sent.Add(256 << 10)
		}
		return nil
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	c := telemetryv1.NewMetricServiceClient(l.dial(grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(16<<20)))
	var open []grpc.ServerStreamingClient[telemetryv1.WatchMetricsResponse]
	for range streams {
		s, err := c.WatchMetrics(t.Context(), &telemetryv1.WatchMetricsRequest{Run: "r"})
		ok(t, err)
		open = append(open, s)
	}
	for last := int64(-1); last != sent.Load() || last == 0; { // until nothing moves
		last = sent.Load()
		tick := time.NewTimer(200 * time.Millisecond)
		<-tick.C
	}
	held := heap() - before
	t.Logf("%d streams of 64 MiB: %d MiB were sent, the heap of both ends and the gateway grew by %d MiB", streams, sent.Load()>>20, held>>20)
	if sent.Load() > streams*(2<<20) || held > streams*(8<<20) {
		t.Errorf("%d MiB were sent, %d MiB are held", sent.Load()>>20, held>>20)
	}
	if _, err := l.metrics().GetRunData(t.Context(), &telemetryv1.GetRunDataRequest{Run: "r"}); err != nil {
		t.Errorf("others wait: %v", err)
	}
	n := 0
	for { // who reads again gets all
		m, err := open[0].Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		ok(t, err)
		if len(m.GetMetrics()) != 1000 {
			t.Fatal("a message is not whole")
		}
		n++
	}
	if n != size/(256<<10) {
		t.Errorf("%d messages came", n)
	}
}

// D10: the operator's own certificate is exchanged under load without a failed call; a broken one leaves the one before.
func TestCertificateIsExchangedUnderLoad(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	var clock atomic.Int64
	var l *lab
	put := func(c *tls.Certificate) {
		der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		ok(t, err)
		var chain []byte
		for _, b := range c.Certificate {
			chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b})...)
		}
		ok(t, os.WriteFile(certFile, chain, 0o600))
		ok(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	}
	roots := &lab{t: t, roots: x509.NewCertPool()}
	first, second := roots.certificate(), roots.certificate()
	put(first)
	start := time.Now()
	l = newLab(t, func(c *Config) {
		c.CertificateFile, c.KeyFile, c.Now = certFile, keyFile, func() time.Time { return start.Add(time.Duration(clock.Load())) }
	})
	l.roots = roots.roots
	shown := func() []byte {
		c, err := (&tls.Dialer{Config: l.tls("h2")}).DialContext(t.Context(), "tcp", l.addr)
		ok(t, err)
		defer c.Close()
		return c.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw
	}
	if !bytes.Equal(shown(), first.Certificate[0]) {
		t.Fatal("the operator's is not shown")
	}
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	var calls atomic.Int64
	go func() {
		for ctx.Err() == nil {
			conn := l.dial() // a handshake each
			if _, err := telemetryv1.NewMetricServiceClient(conn).GetRunData(context.WithoutCancel(ctx), &telemetryv1.GetRunDataRequest{Run: "r"}); err != nil {
				failed <- err
				return
			}
			_ = conn.Close()
			calls.Add(1)
		}
		failed <- nil
	}()
	put(second)
	clock.Add(int64(2 * time.Second))
	// Whoever comes while another handshake reads the files is shown the one before.
	for end := time.Now().Add(5 * time.Second); !bytes.Equal(shown(), second.Certificate[0]); {
		if time.Now().After(end) {
			t.Fatal("the new one is not shown")
		}
	}
	ok(t, os.WriteFile(certFile, []byte("broken"), 0o600))
	clock.Add(int64(2 * time.Second))
	if !bytes.Equal(shown(), second.Certificate[0]) {
		t.Error("the one before is gone")
	}
	for end := time.Now().Add(5 * time.Second); calls.Load() < 20 && time.Now().Before(end); runtime.Gosched() {
	}
	cancel()
	ok(t, <-failed)
	if calls.Load() == 0 {
		t.Error("nothing was asked meanwhile")
	}
}
