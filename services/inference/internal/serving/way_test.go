package serving

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func (l *lab) score(headers ...string) answer {
	l.t.Helper()
	return l.call(l.client, "POST", "/endpoints/ep_1/score", "{}", append([]string{bearer, "Bearer primary"}, headers...)...)
}

// begin scores in the background.
func (l *lab) begin(ctx context.Context) <-chan answer {
	done := make(chan answer, 1)
	go func() {
		r, err := http.NewRequestWithContext(ctx, "POST", "https://"+l.addr+"/endpoints/ep_1/score", strings.NewReader("{}"))
		if err != nil {
			panic(err)
		}
		r.Header.Set(bearer, "Bearer primary")
		resp, err := l.client.Do(r)
		if err != nil {
			done <- answer{}
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		done <- answer{resp.StatusCode, resp.Header, string(b)}
	}()
	return done
}

func TestWhatTheWorkerSees(t *testing.T) {
	seen := make(chan *http.Request, 1)
	l, _ := serving(t, func(w *bufio.Writer, r *http.Request, body []byte) {
		seen <- r
		reply(w, 200, "text/plain", body)
	})
	for name, c := range map[string]*http.Client{"HTTP/1.1": l.client, "HTTP/2": l.h2} {
		t.Run(name, func(t *testing.T) {
			l.call(c, "POST", "/endpoints/ep_1/score?secret=x", "body", bearer, "Bearer primary", "Content-Type", "text/csv", "Accept", "text/plain", "Cookie", "a=b", "X-Forwarded-For", "1.2.3.4",
				"X-Request-Id", "req-1", "Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Azureml-Model-Deployment", "blue", "User-Agent", "u", "X-Other", "y")
			r := <-seen
			if r.URL.String() != "/score" || r.Method != "POST" || r.ContentLength != 4 || len(r.TransferEncoding) > 0 {
				t.Errorf("%s %s %d %v", r.Method, r.URL, r.ContentLength, r.TransferEncoding)
			}
			h := r.Header.Clone()
			if h.Get("Content-Type") != "text/csv" || h.Get("Accept") != "text/plain" || h.Get("X-Request-Id") != "req-1" {
				t.Errorf("%v", h)
			}
			if tp := h.Get("Traceparent"); len(tp) != 55 || strings.Contains(tp, "0af7651916cd43dd8448eb211c80319c") || l.log.last(t).GetTraceId() != tp[3:35] {
				t.Errorf("traceparent %q, recorded %v", tp, l.log.last(t))
			}
			if ms := h.Get("X-Redoubt-Deadline-Ms"); len(ms) < 4 || len(ms) > 5 {
				t.Errorf("deadline %q", ms)
			}
			for _, name := range []string{"Content-Type", "Content-Length", "Accept", "X-Request-Id", "Traceparent", "X-Redoubt-Deadline-Ms"} {
				h.Del(name)
			}
			if len(h) > 0 {
				t.Errorf("the worker sees %v besides", h)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	var do atomic.Value
	l, _ := serving(t, func(w *bufio.Writer, r *http.Request, b []byte) { do.Load().(answering)(w, r, b) })
	long := strings.Repeat("0123456789abcdef", 20_000)
	chunk := func(w io.Writer, s string) { fmt.Fprintf(w, "%x\r\n%s\r\n", len(s), s) }
	for _, c := range []struct {
		name   string
		do     answering
		status int
		body   string // what has to be in it
		check  func(t *testing.T, a answer)
		reason string
		model  int
	}{
		{name: "an error of the model's", status: 422, body: "mine", model: 422, do: func(w *bufio.Writer, _ *http.Request, _ []byte) { reply(w, 422, "text/plain", []byte("mine")) }},
		{name: "run() raised", status: 500, body: "boom", model: 500, reason: "MODEL_FAILED", do: func(w *bufio.Writer, _ *http.Request, _ []byte) {
			reply(w, 500, "application/json", []byte(`{"error":"boom"}`), "X-Redoubt-Model-Error: raised")
		}, check: func(t *testing.T, a answer) {
			if a.header.Get("X-Redoubt-Model-Error") != "" {
				t.Errorf("%v", a.header)
			}
		}},
		{name: "no body", status: 204, model: 204, do: func(w *bufio.Writer, _ *http.Request, _ []byte) { io.WriteString(w, "HTTP/1.1 204 No\r\n\r\n") }},
		{name: "long", status: 200, body: long, model: 200, do: func(w *bufio.Writer, _ *http.Request, _ []byte) { reply(w, 200, "text/plain", []byte(long)) }},
		{name: "streamed", status: 200, body: "one" + long, model: 200, do: func(w *bufio.Writer, _ *http.Request, _ []byte) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			chunk(w, "one")
			chunk(w, long)
			io.WriteString(w, "0\r\nX-Trailer: 1\r\n\r\n")
		}},
		{name: "headers", status: 200, body: "x", model: 200, do: func(w *bufio.Writer, _ *http.Request, _ []byte) {
			reply(w, 200, "", []byte("x"), "Set-Cookie: a=b", "Server: me", "Connection: keep-alive", "Keep-Alive: 5", "X-Mine: 1", "X-Mine: 2", "ETag: \"e\"", "X-Request-Id: theirs",
				"Strict-Transport-Security: max-age=1", "Location: https://elsewhere", "X-Redoubt-Anything: x", "Upgrade: h2c", "Alt-Svc: x", "Access-Control-Allow-Origin: *")
		}, check: func(t *testing.T, a answer) {
			h := a.header.Clone()
			if h.Get("Etag") != `"e"` || len(h.Values("X-Mine")) != 2 || h.Get("X-Request-Id") == "theirs" || h.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%v", h)
			}
			for _, name := range []string{"Etag", "X-Mine", "X-Request-Id", "X-Content-Type-Options", "Azureml-Model-Deployment", "Content-Length", "Date"} {
				h.Del(name)
			}
			if len(h) > 0 {
				t.Errorf("%v besides", h)
			}
		}},
		{name: "no HTTP", status: 502, reason: "MODEL_FAILED", do: func(w *bufio.Writer, _ *http.Request, _ []byte) { io.WriteString(w, "hello\r\n\r\n") }},
		{name: "no length", status: 502, reason: "MODEL_FAILED", do: func(w *bufio.Writer, _ *http.Request, _ []byte) { io.WriteString(w, "HTTP/1.1 200 OK\r\n\r\nx") }},
		{name: "two lengths", status: 502, reason: "MODEL_FAILED", do: func(w *bufio.Writer, _ *http.Request, _ []byte) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx")
		}},
		{name: "a length and chunked", status: 502, reason: "MODEL_FAILED", do: func(w *bufio.Writer, _ *http.Request, _ []byte) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
		}},
		{name: "switching protocols", status: 502, reason: "MODEL_FAILED", do: func(w *bufio.Writer, _ *http.Request, _ []byte) { io.WriteString(w, "HTTP/1.1 101 S\r\n\r\n") }},
		{name: "a folded header", status: 502, reason: "MODEL_FAILED", do: func(w *bufio.Writer, _ *http.Request, _ []byte) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\nX-A: 1\r\n b\r\nContent-Length: 0\r\n\r\n")
		}},
		{name: "a long header", status: 502, reason: "MODEL_FAILED", do: func(w *bufio.Writer, _ *http.Request, _ []byte) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\nX-A: "+long+"\r\nContent-Length: 0\r\n\r\n")
		}},
		{name: "many headers", status: 502, reason: "MODEL_FAILED", do: func(w *bufio.Writer, _ *http.Request, _ []byte) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\n"+strings.Repeat("X-A: 1\r\n", 100)+"Content-Length: 0\r\n\r\n")
		}},
	} {
		for name, client := range map[string]*http.Client{"HTTP/1.1": l.client, "HTTP/2": l.h2} {
			t.Run(c.name+" by "+name, func(t *testing.T) {
				if l.Ready("run_1") == 0 { // the one before lost it
					a := l.newAgent("run_1")
					a.work(0, func(w *bufio.Writer, r *http.Request, b []byte) { do.Load().(answering)(w, r, b) })
					l.ready("run_1", 1)
				}
				do.Store(c.do)
				a := l.call(client, "POST", "/endpoints/ep_1/score", "{}", bearer, "Bearer primary")
				if a.status != c.status || c.status != 502 && a.body != c.body && !strings.Contains(a.body, c.body) {
					t.Fatalf("%d %.100q", a.status, a.body)
				}
				if c.check != nil {
					c.check(t, a)
				}
				r := l.log.last(t)
				if r.GetStatusCode() != int32(c.status) || r.GetModelStatusCode() != int32(c.model) || r.GetReason() != c.reason || r.GetResponseBytes() != int64(len(a.body)) {
					t.Errorf("recorded %v", r)
				}
				if c.status == 502 {
					eventually(t, func() bool { return l.Ready("run_1") == 0 })
				} else if l.Ready("run_1") != 1 {
					t.Error("the worker is lost")
				}
			})
		}
	}
}

