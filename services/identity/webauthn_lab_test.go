package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"html"
	"regexp"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// Flags of authenticator data (Web Authentication Level 2, section 6.1).
const (
	flagUP = 0x01
	flagUV = 0x04
	flagBE = 0x08
	flagAT = 0x40
)

// device is a security key in software, written from the specification and not with the library that is tried.
type device struct {
	t     testing.TB
	key   *ecdsa.PrivateKey
	id    []byte
	count uint32
	flags byte
	// What it answers as; changed by whoever cheats.
	origin, rp, kind string
	data             func(map[string]any) // of the client
}

func newDevice(t testing.TB) *device {
	id := make([]byte, 32)
	_, _ = rand.Read(id)
	return &device{t: t, key: newKey(t), id: id, flags: flagUP, origin: issuer, rp: "redoubt.test"}
}

var b64 = base64.RawURLEncoding

// options are what a page asks of a key, and what the page asks with.
type options struct {
	PublicKey struct {
		Challenge string `json:"challenge"`
		RPID      string `json:"rpId"`
		RP        struct {
			ID string `json:"id"`
		} `json:"rp"`
		User struct {
			ID string `json:"id"`
		} `json:"user"`
		Verification string `json:"userVerification"`
		Allow        []struct {
			ID string `json:"id"`
		} `json:"allowCredentials"`
	} `json:"publicKey"`
}

var dataOptions = regexp.MustCompile(`data-options="([^"]*)"`)

// asksKey reads what the page asks of a key.
func (r reply) asksKey(t testing.TB) options {
	t.Helper()
	m := dataOptions.FindStringSubmatch(r.text())
	if m == nil {
		t.Fatalf("no key is asked: %d %q %v", r.GetStatus(), r.text(), r.err)
	}
	var o options
	must(t, json.Unmarshal([]byte(html.UnescapeString(m[1])), &o))
	return o
}

// client is the clientDataJSON of an answer.
func (d *device) client(kind, challenge string) []byte {
	m := map[string]any{"type": kind, "challenge": challenge, "origin": d.origin, "crossOrigin": false}
	if d.kind != "" {
		m["type"] = d.kind
	}
	if d.data != nil {
		d.data(m)
	}
	b, err := json.Marshal(m)
	must(d.t, err)
	return b
}

// auth is the authenticator data.
func (d *device) auth(flags byte, more ...byte) []byte {
	sum := sha256.Sum256([]byte(d.rp))
	out := append(sum[:], flags)
	out = binary.BigEndian.AppendUint32(out, d.count)
	return append(out, more...)
}

// creates answers a page that registers a key.
func (d *device) creates(o options) string {
	d.t.Helper()
	must32 := func(n []byte) []byte { return append(make([]byte, 32-len(n)), n...) }
	point, err := d.key.PublicKey.Bytes()
	must(d.t, err)
	if len(point) != 65 || d.key.Curve != elliptic.P256() {
		d.t.Fatal("no point of P-256")
	}
	cose, err := cbor.Marshal(map[int]any{1: 2, 3: -7, -1: 1, -2: must32(point[1:33]), -3: must32(point[33:])})
	must(d.t, err)
	attested := append(make([]byte, 16), byte(len(d.id)>>8), byte(len(d.id))) // the model is not said
	attested = append(append(attested, d.id...), cose...)
	object, err := cbor.Marshal(map[string]any{"fmt": "none", "attStmt": map[string]any{}, "authData": d.auth(d.flags|flagAT, attested...)})
	must(d.t, err)
	return d.json(map[string]any{"clientDataJSON": b64.EncodeToString(d.client("webauthn.create", o.PublicKey.Challenge)), "attestationObject": b64.EncodeToString(object), "transports": []string{"usb"}})
}

// signs answers a page that asks for a key.
func (d *device) signs(o options) string {
	d.t.Helper()
	client, auth := d.client("webauthn.get", o.PublicKey.Challenge), d.auth(d.flags)
	return d.signed(auth, client, client)
}

// signed signs over one client data, and sends another.
func (d *device) signed(auth, signed, sent []byte) string {
	d.t.Helper()
	hash := sha256.Sum256(signed)
	sum := sha256.Sum256(append(append([]byte{}, auth...), hash[:]...))
	sig, err := ecdsa.SignASN1(rand.Reader, d.key, sum[:])
	must(d.t, err)
	return d.json(map[string]any{"clientDataJSON": b64.EncodeToString(sent), "authenticatorData": b64.EncodeToString(auth), "signature": b64.EncodeToString(sig)})
}

func (d *device) json(response map[string]any) string {
	b, err := json.Marshal(map[string]any{"id": b64.EncodeToString(d.id), "rawId": b64.EncodeToString(d.id), "type": "public-key", "response": response})
	must(d.t, err)
	return string(b)
}
