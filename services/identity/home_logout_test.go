package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

// logout makes a logout token of the issuer, good but for what is changed; nil values are left out.
func (e *elsewhere) logout(change map[string]any) string {
	return typed("logout+jwt", jose.ES256, e.ec, "ec", e.logoutClaims(change))
}

func (e *elsewhere) logoutClaims(change map[string]any) []byte {
	now := e.l.now().Unix()
	e.mu.Lock()
	e.asked++
	c := map[string]any{
		"iss": e.url, "aud": "us", "sub": "alice", "iat": now, "exp": now + 60, "jti": fmt.Sprintf("leave-%d", e.asked),
		"events": map[string]any{logoutEvent: map[string]any{}},
	}
	e.mu.Unlock()
	maps.Copy(c, change)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(c)
	must(e.l.t, err)
	return payload
}

func typed(typ string, alg jose.SignatureAlgorithm, key any, kid string, payload []byte) string {
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		panic(err)
	}
	o, err := s.Sign(payload)
	if err != nil {
		panic(err)
	}
	text, err := o.CompactSerialize()
	if err != nil {
		panic(err)
	}
	return text
}

// tell brings a logout token to the address of an issuer, as its server does.
func (l *lab) tell(issuer, token string) error {
	told++ // each from an address of its own, which has a rate
	return l.tellFrom(fmt.Sprintf("192.0.2.%d", told%200), issuer, token)
}

var told int

func (l *lab) tellFrom(address, issuer, token string) error {
	ctx := metadata.AppendToOutgoingContext(l.t.Context(), rpc.AddressHeader, address)
	page, err := identityv1.NewProviderServiceClient(l.gateway()).ReturnHome(ctx, &identityv1.ReturnHomeRequest{Issuer: issuer, Http: &identityv1.Exchange{
		Method: http.MethodPost, ContentType: "application/x-www-form-urlencoded", Body: []byte(url.Values{"logout_token": {token}}.Encode()),
	}})
	if err == nil && (page.GetStatus() != http.StatusOK || len(page.GetBody()) > 0 || page.GetCookie() != "") {
		l.t.Errorf("the answer is %v", page)
	}
	return fault.FromStatus(err)
}

// Who signs out at home is signed out here, whether the token names him, his session there, or both; nobody else is.
func TestSignedOutAtHome(t *testing.T) { // A6
	l := newLab(t)
	e := l.foreign()
	a := l.apiApp()
	e.trust("partner", nil)
	enter := func(sub, sid string) string {
		e.lie(map[string]any{"sub": sub, "sid": sid})
		return str(e.enter(a, "partner"), "access_token")
	}
	for name, c := range map[string]map[string]any{
		"by subject": nil, "by session": {"sub": nil, "sid": "s-alice"}, "by both": {"sid": "s-alice"}, "by a session that is not known here": {"sid": "another"},
	} {
		alice, bob := enter("alice", "s-alice"), enter("bob", "s-bob")
		b := l.browser()
		if r := e.guest(b, a, "partner"); r.query().Get("code") == "" { // as bob
			t.Fatal("no code")
		}
		must(t, l.tell("partner", e.logout(c)))
		if _, err := l.whoAmI(alice); err == nil {
			t.Errorf("%s: her token works still", name)
		}
		if _, err := l.whoAmI(bob); err != nil {
			t.Errorf("%s: another's token: %v", name, err)
		}
	}
	// Her browser is signed out too, and a factor that is asked for does not bring her in.
	e.lie(map[string]any{"sub": "alice"})
	b := l.browser()
	if r := e.guest(b, a, "partner"); r.query().Get("code") == "" {
		t.Fatal("no code")
	}
	if r := b.get("/oauth2/authorize", a.ask()); r.query().Get("code") == "" {
		t.Fatal("the browser is not signed in")
	}
	must(t, l.tell("partner", e.logout(nil)))
	if r := b.get("/oauth2/authorize", a.ask()); r.query().Get("code") != "" {
		t.Error("the browser is signed in still")
	}
	// Nobody, and a session of nobody: there is nothing to end, and nothing to learn.
	must(t, l.tell("partner", e.logout(map[string]any{"sub": "nobody"})))
	must(t, l.tell("partner", e.logout(map[string]any{"sub": nil, "sid": "nobody's"})))
	for _, ev := range l.events() {
		if ev.GetDetails()["sessions_ended"] != "" && ev.GetDetails()["home_sub"] == "alice" && ev.GetDetails()["home_iss"] == e.url && ev.GetPrincipal() != "" {
			return
		}
	}
	t.Error("no record says that the issuer has signed her out")
}