// TestStreamsAreFlushed reads the first piece of an answer before the second one is made.
func TestStreamsAreFlushed(t *testing.T) {
	more := make(chan struct{})
	l, _ := serving(t, func(w *bufio.Writer, _ *http.Request, _ []byte) {
		io.WriteString(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
		w.Flush()
		<-more
		io.WriteString(w, "3\r\ntwo\r\n0\r\n\r\n")
	})
	for name, c := range map[string]*http.Client{"HTTP/1.1": l.client, "HTTP/2": l.h2} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), "POST", "https://"+l.addr+"/endpoints/ep_1/score", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set(bearer, "Bearer primary")
			resp, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			records := len(l.log.all())
			b := make([]byte, 3)
			if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "one" {
				t.Fatalf("%q %v", b, err)
			}
			more <- struct{}{}
			rest, err := io.ReadAll(resp.Body)
			if err != nil || string(rest) != "two" {
				t.Fatalf("%q %v", rest, err)
			}
			if all := l.log.all(); len(all) != records+1 || all[records].GetResponseBytes() != 6 {
				t.Errorf("%d records before the end, then %d", records, len(all))
			}
		})
	}
}

// TestBrokenStream has the worker die in its answer: the client must not take what has come for all of it.
func TestBrokenStream(t *testing.T) {
	for name, head := range map[string]string{
		"chunked":     "Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n",
		"in a chunk":  "Transfer-Encoding: chunked\r\n\r\n30\r\none",
		"with length": "Content-Length: 100000\r\n\r\none",
		"malformed":   "Transfer-Encoding: chunked\r\n\r\n3\r\noneX",
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.Expect("run_1", workspace, "dep_ep_1")
			l.Set(simple("ep_1", "run_1"))
			a := l.newAgent("run_1")
			c, r, err := a.connect(0)
			if err != nil {
				t.Fatal(err)
			}
			l.ready("run_1", 1)
			go func() {
				if req, err := http.ReadRequest(r); err == nil {
					_, _ = io.Copy(io.Discard, req.Body)
				}
				io.WriteString(c, "HTTP/1.1 200 OK\r\n"+head)
				_ = c.Close()
			}()
			for _, client := range []*http.Client{l.client} {
				got, err := l.try(client, "POST", "/endpoints/ep_1/score", strings.NewReader("{}"), bearer, "Bearer primary")
				if err == nil {
					t.Errorf("taken for whole: %v", got)
				}
			}
			if rec := l.log.last(t); rec.GetStatusCode() != 200 || rec.GetReason() == "" {
				t.Errorf("%v", rec)
			}
		})
	}
}

