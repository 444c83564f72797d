package rpc

import (
	"context"
	"testing"

	"google.golang.org/grpc/metadata"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
)

// A4: who holds a genuine token that he may not use is refused, and the record says whose token it was, of which run, and why. A token
// that proves nothing names nobody.
func TestStolenTokensAreRecorded(t *testing.T) {
	key, err := authn.GenerateKey()
	ok(t, err)
	p, err := authn.NewProver(key, nil)
	ok(t, err)
	bound := func(c *authn.Claims) {
		c.Confirmation, c.Run, c.Workspace, c.Actions = p.Thumbprint(), "run_1", "ws_1", []string{"compute/runs/execute runs/r1"}
	}
	for name, tc := range map[string]struct {
		change func(*authn.Claims)
		pairs  func(t *testing.T, l *lab, token string) []string
		reason string
		by     string
	}{
		"without its key": {bound, func(_ *testing.T, _ *lab, token string) []string { return []string{"authorization", "Bearer " + token} }, "TOKEN_PROOF_INVALID", owner},
		"for another address": {bound, func(t *testing.T, _ *lab, token string) []string {
			return []string{"authorization", "DPoP " + token, "dpop", proof(t, p, "POST", "https://elsewhere.test"+telemetryv1.MetricService_GetRunData_FullMethodName, token)}
		}, "TOKEN_PROOF_INVALID", owner},
		"over":                 {func(c *authn.Claims) { expired(c); bound(c) }, nil, "TOKEN_EXPIRED", owner},
		"of another service":   {exchangedBy("compute"), nil, "TOKEN_AUDIENCE", owner},
		"revoked with its run": {func(c *authn.Claims) { bound(c); c.Run = "run_over" }, nil, "TOKEN_REVOKED", owner},
		"signed by nobody": {bound, func(_ *testing.T, _ *lab, token string) []string {
			return []string{"authorization", "Bearer " + token[:len(token)-8] + "AAAAAAAA"}
		}, "TOKEN_INVALID", ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.secure(&identityv1.WatchSecurityResponse{Revocations: []*identityv1.Revocation{{RunUid: "run_over"}}})
			token := l.token(owner, tc.change)
			if tc.pairs == nil {
				tc.pairs = func(*testing.T, *lab, string) []string { return []string{"authorization", "Bearer " + token} }
			}
			call := func() error {
				_, err := telemetryv1.NewMetricServiceClient(l.gateway()).GetRunData(metadata.AppendToOutgoingContext(context.Background(), tc.pairs(t, l, token)...), &telemetryv1.GetRunDataRequest{Run: run})
				return err
			}
			if call() == nil {
				t.Fatal("honoured")
			}
			if tc.by == "" {
				if n := l.rec.counts(); n != [3]int{0, 0, 1} {
					t.Errorf("recorded, appended, aggregated: %v", n)
				}
				return
			}
			ev := l.rec.last(t)
			c := authn.Claims{}
			tc.change(&c)
			if ev.GetPrincipal() != tc.by || ev.GetReason() != tc.reason || ev.GetResult() != telemetryv1.ActivityEvent_RESULT_DENIED || ev.GetRunUid() != c.Run {
				t.Errorf("the record is %v", ev)
			}
			for range 4 * suspectRecords { // it fills no log
				_ = call()
			}
			if n := l.rec.counts(); n[0] < suspectRecords || n[0] > 3*suspectRecords || n[0]+n[2] != 4*suspectRecords+1 {
				t.Errorf("recorded, appended, aggregated: %v", n)
			}
		})
	}
}
