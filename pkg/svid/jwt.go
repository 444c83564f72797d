package svid

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// MaxJWTBytes is the length of the longest JWT-SVID that is looked at.
	MaxJWTBytes = 8 << 10
	// MaxAudiences is how many receivers one JWT-SVID can be for.
	MaxAudiences = 8

	maxAudienceBytes = 512
	maxKeyID         = 128
	jwtSkew          = 30 * time.Second // of iat and nbf, never of exp
	es256Bytes       = 64
)

// JWT is what a JWT-SVID says.
type JWT struct {
	ID             spiffeid.ID
	Audience       []string
	Issued, Expiry time.Time // Issued is zero where the token does not say
	KeyID          string
	Claims         map[string]any // all of them
}

// JWTKey signs JWT-SVIDs (SPIFFE JWT-SVID) with ES256. The zero value signs nothing.
type JWTKey struct {
	Key *ecdsa.PrivateKey
	// ID is the key's own, by which verifiers find it in the trust bundle.
	ID string
}

// Sign makes a JWT-SVID for id that is valid from now for ttl, in whole seconds, at the receivers in audience and nowhere else.
//
// Errors: INVALID_ARGUMENT for an ID without a path, for no audience and for one that CheckAudience refuses.
func (k JWTKey) Sign(id spiffeid.ID, audience []string, ttl time.Duration, now time.Time) (token string, expire time.Time, err error) {
	if _, err := p256(publicOf(k.Key)); err != nil || !validKeyID(k.ID) {
		return "", time.Time{}, fault.Internal(err, "JWT-SVIDs need a P-256 key with an id")
	}
	if id.IsZero() || id.Path() == "" {
		return "", time.Time{}, fault.InvalidArgument("a JWT-SVID needs a SPIFFE ID with a path")
	}
	if err := CheckAudience(audience); err != nil {
		return "", time.Time{}, err
	}
	issued := now.Truncate(time.Second)
	expire = issued.Add(ttl.Truncate(time.Second))
	if !expire.After(now) {
		return "", time.Time{}, fault.InvalidArgument("a JWT-SVID lives for at least a second")
	}
	payload, err := json.Marshal(struct {
		Subject  string   `json:"sub"`
		Audience []string `json:"aud"`
		Expiry   int64    `json:"exp"`
		Issued   int64    `json:"iat"`
	}{id.String(), audience, expire.Unix(), issued.Unix()})
	if err != nil {
		return "", time.Time{}, fault.Internal(err, "a JWT-SVID could not be encoded")
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k.Key, KeyID: k.ID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", time.Time{}, fault.Internal(err, "a JWT-SVID could not be signed")
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", time.Time{}, fault.Internal(err, "a JWT-SVID could not be signed")
	}
	if token, err = jws.CompactSerialize(); err != nil {
		return "", time.Time{}, fault.Internal(err, "a JWT-SVID could not be encoded")
	}
	if len(token) > MaxJWTBytes {
		return "", time.Time{}, fault.InvalidArgument("the JWT-SVID would be longer than %d bytes: name fewer audiences", MaxJWTBytes)
	}
	return token, expire, nil
}

func publicOf(k *ecdsa.PrivateKey) *ecdsa.PublicKey {
	if k == nil {
		return nil
	}
	return &k.PublicKey
}

// CheckAudience refuses a list of receivers that no JWT-SVID is made for: none, too many, one that is empty, twice there, too long or not plain text.
func CheckAudience(audience []string) error {
	if len(audience) == 0 || len(audience) > MaxAudiences {
		return fault.InvalidArgument("a JWT-SVID is for 1 to %d audiences: name who shall accept it", MaxAudiences)
	}
	for i, a := range audience {
		if !plain(a) || slices.Contains(audience[:i], a) {
			return fault.InvalidArgument("each audience is a text of 1 to %d bytes without control characters, and stands there once", maxAudienceBytes)
		}
	}
	return nil
}

