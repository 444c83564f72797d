package svid

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type forgedJWT struct{ name, token, audience string }

// forgedJWTs are JWT-SVIDs that must not pass. Those that are signed are signed by the right key, unless the key is what is forged: only the
// check that the name tells stands in their way.
func forgedJWTs(t *testing.T, i *jwtIssuer) []forgedJWT {
	key := i.keys[0]
	now := time.Now().Unix()
	sub := i.id.String()
	body := func(sub string, aud any, exp any, more ...string) string {
		audience := fmt.Sprintf("%q", aud)
		if s, ok := aud.(rawJSON); ok {
			audience = string(s)
		}
		out := fmt.Sprintf(`"sub":%q,"aud":%s,"exp":%v,"iat":%d`, sub, audience, exp, now)
		return "{" + strings.Join(append([]string{out}, more...), ",") + "}"
	}
	good := body(sub, "board", now+300)
	head := map[jose.HeaderKey]any{"typ": "JWT", "kid": key.ID}
	with := func(kv ...any) map[jose.HeaderKey]any {
		h := map[jose.HeaderKey]any{"typ": "JWT", "kid": key.ID}
		for n := 0; n < len(kv); n += 2 {
			k := jose.HeaderKey(kv[n].(string)) //nolint:forcetypeassert // written below
			if kv[n+1] == nil {
				delete(h, k)
				continue
			}
			h[k] = kv[n+1]
		}
		return h
	}
	signed := func(payload string) string { return signJWS(t, jose.ES256, key.Key, head, payload) }
	headed := func(kv ...any) string { return signJWS(t, jose.ES256, key.Key, with(kv...), good) }
	thief := newKey(t)
	fine := signed(good)
	parts := strings.Split(fine, ".")
	spki, err := x509.MarshalPKIXPublicKey(&key.Key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.Key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	hs := func(secret []byte) string {
		in := b64JSON(t, map[string]any{"alg": "HS256", "typ": "JWT", "kid": key.ID}) + "." + parts[1]
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(in))
		return in + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
	}
	wide, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	none := func(alg string) string {
		return b64JSON(t, map[string]any{"alg": alg, "typ": "JWT", "kid": key.ID}) + "." + parts[1] + "."
	}
	embedded := jose.JSONWebKey{Key: &thief.PublicKey, KeyID: key.ID}
	flip := func(s string) string { // a bit that base64url decoders may ignore
		const abc = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		return s[:len(s)-1] + string(abc[strings.IndexByte(abc, s[len(s)-1])|1])
	}
	der := func() string {
		in := parts[0] + "." + parts[1]
		d := sha256.Sum256([]byte(in))
		b, err := ecdsa.SignASN1(rand.Reader, key.Key, d[:])
		if err != nil {
			t.Fatal(err)
		}
		return in + "." + base64.RawURLEncoding.EncodeToString(b)
	}
	zero := parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64))
	at := func(name, token string) forgedJWT { return forgedJWT{name, token, "board"} }
	out := []forgedJWT{
		// the algorithm
		at("none", none("none")), at("None", none("None")), at("NONE with the signature", strings.TrimSuffix(none("NONE"), ".")+"."+parts[2]),
		at("HS256 with the public key as DER", hs(spki)), at("HS256 with its point", hs(point)), at("HS256 with nothing", hs(nil)),
		at("ES384 of another curve", signJWS(t, jose.ES384, wide, head, good)), at("RS256", signJWS(t, jose.RS256, rsaKey, head, good)), at("PS256", signJWS(t, jose.PS256, rsaKey, head, good)),
		at("ES256 in DER", der()), at("a signature of zeros", zero),
		// the key
		at("another's key under the right kid", signJWS(t, jose.ES256, thief, head, good)),
		at("a key in the header", signJWS(t, jose.ES256, thief, with("jwk", embedded), good)), at("the right key in the header too", headed("jwk", jose.JSONWebKey{Key: &key.Key.PublicKey})),
		at("jku", headed("jku", "https://thief.example/keys")), at("x5u", headed("x5u", "https://thief.example/keys")), at("x5c", headed("x5c", []string{base64.StdEncoding.EncodeToString(spki)})),
		at("crit", headed("crit", []string{"exp"})), at("cty", headed("cty", "JWT")), at("b64", headed("b64", true)),
		at("no kid", headed("kid", nil)), at("an empty kid", headed("kid", "")), at("an unknown kid", headed("kid", "another")), at("a path for a kid", headed("kid", "../"+key.ID)),
		at("SQL for a kid", headed("kid", key.ID+"' OR '1'='1")), at("a kid with a zero", headed("kid", key.ID+"\x00")), at("a kid that is a number", headed("kid", 1)), at("a kid in other letters", headed("kid", strings.ToUpper(key.ID))),
		// the type
		at("an access token's type", headed("typ", "at+jwt")), at("a proof's type", headed("typ", "dpop+jwt")), at("a type in other letters", headed("typ", "jwt")), at("a type that is a list", headed("typ", []string{"JWT"})),
		// the audience
		{"another audience", fine, "shop"}, {"an audience in other letters", fine, "BOARD"}, {"part of the audience", fine, "boar"}, {"more than the audience", fine, "board "},
		at("no audience", signed(strings.Replace(good, `"aud":"board",`, "", 1))), at("an empty audience", signed(body(sub, "", now+300))), at("an empty list", signed(body(sub, rawJSON("[]"), now+300))),
		at("an audience that is null", signed(body(sub, rawJSON("null"), now+300))), at("an audience that is a number", signed(body(sub, rawJSON("1"), now+300))),
		at("an empty one in the list", signed(body(sub, rawJSON(`["board",""]`), now+300))), at("a number in the list", signed(body(sub, rawJSON(`["board",1]`), now+300))), at("an object", signed(body(sub, rawJSON(`{"board":"board"}`), now+300))),
		at("nine audiences", signed(body(sub, rawJSON(`["board","1","2","3","4","5","6","7","8"]`), now+300))),
		// the time
		at("expired", signed(body(sub, "board", now-1))), at("expired now", signed(body(sub, "board", now))), at("no end", signed(strings.Replace(good, fmt.Sprintf(`,"exp":%d`, now+300), "", 1))),
		at("an end that is a text", signed(body(sub, "board", fmt.Sprintf(`"%d"`, now+300)))), at("a fraction", signed(body(sub, "board", fmt.Sprintf("%d.5", now+300)))), at("an exponent", signed(body(sub, "board", "1e12"))),
		at("an end below zero", signed(body(sub, "board", -1))), at("an end far away", signed(body(sub, "board", "99999999999999999999"))), at("an end that is null", signed(body(sub, "board", "null"))),
		at("of the future", signed(body(sub, "board", now+300, fmt.Sprintf(`"nbf":%d`, now+200)))), at("nbf that is a text", signed(body(sub, "board", now+300, `"nbf":"0"`))),
		at("issued in the future", signed(fmt.Sprintf(`{"sub":%q,"aud":"board","exp":%d,"iat":%d}`, sub, now+600, now+300))), at("ends before it begins", signed(fmt.Sprintf(`{"sub":%q,"aud":"board","exp":%d,"iat":%d}`, sub, now+5, now+10))),
		// the subject
		at("another trust domain", signed(body("spiffe://other.test/service/compute", "board", now+300))), at("a trust domain below ours", signed(body("spiffe://a.mesh.test/service/compute", "board", now+300))),
		at("the trust domain itself", signed(body("spiffe://mesh.test", "board", now+300))), at("the trust domain with a slash", signed(body("spiffe://mesh.test/", "board", now+300))),
		at("no scheme", signed(body("mesh.test/service/compute", "board", now+300))), at("https", signed(body("https://mesh.test/service/compute", "board", now+300))), at("a scheme in other letters", signed(body("SPIFFE://mesh.test/service/compute", "board", now+300))),
		at("a domain in other letters", signed(body("spiffe://MESH.test/service/compute", "board", now+300))), at("dots in the path", signed(body("spiffe://mesh.test/service/../service/compute", "board", now+300))),
		at("two slashes", signed(body("spiffe://mesh.test//service/compute", "board", now+300))), at("a port", signed(body("spiffe://mesh.test:443/service/compute", "board", now+300))), at("a user", signed(body("spiffe://x@mesh.test/service/compute", "board", now+300))),
		at("a query", signed(body("spiffe://mesh.test/service/compute?x", "board", now+300))), at("a fragment", signed(body("spiffe://mesh.test/service/compute#x", "board", now+300))), at("an escape", signed(body("spiffe://mesh.test/service/%63ompute", "board", now+300))),
		at("a uid", signed(body("usr_1", "board", now+300))), at("an empty subject", signed(body("", "board", now+300))), at("no subject", signed(strings.Replace(good, fmt.Sprintf(`"sub":%q,`, sub), "", 1))),
		at("a subject that is a list", signed(strings.Replace(good, fmt.Sprintf(`"sub":%q`, sub), fmt.Sprintf(`"sub":[%q]`, sub), 1))), at("a subject of 3,000 bytes", signed(body(sub+"/"+strings.Repeat("a", 3000), "board", now+300))),
		// the form
		at("the subject twice", signed(strings.Replace(good, "{", `{"sub":"spiffe://mesh.test/service/identity",`, 1))), at("the end twice", signed(strings.Replace(good, "{", `{"exp":99999999999,`, 1))),
		at("a list", signed("["+good+"]")), at("two objects", signed(good+good)), at("nothing", signed("")), at("no UTF-8", signed(strings.Replace(good, "board", "board\xff", 1))),
		at("an empty token", ""), at("dots", ".."), at("two parts", parts[0]+"."+parts[1]), at("four parts", fine+"."), at("five parts", fine+".."),
		at("padded", fine+"="), at("a space after", fine+" "), at("a line break in it", parts[0]+"\n."+parts[1]+"."+parts[2]), at("another spelling of the signature", parts[0]+"."+parts[1]+"."+flip(parts[2])),
		at("another payload", parts[0]+"."+b64JSON(t, map[string]any{"sub": "spiffe://mesh.test/service/identity", "aud": "board", "exp": now + 300})+"."+parts[2]),
		at("another header", b64JSON(t, map[string]any{"alg": "ES256", "kid": key.ID})+"."+parts[1]+"."+parts[2]),
		at("JSON of a JWS", `{"payload":"`+parts[1]+`","protected":"`+parts[0]+`","signature":"`+parts[2]+`"}`), at("too long", signed(body(sub, "board", now+300, `"x":"`+strings.Repeat("a", MaxJWTBytes)+`"`))),
		{"for nobody in particular", fine, ""},
	}
	// What was right until a moment ago.
	gone := i.keys[0]
	if _, err := VerifyJWT(fine, "board", td, map[string]*ecdsa.PublicKey{gone.ID: &gone.Key.PublicKey}, time.Now()); err != nil {
		t.Fatalf("the one that is right is refused: %v", err)
	}
	return out
}

