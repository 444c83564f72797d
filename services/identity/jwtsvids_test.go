package identity

import (
	"crypto/ecdsa"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/identity/internal/rotation"
)

// jwtSVID asks as a service for a JWT-SVID of its own.
func (l *lab) jwtSVID(path string, audience ...string) (*identityv1.IssueJWTSVIDResponse, error) {
	return identityv1.NewWorkloadIdentityServiceClient(l.as(path)).IssueJWTSVID(l.t.Context(), &identityv1.IssueJWTSVIDRequest{Audience: audience})
}

// trustBundle is what anybody gets.
func (l *lab) trustBundle() *spiffebundle.Bundle {
	l.t.Helper()
	r, err := identityv1.NewWorkloadIdentityServiceClient(l.gateway()).GetSPIFFEBundle(l.t.Context(), &identityv1.GetSPIFFEBundleRequest{})
	must(l.t, err)
	b, err := spiffebundle.Parse(l.s.td, r.GetJson())
	must(l.t, err)
	return b
}

func sequence(t *testing.T, b *spiffebundle.Bundle) uint64 {
	t.Helper()
	n, ok := b.SequenceNumber()
	if !ok {
		t.Fatal("the bundle has no sequence")
	}
	return n
}

func svidKeys(b *spiffebundle.Bundle) map[string]*ecdsa.PublicKey {
	out := make(map[string]*ecdsa.PublicKey)
	for kid, key := range b.JWTAuthorities() {
		out[kid] = key.(*ecdsa.PublicKey) //nolint:forcetypeassert // identity makes no others
	}
	return out
}

// A JWT-SVID is for who the certificate on the connection says, and for nobody else; what issues it is in the activity log (A3, A4).
func TestJWTSVIDIsOfTheCallerAlone(t *testing.T) {
	l := newLab(t)
	r, err := l.jwtSVID("service/compute", "https://board.example", "shop")
	must(t, err)
	if left := r.GetExpireTime().AsTime().Sub(l.now()); left != jwtSVIDLife {
		t.Errorf("it lives for %v", left)
	}
	b := l.trustBundle()
	says, err := jwtsvid.ParseAndValidate(r.GetToken(), b, []string{"shop"})
	must(t, err)
	if says.ID != l.id("service/compute") {
		t.Errorf("it is for %s", says.ID)
	}
	if _, err := svid.VerifyJWT(r.GetToken(), "https://board.example", l.s.td, svidKeys(b), l.now()); err != nil {
		t.Error(err)
	}
	var recorded bool
	for _, e := range l.events() {
		recorded = recorded || e.GetMethod() == identityv1.WorkloadIdentityService_IssueJWTSVID_FullMethodName && e.GetDetails()["audience"] == "https://board.example shop"
		if strings.Contains(e.String(), r.GetToken()) {
			t.Error("the token is in the activity log")
		}
	}
	if !recorded {
		t.Error("the activity log does not say for whom it was issued")
	}
	for name, c := range map[string]struct {
		path     string
		audience []string
		code     codes.Code
	}{
		"a run":                    {"workspace/ws_1/run/run_1", []string{"shop"}, codes.PermissionDenied},
		"an endpoint":              {"workspace/ws_1/endpoint/e", []string{"shop"}, codes.PermissionDenied},
		"an operator":              {"operator/usr_1", []string{"shop"}, codes.PermissionDenied},
		"an agent":                 {"agent/agt_1", []string{"shop"}, codes.PermissionDenied},
		"a service there is not":   {"service/board", []string{"shop"}, codes.PermissionDenied},
		"no audience":              {"service/compute", nil, codes.InvalidArgument},
		"an empty audience":        {"service/compute", []string{""}, codes.InvalidArgument},
		"one twice":                {"service/compute", []string{"shop", "shop"}, codes.InvalidArgument},
		"a zero in it":             {"service/compute", []string{"shop\x00"}, codes.InvalidArgument},
		"more than there shall be": {"service/compute", strings.Split("123456789", ""), codes.InvalidArgument},
	} {
		if r, err := l.jwtSVID(c.path, c.audience...); fault.Code(fault.FromStatus(err)) != c.code || r.GetToken() != "" {
			t.Errorf("%s: %v, want %v", name, err, c.code)
		}
	}
}

