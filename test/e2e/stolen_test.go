package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// prey is a run whose agent is this test: it knows the token and the key.
type prey struct {
	run      *computev1.Run
	token    string
	key      *ecdsa.PrivateKey
	snapshot string
}

// hosted is a workspace with a self-hosted target, where runs wait until the test claims them.
type hosted struct {
	*client.Client
	workspace, compute, snapshot string
}

func newHosted(t *testing.T, id, owner string) *hosted {
	t.Helper()
	must := mustOf(t)
	admin, err := client.Dial(client.Context{Name: "e2e", Server: mesh.URL, CAPEM: mesh.CA}, redact.FromString(mesh.Admin(t)))
	must(err)
	t.Cleanup(func() { _ = admin.Close() })
	h := &hosted{workspace: workspaceOf(t, id).GetName()}
	target, err := admin.Computes().CreateCompute(t.Context(), &computev1.CreateComputeRequest{Parent: h.workspace, ComputeId: "there", Kind: computev1.Compute_KIND_SELF_HOSTED, MaxRuns: 8})
	must(err)
	h.compute = target.GetName()
	dir := t.TempDir()
	must(os.WriteFile(filepath.Join(dir, "hello.txt"), []byte("hello\n"), 0o600))
	s, err := admin.UploadSnapshot(t.Context(), h.workspace, dir, nil)
	must(err)
	h.snapshot = s.GetName()
	h.Client, err = client.Dial(client.Context{Name: "e2e", Server: mesh.URL, CAPEM: mesh.CA}, redact.FromString(owner))
	must(err)
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func mustOf(t *testing.T) func(error) {
	return func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// carry submits a run, and is its agent as far as its assignment.
func (h *hosted) carry(t *testing.T, conn *grpc.ClientConn) *prey {
	t.Helper()
	must := mustOf(t)
	r, err := h.Runs().SubmitRun(t.Context(), &computev1.SubmitRunRequest{Parent: h.workspace, Compute: h.compute, Snapshot: h.snapshot, Command: []string{"true"}})
	must(err)
	c, err := h.Computes().ClaimRun(t.Context(), &computev1.ClaimRunRequest{Name: h.compute})
	must(err)
	if c.GetBootstrap().GetRunUid() != r.GetUid() {
		t.Fatalf("claimed %v", c)
	}
	p := &prey{run: r, snapshot: h.snapshot}
	p.key, err = authn.GenerateKey()
	must(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "agent"}}, p.key)
	must(err)
	res, err := identityv1.NewAgentServiceClient(conn).EnrolAgent(t.Context(), &identityv1.EnrolAgentRequest{JoinToken: c.GetBootstrap().GetJoinToken(), Csr: csr})
	must(err)
	p.token = res.GetRunToken()
	must(p.assignment(p.with(t, p.key, computev1.AgentRunService_GetAssignment_FullMethodName), conn))
	return p
}

// proof is one by a key, for an address that begins with base.
func (p *prey) proof(t *testing.T, key *ecdsa.PrivateKey, base, verb, method, token string, now func() time.Time) string {
	t.Helper()
	prover, err := authn.NewProver(key, now)
	mustOf(t)(err)
	s, err := prover.Proof(verb, base+method, token, "")
	mustOf(t)(err)
	return s
}

func dpop(ctx context.Context, token, proof string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "DPoP "+token, "dpop", proof)
}

// with is the token and a good proof for a method.
func (p *prey) with(t *testing.T, key *ecdsa.PrivateKey, method string) context.Context {
	t.Helper()
	return dpop(t.Context(), p.token, p.proof(t, key, mesh.URL, "POST", method, p.token, nil))
}

func (p *prey) assignment(ctx context.Context, conn *grpc.ClientConn) error {
	_, err := computev1.NewAgentRunServiceClient(conn).GetAssignment(ctx, &computev1.GetAssignmentRequest{Name: p.run.GetName()})
	return err
}

func (p *prey) report(ctx context.Context, conn *grpc.ClientConn, state computev1.Run_State) error {
	_, err := computev1.NewAgentRunServiceClient(conn).ReportRun(ctx, &computev1.ReportRunRequest{Name: p.run.GetName(), State: state})
	return err
}