// TestWorkerDies: after the first byte a request is lost with its worker, and is not sent again.
func TestWorkerDies(t *testing.T) {
	l := newLab(t)
	l.Expect("run_1", workspace, "dep_ep_1")
	l.Set(simple("ep_1", "run_1"))
	a := l.newAgent("run_1")
	other := l.newAgent("run_1")
	other.work(1, echo)
	l.ready("run_1", 1)
	c, r, err := a.connect(0)
	if err != nil {
		t.Fatal(err)
	}
	l.ready("run_1", 2)
	done := l.begin(t.Context()) // the one that came last is taken first
	if _, err := http.ReadRequest(r); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if got := <-done; got.status != 502 || got.reason(t) != "REPLICA_UNAVAILABLE" {
		t.Errorf("%v", got)
	}
	if rec := l.log.last(t); rec.GetStatusCode() != 502 || rec.GetModelStatusCode() != 0 || rec.GetReplicaUid() != "run_1" {
		t.Errorf("%v", rec)
	}
	if other.served.Load() != 0 {
		t.Error("the request was sent twice")
	}
	if got := l.score(); got.status != 200 || other.served.Load() != 1 {
		t.Errorf("afterwards: %v", got)
	}
}

// TestDeadConnectionsAreSkipped has many that broke while they were idle before the one that lives.
func TestDeadConnectionsAreSkipped(t *testing.T) {
	l := newLab(t)
	l.Expect("run_1", workspace, "dep_ep_1")
	l.Set(simple("ep_1", "run_1"))
	a := l.newAgent("run_1")
	a.work(0, echo)
	for n := range 5 {
		c, _, err := a.connect(n + 1)
		if err != nil {
			t.Fatal(err)
		}
		l.ready("run_1", n+2)
		_ = c.Close()
	}
	if got := l.score(); got.status != 200 {
		t.Errorf("%v", got)
	}
	eventually(t, func() bool { return l.Ready("run_1") == 1 })
}