func plain(s string) bool {
	return s != "" && len(s) <= maxAudienceBytes && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

func validKeyID(kid string) bool {
	return kid != "" && len(kid) <= maxKeyID && !strings.ContainsFunc(kid, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
}

// VerifyJWT checks a JWT-SVID at the time now: signed with ES256 by the one of keys that it names, for a SPIFFE ID with a path in td, for
// audience byte for byte, and in its time. It reads one form alone: a compact JWS with alg, kid and typ in its header and nothing else.
// Every refusal is UNAUTHENTICATED.
func VerifyJWT(token, audience string, td spiffeid.TrustDomain, keys map[string]*ecdsa.PublicKey, now time.Time) (*JWT, error) {
	if len(token) > MaxJWTBytes {
		return nil, untrusted(nil, "a JWT-SVID has at most %d bytes", MaxJWTBytes)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, untrusted(nil, "this is no JWT-SVID: it is no compact JWS")
	}
	var raw [3][]byte
	for i, p := range parts {
		b, err := base64.RawURLEncoding.Strict().DecodeString(p)
		if err != nil || len(b) == 0 || strings.ContainsAny(p, "\r\n") {
			return nil, untrusted(nil, "this is no JWT-SVID: a part is not base64url")
		}
		raw[i] = b
	}
	if len(raw[2]) != es256Bytes {
		return nil, untrusted(nil, "the JWT-SVID is not signed with ES256")
	}
	kid, err := jwtHeader(raw[0])
	if err != nil {
		return nil, err
	}
	key, ok := keys[kid]
	if !ok || key == nil {
		return nil, untrusted(errUnknownKey, "the JWT-SVID is signed by a key that is not in the trust bundle")
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, untrusted(nil, "the JWT-SVID is not signed with ES256")
	}
	payload, err := jws.Verify(key)
	if err != nil {
		return nil, untrusted(nil, "the signature of the JWT-SVID is wrong")
	}
	j, err := jwtClaims(payload)
	if err != nil {
		return nil, err
	}
	j.KeyID = kid
	if err := j.check(audience, td, payload, now); err != nil {
		return nil, err
	}
	return j, nil
}

var errUnknownKey = errors.New("svid: unknown key of JWT-SVIDs")

// check looks at what was signed.
func (j *JWT) check(audience string, td spiffeid.TrustDomain, payload []byte, now time.Time) error {
	notBefore, _, err := instant(payload, "nbf")
	switch {
	case err != nil:
		return err
	case !j.ID.MemberOf(td) || j.ID.Path() == "":
		return untrusted(nil, "the JWT-SVID is not of a workload of %s", td)
	case audience == "" || !slices.Contains(j.Audience, audience):
		return untrusted(nil, "the JWT-SVID is for another audience")
	case !now.Before(j.Expiry):
		return untrusted(nil, "the JWT-SVID has expired")
	case j.Issued.After(now.Add(jwtSkew)) || notBefore.After(now.Add(jwtSkew)):
		return untrusted(nil, "the JWT-SVID is of the future: a clock is wrong")
	case !j.Issued.IsZero() && !j.Issued.Before(j.Expiry):
		return untrusted(nil, "the JWT-SVID ends before it begins")
	}
	return nil
}

func jwtHeader(raw []byte) (kid string, err error) {
	h, err := object(raw)
	if err != nil {
		return "", err
	}
	for name := range h {
		// jwk, jku, x5u, x5c, crit, b64: a key comes from the trust bundle and from nowhere else.
		if name != "alg" && name != "kid" && name != "typ" {
			return "", untrusted(nil, "the header of the JWT-SVID says more than alg, kid and typ")
		}
	}
	if alg, ok := h["alg"].(string); !ok || alg != string(jose.ES256) {
		return "", untrusted(nil, "the JWT-SVID is not signed with ES256")
	}
	if typ, ok := h["typ"]; ok && typ != "JWT" && typ != "JOSE" {
		return "", untrusted(nil, "this is another kind of token than a JWT-SVID")
	}
	kid, ok := h["kid"].(string)
	if !ok || !validKeyID(kid) {
		return "", untrusted(nil, "the JWT-SVID names no key")
	}
	return kid, nil
}

func jwtClaims(payload []byte) (*JWT, error) {
	c, err := object(payload)
	if err != nil {
		return nil, err
	}
	j := &JWT{Claims: c}
	sub, ok := c["sub"].(string)
	if !ok || len(sub) > maxIDBytes {
		return nil, untrusted(nil, "the JWT-SVID names no workload")
	}
	if j.ID, err = spiffeid.FromString(sub); err != nil {
		return nil, untrusted(nil, "the subject of the JWT-SVID is no SPIFFE ID")
	}
	switch aud := c["aud"].(type) {
	case string:
		j.Audience = []string{aud}
	case []any:
		for _, a := range aud {
			s, ok := a.(string)
			if !ok {
				return nil, untrusted(nil, "an audience of the JWT-SVID is no text")
			}
			j.Audience = append(j.Audience, s)
		}
	}
	if CheckAudience(j.Audience) != nil {
		return nil, untrusted(nil, "the JWT-SVID has no usable audience")
	}
	if j.Expiry, ok, err = instant(payload, "exp"); err != nil || !ok {
		return nil, untrusted(nil, "the JWT-SVID has no end")
	}
	j.Issued, _, err = instant(payload, "iat")
	return j, err
}

// instant reads a NumericDate: a positive whole number.
func instant(payload []byte, name string) (t time.Time, ok bool, err error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(payload, &all); err != nil {
		return time.Time{}, false, untrusted(nil, "the JWT-SVID holds no JSON object")
	}
	raw, ok := all[name]
	if !ok {
		return time.Time{}, false, nil
	}
	var n int64
	if len(raw) > 12 || json.Unmarshal(raw, &n) != nil || n <= 0 || bytes.ContainsAny(raw, "eE.") {
		return time.Time{}, true, untrusted(nil, "a time in the JWT-SVID is no positive whole number")
	}
	return time.Unix(n, 0), true, nil
}

// object reads exactly one JSON object in which no name stands twice.
func object(raw []byte) (map[string]any, error) {
	bad := untrusted(nil, "a part of the JWT-SVID is not one JSON object with each name once")
	if !utf8.Valid(raw) {
		return nil, bad
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, bad
	}
	out := make(map[string]any)
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, bad
		}
		if _, twice := out[name]; twice {
			return nil, bad
		}
		var v any
		if dec.Decode(&v) != nil {
			return nil, bad
		}
		out[name] = v
	}
	if _, err := dec.Token(); err != nil {
		return nil, bad
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, bad
	}
	return out, nil
}
