package telemetry_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// event is one of compute's, at a scope, with the uids that scope has now.
func event(seq int64, scope string) *telemetryv1.ActivityEvent {
	ev := &telemetryv1.ActivityEvent{
		Uid: "evt_" + strconv.FormatInt(seq, 10), Time: timestamppb.New(time.Unix(1000+seq, 0)), Service: "compute", Seq: seq,
		Method: "/redoubt.compute.v1.RunService/SubmitRun", Action: "compute/runs/submit", Scope: scope, Principal: "usr_x",
		Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, Code: "OK", RequestId: "req-" + strconv.FormatInt(seq, 10), Count: 1,
		Details: map[string]string{"name": "canary"},
	}
	for _, known := range []string{sub1, grp1, ws1, ws2} {
		if scope != known && !strings.HasPrefix(scope, known+"/") {
			continue
		}
		ev.ScopeUid = uids[known]
		switch strings.Count(known, "/") {
		case 1:
			ev.SubscriptionUid = uids[known]
		case 3:
			ev.ResourceGroupUid = uids[known]
		case 5:
			ev.WorkspaceUid = uids[known]
		}
	}
	return ev
}

func (l *lab) take(events ...*telemetryv1.ActivityEvent) {
	l.t.Helper()
	if _, err := l.ingest("compute").Ingest(l.t.Context(), &telemetryv1.IngestRequest{Events: events}); err != nil {
		l.t.Fatal(err)
	}
}

func seqs(events []*telemetryv1.ActivityEvent) (out []int64) {
	for _, ev := range events {
		out = append(out, ev.GetSeq())
	}
	return out
}

