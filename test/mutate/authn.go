package main

const (
	verify  = "pkg/authn/verify.go"
	strict  = "pkg/authn/strict.go"
	claims  = "pkg/authn/claims.go"
	dpop    = "pkg/authn/dpop.go"
	tokens  = "^Test(Forged|Verify|Dots|Refusal)"
	proving = "^Test(Proof|ForgedProofs|Normalize)"
)

// mutants are the checks of a token and of a proof of possession, one by one. What two checks refuse, one after the other, is no mutant here: the
// algorithm (the header and go-jose), a claim that is missing (decode and Claims.check).
var mutants = []mutant{
	{"a token may be of any length", verify, "if len(token) > v.cfg.MaxBytes {", "if false {", tokens},
	{"a stale revocation state is good enough", verify, "if err := v.cfg.Revocations.Fresh(now); err != nil {", "if err := v.cfg.Revocations.Fresh(now); false {", tokens},
	{"a token is for any audience", verify, "if !audienceIs(e.verified.Audience[0], audience) {", "if false {", tokens},
	{"a revoked token is good", verify, "ended := v.cfg.Revocations.Revoked(c.Subject, c.SessionID, c.ID, c.Run, c.Ancestors, c.IssuedAt)", "ended := false && v.cfg.Revocations.Revoked(c.Subject, c.SessionID, c.ID, c.Run, c.Ancestors, c.IssuedAt)", tokens},
	{"a revoked ancestor does not matter", verify, "c.Run, c.Ancestors, c.IssuedAt)", "c.Run, nil, c.IssuedAt)", tokens},
	{"a cached token outlives its key", verify, "case !key.Equal(e.key):", "case !key.Equal(e.key) && false:", tokens},
	{"what was revoked is asked once", verify, "if s := e.stamp.Load(); s == nil || *s != at {", "if s := e.stamp.Load(); s == nil {", tokens},
	{"an expired token is good", verify, "if now >= e.expiry {", "if false {", tokens},
	{"a token is good in its very last second", verify, "if now >= e.expiry {", "if now > e.expiry {", tokens},
	{"a token from the future is good", verify, "if e.notBefore > now+v.leeway {", "if false {", tokens},
	{"the token of a run that has ended opens everything while it delivers", verify, "if ended && (!deliver || !v.delivers(c, when)) {", "if ended && !v.delivers(c, when) {", tokens},
	{"a run that has ended delivers for ever", verify, "return left > 0 && left <= MaxDelivery+MaxLeeway", "return left <= MaxDelivery+MaxLeeway", tokens},
	{"a run that has ended delivers for as long as it is said", verify, "return left > 0 && left <= MaxDelivery+MaxLeeway", "return left > 0", tokens},
	{"an exchanged token delivers", verify, `if c.Run == "" || c.Confirmation == "" || c.Actor != nil {`, `if c.Run == "" {`, tokens},
	{"what is revoked besides delivers", verify, `if v.cfg.Revocations.Revoked(c.Subject, c.SessionID, c.ID, "", c.Ancestors, c.IssuedAt) {`, "if false {", tokens},
	{"the header may hold anything besides", verify, `if err := h.only("alg", "typ", "kid"); err != nil {`, `if err := h.only("alg", "typ", "kid"); false {`, tokens},
	{"any type may be named", verify, `map[string]string{"alg": "ES256", "typ": typeAccess}`, `map[string]string{"alg": "ES256"}`, tokens},
	{"any issuer will do", verify, "if c.Issuer != v.cfg.Issuer {", "if false {", tokens},
	{"a token may live for ever", verify, "if c.Expiry.Sub(c.IssuedAt) > v.cfg.MaxLifetime {", "if false {", tokens},
	{"the signature is not checked", verify, "out, err := jws.Verify(key)\n\tif err != nil {", "out, err := jws.UnsafePayloadWithoutVerification(), error(nil)\n\tif err != nil {", tokens},
	{"a segment may be spelled in several ways", verify, "for _, s := range []string{payload, signature} {", "for _, s := range []string{payload, signature}[:0] {", tokens},
	{"JSON may hold a name twice", strict, "if _, twice := m[name]; twice {", "if _, twice := m[name]; twice && false {", tokens},
	{"JSON may go on after its end", strict, "if _, err := dec.Token(); err != io.EOF {", "if _, err := dec.Token(); err != io.EOF && false {", tokens},
	{"JSON need not be UTF-8", strict, "if !utf8.Valid(data) {", "if false {", tokens},
	{"a time may be written in any way", strict, "if len(raw) == 0 || len(raw) > 12 || raw[0] < '1' || raw[0] > '9' {\n\t\treturn time.Time{}, true, cause(\"a time is not a positive integer\")\n\t}\n\tn, err := strconv.ParseUint(string(raw), 10, 63)", "if len(raw) == 0 {\n\t\treturn time.Time{}, true, cause(\"a time is not a positive integer\")\n\t}\n\tf, err := strconv.ParseFloat(strings.Trim(string(raw), `\"`), 64)\n\tn := uint64(f)", tokens},
	{"a text may hold control characters", strict, "if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == utf8.RuneError }) {", "if strings.ContainsFunc(s, func(r rune) bool { return false }) {", tokens},
	{"base64 may have bits left over", strict, "base64.RawURLEncoding.Strict()", "base64.RawURLEncoding", tokens},
	{"base64 may hold line breaks", strict, `if s == "" || strings.ContainsAny(s, "\r\n") {`, `if s == "" {`, tokens},
	{"a binding that is not understood is ignored", claims, `if err := cnf.only("jkt"); err != nil {`, `if err := cnf.only("jkt"); false {`, tokens},
	{"what a token says need make no sense", claims, "return c, notBefore, c.check()", "return c, notBefore, nil", tokens},
	{"an actor may have no end", claims, "if c.Actor.Depth() > MaxActorDepth {", "if false {", "^Test(Forged|Verify|Dots|Refusal|Mint)"},
	{"a run token need not be bound", claims, `if c.Run != "" && c.Confirmation == "" && (c.Actor == nil || c.Actor.Client()) {`, "if false {", tokens},

	{"a proof is by any key", dpop, "if subtle.ConstantTimeCompare([]byte(jkt), []byte(wantJKT)) != 1 {", "if false {", proving},
	{"a proof is for any method", dpop, `if s, _, err := m.text("htm"); err != nil || s == "" || s != htm {`, `if s, _, err := m.text("htm"); err != nil || s == "" {`, proving},
	{"a proof is for any address", dpop, `if s, _, err := m.text("htu"); err != nil || !sameURL(s, htu) {`, `if _, _, err := m.text("htu"); err != nil {`, proving},
	{"a proof is for any token", dpop, "subtle.ConstantTimeCompare([]byte(hash), []byte(tokenHash(accessToken))) != 1 {", "len(hash) < 0 {", proving},
	{"a proof is good again", dpop, "switch p.replay.use(jkt, id, iat, now) {", "switch p.replay.use(jkt, id, iat, now); replayFirst {", proving},
	{"an old proof is good", dpop, "case iat < now-p.window:", "case false:", proving},
	{"a proof from the future is good", dpop, "case iat > now+p.leeway:", "case false:", proving},
	{"a proof from before the start is good", dpop, "case iat < p.start:", "case false:", proving},
	{"a proof may be of any length", dpop, "if len(proof) > maxProof {", "if false {", proving},
	{"the header of a proof may hold anything besides", dpop, `if err := h.only("alg", "typ", "jwk"); err != nil {`, `if err := h.only("alg", "typ", "jwk"); false {`, proving},
	{"a proof is of any type", dpop, `map[string]string{"alg": "ES256", "typ": typeProof}`, `map[string]string{"alg": "ES256"}`, proving},
	{"the key of a proof may be private", dpop, `if err := k.only("kty", "crv", "x", "y", "alg", "use", "kid", "ext", "key_ops"); err != nil {`, `if err := k.only("kty", "crv", "x", "y", "alg", "use", "kid", "ext", "key_ops"); false {`, proving},
	{"the key of a proof may be for another use", dpop, `if !k.isOr("alg", "ES256") || !k.isOr("use", "sig") {`, "if false {", proving},
	{"a proof needs no name", dpop, "if err != nil || len(id) < minProofID || len(id) > maxProofID {", "if err != nil {", proving},
}
