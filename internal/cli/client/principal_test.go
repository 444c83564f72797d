package client

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// IssueToken gives numbered tokens of an hour for the secret "open".
func (g *gateway) IssueToken(ctx context.Context, r *identityv1.IssueTokenRequest) (*identityv1.TokenResponse, error) {
	if err := g.called(ctx, "token"); err != nil {
		return nil, err
	}
	if r.GetClientId() != "spn_1" || r.GetClientSecret() != "open" || r.GetGrantType() != "client_credentials" {
		return nil, status.Error(codes.Unauthenticated, "no such client")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.issued++
	return &identityv1.TokenResponse{AccessToken: fmt.Sprintf("t%d", g.issued), ExpiresIn: durationpb.New(time.Hour)}, nil
}

func TestServicePrincipalRenewsItsToken(t *testing.T) {
	g, c := serve(t)
	now, secret := time.Now(), "open"
	asked := 0
	cl, err := DialAs(c, ServicePrincipal{ID: "spn_1", Now: func() time.Time { return now }, Secret: func() (redact.Secret, error) {
		asked++
		if secret == "" {
			return redact.Secret{}, errors.New("the file is gone")
		}
		return redact.FromString(secret), nil
	}})
	must(t, err)
	t.Cleanup(func() { _ = cl.Close() })
	call := func() error {
		_, err := cl.Runs().GetRun(t.Context(), &computev1.GetRunRequest{Name: "r"})
		return err
	}
	last := func(want string, issued int) {
		t.Helper()
		g.mu.Lock()
		defer g.mu.Unlock()
		if got := g.tokens[len(g.tokens)-1]; got != want || g.issued != issued || asked < issued {
			t.Errorf("the last call had %q after %d tokens and %d looks at the secret, wanted %q and %d", got, g.issued, asked, want, issued)
		}
	}
	must(t, call())
	must(t, call())
	last("Bearer t1", 1)
	now = now.Add(44 * time.Minute)
	must(t, call())
	last("Bearer t1", 1)
	now = now.Add(2 * time.Minute)
	must(t, call())
	last("Bearer t2", 2)

	// What the installation takes no more is replaced at once, and the call is made again; once only.
	g.mu.Lock()
	g.refused = "Bearer t2"
	g.mu.Unlock()
	must(t, call())
	last("Bearer t3", 3)
	g.mu.Lock()
	g.refused = "*"
	g.mu.Unlock()
	if err := call(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("got %v", err)
	}
	last("Bearer t4", 4)
	g.mu.Lock()
	g.refused = ""
	g.mu.Unlock()

	// A replaced secret is read when the next token is needed, and a wrong one is told as that.
	now, secret = now.Add(time.Hour), "closed"
	if err := call(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("got %v", err)
	}
	secret = ""
	if err := call(); status.Code(err) != codes.Unauthenticated || status.Convert(err).Message() != "the file is gone" {
		t.Errorf("got %v", err)
	}
}

// A token that is good yet is used while identity is away.
func TestServicePrincipalKeepsItsTokenWhileIdentityIsAway(t *testing.T) {
	g, c := serve(t)
	now := time.Now()
	cl, err := DialAs(c, ServicePrincipal{ID: "spn_1", Now: func() time.Time { return now }, Secret: func() (redact.Secret, error) { return redact.FromString("open"), nil }})
	must(t, err)
	t.Cleanup(func() { _ = cl.Close() })
	get := func() error {
		_, err := cl.Runs().GetRun(t.Context(), &computev1.GetRunRequest{Name: "r"})
		return err
	}
	must(t, get())
	g.mu.Lock()
	g.failTokens = true
	g.mu.Unlock()
	now = now.Add(50 * time.Minute)
	must(t, get())
	now = now.Add(11 * time.Minute)
	if err := get(); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}
