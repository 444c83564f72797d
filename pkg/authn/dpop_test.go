package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
)

const (
	testMethod = "POST"
	testURL    = "https://redoubt.example:8443/redoubt.compute.v1.RunService/GetRun"
	testToken  = "aaa.bbb.ccc"
)

type proofStand struct {
	key     *ecdsa.PrivateKey
	prover  *Prover
	clock   *clock
	checker *ProofChecker
}

func newProofStand(t testing.TB, change ...func(*ProofConfig)) *proofStand {
	t.Helper()
	p := &proofStand{key: newKey(t), clock: newClock()}
	var err error
	if p.prover, err = NewProver(p.key, p.clock.Now); err != nil {
		t.Fatal(err)
	}
	cfg := ProofConfig{Now: p.clock.Now}
	for _, f := range change {
		f(&cfg)
	}
	if p.checker, err = NewProofChecker(cfg); err != nil {
		t.Fatal(err)
	}
	p.clock.Add(5 * time.Minute) // so that the start of the checker is not in the way
	return p
}

func (p *proofStand) proof(t testing.TB) string {
	t.Helper()
	s, err := p.prover.Proof(testMethod, testURL, testToken, "")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (p *proofStand) check(proof string) error {
	return p.checker.Check(proof, testMethod, testURL, testToken, p.prover.Thumbprint())
}

func (p *proofStand) header() map[string]any {
	x, y, _ := coordinates(&p.key.PublicKey)
	return map[string]any{"alg": "ES256", "typ": "dpop+jwt", "jwk": map[string]any{"kty": "EC", "crv": "P-256", "x": x, "y": y}}
}

func (p *proofStand) payload() map[string]any {
	return map[string]any{
		"jti": "0123456789abcdef", "htm": testMethod, "htu": testURL, "iat": p.clock.Now().Unix(), "ath": tokenHash(testToken),
	}
}

// A4: a proof is good once, for its request.
func TestProofRoundTrip(t *testing.T) {
	p := newProofStand(t)
	one, two := p.proof(t), p.proof(t)
	if err := p.check(one); err != nil {
		t.Fatal(err)
	}
	if err := p.check(two); err != nil {
		t.Fatal(err)
	}
	for _, again := range []string{one, two} {
		refused(t, p.check(again), faultv1.Reason_TOKEN_PROOF_INVALID)
	}
	if err := p.check(sign(p.key, p.header(), p.payload())); err != nil {
		t.Fatalf("the proof that the forgeries start from is not good: %v", err)
	}
	browser := p.header()
	browser["jwk"] = with(browser["jwk"].(map[string]any), "ext", true, "key_ops", []string{"verify"}, "use", "sig", "kid", "a")
	if err := p.check(sign(p.key, browser, with(p.payload(), "jti", "from-a-browser", "nonce", "n"))); err != nil {
		t.Fatalf("a browser's proof: %v", err)
	}
}

func TestProofBind(t *testing.T) {
	p := newProofStand(t)
	const url = "https://redoubt.example:8443/oauth2/token"
	proof, err := p.prover.Proof("POST", url, "", "")
	if err != nil {
		t.Fatal(err)
	}
	jkt, err := p.checker.Bind(proof, "POST", url)
	if err != nil || jkt != p.prover.Thumbprint() {
		t.Fatalf("got %q, %v", jkt, err)
	}
	_, err = p.checker.Bind(proof, "POST", url)
	refused(t, err, faultv1.Reason_TOKEN_PROOF_INVALID)
	_, err = p.checker.Bind(p.proof(t), testMethod, testURL) // names a token
	refused(t, err, faultv1.Reason_TOKEN_PROOF_INVALID)
	proof, err = p.prover.Proof("POST", url, "", "")
	if err != nil {
		t.Fatal(err)
	}
	refused(t, p.checker.Check(proof, "POST", url, testToken, jkt), faultv1.Reason_TOKEN_PROOF_INVALID) // names none
	refused(t, p.checker.Check(proof, "POST", url, "", jkt), faultv1.Reason_TOKEN_PROOF_INVALID)        // and that is no way around
}

type forgery struct{ name, token string }

func proofForgeries(t testing.TB, p *proofStand) []forgery {
	h, c := p.header(), p.payload()
	good := sign(p.key, h, c)
	thief := newKey(t)
	now := p.clock.Now().Unix()
	jwk := h["jwk"].(map[string]any)
	wide, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	wb, _ := wide.PublicKey.Bytes()
	seg := strings.Split(good, ".")
	full := func(kv ...any) string { return sign(p.key, h, with(c, kv...)) }
	head := func(kv ...any) string { return sign(p.key, with(h, kv...), c) }
	withJWK := func(kv ...any) string { return head("jwk", with(jwk, kv...)) }
	body := string(asJSON(c))
	tx, ty, _ := coordinates(&thief.PublicKey)
	return []forgery{
		{name: "none", token: b64(with(h, "alg", "none")) + "." + seg[1] + "."},
		{name: "alg none, signed", token: head("alg", "none")},
		{name: "alg HS256", token: head("alg", "HS256")},
		{name: "alg missing", token: head("alg", nil)},
		{name: "alg RS256", token: head("alg", "RS256")},
		{name: "typ missing", token: head("typ", nil)},
		{name: "typ JWT", token: head("typ", "JWT")},
		{name: "typ of an access token", token: head("typ", "at+jwt")},
		{name: "typ in upper case", token: head("typ", "DPOP+JWT")},
		{name: "jwk missing", token: head("jwk", nil)},
		{name: "jwk null", token: head("jwk", []byte(nil))},
		{name: "jwk a text", token: head("jwk", "x")},
		{name: "jwk of a thief", token: sign(thief, with(h, "jwk", map[string]any{"kty": "EC", "crv": "P-256", "x": tx, "y": ty}), c)},
		{name: "signed by a thief", token: sign(thief, h, c)},
		{name: "jwk private", token: withJWK("d", b64("0123456789abcdef0123456789abcdef"))},
		{name: "jwk symmetric", token: withJWK("kty", "oct", "k", "AAAA")},
		{name: "jwk RSA", token: withJWK("kty", "RSA")},
		{name: "jwk P-384 named P-256", token: withJWK("x", rawURL.EncodeToString(wb[1:49]), "y", rawURL.EncodeToString(wb[49:]))},
		{name: "jwk curve P-384", token: withJWK("crv", "P-384")},
		{name: "jwk curve secp256k1", token: withJWK("crv", "secp256k1")},
		{name: "jwk off the curve", token: withJWK("y", jwk["x"])},
		{name: "jwk at infinity", token: withJWK("x", rawURL.EncodeToString(make([]byte, 32)), "y", rawURL.EncodeToString(make([]byte, 32)))},
		{name: "jwk x short", token: withJWK("x", rawURL.EncodeToString(make([]byte, 31)))},
		{name: "jwk x padded", token: withJWK("x", jwk["x"].(string)+"=")},
		{name: "jwk without y", token: withJWK("y", nil)},
		{name: "jwk for encryption", token: withJWK("use", "enc")},
		{name: "jwk for another algorithm", token: withJWK("alg", "ES384")},
		{name: "jwk with x5u", token: withJWK("x5u", "https://evil.example")},
		{name: "jku", token: head("jku", "https://evil.example")},
		{name: "x5c", token: head("x5c", []string{"MIIB"})},
		{name: "kid", token: head("kid", "x")},
		{name: "crit", token: head("crit", []string{"htu"})},
		{name: "jti missing", token: full("jti", nil)},
		{name: "jti short", token: full("jti", "1234567")},
		{name: "jti long", token: full("jti", strings.Repeat("x", 257))},
		{name: "jti a number", token: full("jti", 12345678)},
		{name: "htm missing", token: full("htm", nil)},
		{name: "htm another", token: full("htm", "GET")},
		{name: "htm in lower case", token: full("htm", "post")},
		{name: "htm twice", token: sign(p.key, h, strings.Replace(body, `"htm"`, `"htm":"GET","htm"`, 1))},
		{name: "htu missing", token: full("htu", nil)},
		{name: "htu another method", token: full("htu", testURL+"s")},
		{name: "htu in another case", token: full("htu", strings.Replace(testURL, "GetRun", "getrun", 1))},
		{name: "htu another host", token: full("htu", strings.Replace(testURL, "redoubt.example", "evil.example", 1))},
		{name: "htu another port", token: full("htu", strings.Replace(testURL, "8443", "443", 1))},
		{name: "htu http", token: full("htu", strings.Replace(testURL, "https", "http", 1))},
		{name: "htu with a user", token: full("htu", strings.Replace(testURL, "//", "//redoubt.example@", 1))},
		{name: "htu a path", token: full("htu", "/redoubt.compute.v1.RunService/GetRun")},
		{name: "htu with a slash more", token: full("htu", testURL+"/")},
		{name: "htu with an escaped slash", token: full("htu", strings.Replace(testURL, "/GetRun", "%2FGetRun", 1))},
		{name: "htu the host as a prefix", token: full("htu", strings.Replace(testURL, "redoubt.example", "redoubt.example.evil.example", 1))},
		{name: "ath missing", token: full("ath", nil)},
		{name: "ath of another token", token: full("ath", tokenHash("other"))},
		{name: "ath in hex", token: full("ath", fmt.Sprintf("%x", testToken))},
		{name: "ath empty", token: full("ath", "")},
		{name: "iat missing", token: full("iat", nil)},
		{name: "iat a text", token: full("iat", fmt.Sprint(now))},
		{name: "iat a fraction", token: full("iat", float64(now)+0.5)},
		{name: "iat negative", token: full("iat", -now)},
		{name: "iat too old", token: full("iat", now-61)},
		{name: "iat too new", token: full("iat", now+31)},
		{name: "iat in milliseconds", token: full("iat", now*1000)},
		{name: "zero signature", token: splice(good, rawURL.EncodeToString(make([]byte, 64)))},
		{name: "no signature", token: splice(good, "")},
		{name: "padding", token: good + "=="},
		{name: "two proofs", token: good + "," + good},
		{name: "line break", token: good + "\n"},
		{name: "payload with more after it", token: sign(p.key, h, body+"{}")},
		{name: "too long", token: full("x", strings.Repeat("x", maxProof))},
		{name: "dots", token: strings.Repeat(".", 1<<20)},
		{name: "empty", token: ""},
	}
}

func TestForgedProofs(t *testing.T) {
	p := newProofStand(t)
	list, accepted := proofForgeries(t, p), 0
	for _, f := range list {
		t.Run(f.name, func(t *testing.T) {
			err := p.check(f.token)
			if err == nil {
				accepted++
			}
			refused(t, err, faultv1.Reason_TOKEN_PROOF_INVALID)
		})
	}
	fmt.Printf("attack: %s: tried %d, accepted %d\n", t.Name(), len(list), accepted)
	// None of them used up the jti that they share with the good one.
	if err := p.check(sign(p.key, p.header(), p.payload())); err != nil {
		t.Fatalf("a forged proof used up a good one's jti: %v", err)
	}
}

// What the server passes in: anything missing is a refusal, never a wildcard.
func TestProofDeniesOnEmpty(t *testing.T) {
	for _, tc := range []struct{ name, htm, htu, token, jkt string }{
		{"method", "", testURL, testToken, "own"},
		{"URL", testMethod, "", testToken, "own"},
		{"token", testMethod, testURL, "", "own"},
		{"thumbprint", testMethod, testURL, testToken, ""},
		{"another thumbprint", testMethod, testURL, testToken, "thief"},
		{"another token", testMethod, testURL, testToken + "x", "own"},
		{"another method", "GET", testURL, testToken, "own"},
		{"another URL", testMethod, testURL + "x", testToken, "own"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newProofStand(t)
			jkt := map[string]string{"own": p.prover.Thumbprint(), "thief": Thumbprint(&newKey(t).PublicKey), "": ""}[tc.jkt]
			refused(t, p.checker.Check(p.proof(t), tc.htm, tc.htu, tc.token, jkt), faultv1.Reason_TOKEN_PROOF_INVALID)
		})
	}
}

