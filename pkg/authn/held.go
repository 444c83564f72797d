package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// NewHeldProver makes a key and the Prover of it, for somebody who keeps no state and has the key kept for him, as a text of 43 characters of
// base64url: whoever has the text has the key. now is the clock; nil means time.Now.
func NewHeldProver(now func() time.Time) (*Prover, redact.Secret, error) {
	key, err := GenerateKey()
	if err != nil {
		return nil, redact.Secret{}, err
	}
	raw, err := key.Bytes()
	if err != nil {
		return nil, redact.Secret{}, err
	}
	p, err := NewProver(key, now)
	return p, redact.FromString(base64.RawURLEncoding.EncodeToString(raw)), err
}

// HeldProver is the Prover of a key that was kept. What is no such key is an error that does not hold it.
func HeldProver(kept redact.Secret, now func() time.Time) (*Prover, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(kept.RevealString())
	if err != nil {
		return nil, fmt.Errorf("authn: a kept key is not base64url")
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw)
	if err != nil {
		return nil, fmt.Errorf("authn: this is no kept key")
	}
	return NewProver(key, now)
}