// What somebody else may post there ends nobody's session. Each case differs in one thing from a token that is taken at the end.
func TestAttackLogoutToken(t *testing.T) { // A6
	l := newLab(t)
	e, other := l.foreign(), l.foreign()
	a := l.apiApp()
	e.trust("partner", nil)
	other.trust("other", nil)
	e.lie(map[string]any{"sid": "s-alice"})
	alice := str(e.enter(a, "partner"), "access_token")
	now := l.now().Unix()
	with := func(name string, v any) string { return e.logout(map[string]any{name: v}) }
	by := func(typ string) string { return typed(typ, jose.ES256, e.ec, "ec", e.logoutClaims(nil)) }
	good := e.logout(nil)
	tried, honoured := 0, 0
	for _, c := range []struct{ name, to, token string }{
		{"nothing", "partner", ""},
		{"no JWT", "partner", "a.b.c"},
		{"an issuer that is not entered", "nobody", good},
		{"brought to another issuer's address", "other", good},
		{"another issuer's word about its subject", "partner", other.logout(nil)},
		{"another issuer's key, in this one's name", "partner", other.logout(map[string]any{"iss": e.url})},
		{"this issuer's key, in another's name", "other", e.logout(map[string]any{"iss": other.url})},
		{"an issuer with a slash behind", "partner", with("iss", e.url+"/")},
		{"no issuer", "partner", with("iss", nil)},
		{"an ID token's type", "partner", by("JWT")},
		{"an access token's type", "partner", by("at+jwt")},
		{"no type", "partner", by("")},
		{"with a nonce", "partner", with("nonce", "n")},
		{"with an empty nonce", "partner", with("nonce", "")},
		{"another audience", "partner", with("aud", "them")},
		{"no audience", "partner", with("aud", nil)},
		{"ours and a strange audience", "partner", with("aud", []string{"us", "them"})},
		{"no events", "partner", with("events", nil)},
		{"another event", "partner", with("events", map[string]any{"http://schemas.openid.net/event/other": map[string]any{}})},
		{"an event that is a word", "partner", with("events", map[string]any{logoutEvent: "yes"})},
		{"an event that is null", "partner", with("events", map[string]any{logoutEvent: nil})},
		{"neither subject nor session", "partner", with("sub", nil)},
		{"a subject with a control", "partner", with("sub", "alice\x00")},
		{"a subject of 256 bytes", "partner", with("sub", strings.Repeat("a", 256))},
		{"no jti", "partner", with("jti", nil)},
		{"an empty jti", "partner", with("jti", "")},
		{"a jti of 256 bytes", "partner", with("jti", strings.Repeat("j", 256))},
		{"no iat", "partner", with("iat", nil)},
		{"two minutes old", "partner", e.logout(map[string]any{"iat": now - 121, "exp": now + 600})},
		{"of the future", "partner", e.logout(map[string]any{"iat": now + 3600, "exp": now + 7200})},
		{"no exp", "partner", with("exp", nil)},
		{"over", "partner", e.logout(map[string]any{"iat": now - 60, "exp": now})},
		{"alg none", "partner", byHand(`{"alg":"none","typ":"logout+jwt"}`, e.logoutClaims(nil), func(string) []byte { return nil })},
		{"HS256 with the client secret", "partner", byHand(`{"alg":"HS256","typ":"logout+jwt"}`, e.logoutClaims(nil), func(in string) []byte {
			h := hmac.New(sha256.New, []byte("our-secret"))
			h.Write([]byte(in))
			return h.Sum(nil)
		})},
		{"an alg that is not allowed", "partner", typed("logout+jwt", jose.PS256, e.rsa, "rsa", e.logoutClaims(nil))},
		{"a changed signature", "partner", good[:len(good)-4] + "AAAA"},
		{"17 KiB", "partner", with("more", strings.Repeat("x", 17<<10))},
	} {
		tried++
		err := l.tell(c.to, c.token)
		if _, e := l.whoAmI(alice); e != nil || fault.Code(err) != codes.InvalidArgument {
			honoured++
			t.Errorf("%s: %v; her token: %v", c.name, err, e)
		}
	}
	fmt.Printf("attack: %s: tried %d, honoured %d\n", t.Name(), tried, honoured)

	// An ID token that the issuer has given is none.
	e.lie(nil)
	if err := l.tell("partner", e.token(url.Values{"nonce": {"n"}})); fault.Code(err) != codes.InvalidArgument {
		t.Errorf("an ID token: %v", err)
	}
	must(t, l.tell("partner", good))
	if _, err := l.whoAmI(alice); err == nil {
		t.Fatal("what is good ends nothing")
	}
	// Once: a sign-in of later is not ended by it.
	alice = str(e.enter(a, "partner"), "access_token")
	if err := l.tell("partner", good); fault.Code(err) != codes.InvalidArgument {
		t.Errorf("again: %v", err)
	}
	if _, err := l.whoAmI(alice); err != nil {
		t.Errorf("a replayed token ends a session: %v", err)
	}
	// Whoever asks on and on is held back.
	held := 0
	for range 30 {
		if fault.Code(l.tellFrom("192.0.2.222", "partner", good)) == codes.ResourceExhausted {
			held++
		}
	}
	if held == 0 {
		t.Error("an address may ask as often as it likes")
	}
	// The same subject of another issuer is another person.
	must(t, l.tell("other", other.logout(nil)))
	must(t, l.tell("other", other.logout(map[string]any{"sub": nil, "sid": "s-alice"})))
	if _, err := l.whoAmI(alice); err != nil {
		t.Errorf("another issuer ends her session: %v", err)
	}
}
