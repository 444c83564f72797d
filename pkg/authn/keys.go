package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	maxJWKS     = 64 << 10 // bytes
	maxJWKSKeys = 64
	maxKeyID    = 128
)

// GenerateKey makes a P-256 key, for a Signer or a Prover.
func GenerateKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// MarshalKey gives the PKCS#8 DER form of a private key, to be sealed and stored.
func MarshalKey(key *ecdsa.PrivateKey) (redact.Secret, error) {
	if key == nil || key.Curve != elliptic.P256() {
		return redact.Secret{}, fmt.Errorf("authn: the key is not on P-256")
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return redact.Secret{}, fmt.Errorf("authn: marshal key: %w", err)
	}
	return redact.New(der), nil
}

// ParseKey reads what MarshalKey wrote.
func ParseKey(der redact.Secret) (*ecdsa.PrivateKey, error) {
	k, err := x509.ParsePKCS8PrivateKey(der.Reveal())
	if err != nil {
		return nil, fmt.Errorf("authn: the stored key is not PKCS#8") // the cause could quote what it read
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("authn: the stored key is not on P-256")
	}
	return key, nil
}

// Thumbprint is the base64url SHA-256 thumbprint of RFC 7638, 43 characters: what cnf.jkt holds, and a good key id.
// It is "" for a key that is not on P-256.
func Thumbprint(pub *ecdsa.PublicKey) string {
	x, y, ok := coordinates(pub)
	if !ok {
		return ""
	}
	sum := sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + x + `","y":"` + y + `"}`))
	return rawURL.EncodeToString(sum[:])
}

func isThumbprint(s string) bool {
	b, err := decodeSegment(s)
	return err == nil && len(b) == sha256.Size
}

func coordinates(pub *ecdsa.PublicKey) (x, y string, ok bool) {
	if pub == nil || pub.Curve != elliptic.P256() {
		return "", "", false
	}
	b, err := pub.Bytes()
	if err != nil || len(b) != 65 {
		return "", "", false
	}
	return rawURL.EncodeToString(b[1:33]), rawURL.EncodeToString(b[33:]), true
}

// parseECKey reads the x and y of a public JWK. Each is exactly 32 bytes, and the point is on the curve.
func parseECKey(m members) (*ecdsa.PublicKey, error) {
	for name, want := range map[string]string{"kty": "EC", "crv": "P-256"} {
		if s, _, err := m.text(name); err != nil || s != want {
			return nil, cause("a JWK is not an EC key on P-256")
		}
	}
	point := append(make([]byte, 0, 65), 4)
	for _, name := range []string{"x", "y"} {
		s, _, err := m.text(name)
		if err != nil {
			return nil, err
		}
		b, err := decodeSegment(s)
		if err != nil || len(b) != 32 {
			return nil, cause("a coordinate of a JWK is malformed")
		}
		point = append(point, b...)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, cause("the point of a JWK is not on the curve")
	}
	return pub, nil
}

// privateMembers are the names under which a JWK would carry a secret.
var privateMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"}

func (m members) anyPrivate() bool {
	return slices.ContainsFunc(privateMembers, func(n string) bool { _, ok := m[n]; return ok })
}

func validKeyID(kid string) bool {
	return kid != "" && len(kid) <= maxKeyID && !strings.ContainsFunc(kid, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
}

type jwk struct {
	KeyType string `json:"kty"`
	Use     string `json:"use"`
	Alg     string `json:"alg"`
	KeyID   string `json:"kid"`
	Curve   string `json:"crv"`
	X       string `json:"x"`
	Y       string `json:"y"`
}

// RenderJWKS gives the JSON Web Key Set (RFC 7517) of public keys by key id, in the order of the ids.
func RenderJWKS(keys map[string]*ecdsa.PublicKey) ([]byte, error) {
	set := struct {
		Keys []jwk `json:"keys"`
	}{Keys: make([]jwk, 0, len(keys))}
	for kid, pub := range keys {
		x, y, ok := coordinates(pub)
		if !ok || !validKeyID(kid) {
			return nil, fmt.Errorf("authn: key %q is not on P-256, or its id is malformed", kid)
		}
		set.Keys = append(set.Keys, jwk{KeyType: "EC", Use: "sig", Alg: "ES256", KeyID: kid, Curve: "P-256", X: x, Y: y})
	}
	slices.SortFunc(set.Keys, func(a, b jwk) int { return strings.Compare(a.KeyID, b.KeyID) })
	return json.Marshal(set)
}

// ParseJWKS reads the ES256 signature keys of a key set. Keys of other kinds are left out; a set that holds a private
// key, one key id twice, no usable key, or more than 64 KiB is refused whole.
func ParseJWKS(data []byte) (map[string]*ecdsa.PublicKey, error) {
	if len(data) > maxJWKS {
		return nil, cause("the key set is too large")
	}
	m, err := parseObject(data)
	if err != nil {
		return nil, err
	}
	var raws []json.RawMessage
	if err := json.Unmarshal(m["keys"], &raws); err != nil || len(raws) > maxJWKSKeys {
		return nil, cause("the key set has no list of keys, or too many")
	}
	keys := make(map[string]*ecdsa.PublicKey, len(raws))
	for _, raw := range raws {
		k, err := parseObject(raw)
		if err != nil {
			return nil, err
		}
		if k.anyPrivate() {
			return nil, cause("the key set holds a private key")
		}
		kid, _, err := k.text("kid")
		if err != nil || !validKeyID(kid) || !k.isOr("use", "sig") || !k.isOr("alg", "ES256") {
			continue
		}
		pub, err := parseECKey(k)
		if err != nil {
			continue
		}
		if _, twice := keys[kid]; twice {
			return nil, cause("the key set has one key id twice")
		}
		keys[kid] = pub
	}
	if len(keys) == 0 {
		return nil, cause("the key set has no ES256 key")
	}
	return keys, nil
}

// isOr reports whether the member is absent or equals want.
func (m members) isOr(name, want string) bool {
	s, ok, err := m.text(name)
	return err == nil && (!ok || s == want)
}
