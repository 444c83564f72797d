package rpc

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

// TestCallers holds who may call what services call among themselves.
func TestCallers(t *testing.T) {
	for name, tc := range map[string]struct {
		peer string
		any  bool // a method for "*"
		own  bool // a method for workspace
	}{
		"workspace": {"service/workspace", true, true},
		"compute":   {"service/compute", true, false},
		"gateway":   {"service/gateway", false, false},
		"agent":     {"agent/a1", false, false},
		"operator":  {"operator/" + owner, false, false},
		"run":       {"workspace/ws_1/run/workspace", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			c := telemetryv1.NewIngestServiceClient(l.as(tc.peer))
			// A token is no way around it.
			ctx := bearer(t, l.token(owner))
			_, err := c.Ingest(ctx, &telemetryv1.IngestRequest{Events: []*telemetryv1.ActivityEvent{{}}})
			held(t, err, tc.any)
			_, err = c.PurgeWorkspace(ctx, &telemetryv1.PurgeWorkspaceRequest{WorkspaceUid: "ws_1"})
			held(t, err, tc.own)
		})
	}
}

func held(t *testing.T, err error, allowed bool) {
	t.Helper()
	if allowed {
		ok(t, err)
		return
	}
	refusedAs(t, err, codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)
}

// TestForwarding holds whose token counts over whose connection (A3).
func TestForwarding(t *testing.T) {
	for name, tc := range map[string]struct {
		peer   string
		token  func(*lab) string
		reason faultv1.Reason // 0: good
	}{
		"a user's, through the gateway":    {"service/gateway", func(l *lab) string { return l.token(owner) }, 0},
		"a user's, from a service":         {"service/compute", func(l *lab) string { return l.token(owner) }, faultv1.Reason_TOKEN_AUDIENCE},
		"exchanged, from who exchanged it": {"service/compute", func(l *lab) string { return l.token(owner, exchangedBy("compute")) }, 0},
		"exchanged, from another":          {"service/workspace", func(l *lab) string { return l.token(owner, exchangedBy("compute")) }, faultv1.Reason_PEER_MAY_NOT_FORWARD},
		"exchanged, through the gateway":   {"service/gateway", func(l *lab) string { return l.token(owner, exchangedBy("compute")) }, faultv1.Reason_TOKEN_AUDIENCE},
		"exchanged, without an actor": {"service/compute", func(l *lab) string {
			return l.token(owner, func(c *authn.Claims) { exchangedBy("compute")(c); c.Actor = nil })
		}, faultv1.Reason_PEER_MAY_NOT_FORWARD},
		"his own, from an operator":   {"operator/" + owner, func(l *lab) string { return l.token(owner) }, 0},
		"another's, from an operator": {"operator/" + reader, func(l *lab) string { return l.token(owner) }, faultv1.Reason_PEER_MAY_NOT_FORWARD},
		"from an agent":               {"agent/" + owner, func(l *lab) string { return l.token(owner) }, faultv1.Reason_PEER_MAY_NOT_FORWARD},
		"from a run":                  {"workspace/ws_1/run/" + "r1", func(l *lab) string { return l.token(owner) }, faultv1.Reason_PEER_MAY_NOT_FORWARD},
		"exchanged for another service": {"service/compute", func(l *lab) string {
			return l.token(owner, func(c *authn.Claims) {
				exchangedBy("compute")(c)
				c.Audience = []string{"spiffe://" + domain + "/service/keyvault"}
			})
		}, faultv1.Reason_TOKEN_AUDIENCE},
		"revoked with the one it came from": {"service/compute", func(l *lab) string {
			return l.token(owner, func(c *authn.Claims) { exchangedBy("compute")(c); c.Ancestors = []string{"jti_gone"} })
		}, faultv1.Reason_TOKEN_REVOKED},
		"a user's, revoked":                 {"service/gateway", func(l *lab) string { return l.token(owner, func(c *authn.Claims) { c.ID = "jti_gone" }) }, faultv1.Reason_TOKEN_REVOKED},
		"unbound, sent as bound":            {"service/gateway", func(l *lab) string { return "DPoP " + l.token(owner) }, faultv1.Reason_TOKEN_INVALID},
		"some other scheme":                 {"service/gateway", func(l *lab) string { return "Basic " + l.token(owner) }, faultv1.Reason_TOKEN_MISSING},
		"the scheme's case does not matter": {"service/gateway", func(l *lab) string { return "bEARER " + l.token(owner) }, 0},
		"a run's, where no run has to be": {"service/gateway", func(l *lab) string {
			return l.token(owner, func(c *authn.Claims) {
				c.Run, c.Workspace, c.Actions = "run_1", "ws_1", []string{"telemetry/metrics/read runs/r1"}
				c.Actor = &authn.Actor{Subject: "spiffe://" + domain + "/service/compute"}
			})
		}, faultv1.Reason_AUTHZ_OUTSIDE_RUN},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.revoke("jti_gone")
			token := tc.token(l)
			if !strings.Contains(token, " ") {
				token = "Bearer " + token
			}
			_, err := telemetryv1.NewMetricServiceClient(l.as(tc.peer)).GetRunData(metadata.AppendToOutgoingContext(t.Context(), "authorization", token), &telemetryv1.GetRunDataRequest{Run: run})
			if tc.reason == 0 {
				ok(t, err)
				return
			}
			code := codes.Unauthenticated
			if tc.reason == faultv1.Reason_AUTHZ_OUTSIDE_RUN {
				code = codes.PermissionDenied
			}
			refusedAs(t, err, code, tc.reason)
		})
	}
	t.Run("two tokens are none", func(t *testing.T) {
		l := newLab(t)
		_, err := telemetryv1.NewMetricServiceClient(l.gateway()).GetRunData(bearer(t, l.token(owner), "authorization", "Bearer "+l.token(reader)), &telemetryv1.GetRunDataRequest{Run: run})
		refusedAs(t, err, codes.Unauthenticated, faultv1.Reason_TOKEN_MISSING)
	})
}

