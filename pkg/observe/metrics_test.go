package observe

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

func newRED(t testing.TB) (*Metrics, *RED) {
	t.Helper()
	m := NewMetrics()
	r, err := NewRED(m.Registerer())
	if err != nil {
		t.Fatal(err)
	}
	return m, r
}

func scrape(t testing.TB, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestRED(t *testing.T) {
	m, red := newRED(t)
	get := red.Method("redoubt.compute.v1.RunService", "GetRun")
	if red.Method("redoubt.compute.v1.RunService", "GetRun") != get {
		t.Error("one method has two observers")
	}
	red.Method("redoubt.compute.v1.RunService", "ListRuns")
	get.Observe(codes.OK, 50*time.Microsecond)
	get.Observe(codes.OK, 100*time.Microsecond) // a bound belongs to its bucket
	get.Observe(codes.NotFound, 2*time.Millisecond)
	get.Observe(codes.Unauthenticated, time.Minute)
	get.Observe(codes.Code(77), -time.Second)
	red.Unknown().Observe(codes.Unimplemented, time.Millisecond)
	got := scrape(t, m)
	const labels = `{method="GetRun",service="redoubt.compute.v1.RunService"`
	for _, want := range []string{
		`redoubt_rpc_requests_total{code="OK",method="GetRun",service="redoubt.compute.v1.RunService"} 2`,
		`redoubt_rpc_requests_total{code="NotFound",method="GetRun",service="redoubt.compute.v1.RunService"} 1`,
		`redoubt_rpc_requests_total{code="Unauthenticated",method="GetRun",service="redoubt.compute.v1.RunService"} 1`,
		`redoubt_rpc_requests_total{code="Unknown",method="GetRun",service="redoubt.compute.v1.RunService"} 1`,
		`redoubt_rpc_requests_total{code="Unimplemented",method="other",service="other"} 1`,
		`redoubt_rpc_duration_seconds_bucket` + labels + `,le="0.0001"} 3`,
		`redoubt_rpc_duration_seconds_bucket` + labels + `,le="0.001"} 3`,
		`redoubt_rpc_duration_seconds_bucket` + labels + `,le="0.0025"} 4`,
		`redoubt_rpc_duration_seconds_bucket` + labels + `,le="30"} 4`,
		`redoubt_rpc_duration_seconds_bucket` + labels + `,le="+Inf"} 5`,
		`redoubt_rpc_duration_seconds_count` + labels + `} 5`,
		`redoubt_rpc_duration_seconds_sum` + labels + `} 60.00215`,
		"go_goroutines ",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %s", want)
		}
	}
	if strings.Contains(got, "ListRuns") {
		t.Error("a method without calls has series")
	}
	if _, err := NewRED(m.Registerer()); err == nil {
		t.Error("a second RED was registered")
	}
}

// Two processes' worth of metrics live side by side: nothing is global.
func TestMetricsAreNotGlobal(t *testing.T) {
	a, redA := newRED(t)
	b, _ := newRED(t)
	redA.Method("s", "m").Observe(codes.OK, time.Millisecond)
	if !strings.Contains(scrape(t, a), `service="s"`) || strings.Contains(scrape(t, b), `service="s"`) {
		t.Error("two registries share a metric")
	}
}

// However many names come, the series stay bounded, and hostile ones do not break the scrape.
func TestREDIsBounded(t *testing.T) {
	m, red := newRED(t)
	for _, name := range []string{"\xff\xfe", "a\"b\\c\nd", "", strings.Repeat("x", 10000)} {
		red.Method(name, name).Observe(codes.OK, time.Millisecond)
	}
	for i := range 100_000 {
		red.Method("s", fmt.Sprint(i)).Observe(codes.Code(i), time.Millisecond)
	}
	n := strings.Count(scrape(t, m), "redoubt_rpc_requests_total{")
	if n > maxMethods+len(red.other.codes) || n < maxMethods {
		t.Errorf("%d series of requests", n)
	}
}

func TestMetricsHandlerMethods(t *testing.T) {
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, "PROPFIND"} {
		w := httptest.NewRecorder()
		NewMetrics().Handler(nil).ServeHTTP(w, httptest.NewRequest(method, "/metrics", nil))
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", method, w.Code)
		}
	}
}

func TestREDConcurrent(t *testing.T) {
	m, red := newRED(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				red.Method("s", "m").Observe(codes.OK, time.Millisecond)
			}
		})
	}
	for range 4 {
		wg.Go(func() { scrape(t, m) })
	}
	wg.Wait()
	if !strings.Contains(scrape(t, m), `redoubt_rpc_requests_total{code="OK",method="m",service="s"} 8000`) {
		t.Error("calls were lost")
	}
}

func BenchmarkObserve(b *testing.B) {
	_, red := newRED(b)
	m := red.Method("s", "m")
	b.ReportAllocs()
	for b.Loop() {
		m.Observe(codes.OK, 700*time.Microsecond)
	}
}
