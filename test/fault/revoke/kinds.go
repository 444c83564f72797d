//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net/http"

	"google.golang.org/grpc/metadata"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
)

// right is what somebody was given: what can be asked with it, and how it is taken away.
type right struct {
	probes []probe
	// take takes it away. ctx is the administrator's.
	take func(ctx context.Context) error
	// watch opens a stream with it; nil where there is none.
	watch func(ctx context.Context) (stream, error)
	// writes says that a probe writes the secret of the round.
	writes bool
}

// probe asks one service.
type probe struct {
	service string
	ask     func(ctx context.Context) error
}

type stream interface {
	Recv() (*telemetryv1.ActivityEvent, error)
}

// kind of right. give gives one: ctx is the administrator's, secret the name of the round's secret.
type kind struct {
	name  string
	owner string // the service that takes it away, "" where that is no change under the fence
	give  func(ctx context.Context, l *lane, secret string) (*right, error)
}

var kinds = []kind{
	{"token", "identity", giveToken},
	{"user", "identity", giveUser},
	{"run", "identity", giveRun},
	{"role", "workspace", giveRole},
	{"group", "identity", giveMembership},
	{"key", "", giveKey},
}

// ofWorkspace are what somebody can ask who may contribute to the lane's workspace.
func (l *lane) ofWorkspace(token, secret string) *right {
	as := func(f func(ctx context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error { return f(bearer(ctx, token)) }
	}
	return &right{writes: true, probes: []probe{
		{"workspace", as(func(ctx context.Context) error {
			_, err := workspacev1.NewResourceServiceClient(l.conns["workspace"]).GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: l.workspace})
			return err
		})},
		{"keyvault", as(func(ctx context.Context) error {
			_, err := keyvaultv1.NewSecretServiceClient(l.conns["keyvault"]).ListSecrets(ctx, &keyvaultv1.ListSecretsRequest{Parent: l.workspace, PageSize: 1})
			return err
		})},
		{"compute", as(func(ctx context.Context) error {
			_, err := computev1.NewRunServiceClient(l.conns["compute"]).ListRuns(ctx, &computev1.ListRunsRequest{Parent: l.workspace, PageSize: 1})
			return err
		})},
		{"inference", as(func(ctx context.Context) error {
			_, err := inferencev1.NewEndpointServiceClient(l.conns["inference"]).GetEndpoint(ctx, &inferencev1.GetEndpointRequest{Name: l.endpoint.GetName()})
			return err
		})},
		{"telemetry", as(func(ctx context.Context) error {
			_, err := telemetryv1.NewActivityServiceClient(l.conns["telemetry"]).ListActivity(ctx, &telemetryv1.ListActivityRequest{Scope: l.workspace, PageSize: 1})
			return err
		})},
		{"keyvault", as(func(ctx context.Context) error {
			_, err := keyvaultv1.NewSecretServiceClient(l.conns["keyvault"]).SetSecret(ctx, &keyvaultv1.SetSecretRequest{Parent: l.workspace, SecretId: secret, Value: []byte("value")})
			return err
		})},
	}, watch: func(ctx context.Context) (stream, error) {
		return telemetryv1.NewActivityServiceClient(l.conns["telemetry"]).WatchActivity(bearer(ctx, token), &telemetryv1.WatchActivityRequest{Scope: l.workspace})
	}}
}

// andIdentity adds what a token alone is enough for.
func (r *right) andIdentity(l *lane, token string) *right {
	r.probes = append(r.probes, probe{"identity", func(ctx context.Context) error {
		_, err := identityv1.NewSignInServiceClient(l.conns["identity"]).WhoAmI(bearer(ctx, token), &identityv1.WhoAmIRequest{})
		return err
	}})
	return r
}