func TestDeadline(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	l, _ := serving(t, waiting(hold))
	e := simple("ep_1", "run_1")
	e.Deployments["blue"].Timeout = 50 * time.Millisecond
	l.Set(e)
	got := l.score()
	if got.status != 504 || got.reason(t) != "DEADLINE_PASSED" || got.header.Get("Azureml-Model-Deployment") != "blue" {
		t.Errorf("%v", got)
	}
	eventually(t, func() bool { return l.Ready("run_1") == 0 }) // the host sees it by that
	if rec := l.log.last(t); rec.GetStatusCode() != 504 || rec.GetReason() != "DEADLINE_PASSED" {
		t.Errorf("%v", rec)
	}
}

func TestQueue(t *testing.T) {
	hold := make(chan struct{})
	l, a := serving(t, waiting(hold))
	e := simple("ep_1", "run_1")
	e.Deployments["blue"].QueueLength = 2
	l.Set(e)
	first := l.begin(t.Context())
	eventually(t, func() bool { return a.served.Load() == 1 })
	ctx, leave := context.WithCancel(t.Context())
	second := l.begin(ctx)
	eventually(t, func() bool { return l.Waiting("dep_ep_1") == 1 })
	third := l.begin(t.Context())
	eventually(t, func() bool { return l.Waiting("dep_ep_1") == 2 })
	if got := l.score(); got.status != 503 || got.reason(t) != "QUEUE_FULL" || got.header.Get("Retry-After") != "1" {
		t.Errorf("%v", got)
	}
	leave()
	<-second
	eventually(t, func() bool { return l.Waiting("dep_ep_1") == 1 })
	fourth := l.begin(t.Context())
	eventually(t, func() bool { return l.Waiting("dep_ep_1") == 2 })
	close(hold)
	for _, c := range []<-chan answer{first, third, fourth} {
		if got := <-c; got.status != 200 {
			t.Errorf("%v", got)
		}
	}
	if a.served.Load() != 3 {
		t.Errorf("%d requests were served", a.served.Load())
	}
	waited := 0
	for _, r := range l.log.all() {
		if r.GetQueued().AsDuration() > 0 {
			waited++
		}
	}
	if waited < 2 { // of those whom the worker saw; it takes no time only by a coarse clock
		t.Errorf("%d records say that they waited", waited)
	}
}

