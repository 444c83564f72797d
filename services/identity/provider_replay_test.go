package identity

import (
	"log/slog"
	"net/http"
	"net/url"
	"testing"

	"google.golang.org/grpc"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

// The token endpoint asks for no nonce, and an instance knows of no proof that another has seen. So whoever has read a whole request may bring it
// there once more, in the minute that its proof lives: nothing that he gets is of use to him.
func TestReplayedProofGivesNothing(t *testing.T) { // A4
	l := newLab(t)
	l.addUser("alice")
	l.addUser("mallory")
	a := l.app("board", nil)
	another := &lab{t: t, clock: l.now(), conns: make(map[string]*grpc.ClientConn), db: l.db, outbox: l.outbox, cfg: l.cfg, admin: l.admin}
	var err error
	another.s, err = New(l.cfg)
	must(t, err)
	another.serve(slog.New(slog.DiscardHandler))
	key, thief := newKey(t), newKey(t)
	proof := func() string { return l.proof(key, http.MethodPost, provider.PathToken, "") }
	at := func(l *lab, q url.Values, proof string) (map[string]any, string) {
		page, err := identityv1.NewProviderServiceClient(l.gateway()).RequestToken(t.Context(), &identityv1.RequestTokenRequest{Http: posted(q, func(x *identityv1.Exchange) { x.Dpop = proof })})
		if err != nil {
			return nil, fault.Describe(fault.FromStatus(err)).Metadata()[oauthError]
		}
		return reply{Page: page}.json(t), ""
	}
	b := l.browser()
	useless := func(what, token string) {
		t.Helper()
		for how, x := range map[string]*identityv1.Exchange{
			"alone": {Authorization: "Bearer " + token}, "without a proof": {Authorization: "DPoP " + token},
			"with the thief's key": {Authorization: "DPoP " + token, Dpop: l.proof(thief, http.MethodGet, provider.PathUserInfo, token)},
		} {
			x.Method = http.MethodGet
			if r := b.send(provider.PathUserInfo, x); r.err == nil {
				t.Errorf("%s: the token is taken %s: %s", what, how, r.text())
			}
		}
	}

	redeem, p := a.redeem(b.code(a, "alice")), proof()
	first, code := at(l, redeem, p)
	if code != "" {
		t.Fatal(code)
	}
	if _, code := at(l, a.redeem(l.browser().code(a, "alice")), p); code != "invalid_dpop_proof" {
		t.Errorf("the proof, with another code, at the same instance: %q", code)
	}

	// A refresh, whole: for a moment it gives the same family again, for the key that the thief has not.
	refresh, p := a.refresh(str(first, "refresh_token")), proof()
	second, code := at(l, refresh, p)
	if code != "" {
		t.Fatal(code)
	}
	if got, code := at(another, refresh, p); code == "" {
		useless("a refresh", str(got, "access_token"))
		if _, code := at(another, a.refresh(str(got, "refresh_token")), l.proof(thief, http.MethodPost, provider.PathToken, "")); code != "invalid_grant" {
			t.Errorf("what it gave is refreshed with the thief's key: %q", code)
		}
	}
	// A code of the thief's own, with her proof: his tokens, and her key.
	got, code := at(another, a.redeem(l.browser().code(a, "mallory")), proof())
	if code != "" {
		t.Fatal(code)
	}
	useless("a code of his own", str(got, "access_token"))
	// She goes on meanwhile.
	if _, code := at(l, a.refresh(str(second, "refresh_token")), proof()); code != "" {
		t.Errorf("she is cut off: %q", code)
	}
	// The first request, whole: its code counted once.
	if _, code := at(another, redeem, proof()); code != "invalid_grant" {
		t.Errorf("a code again: %q", code)
	}
}
