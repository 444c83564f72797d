package requests_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/requests"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func sets() []sqldb.MigrationSet {
	return []sqldb.MigrationSet{envelope.Migrations(), requests.Migrations()}
}

var (
	endA = requests.Endpoint{UID: "ep_a", WorkspaceUID: "ws_one"}
	endB = requests.Endpoint{UID: "ep_b", WorkspaceUID: "ws_one"}
	endC = requests.Endpoint{UID: "ep_c", WorkspaceUID: "ws_two"}
)

// keys is a source of keys that can refuse workspaces.
type keys struct {
	envelope.Source
	mu     sync.Mutex
	refuse map[string]error
}

func (k *keys) Generate(ctx context.Context, owner string) (redact.Secret, []byte, error) {
	k.mu.Lock()
	err := k.refuse[owner]
	k.mu.Unlock()
	if err != nil {
		return redact.Secret{}, nil, err
	}
	return k.Source.Generate(ctx, owner)
}

// lab is a store on a real database, with a clock of its own.
type lab struct {
	t     testing.TB
	db    *sqldb.DB
	keys  *keys
	ring  *envelope.Keyring
	clock atomic.Int64 // microseconds
	seq   atomic.Int64
	*requests.Store
}

func newLab(t testing.TB, db *sqldb.DB) *lab {
	t.Helper()
	s, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	must(t, err)
	l := &lab{t: t, db: db, keys: &keys{Source: envelope.SealSource(s, "telemetry"), refuse: make(map[string]error)}}
	l.clock.Store(base.UnixMicro())
	l.ring, err = envelope.New(envelope.Config{Source: l.keys, DB: db})
	must(t, err)
	l.Store, err = requests.New(requests.Config{DB: db, Keys: l.ring, Now: func() time.Time { return time.UnixMicro(l.clock.Load()) }})
	must(t, err)
	return l
}

// onBoth runs a suite on each engine.
func onBoth(t *testing.T, fn func(t *testing.T, l *lab)) {
	t.Helper()
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) { fn(t, newLab(t, db)) })
}

func openLab(t testing.TB) *lab { return newLab(t, sqldbtest.Open(t, sets()...)) }

var base = time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)

// request is the nth request to an endpoint, so many milliseconds after base.
func request(e requests.Endpoint, n, millis int) *requests.Request {
	return &requests.Request{
		HttpMethod: "POST", UserAgent: "canary-agent", RequestUrl: "/canary-path", StatusCode: 200, RequestId: fmt.Sprintf("r%06d", n),
		Time: timestamppb.New(base.Add(time.Duration(millis) * time.Millisecond)), WorkspaceUid: e.WorkspaceUID, EndpointUid: e.UID, Deployment: "blue",
	}
}

// ingest stores requests under the next numbers of a source.
func (l *lab) ingest(rs ...*requests.Request) {
	l.t.Helper()
	for part := range slices.Chunk(rs, 1000) {
		var batch []*telemetryv1.SequencedRequest
		for _, r := range part {
			batch = append(batch, &telemetryv1.SequencedRequest{Seq: l.seq.Add(1), Request: r})
		}
		stored, err := l.Ingest(l.t.Context(), "inference/a/1", batch, 0)
		must(l.t, err)
		if stored.Seq != l.seq.Load() {
			l.t.Fatalf("stored up to %d, want %d", stored.Seq, l.seq.Load())
		}
	}
}

// list reads all pages of one size, and gives the request ids.
func (l *lab) list(e requests.Endpoint, f requests.Filter, size int) (ids []string) {
	l.t.Helper()
	var place *requests.Place
	for pages := 0; ; pages++ {
		found, next, err := l.List(l.t.Context(), e, f, place, size)
		must(l.t, err)
		for _, r := range found {
			if r.GetEndpointUid() != e.UID || r.GetWorkspaceUid() != e.WorkspaceUID {
				l.t.Fatalf("a list of %v has %v", e, r)
			}
			ids = append(ids, r.GetRequestId())
		}
		if len(found) > size {
			l.t.Fatalf("a page of %d has %d", size, len(found))
		}
		if next == nil {
			return ids
		}
		place = next
	}
}

