package factor

import (
	"encoding/json"
	"net"
	"net/url"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/protocol/webauthncose"
	"github.com/go-webauthn/webauthn/webauthn"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// maxKeyAnswer bounds what a browser sends of a key, in bytes.
const maxKeyAnswer = 16 << 10

// Keys checks security keys and passkeys (Web Authentication Level 2) for one installation. It is safe for concurrent use.
type Keys struct{ w *webauthn.WebAuthn }

// Key is a registered one. It holds no secret, but decides who is let in.
type Key struct {
	// ID and PublicKey (COSE, RFC 9052) are of the credential.
	ID        []byte `json:"id"`
	PublicKey []byte `json:"public_key"`
	// AAGUID names the model, as the key says itself: it is not attested.
	AAGUID []byte `json:"aaguid,omitempty"`
	// Transports are how a browser reaches it.
	Transports []string `json:"transports,omitempty"`
	// Verifies says that it verified its user when it was registered, by a PIN or a finger: it has to each time.
	Verifies bool `json:"verifies,omitempty"`
	// Synced says that it may be copied to other devices of its owner.
	Synced bool `json:"synced,omitempty"`
	// Count of signatures; 0 of a key that does not count.
	Count uint32 `json:"-"`
}

// KeyUser is whose keys they are.
type KeyUser struct {
	// UID is the user handle: stable, and no name. Name is shown by the browser.
	UID, Name string
	Keys      []Key
}

// WebAuthnID implements webauthn.User.
func (u KeyUser) WebAuthnID() []byte { return []byte(u.UID) }

// WebAuthnName implements webauthn.User.
func (u KeyUser) WebAuthnName() string { return u.Name }

// WebAuthnDisplayName implements webauthn.User.
func (u KeyUser) WebAuthnDisplayName() string { return u.Name }

// WebAuthnCredentials implements webauthn.User.
func (u KeyUser) WebAuthnCredentials() []webauthn.Credential {
	out := make([]webauthn.Credential, 0, len(u.Keys))
	for _, k := range u.Keys {
		c := webauthn.Credential{
			ID: k.ID, PublicKey: k.PublicKey, Flags: webauthn.CredentialFlags{UserPresent: true, UserVerified: k.Verifies, BackupEligible: k.Synced},
			Authenticator: webauthn.Authenticator{AAGUID: k.AAGUID, SignCount: k.Count},
		}
		for _, t := range k.Transports {
			c.Transport = append(c.Transport, protocol.AuthenticatorTransport(t))
		}
		out = append(out, c)
	}
	return out
}

// NewKeys makes Keys of the installation at the issuer's address, which is what browsers see of it. ok is false where the address has no name, for keys are
// bound to names and never to numbers, or is not https.
func NewKeys(issuer string) (k *Keys, ok bool, err error) {
	u, err := url.Parse(issuer)
	if err != nil {
		return nil, false, fault.Internal(err, "the issuer is no address")
	}
	if u.Scheme != "https" || u.Hostname() == "" || net.ParseIP(u.Hostname()) != nil {
		return nil, false, nil
	}
	w, err := webauthn.New(&webauthn.Config{
		RPID: u.Hostname(), RPDisplayName: "Redoubt " + u.Host, RPOrigins: []string{u.Scheme + "://" + u.Host},
		AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementDiscouraged, UserVerification: protocol.VerificationPreferred,
		},
	})
	if err != nil {
		return nil, false, fault.Internal(err, "the issuer's name cannot be one that keys are bound to")
	}
	return &Keys{w}, true, nil
}

// algorithms that are taken: ECDSA with P-256, Ed25519, and RSA of Windows' TPMs.
var algorithms = []protocol.CredentialParameter{
	{Type: protocol.PublicKeyCredentialType, Algorithm: webauthncose.AlgES256},
	{Type: protocol.PublicKeyCredentialType, Algorithm: webauthncose.AlgEdDSA},
	{Type: protocol.PublicKeyCredentialType, Algorithm: webauthncose.AlgRS256},
}