func TestWithoutWorkers(t *testing.T) {
	l := newLab(t, func(c *Config) { c.NoWorkerGrace = longTime })
	if l.Set(simple("ep_1", "run_1")); l.score().status != 503 { // nobody ever came: no grace
		t.Error("not refused")
	}
	l.Expect("run_1", workspace, "dep_ep_1")
	got := l.score()
	if got.status != 503 || got.reason(t) != "REPLICA_UNAVAILABLE" || got.header.Get("Retry-After") == "" {
		t.Errorf("%v", got)
	}
	if got := l.call(l.client, "GET", "/endpoints/ep_1/", "", bearer, "Bearer primary"); got.status != 503 {
		t.Errorf("health: %v", got)
	}
	a := l.newAgent("run_1")
	c := a.work(0, echo)
	l.ready("run_1", 1)
	if got := l.call(l.client, "GET", "/endpoints/ep_1/", "", bearer, "Bearer primary"); got.status != 200 {
		t.Errorf("health: %v", got)
	}
	_ = c.Close()
	l.ready("run_1", 0)
	waits := l.begin(t.Context()) // within the grace
	eventually(t, func() bool { return l.Waiting("dep_ep_1") == 1 })
	a.work(1, echo)
	if got := <-waits; got.status != 200 {
		t.Errorf("%v", got)
	}
	e := simple("ep_1", "run_1")
	e.Traffic = nil
	l.Set(e)
	if got := l.score(); got.status != 404 || got.reason(t) != "DEPLOYMENT_MISSING" {
		t.Errorf("%v", got)
	}
	if got := l.score("Azureml-Model-Deployment", "blue"); got.status != 200 {
		t.Errorf("%v", got)
	}
	if got := l.score("Azureml-Model-Deployment", "green"); got.status != 404 || got.reason(t) != "DEPLOYMENT_MISSING" {
		t.Errorf("%v", got)
	}
	if got := l.score("Azureml-Model-Deployment", "blue", "Azureml-Model-Deployment", "blue"); got.status != 400 {
		t.Errorf("%v", got)
	}
}

func TestGraceEnds(t *testing.T) {
	l, a := serving(t, echo, func(c *Config) { c.NoWorkerGrace = 20 * time.Millisecond })
	a.stop()
	l.ready("run_1", 0)
	if got := l.score(); got.status != 503 || got.reason(t) != "REPLICA_UNAVAILABLE" {
		t.Errorf("%v", got)
	}
}

// two is an endpoint with two deployments on two runs, and the runs' agents.
func two(t testing.TB, l *lab) (*Endpoint, *agent, *agent) {
	e := simple("ep_1", "run_1")
	e.Deployments["green"] = &Deployment{ID: "green", UID: "dep_green", Model: "m", ModelVersion: "2", QueueLength: 100, Timeout: longTime, Replicas: []string{"run_2"}}
	l.Expect("run_1", workspace, "dep_ep_1")
	l.Expect("run_2", workspace, "dep_green")
	blue, green := l.newAgent("run_1"), l.newAgent("run_2")
	blue.work(0, echo)
	green.work(0, echo)
	l.Set(e)
	l.ready("run_1", 1)
	l.ready("run_2", 1)
	return e, blue, green
}

// TestSplit draws a thousand requests' deployments with a seed.
func TestSplit(t *testing.T) {
	var mu sync.Mutex
	dice := rand.New(rand.NewPCG(1, 2))
	l := newLab(t, func(c *Config) {
		c.IntN = func(n int) int { mu.Lock(); defer mu.Unlock(); return dice.IntN(n) }
	})
	e, blue, green := two(t, l)
	for _, c := range []struct{ blue, green, want int }{{70, 30, 700}, {100, 0, 1000}, {1, 99, 10}, {50, 50, 500}} {
		n := *e
		n.Traffic = []Share{{Deployment: "blue", Percent: c.blue}, {Deployment: "green", Percent: c.green}}
		l.Set(&n)
		b, g := blue.served.Load(), green.served.Load()
		for range 1000 {
			if got := l.score(); got.status != 200 {
				t.Fatal(got)
			}
		}
		b, g = blue.served.Load()-b, green.served.Load()-g
		if b+g != 1000 || b < int64(c.want-50) || b > int64(c.want+50) || c.want == 1000 && g > 0 {
			t.Errorf("%d to %d: %d and %d of 1000", c.blue, c.green, b, g)
		}
	}
	if got := l.score("azureml-model-deployment", "green"); got.header.Get("azureml-model-deployment") != "green" || l.log.last(t).GetDeployment() != "green" {
		t.Errorf("%v", got)
	}
}