func (l *lab) count(query string) (n int64) {
	l.t.Helper()
	must(l.t, l.db.Reader().QueryRowContext(l.t.Context(), query).Scan(&n))
	return n
}

func (l *lab) exec(text string, args ...any) {
	l.t.Helper()
	must(l.t, l.db.Write(l.t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, text, args...)
		return err
	}))
}

func TestOnceAndInOrder(t *testing.T) { onBoth(t, checkOnceAndInOrder) }

func checkOnceAndInOrder(t *testing.T, l *lab) {
	var all []*telemetryv1.SequencedRequest
	for n := 1; n <= 20; n++ {
		all = append(all, &telemetryv1.SequencedRequest{Seq: int64(n), Request: request(endA, n, n)})
	}
	send := func(source string, from, to int, dropped int64) requests.Stored {
		t.Helper()
		stored, err := l.Ingest(t.Context(), source, all[from-1:to], dropped)
		must(t, err)
		return stored
	}
	if got, err := l.Ingest(t.Context(), "s1", nil, 0); err != nil || got != (requests.Stored{}) {
		t.Errorf("of a source that is new: %v, %v", got, err)
	}
	if n := l.count("SELECT COUNT(*) FROM request_source"); n != 0 {
		t.Errorf("a question has left %d rows", n)
	}
	for _, c := range []struct {
		from, to      int
		dropped, want int64
	}{{1, 5, 0, 5}, {1, 5, 0, 5}, {3, 8, 2, 8}, {1, 2, 1, 8}, {9, 9, 0, 9}, {12, 20, 4, 20}} { // 10 and 11 are lost
		if got := send("s1", c.from, c.to, c.dropped); got.Seq != c.want || got.Dropped < c.dropped {
			t.Errorf("%v: %v", c, got)
		}
	}
	wanted := []string{}
	for n := 20; n >= 1; n-- {
		if n != 10 && n != 11 {
			wanted = append(wanted, fmt.Sprintf("r%06d", n))
		}
	}
	if got := l.list(endA, requests.Everything(), 7); !slices.Equal(got, wanted) {
		t.Errorf("got %v, want %v", got, wanted)
	}
	if got := send("s1", 20, 20, 0); got != (requests.Stored{Seq: 20, Dropped: 4}) {
		t.Errorf("got %v", got)
	}
	send("s2", 1, 1, 3) // numbers of another source are others
	if got := l.list(endA, requests.Everything(), 100); len(got) != 19 {
		t.Errorf("%d requests, want 19", len(got))
	}
	if n, err := l.Dropped(t.Context()); err != nil || n != 7 {
		t.Errorf("%d dropped, %v", n, err)
	}
}