// Create begins the registration of a further key. options are for navigator.credentials.create; kept stays here, and is good for one answer.
func (k *Keys) Create(u KeyUser) (options string, kept []byte, err error) {
	var known []protocol.CredentialDescriptor
	for _, c := range u.WebAuthnCredentials() {
		known = append(known, c.Descriptor())
	}
	creation, session, err := k.w.BeginRegistration(u, webauthn.WithExclusions(known), webauthn.WithCredentialParameters(algorithms))
	if err != nil {
		return "", nil, fault.Internal(err, "a key cannot be asked for")
	}
	return begun(creation, session)
}

// Ask begins an assertion by one of the user's keys, likewise.
func (k *Keys) Ask(u KeyUser) (options string, kept []byte, err error) {
	verify := protocol.VerificationRequired
	for _, key := range u.Keys {
		if !key.Verifies {
			verify = protocol.VerificationPreferred
		}
	}
	assertion, session, err := k.w.BeginLogin(u, webauthn.WithUserVerification(verify))
	if err != nil {
		return "", nil, fault.Internal(err, "a key cannot be asked for")
	}
	return begun(assertion, session)
}

func begun(options any, session *webauthn.SessionData) (string, []byte, error) {
	text, err := json.Marshal(options)
	if err != nil {
		return "", nil, fault.Internal(err, "what is asked of a key could not be encoded")
	}
	kept, err := json.Marshal(session)
	if err != nil {
		return "", nil, fault.Internal(err, "what is asked of a key could not be encoded")
	}
	return string(text), kept, nil
}

// resume reads what was kept. Nothing is kept of a challenge that was answered.
func resume(kept []byte, answer string) (s webauthn.SessionData, ok bool) {
	return s, len(kept) > 0 && len(answer) <= maxKeyAnswer && json.Unmarshal(kept, &s) == nil && s.Challenge != ""
}

// Created reads the answer to Create. ok is false for one that is not of that challenge, origin, name and user.
func (k *Keys) Created(u KeyUser, kept []byte, answer string) (Key, bool) {
	session, ok := resume(kept, answer)
	if !ok {
		return Key{}, false
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes([]byte(answer))
	if err != nil {
		return Key{}, false
	}
	c, err := k.w.CreateCredential(u, session, parsed)
	if err != nil || len(c.ID) == 0 || len(c.PublicKey) == 0 {
		return Key{}, false
	}
	out := Key{
		ID: c.ID, PublicKey: c.PublicKey, AAGUID: c.Authenticator.AAGUID, Verifies: c.Flags.UserVerified, Synced: c.Flags.BackupEligible, Count: c.Authenticator.SignCount,
	}
	for _, t := range c.Transport {
		out.Transports = append(out.Transports, string(t))
	}
	return out, true
}

// Asserted is an assertion that holds, but for the count.
type Asserted struct {
	// Key is the index of the one that signed, among the user's.
	Key int
	// Count is the one that it gave. Back says that it did not rise: there may be a copy of the key.
	Count uint32
	Back  bool
	// Verified says that the key verified its user this time.
	Verified bool
}

// Asserted reads the answer to Ask. ok is false for one that is not of that challenge, origin, name and user, by a key of his that was there, in the
// presence of a person. Whether the count may be that one, and whether the person had to be verified, is the caller's to say.
func (k *Keys) Asserted(u KeyUser, kept []byte, answer string) (Asserted, bool) {
	session, ok := resume(kept, answer)
	if !ok || len(session.AllowedCredentialIDs) == 0 {
		return Asserted{}, false
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes([]byte(answer))
	if err != nil {
		return Asserted{}, false
	}
	c, err := k.w.ValidateLogin(u, session, parsed)
	if err != nil {
		return Asserted{}, false
	}
	for i, key := range u.Keys {
		if string(key.ID) != string(c.ID) {
			continue
		}
		data := parsed.Response.AuthenticatorData
		return Asserted{Key: i, Count: data.Counter, Back: c.Authenticator.CloneWarning, Verified: data.Flags.HasUserVerified()}, true
	}
	return Asserted{}, false
}