func TestProofTimes(t *testing.T) {
	for _, tc := range []struct {
		name string
		late time.Duration
		ok   bool
	}{
		{"at once", 0, true},
		{"60 s old", 60 * time.Second, true},
		{"61 s old", 61 * time.Second, false},
		{"checker 30 s behind", -30 * time.Second, true},
		{"checker 31 s behind", -31 * time.Second, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newProofStand(t)
			proof := p.proof(t)
			p.clock.Add(tc.late)
			err := p.check(proof)
			if tc.ok && err == nil {
				return
			}
			if tc.ok {
				t.Fatal(err)
			}
			refused(t, err, faultv1.Reason_TOKEN_PROOF_INVALID)
		})
	}
}

// A proof is accepted once in all of its life, wherever in it the first use lies and however the cache turns meanwhile.
func TestProofOnceInItsLife(t *testing.T) {
	for first := -30; first <= 60; first += 15 {
		p := newProofStand(t)
		proof := p.proof(t)
		p.clock.Add(-40 * time.Second)
		used := 0
		for at := -40; at <= 200; at++ {
			// Others keep the cache turning.
			if err := p.check(p.proof(t)); err != nil {
				t.Fatal(err)
			}
			if at >= first {
				if p.check(proof) == nil {
					used++
				}
			}
			p.clock.Add(time.Second)
		}
		if used != 1 {
			t.Errorf("first used %d s after it was made: accepted %d times", first, used)
		}
	}
}