// TestPagesAndFilters: 100,000 requests in 40 minutes to one endpoint, and some to others.
func TestPagesAndFilters(t *testing.T) {
	l := newLab(t, sqldbtest.OpenConfig(t, sqldbtest.SQLite(t, sets()...)))
	const total = 100_000
	all := make([]*requests.Request, total)
	for n := range total {
		r := request(endA, n, n*24)
		switch {
		case n%1000 == 7:
			r.StatusCode = 503
		case n%100 == 3:
			r.StatusCode = 404
		case n%100 == 4:
			r.StatusCode = 401
		}
		if n%3 == 0 {
			r.Deployment = "green"
		}
		all[n] = r
		if n%10_000 == 0 {
			l.ingest(request(endB, n, n*24), request(endC, n, n*24))
		}
	}
	l.ingest(all...)
	at := func(n int) int64 { return base.Add(time.Duration(n*24) * time.Millisecond).UnixMicro() }
	with := func(change func(*requests.Filter)) requests.Filter {
		f := requests.Everything()
		change(&f)
		return f
	}
	cases := []struct {
		name string
		size int
		f    requests.Filter
		want func(n int, r *requests.Request) bool
	}{
		{"all, large pages", 1000, requests.Everything(), func(int, *requests.Request) bool { return true }},
		{"all, odd pages", 333, requests.Everything(), func(int, *requests.Request) bool { return true }},
		{"a status", 100, with(func(f *requests.Filter) { f.Status = 404 }), func(_ int, r *requests.Request) bool { return r.GetStatusCode() == 404 }},
		{"a class", 100, with(func(f *requests.Filter) { f.Status = 4 }), func(_ int, r *requests.Request) bool { return r.GetStatusCode()/100 == 4 }},
		{"5xx", 10, with(func(f *requests.Filter) { f.Status = 5 }), func(_ int, r *requests.Request) bool { return r.GetStatusCode() == 503 }},
		{"a status that none has", 100, with(func(f *requests.Filter) { f.Status = 302 }), func(int, *requests.Request) bool { return false }},
		{"a deployment", 1000, with(func(f *requests.Filter) { f.Deployment = "green" }), func(n int, _ *requests.Request) bool { return n%3 == 0 }},
		{"a request", 100, with(func(f *requests.Filter) { f.RequestID = "r000042" }), func(n int, _ *requests.Request) bool { return n == 42 }},
		{"a time", 100, with(func(f *requests.Filter) { f.Start, f.End = at(51_234), at(53_000) }), func(n int, _ *requests.Request) bool { return n >= 51_234 && n < 53_000 }},
		{"a time, a class and a deployment", 3, with(func(f *requests.Filter) { f.Start, f.End, f.Status, f.Deployment = at(1000), at(90_000), 4, "green" }), func(n int, r *requests.Request) bool {
			return n >= 1000 && n < 90_000 && r.GetStatusCode()/100 == 4 && n%3 == 0
		}},
		{"no time", 100, with(func(f *requests.Filter) { f.End = math.MinInt64 }), func(int, *requests.Request) bool { return false }},
		{"after all", 100, with(func(f *requests.Filter) { f.Start = at(total) }), func(int, *requests.Request) bool { return false }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var wanted []string
			for n := total - 1; n >= 0; n-- {
				if c.want(n, all[n]) {
					wanted = append(wanted, fmt.Sprintf("r%06d", n))
				}
			}
			if got := l.list(endA, c.f, c.size); !slices.Equal(got, wanted) {
				t.Errorf("got %d requests, want %d", len(got), len(wanted))
			}
		})
	}
	if got := l.list(endB, requests.Everything(), 1); len(got) != 10 {
		t.Errorf("another endpoint has %d", len(got))
	}
	if got := l.list(requests.Endpoint{UID: endA.UID, WorkspaceUID: endC.WorkspaceUID}, requests.Everything(), 100); len(got) != 0 {
		t.Errorf("another workspace sees %d requests of an endpoint that is not its own", len(got))
	}
}

// TestPagesWhileItGrows: what is stored meanwhile does not move what was there.
func TestPagesWhileItGrows(t *testing.T) { onBoth(t, checkPagesWhileItGrows) }

func checkPagesWhileItGrows(t *testing.T, l *lab) {
	n := 0
	more := func(count int) {
		var rs []*requests.Request
		for range count {
			rs = append(rs, request(endA, n, n*500)) // two minutes at most
			n++
		}
		l.ingest(rs...)
	}
	more(200)
	var got []string
	var place *requests.Place
	for {
		found, next, err := l.List(t.Context(), endA, requests.Everything(), place, 17)
		must(t, err)
		for _, r := range found {
			got = append(got, r.GetRequestId())
		}
		if place = next; next == nil {
			break
		}
		more(3)
	}
	for i, r := range got {
		if r != fmt.Sprintf("r%06d", 199-i) {
			t.Fatalf("place %d has %s", i, r)
		}
	}
	if len(got) != 200 {
		t.Errorf("%d requests, want 200", len(got))
	}
}

func TestWatchGivesEachOnce(t *testing.T) { onBoth(t, checkWatchGivesEachOnce) }