// The bundle's number rises with each key and root that comes or goes, and with nothing else.
func TestSPIFFEBundleHasANumberForEachContent(t *testing.T) {
	l := newLabAt(t, time.Now().Add(-2*time.Hour), func(c *Config) { c.FollowWithin = time.Millisecond })
	admin := func() (token string) { return l.signIn("admin", adminPassword).GetAccessToken() }
	first := l.trustBundle()
	if n := len(first.JWTAuthorities()); n != 2 || len(first.X509Authorities()) != 1 {
		t.Fatalf("%d keys and %d roots", n, len(first.X509Authorities()))
	}
	if hint, ok := first.RefreshHint(); !ok || hint <= 0 || hint > l.s.policy.Ahead {
		t.Errorf("to be asked for again after %v", hint)
	}
	watch, err := l.keyServiceAs("compute").WatchAuthorities(t.Context(), &identityv1.WatchAuthoritiesRequest{})
	must(t, err)
	told := func(want *spiffebundle.Bundle) {
		t.Helper()
		for {
			m, err := watch.Recv()
			must(t, err)
			b, err := spiffebundle.Parse(l.s.td, m.GetTrustBundle())
			must(t, err)
			if b.Equal(want) {
				return
			}
		}
	}
	told(first)
	l.addUser("ada")
	_, err = identityv1.NewTokenServiceClient(l.gateway()).RevokeToken(bearer(t.Context(), admin()), &identityv1.RevokeTokenRequest{Token: admin()})
	must(t, err)
	if n := sequence(t, l.trustBundle()); n != sequence(t, first) {
		t.Error("the number rises with what has nothing to do with the bundle")
	}
	_, err = l.keyService().PrepareAuthority(bearer(t.Context(), admin()), &identityv1.PrepareAuthorityRequest{})
	must(t, err)
	prepared := l.trustBundle()
	if sequence(t, prepared) <= sequence(t, first) || len(prepared.X509Authorities()) != 2 {
		t.Errorf("a prepared root: %d roots, number %d after %d", len(prepared.X509Authorities()), sequence(t, prepared), sequence(t, first))
	}
	told(prepared)

	// In turn: the next key signs when it was told for long enough, and one follows it.
	before, err := l.jwtSVID("service/compute", "shop")
	must(t, err)
	r, err := l.keyService().RotateSigningKeys(bearer(t.Context(), admin()), &identityv1.RotateSigningKeysRequest{})
	must(t, err)
	if got := states(&identityv1.ListSigningKeysResponse{SigningKeys: r.GetSvidKeys()}); got != "CURRENT NEXT" {
		t.Errorf("the keys of JWT-SVIDs right after the order: %s", got)
	}
	l.advance(keyAhead + jwtSVIDLife + rotation.Leeway + time.Second) // nothing that the old one has signed lives any more
	l.settle()
	var turned *spiffebundle.Bundle
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		turned, err = spiffebundle.Parse(l.s.td, l.s.authority.Load().bundle)
		must(t, err)
		if len(turned.JWTAuthorities()) == 2 && !turned.HasJWTAuthority(kid(t, before.GetToken())) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a key that is over stays in the bundle")
		}
	}
	after, err := l.jwtSVID("service/compute", "shop")
	must(t, err)
	if kid(t, after.GetToken()) == kid(t, before.GetToken()) {
		t.Error("the next key does not sign")
	}
	if !prepared.HasJWTAuthority(kid(t, after.GetToken())) {
		t.Error("a key signs that was not told before")
	}
	if sequence(t, turned) <= sequence(t, prepared) {
		t.Errorf("number %d after %d", sequence(t, turned), sequence(t, prepared))
	}

	// In an emergency none of them stays.
	_, err = l.keyService().RotateSigningKeys(bearer(t.Context(), admin()), &identityv1.RotateSigningKeysRequest{Emergency: true})
	must(t, err)
	dropped := l.trustBundle()
	told(dropped)
	for old := range turned.JWTAuthorities() {
		if dropped.HasJWTAuthority(old) {
			t.Error("a key stays in an emergency")
		}
	}
	if _, err := svid.VerifyJWT(after.GetToken(), "shop", l.s.td, svidKeys(dropped), l.now()); err == nil {
		t.Error("what a dropped key has signed is believed")
	}
	fresh, err := l.jwtSVID("service/compute", "shop")
	must(t, err)
	if _, err := svid.VerifyJWT(fresh.GetToken(), "shop", l.s.td, svidKeys(dropped), l.now()); err != nil {
		t.Error(err)
	}
	// A restart finds the same.
	again, err := New(l.cfg)
	must(t, err)
	defer again.Close()
	var a, b map[string]any
	must(t, json.Unmarshal(again.authority.Load().bundle, &a))
	must(t, json.Unmarshal(l.s.authority.Load().bundle, &b))
	if a["spiffe_sequence"] != b["spiffe_sequence"] || len(a["keys"].([]any)) != len(b["keys"].([]any)) { //nolint:forcetypeassert // as rendered
		t.Errorf("after a restart: %v, before: %v", a, b)
	}
}

func (l *lab) keyServiceAs(name string) identityv1.KeyServiceClient {
	return identityv1.NewKeyServiceClient(l.service(name))
}

