package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

const (
	typeID = "JWT"
	// maxAssertion is how long an assertion of a client may be, and maxAssertionLife how far ahead its exp may be.
	maxAssertion     = 4 << 10
	maxAssertionLife = 5 * time.Minute
	minAssertionID   = 8
)

// IDClaims is what an ID token says (OpenID Connect Core 1.0 section 2): who signed in, to an application and nobody else.
type IDClaims struct {
	Issuer, Subject string
	// Audience is the client_id of the application.
	Audience         string
	IssuedAt, Expiry time.Time
	AuthTime         time.Time
	// Nonce is the request's, "" if it had none.
	Nonce string
	// AccessToken is the one that is given together with it; at_hash is made of it.
	AccessToken string
	AMR         []string
	ACR         string
	SessionID   string
	// Username and Name are set where the scope profile was granted.
	Username, Name string
}

type wireID struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audience  string   `json:"aud"`
	IssuedAt  int64    `json:"iat"`
	Expiry    int64    `json:"exp"`
	AuthTime  int64    `json:"auth_time,omitempty"`
	Nonce     string   `json:"nonce,omitempty"`
	Hash      string   `json:"at_hash,omitempty"`
	Party     string   `json:"azp"`
	AMR       []string `json:"amr,omitempty"`
	ACR       string   `json:"acr,omitempty"`
	SessionID string   `json:"sid,omitempty"`
	Username  string   `json:"preferred_username,omitempty"`
	Name      string   `json:"name,omitempty"`
}

// MintID signs an ID token. Its type is JWT, so that no Verifier takes it for an access token.
func (s *Signer) MintID(c IDClaims) (string, error) {
	for _, text := range []string{c.Issuer, c.Subject, c.Audience} {
		if err := checkText(text); err != nil {
			return "", fmt.Errorf("authn: mint an ID token: %w", err)
		}
	}
	if c.IssuedAt.Unix() <= 0 || !c.Expiry.After(c.IssuedAt) {
		return "", errors.New("authn: mint an ID token: its times make no sense")
	}
	w := wireID{
		Issuer: c.Issuer, Subject: c.Subject, Audience: c.Audience, IssuedAt: c.IssuedAt.Unix(), Expiry: c.Expiry.Unix(), Nonce: c.Nonce,
		Hash: halfHash(c.AccessToken), Party: c.Audience, AMR: c.AMR, ACR: c.ACR, SessionID: c.SessionID, Username: c.Username, Name: c.Name,
	}
	if !c.AuthTime.IsZero() {
		w.AuthTime = c.AuthTime.Unix()
	}
	payload, err := json.Marshal(w)
	if err != nil {
		return "", fmt.Errorf("authn: mint an ID token: %w", err)
	}
	sig, err := s.id.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("authn: mint an ID token: %w", err)
	}
	return sig.CompactSerialize()
}

// halfHash is the at_hash of a token: the left half of its SHA-256 (OpenID Connect Core 1.0 section 3.1.3.6).
func halfHash(token string) string {
	if token == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(token))
	return rawURL.EncodeToString(sum[:len(sum)/2])
}

// Hint is what an ID token of this issuer says when it comes back as a hint (id_token_hint).
type Hint struct{ Subject, Audience, SessionID string }

// ReadHint reads an ID token of the issuer whose keys these are. It may be over: a hint is no credential. What is none is TOKEN_INVALID.
func ReadHint(ctx context.Context, token, issuer string, keys KeySet) (Hint, error) {
	if token == "" || len(token) > DefaultMaxBytes {
		return Hint{}, invalid(cause("the hint is missing or too long"))
	}
	segment, _, _, err := parseCompact(token)
	if err != nil {
		return Hint{}, invalid(err)
	}
	kid, err := header(segment, typeID)
	if err != nil {
		return Hint{}, invalid(err)
	}
	key, err := keys.Key(ctx, kid)
	switch {
	case errors.Is(err, ErrUnknownKey):
		return Hint{}, invalid(err)
	case err != nil:
		return Hint{}, noKeys(err)
	}
	payload, err := verifyES256(token, key)
	if err != nil {
		return Hint{}, invalid(err)
	}
	m, err := parseObject(payload)
	if err != nil {
		return Hint{}, invalid(err)
	}
	var h Hint
	var iss string
	for name, to := range map[string]*string{"iss": &iss, "sub": &h.Subject, "aud": &h.Audience, "sid": &h.SessionID} {
		if *to, _, err = m.text(name); err != nil {
			return Hint{}, invalid(err)
		}
	}
	if iss != issuer || h.Subject == "" || h.Audience == "" {
		return Hint{}, invalid(cause("the hint is another issuer's"))
	}
	return h, nil
}