func TestIngest(t *testing.T) {
	l := newLab(t)
	in := l.ingest("compute")
	call := func(events ...*telemetryv1.ActivityEvent) (int64, error) {
		res, err := in.Ingest(t.Context(), &telemetryv1.IngestRequest{Events: events})
		return res.GetStoredSeq(), err
	}
	ok := func(stored int64, events ...*telemetryv1.ActivityEvent) {
		t.Helper()
		if got, err := call(events...); err != nil || got != stored {
			t.Fatalf("stored up to %d, want %d (%v)", got, stored, err)
		}
	}
	_, err := call(event(2, ws1))
	want(t, err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	if meta(err)[audit.StoredSeq] != "0" {
		t.Errorf("what is stored is not told: %v", meta(err))
	}
	ok(2, event(1, ws1), event(2, ws1))
	ok(2, event(1, ws1), event(2, ws1)) // again
	ok(2, event(1, ws1))                // a part of it
	ok(4, event(2, ws1), event(3, "/"), event(4, sub1))
	_, err = call(event(6, ws1))
	want(t, err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	if meta(err)[audit.StoredSeq] != "4" {
		t.Errorf("what is stored is not told: %v", meta(err))
	}
	// A service whose record begins anew has lost it, and that is not passed over in silence.
	other := event(3, ws1)
	other.Uid = "evt_other"
	_, err = call(other, event(4, sub1), event(5, ws1))
	want(t, err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)

	l.start() // another process
	in = l.ingest("compute")
	ok(5, event(4, sub1), event(5, ws1))

	bad := func(name string, code codes.Code, reason faultv1.Reason, change func(*telemetryv1.ActivityEvent)) {
		ev := event(6, ws1)
		change(ev)
		_, err := call(ev)
		t.Run(name, func(t *testing.T) { want(t, err, code, reason) })
	}
	bad("another service's", codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED, func(ev *telemetryv1.ActivityEvent) { ev.Service = "keyvault" })
	bad("no service's", codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED, func(ev *telemetryv1.ActivityEvent) { ev.Service = "" })
	bad("number 0", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, func(ev *telemetryv1.ActivityEvent) { ev.Seq = 0 })
	bad("no uid", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, func(ev *telemetryv1.ActivityEvent) { ev.Uid = "" })
	bad("no time", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, func(ev *telemetryv1.ActivityEvent) { ev.Time = nil })
	bad("long uid", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, func(ev *telemetryv1.ActivityEvent) { ev.WorkspaceUid = strings.Repeat("w", 65) })
	_, err = call(event(6, ws1), event(8, ws1))
	want(t, err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	_, err = call()
	want(t, err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	for _, peer := range []string{"/service/gateway", "/agent/agt_1", "/operator/usr_root"} {
		_, err = telemetryv1.NewIngestServiceClient(l.dial(peer)).Ingest(t.Context(), &telemetryv1.IngestRequest{Events: []*telemetryv1.ActivityEvent{event(6, ws1)}})
		want(t, err, codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)
	}
	ok(6, event(6, ws1))
}

// TestOutboxToLog takes the whole way: a service's outbox, its relay, the wire, the log; with the answer lost on the way and the
// service started anew in between (G2, goal 19).
func TestOutboxToLog(t *testing.T) {
	l := newLab(t)
	l.assign("root", "/", authz.Reader)
	s, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	must(t, err)
	db := sqldbtest.Open(t, envelope.Migrations(), audit.Migrations())
	open := func() *audit.Outbox {
		keys, err := envelope.New(envelope.Config{Source: envelope.SealSource(s, "workspace"), DB: db})
		must(t, err)
		o, err := audit.New(audit.Config{Service: "workspace", DB: db, Keys: keys})
		must(t, err)
		return o
	}
	deliver := audit.To(l.ingest("workspace"))
	const n = 640
	for i := range n {
		o := open()
		must(t, db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			return o.Append(ctx, tx, &audit.Event{Method: "/m", Scope: ws1, WorkspaceUid: "ws_1", RequestId: strconv.Itoa(i)})
		}))
		if i%200 != 199 && i != n-1 {
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		calls := 0
		_ = o.Relay(ctx, func(ctx context.Context, events []*audit.Event) (int64, error) {
			stored, err := deliver(ctx, events)
			if calls++; calls == 1 || stored == int64(i+1) {
				cancel() // the answer to the first is lost
			}
			return stored, err
		})
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	o := open()
	must(t, o.Record(ctx, &audit.Event{Method: "/last", Scope: "/"}))
	_ = o.Relay(ctx, func(ctx context.Context, events []*audit.Event) (int64, error) {
		stored, err := deliver(ctx, events)
		if stored == n+1 {
			cancel()
		}
		return stored, err
	})
	var got []int64
	for token := ""; ; {
		page, err := l.activity().ListActivity(l.as("root"), &telemetryv1.ListActivityRequest{Scope: "/", PageSize: 1000, PageToken: token})
		must(t, err)
		got = append(got, seqs(page.GetEvents())...)
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if len(got) != n+1 {
		t.Fatalf("%d events, want %d", len(got), n+1)
	}
	for i, seq := range got {
		if seq != int64(n+1-i) {
			t.Fatalf("event %d from the newest has number %d", i, seq)
		}
	}
}

func TestListActivityByScope(t *testing.T) {
	l := newLab(t)
	for _, user := range []string{"root", "subscription", "group", "workspace", "other"} {
		l.assign(user, map[string]string{"root": "/", "subscription": sub1, "group": grp1, "workspace": ws1, "other": ws2}[user], authz.Reader)
	}
	old := event(9, ws1) // of a workspace and a group that had the names before
	old.WorkspaceUid, old.ResourceGroupUid = "ws_old", "rgp_old"
	garbled := event(10, "not a name")
	l.take(event(1, "/"), event(2, sub1), event(3, grp1), event(4, ws1), event(5, run1), event(6, ws1+"/runs/r10"), event(7, run3), event(8, "users/alice"), old, garbled)
	cases := []struct {
		user, scope string
		want        []int64
	}{
		{"root", "/", []int64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}},
		{"root", sub1, []int64{9, 7, 6, 5, 4, 3, 2}},
		{"subscription", sub1, []int64{9, 7, 6, 5, 4, 3, 2}},
		{"group", grp1, []int64{7, 6, 5, 4, 3}},
		{"workspace", ws1, []int64{6, 5, 4}},
		{"workspace", run1, []int64{5}},
		{"workspace", ws1 + "/runs/r10", []int64{6}},
		{"workspace", ws1 + "/runs/none", nil},
		{"other", ws2, []int64{7}},
		{"other", run3, []int64{7}},
		{"root", "users/alice", []int64{8}},
		{"root", "users/bob", nil},
	}
	for _, c := range cases {
		for _, filter := range []string{"", "by request"} {
			t.Run(c.user+" "+c.scope+" "+filter, func(t *testing.T) {
				if filter == "" {
					res, err := l.activity().ListActivity(l.as(c.user), &telemetryv1.ListActivityRequest{Scope: c.scope})
					must(t, err)
					if got := seqs(res.GetEvents()); !slices.Equal(got, c.want) || res.GetNextPageToken() != "" {
						t.Errorf("got %v, want %v", got, c.want)
					}
					return
				}
				for seq := int64(1); seq <= 10; seq++ {
					res, err := l.activity().ListActivity(l.as(c.user), &telemetryv1.ListActivityRequest{Scope: c.scope, RequestId: fmt.Sprintf("req-%d", seq)})
					must(t, err)
					if got := seqs(res.GetEvents()); len(got) > 1 || (len(got) == 1) != slices.Contains(c.want, seq) {
						t.Errorf("request %d: got %v", seq, got)
					}
				}
			})
		}
	}
	// What comes back is what was delivered.
	res, err := l.activity().ListActivity(l.as("root"), &telemetryv1.ListActivityRequest{Scope: run1})
	must(t, err)
	if !proto.Equal(res.GetEvents()[0], event(5, run1)) {
		t.Errorf("got %v", res.GetEvents()[0])
	}
	// Whoever has no right there learns nothing, not even that it is there.
	for _, scope := range []string{ws1, run1, ws1 + "/runs/none", grp1 + "/workspaces/none"} {
		_, err := l.activity().ListActivity(l.as("other"), &telemetryv1.ListActivityRequest{Scope: scope})
		want(t, err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	}
	for _, scope := range []string{"/", sub1, grp1} {
		if _, err := l.activity().ListActivity(l.as("workspace"), &telemetryv1.ListActivityRequest{Scope: scope}); err == nil {
			t.Errorf("a reader of a workspace reads %s", scope)
		}
	}
}

func TestListActivityFiltersAndPages(t *testing.T) {
	l := newLab(t)
	l.assign("ann", ws1, authz.Reader)
	var events []*telemetryv1.ActivityEvent
	for seq := int64(1); seq <= 250; seq++ {
		ev := event(seq, ws1)
		if seq%5 == 0 {
			ev.Result = telemetryv1.ActivityEvent_RESULT_DENIED
		}
		if seq%100 == 0 { // one request, several events
			ev.RequestId = "shared"
		}
		events = append(events, ev)
	}
	l.take(events...)
	at := func(seq int64) *timestamppb.Timestamp { return timestamppb.New(time.Unix(1000+seq, 0)) }
	list := func(req *telemetryv1.ListActivityRequest) ([]int64, string, error) {
		req.Scope = ws1
		res, err := l.activity().ListActivity(l.as("ann"), req)
		return seqs(res.GetEvents()), res.GetNextPageToken(), err
	}
	cases := []struct {
		name string
		req  *telemetryv1.ListActivityRequest
		keep func(seq int64) bool
	}{
		{"all", &telemetryv1.ListActivityRequest{}, func(int64) bool { return true }},
		{"time, half open", &telemetryv1.ListActivityRequest{StartTime: at(10), EndTime: at(40)}, func(s int64) bool { return s >= 10 && s < 40 }},
		{"ended before everything", &telemetryv1.ListActivityRequest{EndTime: timestamppb.New(time.Unix(0, 0))}, func(int64) bool { return false }},
		{"result", &telemetryv1.ListActivityRequest{Result: telemetryv1.ActivityEvent_RESULT_DENIED}, func(s int64) bool { return s%5 == 0 }},
		{"request", &telemetryv1.ListActivityRequest{RequestId: "shared"}, func(s int64) bool { return s%100 == 0 }},
		{"all of it", &telemetryv1.ListActivityRequest{RequestId: "shared", Result: telemetryv1.ActivityEvent_RESULT_DENIED, StartTime: at(150)}, func(s int64) bool { return s == 200 }},
	}
	for _, c := range cases {
		for _, size := range []int32{0, 1, 7, 1000, 5000} {
			if size == 1 && c.name == "all" {
				continue
			}
			var want, got []int64
			for seq := int64(250); seq > 0; seq-- {
				if c.keep(seq) {
					want = append(want, seq)
				}
			}
			for token := ""; ; {
				req := proto.CloneOf(c.req)
				req.PageSize, req.PageToken = size, token
				page, next, err := list(req)
				must(t, err)
				if most := int(size); size > 0 && len(page) > most || size == 0 && len(page) > 100 {
					t.Errorf("%s: a page of %d", c.name, len(page))
				}
				got = append(got, page...)
				if token = next; token == "" {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s by %d: got %v, want %v", c.name, size, got, want)
			}
		}
	}
	_, _, err := list(&telemetryv1.ListActivityRequest{PageSize: -1})
	want(t, err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	_, _, err = list(&telemetryv1.ListActivityRequest{StartTime: &timestamppb.Timestamp{Seconds: 1 << 60}})
	want(t, err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	_, token, err := list(&telemetryv1.ListActivityRequest{PageSize: 10})
	must(t, err)
	for name, req := range map[string]*telemetryv1.ListActivityRequest{
		"of another result":  {PageToken: token, Result: telemetryv1.ActivityEvent_RESULT_DENIED},
		"of another time":    {PageToken: token, StartTime: at(1)},
		"of another request": {PageToken: token, RequestId: "shared"},
		"changed":            {PageToken: token[:len(token)-2] + "AA"},
		"made up":            {PageToken: "AAAA"},
	} {
		t.Run("page token "+name, func(t *testing.T) {
			_, _, err := list(req)
			want(t, err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
		})
	}
	l.assign("ann", ws2, authz.Reader)
	_, err = l.activity().ListActivity(l.as("ann"), &telemetryv1.ListActivityRequest{Scope: ws2, PageToken: token})
	want(t, err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
	if page, _, err := list(&telemetryv1.ListActivityRequest{PageToken: token, PageSize: 3}); err != nil || !slices.Equal(page, []int64{240, 239, 238}) {
		t.Errorf("another page size: %v, %v", page, err)
	}
}

// TestLargeEventsFitAnAnswer: pages end early rather than outgrow what clients take.
func TestLargeEventsFitAnAnswer(t *testing.T) {
	l := newLab(t)
	l.assign("ann", ws1, authz.Reader)
	const n = 300
	for first := int64(1); first <= n; first += 100 {
		var events []*telemetryv1.ActivityEvent
		for seq := first; seq < first+100; seq++ {
			ev := event(seq, ws1)
			ev.Details = map[string]string{"much": strings.Repeat("x", 30<<10)}
			events = append(events, ev)
		}
		l.take(events...)
	}
	var got []int64
	for token := ""; ; {
		res, err := l.activity().ListActivity(l.as("ann"), &telemetryv1.ListActivityRequest{Scope: ws1, PageSize: 1000, PageToken: token})
		must(t, err)
		got = append(got, seqs(res.GetEvents())...)
		if token = res.GetNextPageToken(); token == "" {
			break
		}
	}
	if len(got) != n || got[0] != n || got[n-1] != 1 {
		t.Errorf("%d events", len(got))
	}
}

func TestWatchActivity(t *testing.T) {
	l := newLab(t)
	l.assign("ann", ws1, authz.Reader)
	l.assign("root", "/", authz.Reader)
	l.take(event(1, ws1)) // before
	open := func(user, scope string) func() (*telemetryv1.ActivityEvent, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(l.as(user), 20*time.Second)
		t.Cleanup(cancel)
		stream, err := l.activity().WatchActivity(ctx, &telemetryv1.WatchActivityRequest{Scope: scope})
		must(t, err)
		if _, err := stream.Header(); err != nil { // from here on nothing is missed
			t.Fatal(err)
		}
		return stream.Recv
	}
	narrow, wide, one := open("ann", ws1), open("root", "/"), open("ann", run1)
	l.take(event(2, ws1), event(3, ws2), event(4, run1))
	l.take(event(4, run1), event(5, "/"))
	check := func(name string, next func() (*telemetryv1.ActivityEvent, error), want ...int64) {
		t.Helper()
		for _, seq := range want {
			ev, err := next()
			if err != nil || ev.GetSeq() != seq {
				t.Errorf("%s: got %v (%v), want %d", name, ev.GetSeq(), err, seq)
			}
		}
	}
	check("workspace", narrow, 2, 4)
	check("root", wide, 2, 3, 4, 5)
	check("run", one, 4)

	// A right that is taken away ends the watch before the next event.
	l.unassign("ann", ws1, authz.Reader)
	l.take(event(6, run1))
	_, err := narrow()
	want(t, err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	check("root", wide, 6)

	// Another instance's events come too, without a word to this one.
	l.exec(`INSERT INTO activity SELECT position + 1000, service, seq + 1000, uid, time, subscription_uid, resource_group_uid, workspace_uid, resource_mac, request_mac, principal, method, result, sealed FROM activity WHERE seq = 6`)
	l.exec("UPDATE activity_head SET position = position + 1000") // it does not open under its new number, and is passed over
	l.take(event(7, ws2))
	check("root", wide, 7)
}

func TestSlowWatchIsCut(t *testing.T) {
	l := newLab(t)
	l.assign("root", "/", authz.Reader)
	ctx, cancel := context.WithTimeout(l.as("root"), 30*time.Second)
	defer cancel()
	stream, err := l.activity().WatchActivity(ctx, &telemetryv1.WatchActivityRequest{Scope: "/"})
	must(t, err)
	_, err = stream.Header()
	must(t, err)
	const n = 3000 // of 4 KiB: far more than what fits between the two
	for first := int64(1); first <= n; first += 500 {
		var events []*telemetryv1.ActivityEvent
		for seq := first; seq < first+500; seq++ {
			ev := event(seq, "/")
			ev.Details = map[string]string{"much": strings.Repeat("x", 4<<10)}
			events = append(events, ev)
		}
		l.take(events...)
	}
	got := int64(0)
	for {
		ev, err := stream.Recv()
		if err != nil {
			want(t, err, codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED)
			break
		}
		if got++; ev.GetSeq() != got {
			t.Fatalf("event %d has number %d: one is missing", got, ev.GetSeq())
		}
	}
	if got == n {
		t.Error("nothing was cut")
	}
}

func TestStopEndsWatches(t *testing.T) {
	l := newLab(t)
	l.assign("root", "/", authz.Reader)
	events, err := l.activity().WatchActivity(l.as("root"), &telemetryv1.WatchActivityRequest{Scope: "/"})
	must(t, err)
	metrics, err := l.metrics().WatchMetrics(l.as("root"), &telemetryv1.WatchMetricsRequest{Run: run1})
	must(t, err)
	for _, header := range []func() error{
		func() error { _, err := events.Header(); return err }, func() error { _, err := metrics.Header(); return err },
	} {
		must(t, header())
	}
	must(t, l.svc.Close())
	must(t, l.svc.Close())
	_, err = events.Recv()
	want(t, err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
	_, err = metrics.Recv()
	want(t, err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
}

// TestActivityCiphertext: nothing of an event that a tenant or a stranger wrote stands in the files (D2, goal 31).
func TestActivityCiphertext(t *testing.T) {
	l := newLab(t)
	ev := event(1, ws1+"/runs/canary-run")
	ev.RequestId, ev.Address, ev.TraceId = "canary-request", "canary-address", "canary-trace"
	l.take(ev)
	files, err := filepath.Glob(l.path + "*")
	must(t, err)
	found := false
	for _, name := range files {
		f, err := os.Open(name)
		must(t, err)
		content, err := io.ReadAll(f)
		must(t, err)
		_ = f.Close()
		if strings.Contains(string(content), "canary") {
			t.Errorf("%s holds it", filepath.Base(name))
		}
		found = found || strings.Contains(string(content), "usr_x")
	}
	if !found {
		t.Error("the search would find nothing")
	}
}

// TestActivityTampering: what someone with the database moves or changes is not shown (goal 22).
func TestActivityTampering(t *testing.T) {
	for name, change := range map[string]string{
		"swapped":                    "UPDATE activity SET sealed = (SELECT o.sealed FROM activity o WHERE o.seq = 3 - activity.seq) WHERE seq = 2",
		"another number":             "UPDATE activity SET seq = seq + 10",
		"another service":            "UPDATE activity SET service = 'keyvault'",
		"another uid":                "UPDATE activity SET uid = 'evt_x' || seq",
		"another subscription's key": "UPDATE activity SET subscription_uid = ''",
		"shown in another workspace": "UPDATE activity SET workspace_uid = 'ws_1'",
		"a bit":                      "UPDATE activity SET sealed = substr(sealed, 1, 30) || CASE substr(sealed, 31, 1) WHEN x'00' THEN x'01' ELSE x'00' END || substr(sealed, 32)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.assign("ann", ws1, authz.Reader)
			l.take(event(1, ws2), event(2, ws1))
			l.exec(change)
			res, err := l.activity().ListActivity(l.as("ann"), &telemetryv1.ListActivityRequest{Scope: ws1})
			want(t, err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
			if res != nil {
				t.Errorf("got %v", res)
			}
		})
	}
}
