package rpc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

func access(ctx context.Context, c *grpc.ClientConn) ([]byte, error) {
	r, err := keyvaultv1.NewSecretServiceClient(c).AccessSecret(ctx, &keyvaultv1.AccessSecretRequest{Name: ws + "/secrets/s"})
	return r.GetValue(), err
}

// TestAuditBeforeTheAnswer holds A4 for a handler that never thought of it.
func TestAuditBeforeTheAnswer(t *testing.T) {
	l := newLab(t)
	l.h.unary = func(ctx context.Context) error { From(ctx).Detail("version", "3"); return nil }
	var recordedFirst bool
	l.rec.on = func() { recordedFirst = l.h.ran.Load() == 1 }
	v, err := access(bearer(t, l.token(owner), "x-request-id", "req-1"), l.gateway())
	ok(t, err)
	if !bytes.Equal(v, []byte("the secret")) || !recordedFirst {
		t.Errorf("%q, recorded %v", v, recordedFirst)
	}
	ev := l.rec.last(t)
	for what, is := range map[string]bool{
		"result": ev.GetResult() == telemetryv1.ActivityEvent_RESULT_SUCCEEDED && ev.GetCode() == "OK", "who": ev.GetPrincipal() == owner && ev.GetPrincipalType() == "user",
		"peer": ev.GetPeer() == "spiffe://"+domain+"/service/gateway", "what": ev.GetAction() == "keyvault/secrets/access" && ev.GetMethod() == keyvaultv1.SecretService_AccessSecret_FullMethodName,
		"where": ev.GetScope() == ws+"/secrets/s" && ev.GetWorkspaceUid() == "ws_1" && ev.GetSubscriptionUid() == "sub_1", "id": ev.GetRequestId() == "req-1",
		"details": ev.GetDetails()["version"] == "3", "count": ev.GetCount() == 1,
	} {
		if !is {
			t.Errorf("%s is wrong in %v", what, ev)
		}
	}
}

// TestNoRecordNoAnswer holds that a call whose record cannot be stored has no answer, whatever it would have been.
func TestNoRecordNoAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		token   func(*lab) string
		handler error
	}{
		"a good call":        {func(l *lab) string { return l.token(owner) }, nil},
		"a failed one":       {func(l *lab) string { return l.token(owner) }, fault.FailedPrecondition("not now")},
		"a denied one":       {func(l *lab) string { return l.token(reader) }, nil},
		"a hidden one":       {func(l *lab) string { return l.token(stranger) }, nil},
		"one of no contract": {func(l *lab) string { return l.token(owner) }, errors.New("driver: disk full at /var/lib")},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.rec.fail(errors.New("disk full"))
			l.h.unary = func(context.Context) error { return tc.handler }
			v, err := access(bearer(t, tc.token(l)), l.gateway())
			refusedAs(t, err, codes.Unavailable, faultv1.Reason_AUDIT_UNAVAILABLE)
			if v != nil {
				t.Errorf("and yet it answered %q", v)
			}
		})
	}
	t.Run("a stream", func(t *testing.T) {
		l := newLab(t)
		l.rec.fail(errors.New("disk full"))
		refusedAs(t, shapes()["stream"].send(bearer(t, l.token(owner)), l.gateway(), message("stream", ws)), codes.Unavailable, faultv1.Reason_AUDIT_UNAVAILABLE)
	})
}

