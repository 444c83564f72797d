// Package forge makes tokens that no verifier may take, of one that every verifier takes. It is imported by tests only: those of pkg/authn, and
// those that send the same tokens to every service of an installation.
//
// Trust boundary: none. Whoever forges has the issuer's own key here, so that what refuses a token is the check that its name tells, and not
// the signature.
//
// Invariants: a token of Tokens differs from the good one in what its name says, and in nothing else that would have it refused.
//
// Failure: an error of Tokens is one of the test's.
package forge

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"strings"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
)

const (
	mostActors    = 4 // authn.MaxActorDepth, which this package cannot import
	mostAncestors = 8 // authn.MaxAncestors
)

var rawURL = base64.RawURLEncoding

// Good is a token that passes. Header has alg, typ and kid; Payload has iss, aud and sub as texts and iat as an int64, and lives for more than
// a minute.
type Good struct {
	Key             *ecdsa.PrivateKey
	Header, Payload map[string]any
}

// Token is one that must not pass. Reason is what a verifier refuses it with; 0 is TOKEN_INVALID.
type Token struct {
	Name, Token string
	Reason      faultv1.Reason
}

// With changes members of a copy of m: a name and its value follow each other, and nil takes the member away.
func With(m map[string]any, kv ...any) map[string]any {
	m = maps.Clone(m)
	for i := 0; i+1 < len(kv); i += 2 {
		if kv[i+1] == nil {
			delete(m, kv[i].(string))
		} else {
			m[kv[i].(string)] = kv[i+1]
		}
	}
	return m
}

// JSON is v as JSON; a text and bytes are taken as they are.
func JSON(v any) []byte {
	switch v := v.(type) {
	case string:
		return []byte(v)
	case []byte:
		return v
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// Sign makes a compact JWS of any header and payload, with a good ES256 signature by key over them.
func Sign(key *ecdsa.PrivateKey, header, payload any) string {
	return SignRaw(key, rawURL.EncodeToString(JSON(header)), rawURL.EncodeToString(JSON(payload)))
}

// SignRaw is Sign for segments that are encoded already, in whichever way.
func SignRaw(key *ecdsa.PrivateKey, header, payload string) string {
	in := header + "." + payload
	sum := sha256.Sum256([]byte(in))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		panic(err)
	}
	return in + "." + sigOf(r, s)
}

func sigOf(r, s *big.Int) string {
	var b [64]byte
	r.FillBytes(b[:32])
	s.FillBytes(b[32:])
	return rawURL.EncodeToString(b[:])
}

func b64(v any) string { return rawURL.EncodeToString(JSON(v)) }

// splice gives the token another signature.
func splice(token, sig string) string { return token[:strings.LastIndexByte(token, '.')+1] + sig }

func numbered(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s_%d", prefix, i)
	}
	return out
}

// nested is an act claim of n services.
func nested(n int) string {
	if n == 0 {
		return ""
	}
	inner := nested(n - 1)
	if inner != "" {
		inner = `,"act":` + inner
	}
	return `{"sub":"spiffe://redoubt.example/svc/compute"` + inner + "}"
}
