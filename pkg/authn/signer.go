package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// DefaultMaxBytes is the length of the longest token that is minted, and that a Verifier reads unless told otherwise.
const DefaultMaxBytes = 8 << 10

const (
	typeAccess = "at+jwt"
	typeProof  = "dpop+jwt"
)

var onlyES256 = []jose.SignatureAlgorithm{jose.ES256}

// Signer mints access tokens and ID tokens.
type Signer struct {
	kid    string
	signer jose.Signer
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
	s := &Signer{kid: kid}
	for typ, to := range map[jose.ContentType]*jose.Signer{typeAccess: &s.signer, typeID: &s.id} {
		var err error
		*to, err = jose.NewSigner(
			jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}},
			(&jose.SignerOptions{}).WithType(typ))
		if err != nil {
			return nil, fmt.Errorf("authn: new signer: %w", err)
		}
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
	sig, err := s.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("authn: mint: %w", err)
	}
	token, err := sig.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("authn: mint: %w", err)
	}
	if len(token) > DefaultMaxBytes {
		return "", fmt.Errorf("authn: mint: the token would be %d bytes, over the limit of %d", len(token), DefaultMaxBytes)
	}
	return token, nil
}