// TestWhatIsRecorded holds which calls leave a record, and of what kind.
func TestWhatIsRecorded(t *testing.T) {
	type get struct{ recorded, appended, aggregated int }
	const denied, failed, done = telemetryv1.ActivityEvent_RESULT_DENIED, telemetryv1.ActivityEvent_RESULT_FAILED, telemetryv1.ActivityEvent_RESULT_SUCCEEDED
	data := func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := telemetryv1.NewMetricServiceClient(c).GetRunData(ctx, &telemetryv1.GetRunDataRequest{Run: run})
		return err
	}
	secret := func(ctx context.Context, c *grpc.ClientConn) error { _, err := access(ctx, c); return err }
	signIn := func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := identityv1.NewSignInServiceClient(c).SignIn(ctx, &identityv1.SignInRequest{User: "u", Password: "p"})
		return err
	}
	purge := func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := telemetryv1.NewIngestServiceClient(c).PurgeWorkspace(ctx, &telemetryv1.PurgeWorkspaceRequest{WorkspaceUid: "ws_1"})
		return err
	}
	for name, tc := range map[string]struct {
		call    func(context.Context, *grpc.ClientConn) error
		who     string
		peer    string
		handler func(ctx context.Context) error
		want    get
		result  telemetryv1.ActivityEvent_Result
		reason  string
		by      string // principal of the record
	}{
		"a read":                       {call: data, who: owner},
		"a read that fails":            {call: data, who: owner, handler: func(context.Context) error { return fault.FailedPrecondition("x") }},
		"a read, denied":               {call: data, who: owner, handler: func(context.Context) error { return fault.PermissionDenied("x") }, want: get{recorded: 1}, result: denied, reason: "ACCESS_DENIED", by: owner},
		"a read, hidden":               {call: data, who: stranger, want: get{recorded: 1}, result: denied, reason: "RESOURCE_NOT_FOUND", by: stranger},
		"a read, anonymous":            {call: data, want: get{aggregated: 1}},
		"a secret":                     {call: secret, who: owner, want: get{recorded: 1}, result: done, by: owner},
		"a secret, a right is missing": {call: secret, who: reader, want: get{recorded: 1}, result: denied, reason: "AUTHZ_ACTION_MISSING", by: reader},
		"a secret, failed":             {call: secret, who: owner, handler: func(context.Context) error { return fault.NotFound("x") }, want: get{recorded: 1}, result: failed, reason: "RESOURCE_NOT_FOUND", by: owner},
		"a secret, a panic":            {call: secret, who: owner, handler: func(context.Context) error { panic("x") }, want: get{recorded: 1}, result: failed, reason: "INTERNAL_FAULT", by: owner},
		"sign-in":                      {call: signIn, handler: func(ctx context.Context) error { From(ctx).Identify("usr_9", "user"); return nil }, want: get{recorded: 1}, result: done, by: "usr_9"},
		"sign-in, wrong":               {call: signIn, handler: func(context.Context) error { return fault.Unauthenticated("x") }, want: get{aggregated: 1}},
		"sign-in, wrong, of somebody who is known": {call: signIn, handler: func(ctx context.Context) error {
			From(ctx).Identify("usr_9", "user")
			return fault.Unauthenticated("x")
		}, want: get{recorded: 1}, result: denied, reason: "CREDENTIAL_INVALID", by: "usr_9"},
		"a service's":                   {call: purge, peer: "service/workspace", want: get{recorded: 1}, result: done},
		"a service that may not":        {call: purge, peer: "service/compute", want: get{recorded: 1}, result: denied, reason: "PEER_NOT_ALLOWED"},
		"the gateway, which may not":    {call: purge, want: get{aggregated: 1}},
		"an agent, which may not":       {call: purge, peer: "agent/a1", want: get{aggregated: 1}},
		"recorded with its change":      {call: secret, who: owner, handler: func(ctx context.Context) error { return From(ctx).Audit(ctx, nil, "k", "v") }, want: get{appended: 1}},
		"recorded, and failed after it": {call: secret, who: owner, handler: func(ctx context.Context) error { _ = From(ctx).Audit(ctx, nil); return fault.Aborted("x") }, want: get{recorded: 1, appended: 1}, result: failed, reason: "CONFLICT", by: owner},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.h.unary = tc.handler
			if tc.peer == "" {
				tc.peer = "service/gateway"
			}
			ctx := t.Context()
			if tc.who != "" {
				ctx = bearer(t, l.token(tc.who))
			}
			_ = tc.call(ctx, l.as(tc.peer))
			if got := l.rec.counts(); got != [3]int{tc.want.recorded, tc.want.appended, tc.want.aggregated} {
				t.Fatalf("recorded, appended, aggregated: %v, not %v", got, tc.want)
			}
			if tc.want.recorded > 0 {
				if ev := l.rec.last(t); ev.GetResult() != tc.result || ev.GetReason() != tc.reason || ev.GetPrincipal() != tc.by {
					t.Errorf("the record is %v", ev)
				}
			}
		})
	}
}