// header reads the header of a JWS of ours with the type.
func header(segment, typ string) (kid string, err error) {
	raw, err := decodeSegment(segment)
	if err != nil {
		return "", err
	}
	h, err := parseObject(raw)
	if err != nil {
		return "", err
	}
	if err := h.only("alg", "typ", "kid"); err != nil {
		return "", err
	}
	if s, _, err := h.text("alg"); err != nil || s != "ES256" {
		return "", cause("the header is not of ES256")
	}
	if s, ok, err := h.text("typ"); err != nil || ok && s != typ {
		return "", cause("the header is of another type")
	}
	kid, ok, err := h.text("kid")
	if err != nil || !ok || !validKeyID(kid) {
		return "", cause("the header has no usable key id")
	}
	return kid, nil
}

// Assertion is how a client proves itself by a key of its own (private_key_jwt: RFC 7523 section 3, OpenID Connect Core 1.0 section 9).
type Assertion struct {
	// Client is iss and sub, which are equal. ID is its jti: it counts once until Expiry.
	Client, ID string
	Expiry     time.Time
}

// ReadAssertion reads an assertion of a client. key finds a public key of the client that the assertion claims to be from, or fails;
// audiences are the ones of which aud has to name exactly one. The caller sees to it that the ID is used once.
func ReadAssertion(assertion string, now time.Time, audiences []string, key func(client, kid string) (*ecdsa.PublicKey, error)) (Assertion, error) {
	fail := func(err error) (Assertion, error) { return Assertion{}, fmt.Errorf("authn: assertion: %w", err) }
	if assertion == "" || len(assertion) > maxAssertion {
		return fail(cause("it is missing or too long"))
	}
	segment, body, _, err := parseCompact(assertion)
	if err != nil {
		return fail(err)
	}
	kid, err := header(segment, typeID)
	if err != nil {
		return fail(err)
	}
	// The name of the client says whose key to look for; it counts only after the signature.
	raw, err := decodeSegment(body)
	if err != nil {
		return fail(err)
	}
	claimed, err := parseObject(raw)
	if err != nil {
		return fail(err)
	}
	client, _, err := claimed.text("iss")
	if err != nil || client == "" {
		return fail(cause("it has no issuer"))
	}
	pub, err := key(client, kid)
	if err != nil {
		return fail(err)
	}
	payload, err := verifyES256(assertion, pub)
	if err != nil {
		return fail(err)
	}
	m, err := parseObject(payload)
	if err != nil {
		return fail(err)
	}
	iss, _, err := m.text("iss")
	if err != nil || iss != client {
		return fail(cause("its issuer is another"))
	}
	if sub, _, err := m.text("sub"); err != nil || sub != client {
		return fail(cause("its subject is another"))
	}
	if err := oneOf(m, audiences); err != nil {
		return fail(err)
	}
	id, _, err := m.text("jti")
	if err != nil || len(id) < minAssertionID {
		return fail(cause("it has no usable jti"))
	}
	exp, ok, err := m.instant("exp")
	switch {
	case err != nil || !ok:
		return fail(cause("it has no end"))
	case !now.Before(exp):
		return fail(cause("it is over"))
	case exp.Sub(now) > maxAssertionLife+MaxLeeway:
		return fail(cause("it would live too long"))
	}
	for _, name := range []string{"iat", "nbf"} {
		if t, ok, err := m.instant(name); err != nil || ok && t.After(now.Add(MaxLeeway)) {
			return fail(cause("it is from the future"))
		}
	}
	return Assertion{Client: client, ID: id, Expiry: exp}, nil
}

// oneOf refuses an audience that is not one of want; an array counts if it has one entry.
func oneOf(m members, want []string) error {
	aud, ok, err := m.text("aud")
	if err != nil {
		list, err := m.texts("aud", 1)
		if err != nil {
			return err
		}
		aud, ok = list[0], true
	}
	if ok {
		for _, w := range want {
			if aud == w {
				return nil
			}
		}
	}
	return cause("it is for another audience")
}

// ParsePublicKey reads a public key on P-256 as SubjectPublicKeyInfo.
func ParsePublicKey(spki []byte) (*ecdsa.PublicKey, error) {
	k, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, cause("the key is not a SubjectPublicKeyInfo")
	}
	key, ok := k.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, cause("the key is not on P-256")
	}
	return key, nil
}