// A clock that jumps back brings old proofs into their window again; what may have been forgotten stays refused.
func TestProofClockJumpsBack(t *testing.T) {
	for _, jump := range []time.Duration{10 * time.Second, 95 * time.Second, 200 * time.Second, time.Hour} {
		p := newProofStand(t)
		proof := p.proof(t)
		if err := p.check(proof); err != nil {
			t.Fatal(err)
		}
		p.clock.Add(jump)
		if err := p.check(p.proof(t)); err != nil {
			t.Fatal(err)
		}
		p.clock.Add(-jump)
		refused(t, p.check(proof), faultv1.Reason_TOKEN_PROOF_INVALID)
	}
}

// A proof that was made, and maybe used, before the process started is refused.
func TestProofFromBeforeStart(t *testing.T) {
	p := newProofStand(t)
	proof := p.proof(t)
	if err := p.check(proof); err != nil {
		t.Fatal(err)
	}
	p.clock.Add(time.Second)
	next, err := NewProofChecker(ProofConfig{Now: p.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, next.Check(proof, testMethod, testURL, testToken, p.prover.Thumbprint()), faultv1.Reason_TOKEN_PROOF_INVALID)
	if err := next.Check(p.proof(t), testMethod, testURL, testToken, p.prover.Thumbprint()); err != nil {
		t.Fatalf("a new proof: %v", err)
	}
}

// A full cache refuses and does not forget, and time makes room.
func TestProofCacheFull(t *testing.T) {
	p := newProofStand(t, func(c *ProofConfig) { c.MaxEntries = 8 * replayShards })
	used := make([]string, 8)
	for i := range used {
		used[i] = p.proof(t)
		if err := p.check(used[i]); err != nil {
			t.Fatal(err)
		}
	}
	wantReason(t, p.check(p.proof(t)), codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED)
	for _, proof := range used {
		refused(t, p.check(proof), faultv1.Reason_TOKEN_PROOF_INVALID)
	}
	p.clock.Add(4 * time.Minute)
	if err := p.check(p.proof(t)); err != nil {
		t.Fatal(err)
	}
}

// One holder cannot use up the id of another's proof, whichever shard they meet in.
func TestProofIDsArePerKey(t *testing.T) {
	p := newProofStand(t)
	for range 3 * replayShards {
		q := newProofStand(t)
		same := sign(q.key, q.header(), p.payload())
		if err := p.checker.Check(same, testMethod, testURL, testToken, q.prover.Thumbprint()); err != nil {
			t.Fatalf("another's proof used up this one's id: %v", err)
		}
	}
}

// 16 callers with the same proof: one wins.
func TestProofRace(t *testing.T) {
	p := newProofStand(t)
	for range 20 {
		proof := p.proof(t)
		var won atomic.Int32
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if p.check(proof) == nil {
					won.Add(1)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("accepted %d times", won.Load())
		}
	}
}

func TestNormalizeURL(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"https://Redoubt.Example:443/a/b", "https://redoubt.example/a/b"},
		{"HTTPS://redoubt.example/a?q=1#f", "https://redoubt.example/a"},
		{"http://redoubt.example:80", "http://redoubt.example/"},
		{"http://redoubt.example:443/", "http://redoubt.example:443/"},
		{"https://redoubt.example:/a", "https://redoubt.example/a"},
		{"https://redoubt.example:8443/a/./b/../c", "https://redoubt.example:8443/a/c"},
		{"https://redoubt.example/a/b/..", "https://redoubt.example/a/"},
		{"https://redoubt.example/../../a", "https://redoubt.example/a"},
		{"https://redoubt.example/a/%2e%2E/b", "https://redoubt.example/b"},
		{"https://redoubt.example/%7ea/%2f/%3a", "https://redoubt.example/~a/%2F/%3A"},
		{"https://redoubt.example/a//b/", "https://redoubt.example/a//b/"},
		{"https://redoubt.example/.hidden", "https://redoubt.example/.hidden"},
		{"https://[::1]:8443/a", "https://[::1]:8443/a"},
		{"https://[FE80::1]/a", "https://[fe80::1]/a"},
		{"", ""},
		{"redoubt.example/a", ""},
		{"//redoubt.example/a", ""},
		{"ftp://redoubt.example/a", ""},
		{"https://user@redoubt.example/a", ""},
		{"https:///a", ""},
		{"https:redoubt.example", ""},
		{"https://redoubt.example/%zz", ""},
		{"https://redoubt.example/%2", ""},
		{"https://redoubt.example/\x00", ""},
		{"https://redoubt.example/" + strings.Repeat("a", maxURL), ""},
	} {
		got, ok := NormalizeURL(tc.in)
		if got != tc.want || ok != (tc.want != "") {
			t.Errorf("%q: got %q %v, want %q", tc.in, got, ok, tc.want)
		}
		if ok {
			if again, _ := NormalizeURL(got); again != got {
				t.Errorf("%q: not stable: %q then %q", tc.in, got, again)
			}
		}
	}
}