// TestHiddenReadsLikeAbsent holds that the answer for what one may not know of is the answer for what is not there (B2).
func TestHiddenReadsLikeAbsent(t *testing.T) {
	l := newLab(t)
	get := func(name string) error {
		_, err := telemetryv1.NewMetricServiceClient(l.gateway()).GetRunData(bearer(t, l.token(stranger), "x-request-id", "same"), &telemetryv1.GetRunDataRequest{Run: name + "/runs/r"})
		return err
	}
	hidden, absent := get(grp+"/workspaces/w"), get(grp+"/workspaces/x")
	if bytes.ReplaceAll([]byte(hidden.Error()), []byte("workspaces/w"), []byte("workspaces/x")) == nil || codeAndText(hidden, "workspaces/w") != codeAndText(absent, "workspaces/x") {
		t.Errorf("%v\n%v", hidden, absent)
	}
}

func codeAndText(err error, name string) string {
	f := fault.Describe(fault.FromStatus(err))
	return fault.Code(f).String() + string(bytes.ReplaceAll([]byte(f.Message()), []byte(name), nil))
}

// TestAuditInTheTransaction holds that change and record are stored together, with the real outbox on SQLite.
// A detail that is cut stays text: what is none cannot be stored, and would take the record with it (G2).
func TestLongDetail(t *testing.T) {
	var c Call
	c.Detail("k", "x"+strings.Repeat("é", 400))
	if v := c.details[1]; !utf8.ValidString(v) || len(v) > 512 || len(v) < 510 {
		t.Errorf("%d bytes, text: %v", len(v), utf8.ValidString(v))
	}
}

func TestAuditInTheTransaction(t *testing.T) {
	db := sqldbtest.Open(t, audit.Migrations(), envelope.Migrations())
	key, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	ok(t, err)
	ring, err := envelope.New(envelope.Config{Source: envelope.SealSource(key, "telemetry"), DB: db})
	ok(t, err)
	outbox, err := audit.New(audit.Config{Service: "telemetry", DB: db, Keys: ring})
	ok(t, err)
	l := newLab(t, func(c *Config) { c.Recorder = outbox })
	for i, tc := range []struct {
		name  string
		fails error
		want  int64 // events in the outbox afterwards
	}{
		{"stored", nil, 1},
		{"rolled back: only the failure is recorded", fault.Aborted("no"), 2},
		{"stored again", nil, 3},
	} {
		l.h.unary = func(ctx context.Context) error {
			return db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
				if err := From(ctx).Audit(ctx, tx, "n", "1"); err != nil {
					return err
				}
				return tc.fails
			})
		}
		_, err := access(bearer(t, l.token(owner)), l.gateway())
		if fault.Code(tc.fails) != fault.Code(fault.FromStatus(err)) {
			t.Fatalf("%d: %v", i, err)
		}
		n, err := outbox.Depth(t.Context())
		ok(t, err)
		if n != tc.want {
			t.Errorf("%s: %d events, not %d", tc.name, n, tc.want)
		}
	}
	// Anonymous refusals become one event.
	for range 5 {
		_, err := access(metadata.AppendToOutgoingContext(t.Context()), l.gateway())
		refusedAs(t, err, codes.Unauthenticated, faultv1.Reason_TOKEN_MISSING)
	}
	ok(t, outbox.Flush(t.Context()))
	n, err := outbox.Depth(t.Context())
	ok(t, err)
	if n != 4 {
		t.Errorf("%d events, not one more", n)
	}
}