type rawJSON string

// TestForgedJWTSVIDs tries each at the verifier itself and at the Workload API, as the standard's client does.
func TestForgedJWTSVIDs(t *testing.T) {
	id := service(t, "compute")
	i := newJWTIssuer(t, id)
	w, k := jwtWorkloadServer(t, i)
	ready(t, k)
	api, err := workloadapi.New(t.Context(), workloadapi.WithAddr(w.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() })
	keys := map[string]*ecdsa.PublicKey{i.keys[0].ID: &i.keys[0].Key.PublicKey}
	tried, accepted := 0, 0
	for _, f := range forgedJWTs(t, i) {
		tried += 2
		if _, err := VerifyJWT(f.token, f.audience, td, keys, time.Now()); err == nil {
			accepted++
			t.Errorf("%s: accepted", f.name)
		}
		switch _, err := api.ValidateJWTSVID(t.Context(), f.token, f.audience); {
		case err == nil:
			accepted++
			t.Errorf("%s: accepted by the Workload API", f.name)
		case status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.Internal: // Internal: what gRPC itself does not send
			t.Errorf("%s: %v", f.name, err)
		}
	}
	// A key that has gone verifies nothing, and neither does one of another trust domain.
	token, _, err := i.keys[0].Sign(id, []string{"board"}, time.Minute, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyJWT(token, "board", td, keys, time.Now()); err != nil {
		t.Fatal(err)
	}
	for name, with := range map[string]map[string]*ecdsa.PublicKey{"no keys": nil, "a nil key": {i.keys[0].ID: nil}, "another key": {i.keys[0].ID: &newKey(t).PublicKey}} {
		tried++
		if _, err := VerifyJWT(token, "board", td, with, time.Now()); err == nil {
			accepted++
			t.Errorf("%s: accepted", name)
		}
	}
	tried++
	if _, err := VerifyJWT(token, "board", foreign, keys, time.Now()); err == nil {
		accepted++
		t.Error("accepted in another trust domain")
	}
	i.next("second")
	i.drop()
	if err := w.jwts.SetBundle(i.bundle()); err != nil {
		t.Fatal(err)
	}
	tried++
	if _, err := api.ValidateJWTSVID(t.Context(), token, "board"); err == nil {
		accepted++
		t.Error("accepted under a key that has left the bundle")
	}
	t.Logf("forged JWT-SVIDs: tried %d, accepted %d", tried, accepted)
}