func giveToken(ctx context.Context, l *lane, secret string) (*right, error) {
	token, err := l.signIn(ctx, fmt.Sprintf("token-%d", l.n))
	if err != nil {
		return nil, err
	}
	r := l.ofWorkspace(token, secret).andIdentity(l, token)
	r.take = func(ctx context.Context) error {
		_, err := identityv1.NewTokenServiceClient(l.conns["identity"]).RevokeToken(ctx, &identityv1.RevokeTokenRequest{Token: token})
		return err
	}
	return r, nil
}

func giveUser(ctx context.Context, l *lane, secret string) (*right, error) {
	disable := func(ctx context.Context, yes bool) error {
		_, err := identityv1.NewDirectoryServiceClient(l.conns["identity"]).SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: l.users["user"].GetName(), Disabled: yes})
		return err
	}
	if err := disable(ctx, false); err != nil {
		return nil, err
	}
	token, err := l.signIn(ctx, fmt.Sprintf("user-%d", l.n))
	if err != nil {
		return nil, err
	}
	r := l.ofWorkspace(token, secret).andIdentity(l, token)
	r.take = func(ctx context.Context) error { return disable(ctx, true) }
	return r, nil
}

func giveRole(ctx context.Context, l *lane, secret string) (*right, error) {
	a, err := l.assign(ctx, l.users["role"].GetUid())
	if err != nil {
		return nil, err
	}
	r := l.ofWorkspace(l.kept["role"], secret)
	r.take = func(ctx context.Context) error {
		_, err := workspacev1.NewAccessServiceClient(l.conns["workspace"]).DeleteRoleAssignment(ctx, &workspacev1.DeleteRoleAssignmentRequest{Scope: l.workspace, Uid: a.GetUid()})
		return err
	}
	return r, nil
}

// giveMembership makes somebody a member of a group that is in a group that has the role.
func giveMembership(ctx context.Context, l *lane, secret string) (*right, error) {
	d := identityv1.NewDirectoryServiceClient(l.conns["identity"])
	if _, err := d.AddGroupMember(ctx, &identityv1.AddGroupMemberRequest{Name: l.inner.GetName(), Member: l.users["group"].GetUid()}); err != nil {
		return nil, err
	}
	r := l.ofWorkspace(l.kept["group"], secret)
	r.take = func(ctx context.Context) error {
		_, err := d.RemoveGroupMember(ctx, &identityv1.RemoveGroupMemberRequest{Name: l.inner.GetName(), Member: l.users["group"].GetUid()})
		return err
	}
	return r, nil
}