// TestBoundTokens holds that a token which is bound to a key counts only with a fresh proof for this method (A3).
func TestBoundTokens(t *testing.T) {
	key, err := authn.GenerateKey()
	ok(t, err)
	other, err := authn.GenerateKey()
	ok(t, err)
	const here = issuer + telemetryv1.MetricService_GetRunData_FullMethodName
	for name, tc := range map[string]struct {
		scheme string
		proofs func(*testing.T, *authn.Prover, *authn.Prover, string) []string
		twice  bool
		good   bool
	}{
		"with its proof": {"DPoP", func(t *testing.T, p, _ *authn.Prover, tok string) []string {
			return []string{proof(t, p, "POST", here, tok)}
		}, false, true},
		"without":            {"DPoP", func(*testing.T, *authn.Prover, *authn.Prover, string) []string { return nil }, false, false},
		"as bearer, without": {"Bearer", func(*testing.T, *authn.Prover, *authn.Prover, string) []string { return nil }, false, false},
		"as bearer, with its proof": {"Bearer", func(t *testing.T, p, _ *authn.Prover, tok string) []string {
			return []string{proof(t, p, "POST", here, tok)}
		}, false, false},
		"replayed": {"DPoP", func(t *testing.T, p, _ *authn.Prover, tok string) []string {
			return []string{proof(t, p, "POST", here, tok)}
		}, true, false},
		"of another key": {"DPoP", func(t *testing.T, _, o *authn.Prover, tok string) []string {
			return []string{proof(t, o, "POST", here, tok)}
		}, false, false},
		"of another token": {"DPoP", func(t *testing.T, p, _ *authn.Prover, _ string) []string {
			return []string{proof(t, p, "POST", here, "another")}
		}, false, false},
		"for another rpc": {"DPoP", func(t *testing.T, p, _ *authn.Prover, tok string) []string {
			return []string{proof(t, p, "POST", issuer+telemetryv1.MetricService_WatchMetrics_FullMethodName, tok)}
		}, false, false},
		"for another verb": {"DPoP", func(t *testing.T, p, _ *authn.Prover, tok string) []string {
			return []string{proof(t, p, "GET", here, tok)}
		}, false, false},
		"two proofs": {"DPoP", func(t *testing.T, p, _ *authn.Prover, tok string) []string {
			return []string{proof(t, p, "POST", here, tok), proof(t, p, "POST", here, tok)}
		}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			p, err := authn.NewProver(key, nil)
			ok(t, err)
			o, err := authn.NewProver(other, nil)
			ok(t, err)
			token := l.token(owner, func(c *authn.Claims) { c.Confirmation = p.Thumbprint() })
			pairs := []string{"authorization", tc.scheme + " " + token}
			for _, s := range tc.proofs(t, p, o, token) {
				pairs = append(pairs, "dpop", s)
			}
			call := func() error {
				_, err := telemetryv1.NewMetricServiceClient(l.gateway()).GetRunData(metadata.AppendToOutgoingContext(t.Context(), pairs...), &telemetryv1.GetRunDataRequest{Run: run})
				return err
			}
			if tc.twice {
				ok(t, call())
			}
			if err := call(); tc.good {
				ok(t, err)
			} else {
				refusedAs(t, err, codes.Unauthenticated, faultv1.Reason_TOKEN_PROOF_INVALID)
			}
		})
	}
}

// A proof is good once, so a call with one is not repeated by who forwards it: gRPC would put TOKEN_PROOF_INVALID in the place of an answer
// that says to try again (A3, H3).
func TestBoundCallsAreNotRepeated(t *testing.T) {
	at := time.Now().Add(-time.Minute)
	stale := authz.New(authz.Config{Now: func() time.Time { return at }})
	key, err := authn.GenerateKey()
	ok(t, err)
	p, err := authn.NewProver(key, nil)
	ok(t, err)
	l := newLab(t, func(c *Config) { c.Engine = stale })
	bound := l.token(owner, func(c *authn.Claims) { c.Confirmation = p.Thumbprint() })
	for name, tc := range map[string]struct {
		pairs []string
		want  string
	}{
		"bound":  {[]string{"authorization", "DPoP " + bound, "dpop", proof(t, p, "POST", issuer+telemetryv1.MetricService_GetRunData_FullMethodName, bound)}, "-1"},
		"bearer": {[]string{"authorization", "Bearer " + l.token(owner)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var trailer metadata.MD
			_, err := telemetryv1.NewMetricServiceClient(l.gateway()).GetRunData(metadata.AppendToOutgoingContext(t.Context(), tc.pairs...), &telemetryv1.GetRunDataRequest{Run: run}, grpc.Trailer(&trailer))
			refusedAs(t, err, codes.Unavailable, faultv1.Reason_AUTHZ_STATE_STALE)
			if got := strings.Join(trailer.Get("grpc-retry-pushback-ms"), ","); got != tc.want {
				t.Errorf("the pushback is %q, want %q", got, tc.want)
			}
		})
	}
}

func proof(t *testing.T, p *authn.Prover, method, url, token string) string {
	t.Helper()
	s, err := p.Proof(method, url, token, "")
	ok(t, err)
	return s
}

func (l *lab) revoke(jti string) {
	l.secure(&identityv1.WatchSecurityResponse{Revocations: []*identityv1.Revocation{{Jti: jti}}})
}
