package gateway

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

const runPath = "/v1/subscriptions/s/resourceGroups/g/workspaces/w/runs/r"

// TestREST calls a service by REST, over TLS (part I).
func TestREST(t *testing.T) {
	l := newLab(t)
	l.b.get = func(_ context.Context, in *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error) {
		if !strings.HasSuffix(in.GetRun(), "/workspaces/w/runs/r") {
			return nil, fault.NotFound("there is no run %q", in.GetRun())
		}
		return &telemetryv1.RunData{Tags: []*telemetryv1.Tag{{Key: "k", Value: "v"}}}, nil
	}
	res, body := l.http(http.MethodGet, runPath+"/data", "", "Authorization", "Bearer a", "X-Forwarded-For", "192.0.2.66", rpc.AddressHeader, "192.0.2.66")
	if res.StatusCode != http.StatusOK || !strings.Contains(body, `"key":"k"`) || res.Header.Get("Cache-Control") != "no-store" || res.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%d %s %v", res.StatusCode, body, res.Header)
	}
	if md := l.b.seen(); md.Get("authorization")[0] != "Bearer a" || md.Get(rpc.AddressHeader)[0] != "127.0.0.1" || md.Get("x-forwarded-for") != nil {
		t.Errorf("what arrived: %v", md)
	}
	res, body = l.http(http.MethodGet, "/openapi.json", "")
	if res.StatusCode != http.StatusOK || !json.Valid([]byte(body)) || !strings.Contains(body, `"swagger"`) {
		t.Errorf("%d %.100s", res.StatusCode, body)
	}
	// The path is taken as it was sent: nothing is cleaned, nobody is sent elsewhere.
	for _, path := range []string{"/v1/../oauth2/keys", "/v1//runs", "/v1/" + strings.Repeat("a/", 5000)} {
		if res, body := l.http(http.MethodGet, path, ""); res.StatusCode != http.StatusNotFound || !strings.Contains(body, "METHOD_UNKNOWN") {
			t.Errorf("%.30s: %d %.200s", path, res.StatusCode, body)
		}
	}
	l.stop()
	if res, body := l.http(http.MethodGet, runPath+"/data", ""); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "SERVICE_UNAVAILABLE") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

// TestRESTStreams holds that each message of a stream is on its way when it was sent, and that a stream may be silent for longer than
// a write may take.
func TestRESTStreams(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Edge.WriteTimeout, c.BodyGrace = 300*time.Millisecond, 300*time.Millisecond })
	next := make(chan struct{})
	l.b.watch = func(_ *telemetryv1.WatchMetricsRequest, s grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error {
		for range next {
			if err := s.Send(&telemetryv1.WatchMetricsResponse{Metrics: []*telemetryv1.Metric{{Key: "loss"}}}); err != nil {
				return err
			}
		}
		return nil
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: l.tls()}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+l.addr+runPath+"/metrics:watch", nil)
	ok(t, err)
	go func() { next <- struct{}{} }()
	res, err := client.Do(req)
	ok(t, err)
	defer res.Body.Close()
	lines := json.NewDecoder(res.Body)
	for range 2 {
		var line struct{ Result map[string]any }
		if err := lines.Decode(&line); err != nil || line.Result == nil {
			t.Fatalf("%v %v", line, err)
		}
		<-time.After(700 * time.Millisecond)
		select {
		case next <- struct{}{}:
		case <-time.After(10 * time.Second):
			t.Fatal("the stream is gone")
		}
	}
	close(next)
}

// TestSlowBody holds that who sends a body slowly is cut, on every route.
func TestSlowBody(t *testing.T) {
	l := newLab(t, func(c *Config) { c.BodyGrace = 200 * time.Millisecond })
	for _, path := range []string{"/oauth2/token", runPath + ":logBatch", "/nothing"} {
		c, err := tls.Dial("tcp", l.addr, l.tls("http/1.1"))
		ok(t, err)
		_, err = io.WriteString(c, "POST "+path+" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
		ok(t, err)
		ok(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
		b, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 4") && !strings.HasPrefix(string(b), "HTTP/1.1 504") {
			t.Errorf("%s: %v %.200q", path, err, b)
		}
		_ = c.Close()
	}
	if l.b.seen() != nil {
		t.Error("a service was called")
	}
}