// giveRun is the agent of a run: its token works with its key alone, so each request has a proof.
func giveRun(ctx context.Context, l *lane, _ string) (*right, error) {
	run, err := computev1.NewRunServiceClient(l.conns["compute"]).SubmitRun(ctx, &computev1.SubmitRunRequest{Parent: l.workspace, Compute: l.compute, Snapshot: l.snapshot, Command: []string{"true"}})
	if err != nil {
		return nil, fmt.Errorf("submit: %w", err)
	}
	claim, err := computev1.NewComputeServiceClient(l.conns["compute"]).ClaimRun(ctx, &computev1.ClaimRunRequest{Name: l.compute})
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	if claim.GetBootstrap().GetRunUid() != run.GetUid() {
		return nil, errors.New("another run was claimed")
	}
	key, err := authn.GenerateKey()
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "agent"}}, key)
	if err != nil {
		return nil, err
	}
	enrolled, err := identityv1.NewAgentServiceClient(l.conns["identity"]).EnrolAgent(ctx, &identityv1.EnrolAgentRequest{JoinToken: claim.GetBootstrap().GetJoinToken(), Csr: csr})
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	prover, err := authn.NewProver(key, nil)
	if err != nil {
		return nil, err
	}
	token := enrolled.GetRunToken()
	as := func(ctx context.Context, method string) (context.Context, error) {
		proof, err := prover.Proof("POST", "https://"+l.s.mesh.Address+method, token, "")
		return metadata.AppendToOutgoingContext(ctx, "authorization", "DPoP "+token, "dpop", proof), err
	}
	ask := func(service, method string, f func(ctx context.Context) error) probe {
		return probe{service, func(ctx context.Context) error {
			ctx, err := as(ctx, method)
			if err != nil {
				return err
			}
			return f(ctx)
		}}
	}
	agent := computev1.NewAgentRunServiceClient(l.conns["compute"])
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), setUp)
	defer cancel()
	asking, err = as(metadata.NewOutgoingContext(asking, nil), computev1.AgentRunService_GetAssignment_FullMethodName)
	if err != nil {
		return nil, err
	}
	if _, err := agent.GetAssignment(asking, &computev1.GetAssignmentRequest{Name: run.GetName()}); err != nil {
		return nil, fmt.Errorf("assignment: %w", err)
	}
	r := &right{probes: []probe{
		ask("compute", computev1.AgentRunService_Heartbeat_FullMethodName, func(ctx context.Context) error {
			_, err := agent.Heartbeat(ctx, &computev1.HeartbeatRequest{Name: run.GetName()})
			return err
		}),
		ask("workspace", workspacev1.SnapshotService_GetSnapshot_FullMethodName, func(ctx context.Context) error {
			_, err := workspacev1.NewSnapshotServiceClient(l.conns["workspace"]).GetSnapshot(ctx, &workspacev1.GetSnapshotRequest{Name: l.snapshot})
			return err
		}),
		ask("identity", identityv1.AgentService_RenewRunToken_FullMethodName, func(ctx context.Context) error {
			_, err := identityv1.NewAgentServiceClient(l.conns["identity"]).RenewRunToken(ctx, &identityv1.RenewRunTokenRequest{})
			return err
		}),
		ask("telemetry", telemetryv1.MetricService_LogRunData_FullMethodName, func(ctx context.Context) error {
			s, err := telemetryv1.NewMetricServiceClient(l.conns["telemetry"]).LogRunData(ctx)
			if err != nil {
				return err
			}
			_ = s.Send(&telemetryv1.LogRunDataRequest{Run: run.GetName(), Params: []*telemetryv1.Param{{Key: "p", Value: "v"}}}) // its error is the answer's
			_ = s.CloseSend()
			for {
				if _, err := s.Recv(); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
			}
		}),
	}}
	r.take = func(ctx context.Context) error {
		md, _ := metadata.FromOutgoingContext(ctx)
		md = md.Copy()
		md.Delete("authorization") // it is the agent who ends it
		ctx, err := as(metadata.NewOutgoingContext(ctx, md), computev1.AgentRunService_ReportRun_FullMethodName)
		if err != nil {
			return err
		}
		_, err = agent.ReportRun(ctx, &computev1.ReportRunRequest{Name: run.GetName(), State: computev1.Run_STATE_COMPLETED})
		return err
	}
	return r, nil
}

// giveKey replaces the key of an endpoint, which takes the one before away. The endpoint has no replica: whom it lets in it tells so.
func giveKey(ctx context.Context, l *lane, _ string) (*right, error) {
	regenerate := func(ctx context.Context) (string, error) {
		c, err := inferencev1.NewEndpointServiceClient(l.conns["inference"]).RegenerateKey(ctx, &inferencev1.RegenerateKeyRequest{Name: l.endpoint.GetName(), KeyType: inferencev1.KeyType_KEY_TYPE_PRIMARY})
		return c.GetPrimaryKey(), err
	}
	key, err := regenerate(ctx)
	if err != nil {
		return nil, err
	}
	return &right{probes: []probe{{"scoring", func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.s.scoring+l.endpoint.GetUid()+"/", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+key)
		res, err := l.http.Do(req)
		if err != nil {
			return err
		}
		_ = res.Body.Close()
		return scored(res.StatusCode)
	}}}, take: func(ctx context.Context) error {
		_, err := regenerate(ctx)
		return err
	}}, nil
}
