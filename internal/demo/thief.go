package demo

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// readerTries has someone with the role Reader submit a run.
func (w *walk) readerTries(ctx context.Context) (string, error) {
	make := w.newReader
	if w.remote() {
		make = w.newRobot
	}
	uid, err := make(ctx)
	if err != nil {
		return "", err
	}
	if _, err := w.admin.Access().CreateRoleAssignment(ctx, &workspacev1.CreateRoleAssignmentRequest{Scope: w.workspace, Role: "roleDefinitions/reader", Principal: uid}); err != nil {
		return "", err
	}
	reader, err := w.connect(w.reader)
	if err != nil {
		return "", err
	}
	defer func() { _ = reader.Close() }()
	// The role reaches compute within milliseconds of the call that gave it.
	if err := eventually(ctx, func() error {
		_, err := reader.Runs().GetRun(ctx, &computev1.GetRunRequest{Name: w.run})
		return err
	}); err != nil {
		return "", fmt.Errorf("the Reader cannot read the run: %w", err)
	}
	_, err = reader.Runs().SubmitRun(ctx, &computev1.SubmitRunRequest{Parent: w.workspace, Compute: w.compute, Snapshot: w.snapshot, Command: []string{"python3", "train.py"}})
	f := fault.Describe(fault.FromStatus(err))
	if fault.Code(f) != codes.PermissionDenied || f.Metadata()["action"] != "compute/runs/submit" {
		return "", fmt.Errorf("a Reader's submit was not refused as it should be: %w", err)
	}
	return fmt.Sprintf("he reads the run; submitting: %s, the action %s is missing", fault.CodeName(codes.PermissionDenied), f.Metadata()["action"]), nil
}

// newReader makes a user, who signs in.
func (w *walk) newReader(ctx context.Context) (uid string, err error) {
	pw := redact.FromString(strings.ToLower(rand.Text()))
	u, err := w.admin.Directory().CreateUser(ctx, &identityv1.CreateUserRequest{UserId: "robin", DisplayName: "Reader of the demo", Password: pw.RevealString()})
	if err != nil {
		return "", err
	}
	s, err := w.admin.SignIn(ctx, "robin", pw)
	if err != nil {
		return "", err
	}
	w.reader = redact.FromString(s.GetAccessToken())
	return u.GetUid(), nil
}