// A4: a stolen run token is refused, whatever is tried with it, and each try is in the activity log with its principal, its run and the reason.
func TestAttackStolenRunToken(t *testing.T) {
	must := mustOf(t)
	uid, token := mesh.User(t, "stolen-owner")
	h := newHosted(t, "stolen", token)
	give(t, h.workspace, authz.Owner, uid)
	other := newHosted(t, "stolen-other", token)
	give(t, other.workspace, authz.Owner, uid)
	conn := mesh.Dial(t, "")
	const (
		heartbeat = computev1.AgentRunService_Heartbeat_FullMethodName
		renewal   = identityv1.AgentService_RenewRunToken_FullMethodName
		snapshot  = workspacev1.SnapshotService_GetSnapshot_FullMethodName
		users     = identityv1.DirectoryService_ListUsers_FullMethodName
	)
	mine, sibling, foreign, cancelled, over, left := h.carry(t, conn), h.carry(t, conn), other.carry(t, conn), h.carry(t, conn), h.carry(t, conn), h.carry(t, conn)
	thief, err := authn.GenerateKey()
	must(err)
	calls := map[string]func(ctx context.Context, p *prey) error{
		heartbeat: func(ctx context.Context, p *prey) error {
			_, err := computev1.NewAgentRunServiceClient(conn).Heartbeat(ctx, &computev1.HeartbeatRequest{Name: p.run.GetName()})
			return err
		},
		renewal: func(ctx context.Context, _ *prey) error {
			_, err := identityv1.NewAgentServiceClient(conn).RenewRunToken(ctx, &identityv1.RenewRunTokenRequest{})
			return err
		},
		snapshot: func(ctx context.Context, p *prey) error {
			_, err := workspacev1.NewSnapshotServiceClient(conn).GetSnapshot(ctx, &workspacev1.GetSnapshotRequest{Name: p.snapshot})
			return err
		},
		users: func(ctx context.Context, _ *prey) error {
			_, err := identityv1.NewDirectoryServiceClient(conn).ListUsers(ctx, &identityv1.ListUsersRequest{})
			return err
		},
	}
	// The test can tell: the agent itself is let in by each service, and is given another token.
	for _, method := range []string{heartbeat, renewal, snapshot} {
		must(calls[method](mine.with(t, mine.key, method), mine))
	}
	must(over.report(over.with(t, over.key, computev1.AgentRunService_ReportRun_FullMethodName), conn, computev1.Run_STATE_COMPLETED))
	_, err = h.Runs().CancelRun(t.Context(), &computev1.CancelRunRequest{Name: cancelled.run.GetName()})
	must(err)
	must(calls[heartbeat](cancelled.with(t, cancelled.key, heartbeat), cancelled))
	must(cancelled.report(cancelled.with(t, cancelled.key, computev1.AgentRunService_ReportRun_FullMethodName), conn, computev1.Run_STATE_CANCELED))

	type attack struct {
		name   string
		ctx    func(method string) context.Context
		of, at *prey // whose token, and of whom something is asked
		only   []string
		also   map[string]bool // further reasons that are one
	}
	const bad, revoked, outside, absent = "TOKEN_PROOF_INVALID", "TOKEN_REVOKED", "AUTHZ_OUTSIDE_RUN", "RESOURCE_NOT_FOUND"
	reasons := func(list ...string) map[string]bool {
		m := make(map[string]bool)
		for _, r := range list {
			m[r] = true
		}
		return m
	}
	good := func(p *prey) func(string) context.Context {
		return func(method string) context.Context { return p.with(t, p.key, method) }
	}
	by := func(make func(method string) string) func(string) context.Context {
		return func(method string) context.Context { return dpop(t.Context(), mine.token, make(method)) }
	}
	replayed := make(map[string]string)
	for _, method := range []string{heartbeat, snapshot, renewal} {
		replayed[method] = mine.proof(t, mine.key, mesh.URL, "POST", method, mine.token, nil)
		must(calls[method](dpop(t.Context(), mine.token, replayed[method]), mine))
	}
	everywhere := []string{heartbeat, snapshot, renewal}
	attacks := []attack{
		{"from a process without the key, as a bearer", func(string) context.Context {
			return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+mine.token)
		}, mine, mine, everywhere, reasons(bad)},
		{"from a process without the key, without a proof", func(string) context.Context {
			return metadata.AppendToOutgoingContext(t.Context(), "authorization", "DPoP "+mine.token)
		}, mine, mine, everywhere, reasons(bad)},
		{"from a process with a key of its own", by(func(method string) string { return mine.proof(t, thief, mesh.URL, "POST", method, mine.token, nil) }), mine, mine, everywhere, reasons(bad)},
		{"with a proof for another method", by(func(string) string {
			return mine.proof(t, mine.key, mesh.URL, "POST", computev1.AgentRunService_ReportRun_FullMethodName, mine.token, nil)
		}), mine, mine, everywhere, reasons(bad)},
		{"with a proof for another verb", by(func(method string) string { return mine.proof(t, mine.key, mesh.URL, "GET", method, mine.token, nil) }), mine, mine, everywhere, reasons(bad)},
		{"with a proof for another address", by(func(method string) string {
			return mine.proof(t, mine.key, "https://elsewhere.test:7443", "POST", method, mine.token, nil)
		}), mine, mine, everywhere, reasons(bad)},
		{"with a proof for another token", by(func(method string) string {
			return mine.proof(t, mine.key, mesh.URL, "POST", method, sibling.token, nil)
		}), mine, mine, everywhere, reasons(bad)},
		{"with a proof of two minutes ago", by(func(method string) string {
			return mine.proof(t, mine.key, mesh.URL, "POST", method, mine.token, func() time.Time { return time.Now().Add(-2 * time.Minute) })
		}), mine, mine, everywhere, reasons(bad)},
		{"with a proof of the next hour", by(func(method string) string {
			return mine.proof(t, mine.key, mesh.URL, "POST", method, mine.token, func() time.Time { return time.Now().Add(time.Hour) })
		}), mine, mine, everywhere, reasons(bad)},
		{"with a proof that was used", by(func(method string) string { return replayed[method] }), mine, mine, everywhere, reasons(bad)},
		{"with its key, at another run of its workspace", good(mine), mine, sibling, []string{heartbeat}, reasons(outside, absent)},
		{"with its key, in another workspace", good(mine), mine, foreign, []string{heartbeat, snapshot}, reasons(outside, absent)},
		{"with its key, where no run belongs", good(mine), mine, mine, []string{users}, reasons(outside)},
		{"with its key, after the end", good(over), over, over, everywhere, reasons(revoked)},
		{"with its key, after it was cancelled and reported", good(cancelled), cancelled, cancelled, everywhere, reasons(revoked)},
	}
	tried, honoured, logged := 0, 0, 0
	activity := telemetryv1.NewActivityServiceClient(mesh.Dial(t, mesh.Admin(t)))
	inLog := func(a attack, method, id string) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
			res, err := activity.ListActivity(ctx, &telemetryv1.ListActivityRequest{Scope: "/", RequestId: id})
			if err != nil {
				t.Errorf("%s: %v", a.name, err)
				return false
			}
			for _, ev := range res.GetEvents() {
				if ev.GetMethod() != method {
					continue
				}
				if ev.GetPrincipal() != uid || ev.GetRunUid() != a.of.run.GetUid() || !a.also[ev.GetReason()] || ev.GetResult() != telemetryv1.ActivityEvent_RESULT_DENIED {
					t.Errorf("%s, %s: it is in the log as %v", a.name, method, ev)
					return false
				}
				return true
			}
		}
		t.Errorf("%s, %s: it is not in the log", a.name, method)
		return false
	}
	type try struct {
		attack
		method, id string
	}
	var tries []try
	run := func(list []attack) {
		for i, a := range list {
			for _, p := range []*prey{mine, sibling, foreign, left} { // else they are lost on a slow machine
				_ = calls[heartbeat](p.with(t, p.key, heartbeat), p)
			}
			for _, method := range a.only {
				x := try{a, method, fmt.Sprintf("stolen-%d-%d-%d", len(tries), i, time.Now().UnixNano())}
				err := fault.FromStatus(calls[method](metadata.AppendToOutgoingContext(a.ctx(method), "x-request-id", x.id), a.at))
				tried++
				if err == nil {
					honoured++
					t.Errorf("%s: %s is honoured", a.name, method)
					continue
				}
				if code := fault.Code(err); !a.also[fault.ReasonOf(err).String()] || code != codes.Unauthenticated && code != codes.PermissionDenied && code != codes.NotFound {
					t.Errorf("%s: %s is refused with %v", a.name, method, err)
				}
				tries = append(tries, x)
				time.Sleep(100 * time.Millisecond) // not more than are recorded one by one
			}
		}
	}
	run(attacks)
	// What the account does not have any more, its runs do not either.
	directory := identityv1.NewDirectoryServiceClient(mesh.Dial(t, mesh.Admin(t)))
	_, err = directory.SetUserDisabled(t.Context(), &identityv1.SetUserDisabledRequest{Name: "users/stolen-owner", Disabled: true})
	must(err)
	run([]attack{{"with its key, of an account that is disabled", good(left), left, left, everywhere, reasons(revoked)}})
	for _, x := range tries {
		if inLog(x.attack, x.method, x.id) {
			logged++
		}
	}
	t.Logf("%d of them are in the activity log with principal and reason", logged)
	fmt.Printf("attack: %s: tried %d, honoured %d\n", t.Name(), tried, honoured)
	// The run says why it ended.
	runs := computev1.NewRunServiceClient(mesh.Dial(t, mesh.Admin(t)))
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		r, err := runs.GetRun(t.Context(), &computev1.GetRunRequest{Name: left.run.GetName()})
		must(err)
		if r.GetState() == computev1.Run_STATE_FAILED && r.GetReason() == "RUN_SUBMITTER_DENIED" {
			return
		}
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("the run of an account that is disabled: %v", r)
		}
	}
}
