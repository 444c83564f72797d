package proc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// asked is what clients of an endpoint remember.
type asked struct {
	mu       sync.Mutex
	answered map[string]int // request id → status that was read to the end
	sent     int
}

func (a *asked) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.answered)
}

// G3, H3: inference and telemetry are killed in turn while an endpoint is called. The request log has every request that was answered, with
// the status that the client got, once; and of the others none twice.
func TestRequestsSurviveKills(t *testing.T) {
	needSandbox(t)
	in := New(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	l, err := NewLab(ctx, in.Access(), "requests")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	e, err := l.Endpoints().CreateEndpoint(ctx, &inferencev1.CreateEndpointRequest{Parent: l.Workspace, EndpointId: "scored", Endpoint: &inferencev1.NewEndpoint{Auth: inferencev1.Endpoint_AUTH_KEY}})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := l.Endpoints().GetCredentials(ctx, &inferencev1.GetCredentialsRequest{Name: e.GetName()})
	if err != nil {
		t.Fatal(err)
	}

	a := &asked{answered: make(map[string]int)}
	calling, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { a.call(calling, l.Access, e.GetScoringUri(), keys.GetPrimaryKey()) })
	}
	more := func(n int) { // until so many more requests have been answered
		t.Helper()
		want := a.count() + n
		if err := poll(ctx, func() error {
			if got := a.count(); got < want {
				return fmt.Errorf("%d requests were answered, waiting for %d", got, want)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"inference", "telemetry", "inference", "telemetry", "inference"} {
		more(100)
		i := slices.IndexFunc(in.Processes, func(p *Process) bool { return p.Name == name })
		if i < 0 {
			t.Fatalf("there is no process %s", name)
		}
		if err := in.Processes[i].Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if name == "telemetry" {
			more(200) // they are spooled
		}
		if err := in.Processes[i].Start(); err != nil {
			t.Fatal(err)
		}
	}
	more(100)
	stop()
	wg.Wait()
	wrong := fmt.Errorf("it was never looked")
	if err := poll(ctx, func() error { wrong = a.compare(ctx, l, e.GetName()); return wrong }); err != nil {
		for _, p := range in.Processes {
			t.Logf("%s:\n%s", p.Name, p.Output())
		}
		t.Fatal(wrong)
	}
	t.Logf("%d requests were answered of %d, and each is logged once", len(a.answered), a.sent)
}

// call scores until ctx ends. There is no deployment, so a right key reads that; every third key is a wrong one.
func (a *asked) call(ctx context.Context, access Access, uri, key string) {
	tr := &http.Transport{TLSClientConfig: access.TLS(), ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	for n := 0; ctx.Err() == nil; n++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, uri, bytes.NewReader([]byte(`{"data":[]}`)))
		if err != nil {
			return
		}
		req.Header.Set("Authorization", "Bearer "+key)
		if n%3 == 0 {
			req.Header.Set("Authorization", "Bearer "+key[:len(key)-1])
		}
		a.mu.Lock()
		a.sent++
		a.mu.Unlock()
		res, err := client.Do(req)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
		if err != nil { // it is being killed, or not there yet
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		a.mu.Lock()
		a.answered[res.Header.Get("X-Request-Id")] = res.StatusCode
		a.mu.Unlock()
	}
}

// compare holds the log to what was answered.
func (a *asked) compare(ctx context.Context, l *Lab, endpoint string) error {
	logged := make(map[string]int32)
	for page := ""; ; {
		res, err := l.Requests().ListRequests(ctx, &telemetryv1.ListRequestsRequest{Endpoint: endpoint, PageSize: 1000, PageToken: page})
		if err != nil {
			return err
		}
		if res.GetDropped() != 0 {
			return fmt.Errorf("%d were dropped", res.GetDropped())
		}
		for _, r := range res.GetRequests() {
			if _, twice := logged[r.GetRequestId()]; twice {
				return fmt.Errorf("%s is logged twice", r.GetRequestId())
			}
			logged[r.GetRequestId()] = r.GetStatusCode()
		}
		if page = res.GetNextPageToken(); page == "" {
			break
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	missing := 0
	for id, status := range a.answered {
		got, ok := logged[id]
		if !ok {
			missing++
		} else if int(got) != status {
			return fmt.Errorf("%s was answered with %d and logged with %d", id, status, got)
		}
	}
	if missing > 0 || len(logged) > a.sent {
		return fmt.Errorf("%d of %d answered requests are not logged; %d are, of %d", missing, len(a.answered), len(logged), a.sent)
	}
	return nil
}