func checkWatchGivesEachOnce(t *testing.T, l *lab) {
	l.ingest(request(endA, 1, 1)) // before it began
	w, err := l.Watch(t.Context(), endA)
	must(t, err)
	defer w.Close()
	const total = 3000
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 2; n <= total; n += 10 {
			var rs []*requests.Request
			for k := n; k < min(n+10, total+1); k++ {
				rs = append(rs, request(endA, k, k*100), request(endB, k, k))
			}
			l.ingest(rs...)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for next := 2; next <= total; {
		found, err := w.Next(ctx, nil)
		must(t, err)
		slices.SortFunc(found, func(a, b *requests.Request) int { return strings.Compare(a.GetRequestId(), b.GetRequestId()) })
		for _, r := range found {
			if r.GetRequestId() != fmt.Sprintf("r%06d", next) {
				t.Fatalf("got %s, want number %d", r.GetRequestId(), next)
			}
			next++
		}
	}
	wg.Wait()
	stop := make(chan struct{})
	close(stop)
	if _, err := w.Next(ctx, stop); !fault.Is(err, codes.Unavailable) {
		t.Errorf("got %v", err)
	}
	// One that is too far behind is ended.
	var rs []*requests.Request
	for n := range 201 {
		rs = append(rs, request(endA, n, n*60_000))
	}
	l.ingest(rs...)
	if _, err := w.Next(ctx, nil); !fault.Is(err, codes.ResourceExhausted) {
		t.Errorf("got %v", err)
	}
}

func TestSweep(t *testing.T) { onBoth(t, checkSweep) }

func checkSweep(t *testing.T, l *lab) {
	day := 24 * 60 * 60 * 1000
	for n := range 300 {
		l.ingest(request(endA, n, n*day/10)) // 30 days
	}
	_, err := l.Ingest(t.Context(), "old", []*telemetryv1.SequencedRequest{{Seq: 1, Request: request(endB, 1, 1)}}, 5)
	must(t, err)
	l.clock.Store(base.Add(35 * 24 * time.Hour).UnixMicro())
	must(t, l.Sweep(t.Context(), l.db.Write))
	got := l.list(endA, requests.Everything(), 100)
	if len(got) != 250 || got[249] != "r000050" {
		t.Errorf("%d are left, the oldest is %s", len(got), got[len(got)-1])
	}
	l.ingest(request(endA, 301, 40*day))
	l.clock.Store(base.Add(100 * 24 * time.Hour).UnixMicro())
	must(t, l.Sweep(t.Context(), l.db.Write))
	if n := l.count("SELECT COUNT(*) FROM request_chunk"); n != 0 {
		t.Errorf("%d chunks are left", n)
	}
	if n := l.count("SELECT COUNT(*) FROM request_source"); n != 1 {
		t.Errorf("%d sources are left, want the one that was heard of lately", n)
	}
	if n, err := l.Dropped(t.Context()); err != nil || n != 5 {
		t.Errorf("%d dropped, %v: a source that is forgotten takes its count with it", n, err)
	}
}

func TestPurge(t *testing.T) { onBoth(t, checkPurge) }

func checkPurge(t *testing.T, l *lab) {
	for n := range 500 {
		l.ingest(request(endA, n, n*60_000), request(endC, n, n*60_000))
	}
	for range 2 {
		must(t, l.Purge(t.Context(), "ws_one"))
	}
	l.ingest(request(endA, 1, 1), request(endC, 501, 1))
	if n := l.count("SELECT COUNT(*) FROM request_chunk WHERE workspace_uid = 'ws_one'"); n != 0 {
		t.Errorf("%d chunks of the workspace are left", n)
	}
	if got := l.list(endC, requests.Everything(), 1000); len(got) != 501 {
		t.Errorf("another workspace has %d", len(got))
	}
	if n, err := l.Dropped(t.Context()); err != nil || n != 0 {
		t.Errorf("%d dropped, %v", n, err)
	}
}

// TestKeys: a workspace whose key is disabled does not hold up others; where keyvault is away all wait.
func TestKeys(t *testing.T) { onBoth(t, checkKeys) }

func checkKeys(t *testing.T, l *lab) {
	l.keys.refuse["ws_one"] = fault.FailedPrecondition("the key is disabled")
	l.ingest(request(endA, 1, 1), request(endC, 2, 2), request(endB, 3, 3))
	if got := l.list(endC, requests.Everything(), 10); len(got) != 1 {
		t.Errorf("the other workspace has %v", got)
	}
	if n, err := l.Dropped(t.Context()); err != nil || n != 2 {
		t.Errorf("%d are counted, %v", n, err)
	}
	l.keys.mu.Lock()
	l.keys.refuse["ws_one"] = fault.Unavailable("away")
	l.keys.mu.Unlock()
	batch := []*telemetryv1.SequencedRequest{{Seq: 1, Request: request(endC, 4, 4)}, {Seq: 2, Request: request(endA, 5, 5)}}
	if _, err := l.Ingest(t.Context(), "s", batch, 0); !fault.Is(err, codes.Unavailable) {
		t.Errorf("got %v", err)
	}
	l.keys.mu.Lock()
	delete(l.keys.refuse, "ws_one")
	l.keys.mu.Unlock()
	stored, err := l.Ingest(t.Context(), "s", batch, 0)
	if err != nil || stored.Seq != 2 || len(l.list(endC, requests.Everything(), 10)) != 2 || len(l.list(endA, requests.Everything(), 10)) != 1 {
		t.Errorf("%v, %v", stored, err)
	}
}

// TestRowsOpenOnlyInTheirPlace: whoever writes the database can remove, and not forge, move or hide (D2).
func TestRowsOpenOnlyInTheirPlace(t *testing.T) {
	for name, change := range map[string]string{
		"another endpoint":    "UPDATE request_chunk SET endpoint_uid = 'ep_a', minute = minute + 1 WHERE endpoint_uid = 'ep_b'",
		"another minute":      "UPDATE request_chunk SET minute = minute + 1 WHERE endpoint_uid = 'ep_a'",
		"another number":      "UPDATE request_chunk SET number = 2 WHERE endpoint_uid = 'ep_a'",
		"other classes":       "UPDATE request_chunk SET classes = 63",
		"another count":       "UPDATE request_chunk SET requests = 1",
		"another revision":    "UPDATE request_chunk SET rev = rev + 1",
		"another's sealed":    "UPDATE request_chunk SET sealed = (SELECT o.sealed FROM request_chunk o WHERE o.endpoint_uid = 'ep_b') WHERE endpoint_uid = 'ep_a'",
		"of another endpoint": "UPDATE request_chunk SET endpoint_uid = CASE endpoint_uid WHEN 'ep_a' THEN 'ep_x' WHEN 'ep_b' THEN 'ep_a' ELSE endpoint_uid END",
	} {
		t.Run(name, func(t *testing.T) {
			l := openLab(t)
			l.ingest(request(endA, 1, 1), request(endA, 2, 2), request(endB, 3, 3), request(endB, 4, 4))
			l.exec(change)
			_, _, err := l.List(t.Context(), endA, requests.Everything(), nil, 100)
			if !fault.Is(err, codes.DataLoss) {
				t.Errorf("got %v", err)
			}
			// New requests are taken all the same.
			l.ingest(request(endA, 5, 5))
			f := requests.Everything()
			f.RequestID = "r000005"
			found, _, err := l.List(t.Context(), endA, f, nil, 1)
			if name != "another minute" && name != "another endpoint" && (err != nil || len(found) != 1) {
				t.Errorf("%v, %v", found, err)
			}
		})
	}
}

// TestCanary: nothing of what is logged stands in the files of the database (D1).
func TestCanary(t *testing.T) {
	config := sqldbtest.SQLite(t, sets()...)
	db := sqldbtest.OpenConfig(t, config)
	l := newLab(t, db)
	for n := range 100 {
		r := request(endA, n, n)
		r.Principal, r.Address, r.ReplicaUid, r.Auth, r.TraceId = "canary-principal", "canary-address", "canary-replica", "canary-auth", "canary-trace"
		r.Deployment = "canary-deployment"
		l.ingest(r)
	}
	seen := 0
	for _, suffix := range []string{"", "-wal", "-shm"} {
		b, err := os.ReadFile(config.Path + suffix)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		must(t, err)
		seen += len(b)
		if i := bytes.Index(b, []byte("canary")); i >= 0 {
			t.Errorf("%s holds %q", suffix, b[i:min(i+30, len(b))])
		}
	}
	if seen < 10_000 {
		t.Errorf("there were %d bytes to look at", seen)
	}
}

func TestReady(t *testing.T) {
	onBoth(t, func(t *testing.T, l *lab) { must(t, l.Ready(t.Context())) })
	if _, err := requests.New(requests.Config{}); err == nil {
		t.Error("a store without anything is made")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
