package forge

import (
	"bytes"
	"compress/flate"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/go-jose/go-jose/v4"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
)

// Tokens are tokens that must not pass (A3), each under a name of its own. Each of those that are signed is signed by the issuer's own key,
// unless the key is what is forged: so only the check that the name tells stands in its way.
func Tokens(g Good) ([]Token, error) {
	h, p, key := g.Header, g.Payload, g.Key
	kid, _ := h["kid"].(string)
	aud, _ := p["aud"].(string)
	iss, _ := p["iss"].(string)
	sub, _ := p["sub"].(string)
	good := Sign(key, h, p)
	thief, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	seg := strings.Split(good, ".")
	now, _ := p["iat"].(int64)
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	point, err := thief.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	x, y := rawURL.EncodeToString(point[1:33]), rawURL.EncodeToString(point[33:])
	thiefJWK := map[string]any{"kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y}
	thumb := sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + x + `","y":"` + y + `"}`))
	thumbprint := rawURL.EncodeToString(thumb[:])
	n := elliptic.P256().Params().N

	hs := func(alg string, key []byte) string {
		in := b64(With(h, "alg", alg)) + "." + b64(p)
		m := hmac.New(sha256.New, key)
		m.Write([]byte(in))
		return in + "." + rawURL.EncodeToString(m.Sum(nil))
	}
	wide := func() string { // ES256 claimed, made with P-384
		k, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		in := b64(h) + "." + b64(p)
		d := sha512.Sum384([]byte(in))
		r, ss, _ := ecdsa.Sign(rand.Reader, k, d[:])
		var b [96]byte
		r.FillBytes(b[:48])
		ss.FillBytes(b[48:])
		return in + "." + rawURL.EncodeToString(b[:])
	}
	asn1 := func() string {
		in := b64(h) + "." + b64(p)
		d := sha256.Sum256([]byte(in))
		b, _ := ecdsa.SignASN1(rand.Reader, key, d[:])
		return in + "." + rawURL.EncodeToString(b)
	}
	rs := func() string {
		k, _ := rsa.GenerateKey(rand.Reader, 2048)
		in := b64(With(h, "alg", "RS256")) + "." + b64(p)
		d := sha256.Sum256([]byte(in))
		b, _ := rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, d[:])
		return in + "." + rawURL.EncodeToString(b)
	}
	var sealed []string
	for _, zip := range []jose.CompressionAlgorithm{jose.NONE, jose.DEFLATE} {
		e, err := jose.NewEncrypter(jose.A128GCM, jose.Recipient{Algorithm: jose.ECDH_ES, Key: &key.PublicKey},
			(&jose.EncrypterOptions{Compression: zip}).WithType("at+jwt").WithContentType("JWT"))
		if err != nil {
			return nil, err
		}
		o, err := e.Encrypt([]byte(good))
		if err != nil {
			return nil, err
		}
		c, err := o.CompactSerialize()
		if err != nil {
			return nil, err
		}
		sealed = append(sealed, c)
	}
	bomb := func() string {
		var b bytes.Buffer
		w, _ := flate.NewWriter(&b, flate.BestCompression)
		_, _ = w.Write(make([]byte, 4<<20))
		_ = w.Close()
		return strings.Join([]string{b64(map[string]any{"alg": "dir", "enc": "A128GCM", "zip": "DEF"}), "",
			rawURL.EncodeToString(make([]byte, 12)), rawURL.EncodeToString(b.Bytes()), rawURL.EncodeToString(make([]byte, 16))}, ".")
	}
	// flip sets a bit that base64url decoders may ignore: 64 bytes leave four of them.
	loose := func(segment string) string {
		const abc = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		i := strings.IndexByte(abc, segment[len(segment)-1])
		return segment[:len(segment)-1] + string(abc[i|1])
	}
	if loose(seg[2]) == seg[2] {
		return nil, errors.New("the last character of a signature has no spare bits")
	}
	full := func(kv ...any) string { return Sign(key, h, With(p, kv...)) }
	head := func(kv ...any) string { return Sign(key, With(h, kv...), p) }
	raw := func(payload string) string { return Sign(key, h, payload) }
	body := string(JSON(p))
	audience := faultv1.Reason_TOKEN_AUDIENCE
	expired := faultv1.Reason_TOKEN_EXPIRED
	large := faultv1.Reason_TOKEN_TOO_LARGE

	return []Token{
		// the algorithm
		{"alg none, no signature", b64(With(h, "alg", "none")) + "." + seg[1] + ".", 0},
		{"alg None", b64(With(h, "alg", "None")) + "." + seg[1] + ".", 0},
		{"alg none, signature kept", splice(b64(With(h, "alg", "none"))+"."+seg[1]+".", seg[2]), 0},
		{"alg none, signed", head("alg", "none"), 0},
		{"alg missing", head("alg", nil), 0},
		{"alg empty", head("alg", ""), 0},
		{"alg es256", head("alg", "es256"), 0},
		{"alg ES256K", head("alg", "ES256K"), 0},
		{"alg ES384", head("alg", "ES384"), 0},
		{"alg a list", head("alg", []string{"ES256"}), 0},
		{"alg null", Sign(key, `{"alg":null,"typ":"at+jwt","kid":"`+kid+`"}`, p), 0},
		{"HS256 with the public key as DER", hs("HS256", spki), 0},
		{"HS256 with the public key as PEM", hs("HS256", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})), 0},
		{"HS256 with an empty key", hs("HS256", nil), 0},
		{"ES256 claimed, HMAC inside", hs("ES256", spki), 0},
		{"RS256 with a key of its own", rs(), 0},
		{"ES256 with P-384", wide(), 0},

		// the signature
		{"no signature", splice(good, ""), 0},
		{"two segments", seg[0] + "." + seg[1], 0},
		{"zero signature", splice(good, sigOf(big.NewInt(0), big.NewInt(0))), 0},
		{"r zero", splice(good, sigOf(big.NewInt(0), big.NewInt(1))), 0},
		{"s zero", splice(good, sigOf(big.NewInt(1), big.NewInt(0))), 0},
		{"r and s one", splice(good, sigOf(big.NewInt(1), big.NewInt(1))), 0},
		{"r and s the group order", splice(good, sigOf(n, n)), 0},
		{"r and s all ones", splice(good, rawURL.EncodeToString(bytes.Repeat([]byte{0xff}, 64))), 0},
		{"signature as ASN.1", asn1(), 0},
		{"signature short by a byte", splice(good, rawURL.EncodeToString(make([]byte, 63))), 0},
		{"signature long by a byte", splice(good, rawURL.EncodeToString(make([]byte, 65))), 0},
		{"signature of another token", splice(good, strings.Split(full("sub", "usr_root"), ".")[2]), 0},
		{"payload changed", seg[0] + "." + b64(With(p, "sub", "usr_root")) + "." + seg[2], 0},
		{"header changed", b64(With(h, "kid", kid)) + "x." + seg[1] + "." + seg[2], 0},
		{"a thief's key", Sign(thief, h, p), 0},

		// the key
		{"no kid", head("kid", nil), 0},
		{"empty kid", head("kid", ""), 0},
		{"unknown kid", head("kid", "other"), 0},
		{"kid in other case", head("kid", strings.ToUpper(kid)), 0},
		{"kid a path", head("kid", "../../../../dev/null"), 0},
		{"kid a URL", head("kid", "https://evil.example/jwks"), 0},
		{"kid SQL", head("kid", "x' UNION SELECT 'key'--"), 0},
		{"kid with NUL", head("kid", kid+"\x00"), 0},
		{"kid a number", head("kid", 1), 0},
		{"kid an object", head("kid", map[string]any{"a": 1}), 0},
		{"jwk of a thief", Sign(thief, With(h, "jwk", thiefJWK), p), 0},
		{"jwk of a thief, no kid", Sign(thief, With(h, "jwk", thiefJWK, "kid", nil), p), 0},
		{"jwk beside a good signature", head("jwk", thiefJWK), 0},
		{"jku", head("jku", "https://evil.example/jwks"), 0},
		{"x5u", head("x5u", "https://evil.example/cert"), 0},
		{"x5c", head("x5c", []string{"MIIB"}), 0},
		{"x5t", head("x5t", "abc"), 0},

		// the header
		{"crit", head("crit", []string{"exp"}), 0},
		{"crit empty", head("crit", []string{}), 0},
		{"crit b64", head("crit", []string{"b64"}, "b64", false), 0},
		{"b64 false", head("b64", false), 0},
		{"zip", head("zip", "DEF"), 0},
		{"cty JWT", head("cty", "JWT"), 0},
		{"enc", head("enc", "A128GCM"), 0},
		{"unknown header member", head("x", 1), 0},
		{"typ missing", head("typ", nil), 0},
		{"typ JWT", head("typ", "JWT"), 0},
		{"typ of an ID token", head("typ", "id_token+jwt"), 0},
		{"typ of a proof", head("typ", "dpop+jwt"), 0},
		{"typ of a logout token", head("typ", "logout+jwt"), 0},
		{"typ application/at+jwt", head("typ", "application/at+jwt"), 0},
		{"typ AT+JWT", head("typ", "AT+JWT"), 0},
		{"typ in the wrong case of name", Sign(key, `{"alg":"ES256","Typ":"at+jwt","kid":"`+kid+`"}`, p), 0},
		{"alg twice", Sign(key, `{"alg":"none","alg":"ES256","typ":"at+jwt","kid":"`+kid+`"}`, p), 0},
		{"kid twice", Sign(key, `{"alg":"ES256","typ":"at+jwt","kid":"x","kid":"`+kid+`"}`, p), 0},
		{"header a list", Sign(key, `["ES256"]`, p), 0},
		{"header null", Sign(key, `null`, p), 0},
		{"header with more after it", Sign(key, string(JSON(h))+"{}", p), 0},
		{"header not JSON", Sign(key, "alg=ES256", p), 0},

		// the audience
		{"aud missing", full("aud", nil), 0},
		{"aud empty", full("aud", ""), 0},
		{"aud a list", full("aud", []string{aud}), 0},
		{"aud a list of two", full("aud", []string{"other", aud}), 0},
		{"aud an empty list", full("aud", []string{}), 0},
		{"aud an object", full("aud", map[string]any{aud: true}), 0},
		{"aud null", raw(strings.Replace(body, `"`+aud+`"`, "null", 1)), 0},
		{"aud true", full("aud", true), 0},
		{"aud a prefix", full("aud", aud[:len(aud)-1]), audience},
		{"aud longer", full("aud", aud+"x"), audience},
		{"aud in upper case", full("aud", strings.ToUpper(aud)), audience},
		{"aud with a space", full("aud", aud+" "), audience},
		{"aud two in one text", full("aud", aud+" other"), audience},
		{"aud with NUL", full("aud", aud+"\x00"), 0},
		{"aud another service", full("aud", "urn:redoubt:example/keyvault"), audience},
		{"aud twice", raw(strings.Replace(body, `"aud"`, `"aud":"other","aud"`, 1)), 0},
		{"aud twice, one escaped", raw(strings.Replace(body, `"aud"`, `"\u0061ud":"other","aud"`, 1)), 0},
		{"Aud", raw(strings.Replace(body, `"aud"`, `"Aud"`, 1)), 0},

		// other claims
		{"iss missing", full("iss", nil), 0},
		{"iss another", full("iss", "https://evil.example"), 0},
		{"iss with a slash", full("iss", iss+"/"), 0},
		{"iss in upper case", full("iss", strings.ToUpper(iss)), 0},
		{"iss a list", full("iss", []string{iss}), 0},
		{"sub missing", full("sub", nil), 0},
		{"sub empty", full("sub", ""), 0},
		{"sub a number", full("sub", 7), 0},
		{"sub twice", raw(strings.Replace(body, `"sub"`, `"sub":"usr_root","sub"`, 1)), 0},
		{"sub not UTF-8", raw(strings.Replace(body, sub, sub+"\xff", 1)), 0},
		{"a member that nobody reads, not UTF-8", raw(strings.Replace(body, "{", "{\"x\":\"\xff\",", 1)), 0},
		{"sub half a surrogate", raw(strings.Replace(body, sub, sub+`\ud800`, 1)), 0},
		{"sub with a line break", raw(strings.Replace(body, sub, sub+`\n`, 1)), 0},
		{"client_id missing", full("client_id", nil), 0},
		{"jti missing", full("jti", nil), 0},
		{"jti empty", full("jti", ""), 0},
		{"principal_type missing", full("principal_type", nil), 0},
		{"principal_type unknown", full("principal_type", "admin"), 0},
		{"sid empty", full("sid", ""), 0},
		{"cnf by certificate", full("cnf", map[string]any{"x5t#S256": "abc"}), 0},
		{"cnf empty", full("cnf", map[string]any{}), 0},
		{"cnf two ways", full("cnf", map[string]any{"jkt": thumbprint, "x5t#S256": "abc"}), 0},
		{"cnf not a thumbprint", full("cnf", map[string]any{"jkt": "abc"}), 0},
		{"cnf a text", full("cnf", "abc"), 0},
		{"cnf null", full("cnf", json.RawMessage("null")), 0},
		{"cnf jkt twice", raw(strings.TrimSuffix(body, "}") + `,"cnf":{"jkt":"a","jkt":"b"}}`), 0},
		{"act without sub", full("act", map[string]any{}), 0},
		{"act not SPIFFE", full("act", map[string]any{"sub": "compute"}), 0},
		{"act a client without its credential", full("act", map[string]any{"sub": "app_1"}), 0},
		{"act a client with an empty credential", full("act", map[string]any{"sub": "app_1", "sid": ""}), 0},
		{"act a client's credential a number", full("act", map[string]any{"sub": "app_1", "sid": 7}), 0},
		{"act a user", full("act", map[string]any{"sub": "usr_1", "sid": "ses_1"}), 0},
		{"act a service with a credential", full("act", map[string]any{"sub": "spiffe://redoubt.example/service/compute", "sid": "sec_1"}), 0},
		{"act a client after a service", full("act", map[string]any{"sub": "app_1", "sid": "sec_1", "act": map[string]any{"sub": "spiffe://redoubt.example/service/compute"}}), 0},
		{"act too deep", full("act", json.RawMessage(nested(mostActors+1))), 0},
		{"act very deep", raw(strings.TrimSuffix(body, "}") + `,"act":` + strings.Repeat(`{"sub":"spiffe://a/b","act":`, 100) + `{}` + strings.Repeat("}", 101)), 0},
		{"anc too many", full("anc", numbered("tok", mostAncestors+1)), 0},
		{"anc empty", full("anc", []string{}), 0},
		{"anc a text", full("anc", "tok_1"), 0},
		{"actions without a run", full("actions", []string{"a"}), 0},
		{"run without actions", full("run", "run_1", "ws", "ws_1"), 0},
		{"run token as bearer", full("run", "run_1", "ws", "ws_1", "actions", []string{"a"}), 0},

		// times
		{"exp missing", full("exp", nil), 0},
		{"exp null", full("exp", json.RawMessage("null")), 0},
		{"exp a text", full("exp", "9999999999"), 0},
		{"exp a fraction", full("exp", json.RawMessage(fmt.Sprintf("%d.5", now+300))), 0},
		{"exp with an exponent", full("exp", json.RawMessage("1.79e9")), 0},
		{"exp with a plus exponent", full("exp", json.RawMessage("1e300")), 0},
		{"exp negative", full("exp", -1), 0},
		{"exp zero", full("exp", 0), 0},
		{"exp huge", full("exp", json.RawMessage("99999999999999999999999999")), 0},
		{"exp the largest int64", full("exp", json.RawMessage("9223372036854775807")), 0},
		{"exp in the year 9999", full("exp", int64(253402300799)), 0},
		{"exp in milliseconds", full("exp", (now+300)*1000), 0},
		{"exp true", full("exp", true), 0},
		{"exp a list", full("exp", []int64{now + 300}), 0},
		{"exp twice", raw(strings.Replace(body, `"exp"`, `"exp":1,"exp"`, 1)), 0},
		{"exp now", full("iat", now-10, "exp", now), expired},
		{"exp past", full("iat", now-10, "exp", now-1), expired},
		{"exp before iat", full("exp", now-1), 0},
		{"iat missing", full("iat", nil), 0},
		{"iat a text", full("iat", "1790000000"), 0},
		{"iat in the future", full("iat", now+90), 0},
		{"nbf in the future", full("nbf", now+90), 0},
		{"nbf a text", full("nbf", "1"), 0},
		{"lives too long", full("exp", now+86400+1), 0},

		// the envelope
		{"nested JWT", Sign(key, h, good), 0},
		{"payload null", raw("null"), 0},
		{"payload empty", seg[0] + ".." + seg[2], 0},
		{"payload a list", raw("[" + body + "]"), 0},
		{"payload a text", raw(`"` + aud + `"`), 0},
		{"payload cut off", raw(body[:len(body)-1]), 0},
		{"payload with more after it", raw(body + "{}"), 0},
		{"payload with a comma too many", raw(strings.TrimSuffix(body, "}") + ",}"), 0},
		{"payload with a BOM", raw("\ufeff" + body), 0},
		{"payload deep", raw(strings.TrimSuffix(body, "}") + `,"x":` + strings.Repeat("[", 3000) + "}"), 0},
		{"JWE", sealed[0], 0},
		{"JWE, compressed", sealed[1], 0},
		{"JWE, compressed 4 MiB", bomb(), 0},
		{"JSON serialization", `{"payload":"` + seg[1] + `","protected":"` + seg[0] + `","signature":"` + seg[2] + `"}`, 0},
		{"four segments", good + ".", 0},
		{"five segments", good + ".x.y", 0},
		{"leading dot", "." + good, 0},
		{"dots only", "..", 0},
		{"8 KiB of dots", strings.Repeat(".", 8<<10), 0},
		{"1 MiB of dots", strings.Repeat(".", 1<<20), large},
		{"1 MiB of a", strings.Repeat("a", 1<<20), large},
		{"one byte over the limit", full("x", strings.Repeat("x", 6<<10)) + strings.Repeat("A", 1<<10), large},
		{"Bearer in front", "Bearer " + good, 0},
		{"space in front", " " + good, 0},
		{"space behind", good + " ", 0},
		{"line break behind", good + "\n", 0},
		{"line break in the signature", good[:len(good)-10] + "\n" + good[len(good)-10:], 0},
		{"line break in the payload", seg[0] + "." + seg[1][:8] + "\n" + seg[1][8:] + "." + seg[2], 0},
		{"signed line break in the header", SignRaw(key, seg[0][:8]+"\r\n"+seg[0][8:], seg[1]), 0},
		{"signed line break in the payload", SignRaw(key, seg[0], seg[1][:8]+"\n"+seg[1][8:]), 0},
		{"padding", good + "==", 0},
		{"signed padding in the header", SignRaw(key, base64.URLEncoding.EncodeToString(append(JSON(h), ' ')), seg[1]), 0},
		{"signed standard alphabet", SignRaw(key, seg[0], base64.RawStdEncoding.EncodeToString(JSON(With(p, "x", "???>>>~~~")))), 0},
		{"spare bits in the signature", splice(good, loose(seg[2])), 0},
		{"spare bits in the header, signed", SignRaw(key, loose(b64(string(JSON(h))+" ")), seg[1]), 0},
		{"percent escapes", strings.ReplaceAll(good, ".", "%2e"), 0},
		{"NUL inside", good[:20] + "\x00" + good[20:], 0},
		{"NUL behind", good + "\x00", 0},
		{"not UTF-8", "\xff\xfe" + good, 0},
		{"empty", "", faultv1.Reason_TOKEN_MISSING},
		{"a refresh token", "rdt_rt_0123456789abcdefghijklmnopqrstuvwxyz", 0},
		{"a basic credential", "dXNlcjpwYXNzd29yZA==", 0},
	}, nil
}
