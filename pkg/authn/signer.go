package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// DefaultMaxBytes is the length of the longest token that is minted, and that a Verifier reads unless told otherwise.
const DefaultMaxBytes = 8 << 10

const (
	p256Bytes     = 32
	signatureText = 86 // characters of base64 of one
)

const (
	typeAccess = "at+jwt"
	typeProof  = "dpop+jwt"
)

var onlyES256 = []jose.SignatureAlgorithm{jose.ES256}

// Signer mints access tokens and ID tokens.
type Signer struct {
	kid    string
	key    *ecdsa.PrivateKey
	header string      // of access tokens, encoded, with the dot after it
	id     jose.Signer // of ID tokens
}

// NewSigner makes a Signer. kid is the id under which the public half is published; see Thumbprint.
func NewSigner(key *ecdsa.PrivateKey, kid string) (*Signer, error) {
	if key == nil || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("authn: a signer needs a key on P-256")
	}
	if !validKeyID(kid) {
		return nil, fmt.Errorf("authn: the key id is empty or malformed")
	}
	// A key id needs no escape in JSON (validKeyID).
	s := &Signer{kid: kid, key: key, header: base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","kid":"`+kid+`","typ":"`+typeAccess+`"}`)) + "."}
	var err error
	s.id, err = jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}},
		(&jose.SignerOptions{}).WithType(typeID))
	if err != nil {
		return nil, fmt.Errorf("authn: new signer: %w", err)
	}
	return s, nil
}

// KeyID is the id of the key that signs.
func (s *Signer) KeyID() string { return s.kid }

// Mint signs an access token. Claims that a Verifier would refuse for their form are refused here already.
func (s *Signer) Mint(c Claims) (string, error) {
	payload, err := c.encode()
	if err != nil {
		return "", fmt.Errorf("authn: mint: %w", err)
	}
	// The compact form of a JWS (RFC 7515 section 7.1) whose header is the same each time; go-jose would build, copy and parse it anew.
	token := make([]byte, 0, len(s.header)+base64.RawURLEncoding.EncodedLen(len(payload))+1+signatureText)
	token = append(token, s.header...)
	token = base64.RawURLEncoding.AppendEncode(token, payload)
	sum := sha256.Sum256(token)
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", fmt.Errorf("authn: mint: %w", err)
	}
	var sig [2 * p256Bytes]byte // RFC 7518 section 3.4: both numbers in full length
	r.FillBytes(sig[:p256Bytes])
	v.FillBytes(sig[p256Bytes:])
	token = append(token, '.')
	token = base64.RawURLEncoding.AppendEncode(token, sig[:])
	if len(token) > DefaultMaxBytes {
		return "", fmt.Errorf("authn: mint: the token would be %d bytes, over the limit of %d", len(token), DefaultMaxBytes)
	}
	return string(token), nil
}