// TestAttackJWTSVIDs shows tokens of one kind where the other is wanted, and signs each with the other's key (A3).
func TestAttackJWTSVIDs(t *testing.T) {
	l := newLab(t)
	r, err := l.jwtSVID("service/compute", "shop", issuer)
	must(t, err)
	forInstallation, err := l.jwtSVID("service/compute", issuer)
	must(t, err)
	access := l.signIn("admin", adminPassword).GetAccessToken()
	says := l.claims(access, issuer)
	other := l.otherService()
	keys := svidKeys(l.trustBundle())
	svidKey, err := l.s.jwtKey()
	must(t, err)
	tokenKey := l.s.keys.state.Load().keys[0]
	now := l.now()

	// The keys themselves: nothing stands in both sets.
	ids, _ := l.jwks()
	for kid := range keys {
		if slices.Contains(ids, kid) {
			t.Errorf("%s signs tokens and JWT-SVIDs", kid)
		}
	}
	sign := func(key *ecdsa.PrivateKey, kid, typ string, claims any) string {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
		must(t, err)
		raw, err := json.Marshal(claims)
		must(t, err)
		jws, err := s.Sign(raw)
		must(t, err)
		out, err := jws.CompactSerialize()
		must(t, err)
		return out
	}
	mint := func(key *ecdsa.PrivateKey, kid string) string {
		s, err := authn.NewSigner(key, kid)
		must(t, err)
		c := says
		c.ID, c.IssuedAt, c.Expiry = "tok_forged", now, now.Add(10*time.Minute)
		token, err := s.Mint(c)
		must(t, err)
		return token
	}
	svidOf := map[string]any{"sub": "spiffe://redoubt.test/service/compute", "aud": []string{"shop"}, "exp": now.Add(time.Minute).Unix(), "iat": now.Unix()}

	tried, accepted := 0, 0
	// As access tokens: at identity itself, at another service, and over the wire.
	for name, token := range map[string]string{
		"a JWT-SVID":                                        r.GetToken(),
		"one for the installation":                          forInstallation.GetToken(),
		"an access token by the key of JWT-SVIDs":           mint(svidKey.Key, svidKey.ID),
		"the same under a kid of access tokens":             mint(svidKey.Key, tokenKey.KeyID),
		"a JWT-SVID by the key of access tokens":            sign(tokenKey.Key, tokenKey.KeyID, "JWT", svidOf),
		"its claims with an access token's type":            sign(tokenKey.Key, tokenKey.KeyID, "at+jwt", svidOf),
		"the same by the key of JWT-SVIDs":                  sign(svidKey.Key, svidKey.ID, "at+jwt", svidOf),
		"a JWT-SVID's claims with a user's subject":         sign(svidKey.Key, svidKey.ID, "JWT", map[string]any{"sub": says.Subject, "aud": issuer, "iss": issuer, "exp": now.Add(time.Minute).Unix(), "iat": now.Unix()}),
		"an access token's claims and type by the SVID key": sign(svidKey.Key, svidKey.ID, "at+jwt", map[string]any{"sub": says.Subject, "aud": issuer, "iss": issuer, "exp": now.Add(time.Minute).Unix(), "iat": now.Unix()}),
	} {
		tried += 4
		if _, err := l.s.verifier.Verify(t.Context(), token, issuer); err == nil {
			accepted++
			t.Errorf("%s: identity takes it", name)
		}
		if err := other.accepts(t, token); err == nil {
			accepted++
			t.Errorf("%s: another service takes it", name)
		}
		if _, err := l.whoAmI(token); err == nil {
			accepted++
			t.Errorf("%s: it is an access token over the wire", name)
		} else {
			want(t, name, err, codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID)
		}
		if _, err := l.exchange("compute", token, "workspace"); err == nil {
			accepted++
			t.Errorf("%s: it is exchanged", name)
		}
	}
	// As JWT-SVIDs.
	for name, token := range map[string]string{
		"an access token":                             access,
		"a JWT-SVID by the key of access tokens":      sign(tokenKey.Key, tokenKey.KeyID, "JWT", svidOf),
		"the same under a kid of JWT-SVIDs":           sign(tokenKey.Key, svidKey.ID, "JWT", svidOf),
		"a right one with an access token's type":     sign(svidKey.Key, svidKey.ID, "at+jwt", svidOf),
		"an access token by the key of JWT-SVIDs":     mint(svidKey.Key, svidKey.ID),
		"an access token's claims, a JWT-SVID's type": sign(svidKey.Key, svidKey.ID, "JWT", map[string]any{"sub": says.Subject, "aud": "shop", "exp": now.Add(time.Minute).Unix()}),
	} {
		for _, audience := range []string{"shop", issuer, ""} {
			tried += 2
			if _, err := svid.VerifyJWT(token, audience, l.s.td, keys, now); err == nil {
				accepted++
				t.Errorf("%s: a JWT-SVID for %q", name, audience)
			}
			if _, err := jwtsvid.ParseAndValidate(token, l.trustBundle(), []string{audience}); err == nil {
				accepted++
				t.Errorf("%s: a JWT-SVID for %q, says the standard's client", name, audience)
			}
		}
	}
	// For another's name: no caller gets one, whoever he is.
	for _, path := range []string{"workspace/ws_1/run/run_1", "operator/" + l.admin, "service/other", "agent/agt_1"} {
		tried++
		if one, err := l.jwtSVID(path, "shop"); err == nil {
			accepted++
			t.Errorf("%s gets %s", path, one)
		}
	}
	if _, err := svid.VerifyJWT(sign(svidKey.Key, svidKey.ID, "JWT", svidOf), "shop", l.s.td, keys, now); err != nil {
		t.Fatalf("the one that is right is refused: %v", err)
	}
	t.Logf("tokens of one kind as the other: tried %d, accepted %d", tried, accepted)
}
