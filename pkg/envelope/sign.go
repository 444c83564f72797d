package envelope

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"strconv"

	stded25519 "crypto/ed25519"

	"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess"
	"github.com/tink-crypto/tink-go/v2/key"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/secretdata"
	"github.com/tink-crypto/tink-go/v2/signature"
	"github.com/tink-crypto/tink-go/v2/signature/ed25519"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Signer signs documents and verifies what it has signed: DSSE envelopes (github.com/secure-systems-lab/dsse), Ed25519. A document that
// is to be read by others than who wrote it is signed; sealing alone binds it to its place for whoever has the key. It is safe for
// concurrent use.
type Signer struct {
	id     string
	seed   []byte
	public []byte // PKIX
	sign   tink.Signer
	verify tink.Verifier
}

// NewSigner makes a signer with a new key.
func NewSigner() (*Signer, error) {
	seed := make([]byte, stded25519.SeedSize)
	_, _ = rand.Read(seed) // never fails (Go 1.24)
	return newSigner(seed)
}

func newSigner(seed []byte) (*Signer, error) {
	unusable := func(err error) error { return fault.Internal(err, "a signing key could not be used") }
	params, err := ed25519.NewParameters(ed25519.VariantNoPrefix)
	if err != nil {
		return nil, unusable(err)
	}
	private, err := ed25519.NewPrivateKey(secretdata.NewBytesFromData(seed, insecuresecretdataaccess.Token{}), 0, params)
	if err != nil {
		return nil, unusable(err)
	}
	handle, err := single(private)
	if err != nil {
		return nil, unusable(err)
	}
	return withHandle(seed, handle)
}

func withHandle(seed []byte, handle *keyset.Handle) (*Signer, error) {
	unusable := func(err error) error { return fault.Internal(err, "a signing key could not be used") }
	s := &Signer{seed: seed}
	public, err := handle.Public()
	if err != nil {
		return nil, unusable(err)
	}
	if s.sign, err = signature.NewSigner(handle); err != nil {
		return nil, unusable(err)
	}
	if s.verify, err = signature.NewVerifier(public); err != nil {
		return nil, unusable(err)
	}
	if s.public, err = x509.MarshalPKIXPublicKey(stded25519.NewKeyFromSeed(seed).Public()); err != nil {
		return nil, unusable(err)
	}
	sum := sha256.Sum256(s.public)
	s.id = hex.EncodeToString(sum[:])
	return s, nil
}

// KeyID names the key: the SHA-256 of the public key's PKIX form, in hexadecimal digits.
func (s *Signer) KeyID() string { return s.id }

// PublicKeyPEM is the public key, PKIX.
func (s *Signer) PublicKeyPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: s.public})
}

// SealSigner encrypts the signer's key as one field of a record.
func (k *Key) SealSigner(aad AAD, s *Signer) ([]byte, error) { return k.Seal(aad, s.seed) }

// OpenSigner is the signer that SealSigner sealed for the same AAD.
func (k *Key) OpenSigner(aad AAD, sealed []byte) (*Signer, error) {
	seed, err := k.Open(aad, sealed)
	if err != nil {
		return nil, err
	}
	if len(seed) != stded25519.SeedSize {
		return nil, errDamaged()
	}
	return newSigner(seed)
}

// document is a DSSE envelope as JSON. The names are the specification's.
type document struct {
	PayloadType string         `json:"payloadType"`
	Payload     string         `json:"payload"`
	Signatures  []documentSign `json:"signatures"`
}

type documentSign struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

// pae is what is signed: DSSE's pre-authentication encoding of type and payload.
func pae(payloadType string, payload []byte) []byte {
	out := make([]byte, 0, len(payload)+len(payloadType)+64)
	out = append(out, "DSSEv1 "+strconv.Itoa(len(payloadType))+" "+payloadType+" "+strconv.Itoa(len(payload))+" "...)
	return append(out, payload...)
}

// SignDocument gives the payload in a DSSE envelope, as JSON. payloadType says what the payload is, and is signed with it.
func (s *Signer) SignDocument(payloadType string, payload []byte) ([]byte, error) {
	sig, err := s.sign.Sign(pae(payloadType, payload))
	if err != nil {
		return nil, fault.Internal(err, "a document could not be signed")
	}
	b := base64.StdEncoding
	out, err := json.Marshal(document{
		PayloadType: payloadType, Payload: b.EncodeToString(payload), Signatures: []documentSign{{KeyID: s.id, Sig: b.EncodeToString(sig)}},
	})
	if err != nil {
		return nil, fault.Internal(err, "a document could not be signed")
	}
	return out, nil
}

// SignedBy names the key that a document says it is signed with. Nothing is proved by it: it says which Signer to ask.
func SignedBy(signed []byte) (keyID string, err error) {
	d, err := parse(signed)
	if err != nil {
		return "", err
	}
	return d.Signatures[0].KeyID, nil
}

// VerifyDocument gives the payload of what SignDocument made for the same type. Anything else is DATA_DAMAGED.
func (s *Signer) VerifyDocument(payloadType string, signed []byte) ([]byte, error) {
	d, err := parse(signed)
	if err != nil {
		return nil, err
	}
	if d.PayloadType != payloadType || d.Signatures[0].KeyID != s.id {
		return nil, errDamaged()
	}
	payload, err := base64.StdEncoding.Strict().DecodeString(d.Payload)
	if err != nil {
		return nil, errDamaged()
	}
	sig, err := base64.StdEncoding.Strict().DecodeString(d.Signatures[0].Sig)
	if err != nil || s.verify.Verify(sig, pae(payloadType, payload)) != nil {
		return nil, errDamaged()
	}
	return payload, nil
}

// parse reads an envelope of one signature.
func parse(signed []byte) (document, error) {
	var d document
	dec := json.NewDecoder(bytes.NewReader(signed))
	dec.DisallowUnknownFields()
	if len(signed) > MaxRecord || dec.Decode(&d) != nil || dec.More() || len(d.Signatures) != 1 {
		return d, errDamaged()
	}
	return d, nil
}

// single is a keyset of one key, without a prefix: our own header names the key.
func single(k key.Key) (*keyset.Handle, error) {
	manager := keyset.NewManager()
	id, err := manager.AddKey(k)
	if err != nil {
		return nil, err
	}
	if err := manager.SetPrimary(id); err != nil {
		return nil, err
	}
	return manager.Handle()
}