func TestMirror(t *testing.T) {
	hold := make(chan struct{})
	l := newLab(t, func(c *Config) { c.MaxMirrored = 2 })
	e, blue, _ := two(t, l)
	slow := l.newAgent("run_2")
	slow.work(1, waiting(hold))
	slow.work(2, waiting(hold))
	l.ready("run_2", 3)
	n := *e
	n.Mirror = &Share{Deployment: "green", Percent: 100}
	n.Deployments["green"].Replicas = []string{"run_2"}
	l.Set(&n)
	for range 5 { // the copies of which two hang, and others may not be made
		if got := l.score(); got.status != 200 || got.header.Get("azureml-model-deployment") != "blue" {
			t.Fatal(got)
		}
	}
	close(hold)
	if blue.served.Load() != 5 {
		t.Errorf("%d served", blue.served.Load())
	}
	eventually(t, func() bool { return l.Mirroring() == 0 })
	var copies, originals int
	for _, r := range l.log.all() {
		if r.GetMirrored() {
			copies++
			if r.GetDeployment() != "green" || r.GetStatusCode() != 200 || r.GetRequestBytes() != 2 || r.GetAuth() != "key-primary" || r.GetReplicaUid() != "run_2" {
				t.Errorf("%v", r)
			}
		} else {
			originals++
		}
	}
	if originals != 5 || copies < 2 || copies > 5 {
		t.Errorf("%d and %d copies", originals, copies)
	}
}

// TestRollingUpdate replaces a replica under load: nothing fails, and the old one is empty when Drain returns.
func TestRollingUpdate(t *testing.T) {
	l, old := serving(t, echo)
	l.Expect("run_2", workspace, "dep_ep_1")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var sent, failed atomic.Int64
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if got, err := l.try(l.client, "POST", "/endpoints/ep_1/score", strings.NewReader("{}"), bearer, "Bearer primary"); err != nil || got.status != 200 {
					failed.Add(1)
					t.Errorf("%v %v", got, err)
					return
				}
				sent.Add(1)
			}
		})
	}
	run, gone := "run_1", old
	for i := range 5 {
		next := fmt.Sprintf("run_%d", i+2)
		l.Expect(next, workspace, "dep_ep_1")
		a := l.newAgent(next)
		a.work(0, echo)
		l.ready(next, 1)
		l.Set(simple("ep_1", run, next))
		l.Set(simple("ep_1", next))
		if err := l.Drain(ctx, run); err != nil {
			t.Fatal(err)
		}
		served := gone.served.Load()
		before := sent.Load()
		eventually(t, func() bool { return sent.Load() > before+20 || failed.Load() > 0 })
		if gone.served.Load() != served {
			t.Errorf("%s got requests after it was drained", run)
		}
		l.Forget(run)
		run, gone = next, a
	}
	stop()
	wg.Wait()
}

// TestDeploymentGoesWhileRequestsWait: those who waited for it go where the traffic goes now.
func TestDeploymentGoesWhileRequestsWait(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	l := newLab(t)
	e, _, _ := two(t, l)
	l.Forget("run_1")
	l.Expect("run_1", workspace, "dep_ep_1")
	blue := l.newAgent("run_1")
	blue.work(0, waiting(hold))
	l.ready("run_1", 1)
	l.begin(t.Context())
	eventually(t, func() bool { return blue.served.Load() == 1 })
	waits := l.begin(t.Context())
	eventually(t, func() bool { return l.Waiting("dep_ep_1") == 1 })
	after := *e
	after.Deployments = map[string]*Deployment{"green": e.Deployments["green"]}
	after.Traffic = []Share{{Deployment: "green", Percent: 100}}
	l.Set(&after)
	if got := <-waits; got.status != 200 || got.header.Get("azureml-model-deployment") != "green" {
		t.Errorf("%v", got)
	}
}