func TestAuditOutsideACall(t *testing.T) {
	if err := From(t.Context()).Audit(t.Context(), nil); err == nil {
		t.Error("a change outside a call had a record")
	}
	c := From(t.Context())
	if c.Principal != "" || c.May("a/b/c", false, mustName(t, ws)) {
		t.Error("a context without a call may do something")
	}
}

// TestRestOn holds that a call whose ground is gone fails with what its ground says, and is recorded as failed; and that a ground which nothing
// asks about lets nobody through.
func TestRestOn(t *testing.T) {
	basis := audit.NewBasis(nil)
	l := newLab(t)
	var says error
	l.h.unary = func(ctx context.Context) error {
		From(ctx).RestOn(audit.Ground{On: basis, Still: func(context.Context, *sqldb.Tx) error { return says }})
		return nil
	}
	if _, err := access(bearer(t, l.token(owner)), l.gateway()); err != nil {
		t.Errorf("on its ground: %v", err)
	}
	says = fault.New(codes.PermissionDenied, faultv1.Reason_ACCOUNT_DISABLED, "gone")
	v, err := access(bearer(t, l.token(owner)), l.gateway())
	refusedAs(t, err, codes.PermissionDenied, faultv1.Reason_ACCOUNT_DISABLED)
	if ev := l.rec.last(t); v != nil || ev.GetResult() != telemetryv1.ActivityEvent_RESULT_DENIED || ev.GetReason() != "ACCOUNT_DISABLED" {
		t.Errorf("answered %q, recorded %v", v, ev)
	}
	if l.rec.bursts != 0 {
		t.Errorf("%d joined others, and none was to", l.rec.bursts)
	}
	// One that joins others does so only if it succeeds.
	joins := func(says error) error {
		l.h.unary = func(ctx context.Context) error {
			From(ctx).RestOn(audit.Ground{On: basis, Still: func(context.Context, *sqldb.Tx) error { return says }})
			From(ctx).Joins("tok_1")
			return nil
		}
		_, err := access(bearer(t, l.token(owner)), l.gateway())
		return err
	}
	sum := sha256.Sum256([]byte("tok_1"))
	if err := joins(nil); err != nil || l.rec.bursts != 1 || !bytes.Equal(l.rec.last(t).GetDigest(), sum[:]) {
		t.Errorf("one that joins: %v, %d in bursts, recorded %v", err, l.rec.bursts, l.rec.last(t))
	}
	refusedAs(t, joins(says), codes.PermissionDenied, faultv1.Reason_ACCOUNT_DISABLED)
	if ev := l.rec.last(t); l.rec.bursts != 2 || ev.GetResult() != telemetryv1.ActivityEvent_RESULT_DENIED || len(ev.GetDigest()) != 0 {
		t.Errorf("one that is withdrawn: %d in bursts, recorded %v", l.rec.bursts, ev)
	}
	c := &Call{Context: t.Context(), m: &method{chain: &Chain{cfg: Config{Recorder: l.rec}}}, gave: "tok_1"}
	if err := c.settle(nil); fault.Code(err) != codes.Internal {
		t.Errorf("one that joins, of a method without records: %v", err)
	}
	// A method whose successes leave no record.
	c = &Call{Context: t.Context(), m: &method{chain: &Chain{cfg: Config{Recorder: l.rec}}}, ground: audit.Ground{On: basis}}
	if err := c.settle(nil); fault.Code(err) != codes.Internal {
		t.Errorf("a ground and no record: %v", err)
	}
	c.m.chain.cfg.Recorder = nil
	if err := c.settle(nil); fault.Code(err) != codes.Internal {
		t.Errorf("a ground and no recorder: %v", err)
	}
}

// TestEndsOfOthersAreNotTheCallers holds that what a handler has named stays so where a pipe or a file of its own has ended.
func TestEndsOfOthersAreNotTheCallers(t *testing.T) {
	l := newLab(t)
	l.h.unary = func(context.Context) error {
		return fault.Wrap(io.EOF, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "the worker is gone")
	}
	_, err := access(bearer(t, l.token(owner)), l.gateway())
	refusedAs(t, err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
}
