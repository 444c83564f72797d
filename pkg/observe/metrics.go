package observe

import (
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"
)

// Metrics is the registry of one process. It holds the Go runtime's and the process's own metrics from the start.
type Metrics struct{ registry *prometheus.Registry }

// NewMetrics makes a registry. It registers nothing globally.
func NewMetrics() *Metrics {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &Metrics{registry: r}
}

// Registerer is where packages register metrics of their own. Label values must come from the code, never from callers.
func (m *Metrics) Registerer() prometheus.Registerer { return m.registry }

// Gatherer reads all metrics, for tests and for the demo.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// Handler answers GET /metrics. It asks nobody who he is: the caller puts it on loopback, or behind what does.
func (m *Metrics) Handler(log *slog.Logger) http.Handler {
	h := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: errorLog{log}, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, Timeout: 10 * time.Second,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "use GET", http.StatusMethodNotAllowed)
			return
		}
		h.ServeHTTP(w, r)
	})
}

type errorLog struct{ log *slog.Logger }

func (e errorLog) Println(v ...any) {
	if e.log == nil {
		return
	}
	for _, x := range v {
		if err, ok := x.(error); ok {
			e.log.Warn("metrics could not be gathered", "error", err)
		}
	}
}

// The buckets of call durations, in nanoseconds.
var durationBuckets = [...]int64{
	100_000, 250_000, 500_000, 1e6, 25e5, 5e6, 10e6, 25e6, 50e6, 100e6, 250e6, 500e6, 1e9, 25e8, 5e9, 10e9, 30e9,
}

// maxMethods bounds the methods that have series of their own; those registered later share one.
const maxMethods = 1024

// RED counts requests, errors and durations per method: redoubt_rpc_requests_total{service,method,code} and
// redoubt_rpc_duration_seconds{service,method}. Every method is bound when the server is built, and a call costs three
// atomic additions.
type RED struct {
	requests, durations *prometheus.Desc

	mu      sync.Mutex
	methods map[[2]string]*MethodObserver
	other   *MethodObserver
}

// NewRED registers the two metrics. One RED is enough for a process; a second in the same registry is an error.
func NewRED(r prometheus.Registerer) (*RED, error) {
	labels := []string{"service", "method"}
	red := &RED{
		requests: prometheus.NewDesc("redoubt_rpc_requests_total", "Calls that were answered, by canonical code.",
			append(labels, "code"), nil),
		durations: prometheus.NewDesc("redoubt_rpc_duration_seconds", "Time that calls took to answer.",
			labels, nil),
		methods: make(map[[2]string]*MethodObserver),
		other:   &MethodObserver{service: "other", method: "other"},
	}
	return red, r.Register(red)
}

// Method returns the observer of one method: "redoubt.compute.v1.RunService", "GetRun". Call it when the server is
// built, never with what a caller sent. The same names give the same observer.
func (r *RED) Method(service, method string) *MethodObserver {
	// Invalid UTF-8 in a label would fail the whole scrape.
	key := [2]string{strings.ToValidUTF8(service, "?"), strings.ToValidUTF8(method, "?")}
	r.mu.Lock()
	defer r.mu.Unlock()
	if m, ok := r.methods[key]; ok {
		return m
	}
	if len(r.methods) >= maxMethods {
		return r.other
	}
	m := &MethodObserver{service: key[0], method: key[1]}
	r.methods[key] = m
	return m
}

// Unknown is the observer of all calls to methods that do not exist.
func (r *RED) Unknown() *MethodObserver { return r.other }

// MethodObserver counts the calls of one method.
type MethodObserver struct {
	service, method string
	codes           [codes.Unauthenticated + 1]atomic.Uint64
	buckets         [len(durationBuckets) + 1]atomic.Uint64
	sum             atomic.Int64 // ns
}

// Observe counts one answered call. Codes outside the canonical ones count as Unknown, negative durations as 0.
func (m *MethodObserver) Observe(code codes.Code, d time.Duration) {
	if int(code) >= len(m.codes) {
		code = codes.Unknown
	}
	n := max(0, int64(d))
	i := 0
	for i < len(durationBuckets) && n > durationBuckets[i] {
		i++
	}
	m.codes[code].Add(1)
	m.buckets[i].Add(1)
	m.sum.Add(n)
}

// Describe implements prometheus.Collector.
func (r *RED) Describe(ch chan<- *prometheus.Desc) {
	ch <- r.requests
	ch <- r.durations
}

// Collect implements prometheus.Collector.
func (r *RED) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	all := make([]*MethodObserver, 0, len(r.methods)+1)
	for _, m := range r.methods {
		all = append(all, m)
	}
	r.mu.Unlock()
	for _, m := range append(all, r.other) {
		for code := range m.codes {
			if n := m.codes[code].Load(); n > 0 {
				ch <- prometheus.MustNewConstMetric(r.requests, prometheus.CounterValue, float64(n),
					m.service, m.method, codes.Code(code).String())
			}
		}
		cumulative := make(map[float64]uint64, len(durationBuckets))
		var count uint64
		for i, le := range durationBuckets {
			count += m.buckets[i].Load()
			cumulative[float64(le)/1e9] = count
		}
		if count += m.buckets[len(durationBuckets)].Load(); count > 0 {
			ch <- prometheus.MustNewConstHistogram(r.durations, count, float64(m.sum.Load())/1e9, cumulative, m.service, m.method)
		}
	}
}
