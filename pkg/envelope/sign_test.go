package envelope_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"testing"

	"github.com/redoubt-ml/redoubt/pkg/envelope"
)

const payloadType = "application/vnd.test+json"

func newSigner(t *testing.T) *envelope.Signer {
	t.Helper()
	s, err := envelope.NewSigner()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestADocumentIsADSSEEnvelope reads what was signed as somebody else would: with the specification and the standard library.
func TestADocumentIsADSSEEnvelope(t *testing.T) {
	s := newSigner(t)
	payload := []byte(`{"a":"ü"}`)
	signed, err := s.SignDocument(payloadType, payload)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		PayloadType string
		Payload     []byte
		Signatures  []struct {
			KeyID string
			Sig   []byte
		}
	}
	if err := json.Unmarshal(signed, &d); err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(s.PublicKeyPEM())
	if block == nil || len(rest) > 0 {
		t.Fatal("not one block of PEM")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
	if d.PayloadType != payloadType || !bytes.Equal(d.Payload, payload) || len(d.Signatures) != 1 || d.Signatures[0].KeyID != s.KeyID() ||
		!ed25519.Verify(public.(ed25519.PublicKey), []byte(text), d.Signatures[0].Sig) {
		t.Errorf("%s is not what the specification says", signed)
	}
	if id, err := envelope.SignedBy(signed); err != nil || id != s.KeyID() {
		t.Errorf("SignedBy: %q %v", id, err)
	}
	if got, err := s.VerifyDocument(payloadType, signed); err != nil || !bytes.Equal(got, payload) {
		t.Errorf("VerifyDocument: %q %v", got, err)
	}
}

func TestADocumentThatWasChangedIsRefused(t *testing.T) {
	s, other := newSigner(t), newSigner(t)
	signed, err := s.SignDocument(payloadType, []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.SignDocument(payloadType, []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString
	for name, doc := range map[string][]byte{
		"empty":                  nil,
		"no JSON":                []byte("{"),
		"another payload":        bytes.Replace(signed, []byte(b64([]byte("payload"))), []byte(b64([]byte("Payload"))), 1),
		"another type":           bytes.Replace(signed, []byte("vnd.test"), []byte("vnd.else"), 1),
		"another signer":         foreign,
		"another signer's name":  bytes.Replace(foreign, []byte(other.KeyID()), []byte(s.KeyID()), 1),
		"no signature":           []byte(`{"payloadType":"` + payloadType + `","payload":"","signatures":[]}`),
		"something behind":       append(bytes.Clone(signed), " {}"...),
		"a field more":           bytes.Replace(signed, []byte(`{"payloadType"`), []byte(`{"x":1,"payloadType"`), 1),
		"a signature that ended": bytes.Replace(signed, []byte(`"sig":"`), []byte(`"sig":"","x":"`), 1),
	} {
		if bytes.Equal(doc, signed) {
			t.Errorf("%s: the document was not changed", name)
		}
		if _, err := s.VerifyDocument(payloadType, doc); !damaged(err) {
			t.Errorf("%s: %v, want DATA_DAMAGED", name, err)
		}
	}
	if _, err := s.VerifyDocument("another", signed); !damaged(err) {
		t.Errorf("asked for another type: %v, want DATA_DAMAGED", err)
	}
}

func TestASignerIsSealedToItsPlace(t *testing.T) {
	k := key(t, newKeyring(t, envelope.Config{}), envelope.ServiceOwner)
	s := newSigner(t)
	aad := envelope.AAD{Owner: envelope.ServiceOwner, Kind: "signing_key", ID: s.KeyID()}
	sealed, err := k.SealSigner(aad, s)
	if err != nil {
		t.Fatal(err)
	}
	again, err := k.OpenSigner(aad, sealed)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := again.SignDocument(payloadType, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.VerifyDocument(payloadType, signed); err != nil || again.KeyID() != s.KeyID() || !bytes.Equal(again.PublicKeyPEM(), s.PublicKeyPEM()) {
		t.Errorf("what was opened is another key: %v", err)
	}
	aad.ID = newSigner(t).KeyID()
	if _, err := k.OpenSigner(aad, sealed); !damaged(err) {
		t.Errorf("in another's place: %v, want DATA_DAMAGED", err)
	}
	short, err := k.Seal(aad, []byte("short"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.OpenSigner(aad, short); !damaged(err) {
		t.Errorf("something else sealed there: %v, want DATA_DAMAGED", err)
	}
}