func TestProverRefuses(t *testing.T) {
	wide, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	for name, k := range map[string]*ecdsa.PrivateKey{"none": nil, "P-384": wide} {
		if _, err := NewProver(k, nil); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	p := newProofStand(t)
	for _, tc := range [][2]string{{"", testURL}, {"POST", ""}, {"POST", "/path"}} {
		if _, err := p.prover.Proof(tc[0], tc[1], testToken, ""); err == nil {
			t.Errorf("%v: a proof was made", tc)
		}
	}
}

func FuzzProof(f *testing.F) {
	p := newProofStand(f)
	good := sign(p.key, p.header(), p.payload())
	f.Add(good)
	for _, x := range proofForgeries(f, p) {
		if len(x.token) < 16<<10 {
			f.Add(x.token)
		}
	}
	f.Fuzz(func(t *testing.T, proof string) {
		if p.check(proof) == nil && proof[:strings.LastIndexByte(proof, '.')] != good[:strings.LastIndexByte(good, '.')] {
			t.Fatalf("accepted %q", proof)
		}
	})
}

func FuzzNormalizeURL(f *testing.F) {
	for _, s := range []string{testURL, "https://h/%2e%2e/%41?x#y", "http://[::1]:80/./a/..", "https://h:99999//", "https://h%25/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := NormalizeURL(s)
		if !ok {
			return
		}
		if again, ok := NormalizeURL(got); !ok || again != got {
			t.Fatalf("%q: %q, then %q %v", s, got, again, ok)
		}
	})
}

func BenchmarkProofCheck(b *testing.B) {
	p := newProofStand(b, func(c *ProofConfig) { c.MaxEntries = 1 << 26 })
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		proof := p.proof(b)
		b.StartTimer()
		if err := p.check(proof); err != nil {
			b.Fatal(err)
		}
	}
}