// eventually repeats what becomes true soon.
func eventually(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// thiefTries hosts an agent for a self-hosted target, takes the run token that it holds, and uses it from elsewhere: while the run
// lives, and with the right key after it has ended.
func (w *walk) thiefTries(ctx context.Context) (string, error) {
	if err := canCarry(ctx); err != nil && w.remote() {
		return "skipped: the thief takes his token from an agent beside him, and " + err.Error(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	a, run, err := w.hostRun(ctx)
	if err != nil {
		return "", err
	}
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	defer func() { _ = a.Close() }()
	if err := eventually(ctx, func() error {
		r, err := w.admin.Runs().GetRun(ctx, &computev1.GetRunRequest{Name: run})
		if err == nil && r.GetState() != computev1.Run_STATE_RUNNING {
			err = fmt.Errorf("the run is %s: %s", r.GetState(), r.GetMessage())
		}
		return err
	}); err != nil {
		return "", err
	}
	token := a.Token()
	key := a.Key()
	another, err := authn.GenerateKey()
	if err != nil {
		return "", err
	}
	t, err := w.newThief()
	if err != nil {
		return "", err
	}
	defer func() { _ = t.conn.Close() }()
	for _, try := range []struct {
		what string
		call func() error
		want faultv1.Reason
	}{
		{"the token alone", func() error { return t.heartbeat(ctx, run, "Bearer", token, nil) }, faultv1.Reason_TOKEN_PROOF_INVALID},
		{"the token with a key of his own", func() error { return t.heartbeat(ctx, run, "DPoP", token, another) }, faultv1.Reason_TOKEN_PROOF_INVALID},
		{"even with the key: another run", func() error { return t.heartbeat(ctx, w.run, "DPoP", token, key) }, faultv1.Reason_RESOURCE_NOT_FOUND},
		{"even with the key: the workspace", func() error { return t.workspace(ctx, w.workspace, token, key) }, faultv1.Reason_AUTHZ_OUTSIDE_RUN},
	} {
		if err := expect(try.what, try.call(), try.want); err != nil {
			return "", err
		}
		w.printf("   thief   %-34s %s\n", try.what, try.want)
	}
	if err := <-done; err != nil {
		return "", fmt.Errorf("the agent: %w", err)
	}
	if _, err := w.admin.WaitRun(ctx, run, nil); err != nil {
		return "", err
	}
	// The end of a run reaches every service within milliseconds.
	what := "after the end, with the right key"
	var last error
	if err := eventually(ctx, func() error {
		last = t.heartbeat(ctx, run, "DPoP", token, key)
		return expect(what, last, faultv1.Reason_TOKEN_REVOKED)
	}); err != nil {
		return "", err
	}
	w.printf("   thief   %-34s %s\n", what, faultv1.Reason_TOKEN_REVOKED)
	return "refused each time, while the run lived and after", nil
}

func expect(what string, err error, want faultv1.Reason) error {
	if got := fault.ReasonOf(fault.FromStatus(err)); err == nil || got != want {
		return fmt.Errorf("%s: wanted %s, got %w", what, want, errors.Join(err, fmt.Errorf("reason %s", got)))
	}
	return nil
}

// hostRun submits a short run to a self-hosted target, claims it, and makes its agent in this process.
func (w *walk) hostRun(ctx context.Context) (*agent.Agent, string, error) {
	c, err := w.admin.Computes().CreateCompute(ctx, &computev1.CreateComputeRequest{Parent: w.workspace, ComputeId: "mine", Kind: computev1.Compute_KIND_SELF_HOSTED})
	if err != nil {
		return nil, "", err
	}
	r, err := w.admin.Runs().SubmitRun(ctx, &computev1.SubmitRunRequest{
		Parent: w.workspace, RunId: "short-1", Compute: c.GetName(), Snapshot: w.snapshot, Command: []string{"python3", "-c", "import time; time.sleep(1.5)"},
	})
	if err != nil {
		return nil, "", err
	}
	claimed, err := w.admin.Computes().ClaimRun(ctx, &computev1.ClaimRunRequest{Name: c.GetName(), Wait: durationpb.New(10 * time.Second)})
	if err != nil {
		return nil, "", err
	}
	b := claimed.GetBootstrap()
	if b.GetRun() != r.GetName() {
		return nil, "", fmt.Errorf("claimed %q, submitted %q", b.GetRun(), r.GetName())
	}
	u, err := url.Parse(w.url)
	if err != nil {
		return nil, "", err
	}
	roots, err := agent.NewRoots(w.ca)
	if err != nil {
		return nil, "", err
	}
	a, err := agent.New(agent.Config{Gateway: u.Host, PublicURL: w.url, Roots: roots, Run: b.GetRun(), RunUID: b.GetRunUid(), JoinToken: redact.FromString(b.GetJoinToken())})
	return a, r.GetName(), err
}

// thief is a client that is not the agent.
type thief struct {
	conn *grpc.ClientConn
	url  string
}

func (w *walk) newThief() (*thief, error) {
	u, err := url.Parse(w.url)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.ca)
	conn, err := grpc.NewClient("passthrough:///"+u.Host, grpc.WithNoProxy(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})))
	return &thief{conn, w.url}, err
}

// with adds a token and, where there is a key, a proof for exactly this method.
func (t *thief) with(ctx context.Context, method, scheme string, token redact.Secret, key crypto.Signer) (context.Context, error) {
	pairs := []string{"authorization", scheme + " " + token.RevealString()}
	if key != nil {
		p, err := authn.ProverOf(key, nil)
		if err != nil {
			return nil, err
		}
		proof, err := p.Proof("POST", t.url+method, token.RevealString(), "")
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, "dpop", proof)
	}
	return metadata.AppendToOutgoingContext(ctx, pairs...), nil
}

func (t *thief) heartbeat(ctx context.Context, run, scheme string, token redact.Secret, key crypto.Signer) error {
	ctx, err := t.with(ctx, computev1.AgentRunService_Heartbeat_FullMethodName, scheme, token, key)
	if err != nil {
		return err
	}
	_, err = computev1.NewAgentRunServiceClient(t.conn).Heartbeat(ctx, &computev1.HeartbeatRequest{Name: run})
	return err
}

func (t *thief) workspace(ctx context.Context, name string, token redact.Secret, key crypto.Signer) error {
	ctx, err := t.with(ctx, workspacev1.ResourceService_GetWorkspace_FullMethodName, "DPoP", token, key)
	if err != nil {
		return err
	}
	_, err = workspacev1.NewResourceServiceClient(t.conn).GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: name})
	return err
}

// left looks for what the mesh should have taken along: processes that work below the folder, and the public port.
func left(ctx context.Context, dir, address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	d := net.Dialer{Timeout: time.Second}
	if c, err := d.DialContext(ctx, "tcp", u.Host); err == nil {
		_ = c.Close()
		return "", fmt.Errorf("something still listens on %s", u.Host)
	}
	if err := working(dir); err != nil {
		return "", err
	}
	return "no process and no port is left", nil
}

// working names a process that works below the folder, if there is one.
func working(dir string) error {
	procs, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		return err
	}
	for _, p := range procs {
		if cwd, err := os.Readlink(p); err == nil && strings.HasPrefix(cwd, dir+string(filepath.Separator)) {
			return fmt.Errorf("process %s still works in %s", filepath.Base(filepath.Dir(p)), cwd)
		}
	}
	return nil
}
