package authn

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// The kinds of principal that a token speaks for.
const (
	User             = "user"
	ServicePrincipal = "service_principal"
	ManagedIdentity  = "managed_identity"
)

// How sure it is that the principal himself signed in (acr), and how he proved it (amr; RFC 8176, but for ByRecovery, which is ours).
const (
	// ACRPassword is a password alone, of a user of whom no factor is asked.
	ACRPassword = "urn:redoubt:acr:password" //nolint:gosec // names a way to sign in
	// ACRMFA is a password and a second factor.
	ACRMFA = "urn:redoubt:acr:mfa"
	// ACRHome is whatever a guest's own issuer asked of him.
	ACRHome = "urn:redoubt:acr:home"

	ByPassword = "pwd"
	ByTOTP     = "otp"
	ByHardware = "hwk"  // proof of possession of a key that stays in its device
	BySoftware = "swk"  // of a key that its owner's devices share: a synchronised passkey
	ByPresence = "user" // somebody touched the device
	ByRecovery = "rec"  // a recovery code
	ByTwo      = "mfa"  // more than one of them
	ByHome     = "home" // the issuer that a guest comes from

	// The classes of who comes from elsewhere.
	Guest    = "guest"
	Consumer = "consumer"
)

// Bounds of what a token holds. A token past them is neither minted nor accepted.
const (
	MaxActorDepth = 4  // services that acted on the way
	MaxAncestors  = 8  // tokens that this one descends from
	MaxActions    = 64 // actions of a run token
	maxAMR        = 8
)

// Claims is what an access token says. Times have whole seconds.
type Claims struct {
	// Issuer is the issuer URL, compared byte for byte.
	Issuer string
	// Audience holds exactly one entry: the installation, or one service.
	Audience []string
	// Subject is the uid of the principal, and PrincipalType one of User, ServicePrincipal, ManagedIdentity.
	Subject, PrincipalType string
	// ClientID is the OAuth client through which the token was asked for.
	ClientID string
	// ID is the token's own id (jti), by which it is revoked.
	ID string
	// SessionID is the sign-in that the token belongs to (sid); "" where there was none, as for client credentials.
	SessionID string
	// Scope is the OAuth scope, names separated by spaces; "" if none was granted.
	Scope string
	// IssuedAt and Expiry bound the life of the token: it is over at Expiry, not after it.
	IssuedAt, Expiry time.Time
	// AuthTime is when the principal last proved itself; zero if that is not known.
	AuthTime time.Time
	// Confirmation is the thumbprint of the key that the token is bound to (cnf.jkt: the base64url SHA-256 of RFC
	// 7638), "" for a bearer token.
	Confirmation string
	// Actor is the service or client that acts for the subject, with those before it nested inside; nil if he acts himself.
	Actor *Actor
	// Ancestors are the ids of the tokens that this one descends from ("anc"), eldest first, at most MaxAncestors.
	// Revoking any of them revokes this one.
	Ancestors []string
	// AMR and ACR say how the principal proved himself (RFC 8176, OpenID Connect).
	AMR []string
	ACR string
	// Run and Workspace are the uids that a run token is confined to, and Actions what it may be used for. All three
	// are set, or none is. A run token is bound to a key or has an Actor.
	Run, Workspace string
	Actions        []string
	// HomeIssuer and HomeSubject say who the subject is where he comes from, and HomeClass is Guest or Consumer. All three are set, or none
	// is, and then he is of this installation.
	HomeIssuer, HomeSubject, HomeClass string
}

// Actor is one in the chain of delegation (RFC 8693, "act"): a service of the mesh, or an OAuth client outside it. No text is both, so a client is
// never taken for the peer that a service looks for, and no client acts after a service: what is inside the mesh stays there.
type Actor struct {
	// Subject is the SPIFFE ID of a service, or the uid of a client: app_… of an application, spn_… of a service principal.
	Subject string
	// SessionID is the credential by which a client has proved itself, "" of a service. With it ends what the client was given by it.
	SessionID string
	Actor     *Actor // who acted before it, or nil
}

// schemeSPIFFE begins the name of every service; clientPrefixes begin those of clients.
const schemeSPIFFE = "spiffe://"

var clientPrefixes = []string{"app_", "spn_"}

// Client reports whether the actor is an OAuth client and no service of the mesh.
func (a *Actor) Client() bool { return !strings.HasPrefix(a.Subject, schemeSPIFFE) }

// check holds one actor to its form.
func (a *Actor) check() error {
	if err := checkText(a.Subject); err != nil {
		return err
	}
	if !a.Client() {
		if a.SessionID != "" {
			return cause("a service that acts has no credential")
		}
		return nil
	}
	if !slices.ContainsFunc(clientPrefixes, func(p string) bool { return strings.HasPrefix(a.Subject, p) }) {
		return cause("an actor is neither a SPIFFE ID nor a client")
	}
	if a.SessionID == "" {
		return cause("a client that acts names its credential")
	}
	if a.Actor != nil && !a.Actor.Client() {
		return cause("a client acts after a service")
	}
	return checkText(a.SessionID)
}

// Depth is the number of actors in the chain.
func (a *Actor) Depth() int {
	n := 0
	for ; a != nil; a = a.Actor {
		n++
	}
	return n
}

// Verified is a token that passed every check of Verify. It is shared between calls: do not change it.
type Verified struct{ Claims }

// Bound reports whether the token counts only together with a proof by its key (ProofChecker.Check).
func (v *Verified) Bound() bool { return v.Confirmation != "" }

// check holds the rules that minting and verifying share.
func (c *Claims) check() error {
	if len(c.Audience) != 1 {
		return cause("there must be exactly one audience")
	}
	for _, s := range []string{c.Issuer, c.Audience[0], c.Subject, c.ClientID, c.ID} {
		if err := checkText(s); err != nil {
			return err
		}
	}
	for _, s := range []string{c.SessionID, c.Scope, c.ACR, c.Run, c.Workspace, c.HomeIssuer, c.HomeSubject} {
		if s != "" {
			if err := checkText(s); err != nil {
				return err
			}
		}
	}
	switch c.PrincipalType {
	case User, ServicePrincipal, ManagedIdentity:
	default:
		return cause("the principal type is unknown")
	}
	if c.IssuedAt.Unix() <= 0 || c.Expiry.Unix() > maxInstant || !c.Expiry.After(c.IssuedAt) {
		return cause("the token's times make no sense")
	}
	if c.Confirmation != "" && !isThumbprint(c.Confirmation) {
		return cause("the confirmation is not a thumbprint")
	}
	if c.Actor.Depth() > MaxActorDepth {
		return cause("too many actors")
	}
	for a := c.Actor; a != nil; a = a.Actor {
		if err := a.check(); err != nil {
			return err
		}
	}
	if c.Actor != nil && c.Actor.Client() && strings.HasPrefix(c.Audience[0], schemeSPIFFE) {
		return cause("a client acts inside the mesh")
	}
	for _, l := range []struct {
		items []string
		limit int
	}{{c.Ancestors, MaxAncestors}, {c.AMR, maxAMR}, {c.Actions, MaxActions}} {
		if len(l.items) > l.limit {
			return cause("a list is too long")
		}
		for _, s := range l.items {
			if err := checkText(s); err != nil {
				return err
			}
		}
	}
	switch home := c.HomeIssuer != ""; {
	case home != (c.HomeSubject != "") || home != (c.HomeClass != ""):
		return cause("a home has an issuer, a subject and a class")
	case home && (c.PrincipalType != User || c.HomeClass != Guest && c.HomeClass != Consumer):
		return cause("only users have a home, as guests or consumers")
	}
	if run := c.Run != ""; run != (c.Workspace != "") || run != (len(c.Actions) > 0) {
		return cause("a run token names its run, its workspace and its actions")
	}
	if c.Run != "" && c.Confirmation == "" && (c.Actor == nil || c.Actor.Client()) {
		return cause("a run token is bound to a key")
	}
	return nil
}

// wire is the payload of a token as it is written. It is read by decode, member by member, never into this struct.
type wire struct {
	Issuer        string        `json:"iss"`
	Audience      string        `json:"aud"`
	Subject       string        `json:"sub"`
	PrincipalType string        `json:"principal_type"`
	ClientID      string        `json:"client_id"`
	ID            string        `json:"jti"`
	SessionID     string        `json:"sid,omitempty"`
	Scope         string        `json:"scope,omitempty"`
	IssuedAt      int64         `json:"iat"`
	Expiry        int64         `json:"exp"`
	AuthTime      int64         `json:"auth_time,omitempty"`
	Confirmation  *confirmation `json:"cnf,omitempty"`
	Actor         *wireActor    `json:"act,omitempty"`
	Ancestors     []string      `json:"anc,omitempty"`
	AMR           []string      `json:"amr,omitempty"`
	ACR           string        `json:"acr,omitempty"`
	Run           string        `json:"run,omitempty"`
	Workspace     string        `json:"ws,omitempty"`
	Actions       []string      `json:"actions,omitempty"`
	HomeIssuer    string        `json:"home_iss,omitempty"`
	HomeSubject   string        `json:"home_sub,omitempty"`
	HomeClass     string        `json:"home_class,omitempty"`
}

type confirmation struct {
	Thumbprint string `json:"jkt"`
}

type wireActor struct {
	Subject   string     `json:"sub"`
	SessionID string     `json:"sid,omitempty"`
	Actor     *wireActor `json:"act,omitempty"`
}

func wireActors(a *Actor) *wireActor {
	if a == nil {
		return nil
	}
	return &wireActor{Subject: a.Subject, SessionID: a.SessionID, Actor: wireActors(a.Actor)}
}

// encode checks c and gives the payload.
func (c *Claims) encode() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	w := wire{
		Issuer: c.Issuer, Audience: c.Audience[0], Subject: c.Subject, PrincipalType: c.PrincipalType,
		ClientID: c.ClientID, ID: c.ID, SessionID: c.SessionID, Scope: c.Scope,
		IssuedAt: c.IssuedAt.Unix(), Expiry: c.Expiry.Unix(), Actor: wireActors(c.Actor),
		Ancestors: c.Ancestors, AMR: c.AMR, ACR: c.ACR, Run: c.Run, Workspace: c.Workspace, Actions: c.Actions,
		HomeIssuer: c.HomeIssuer, HomeSubject: c.HomeSubject, HomeClass: c.HomeClass,
	}
	if !c.AuthTime.IsZero() {
		w.AuthTime = c.AuthTime.Unix()
	}
	if c.Confirmation != "" {
		w.Confirmation = &confirmation{c.Confirmation}
	}
	return json.Marshal(w)
}

// decode reads the payload of a token whose signature is good. Members that are not known are ignored, since a newer
// issuer may add some; those that are known have exactly one form. notBefore is the later of iat and nbf.
func decode(payload []byte) (c *Claims, notBefore time.Time, err error) {
	m, err := parseObject(payload)
	if err != nil {
		return nil, notBefore, err
	}
	c = &Claims{Audience: make([]string, 1)}
	for _, f := range []struct {
		name     string
		to       *string
		required bool
	}{
		{"iss", &c.Issuer, true}, {"aud", &c.Audience[0], true}, {"sub", &c.Subject, true},
		{"principal_type", &c.PrincipalType, true}, {"client_id", &c.ClientID, true}, {"jti", &c.ID, true},
		{"sid", &c.SessionID, false}, {"scope", &c.Scope, false}, {"acr", &c.ACR, false},
		{"run", &c.Run, false}, {"ws", &c.Workspace, false},
		{"home_iss", &c.HomeIssuer, false}, {"home_sub", &c.HomeSubject, false}, {"home_class", &c.HomeClass, false},
	} {
		s, ok, err := m.text(f.name)
		if err != nil {
			return nil, notBefore, err
		}
		if !ok && f.required {
			return nil, notBefore, cause("a claim that every token has is missing")
		}
		*f.to = s
	}
	for _, f := range []struct {
		name     string
		to       *time.Time
		required bool
	}{{"iat", &c.IssuedAt, true}, {"exp", &c.Expiry, true}, {"auth_time", &c.AuthTime, false}, {"nbf", &notBefore, false}} {
		t, ok, err := m.instant(f.name)
		if err != nil {
			return nil, notBefore, err
		}
		if !ok && f.required {
			return nil, notBefore, cause("a time that every token has is missing")
		}
		*f.to = t
	}
	if c.IssuedAt.After(notBefore) {
		notBefore = c.IssuedAt
	}
	for _, f := range []struct {
		name  string
		to    *[]string
		limit int
	}{{"anc", &c.Ancestors, MaxAncestors}, {"amr", &c.AMR, maxAMR}, {"actions", &c.Actions, MaxActions}} {
		if *f.to, err = m.texts(f.name, f.limit); err != nil {
			return nil, notBefore, err
		}
	}
	if raw, ok := m["cnf"]; ok {
		cnf, err := parseObject(raw)
		if err != nil {
			return nil, notBefore, err
		}
		// A binding that is not understood must not be ignored.
		if err := cnf.only("jkt"); err != nil {
			return nil, notBefore, err
		}
		if c.Confirmation, ok, err = cnf.text("jkt"); err != nil || !ok {
			return nil, notBefore, cause("the confirmation is not a thumbprint")
		}
	}
	if raw, ok := m["act"]; ok {
		if c.Actor, err = decodeActor(raw, 1); err != nil {
			return nil, notBefore, err
		}
	}
	return c, notBefore, c.check()
}

func decodeActor(raw json.RawMessage, depth int) (*Actor, error) {
	if depth > MaxActorDepth {
		return nil, cause("too many actors")
	}
	m, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	sub, ok, err := m.text("sub")
	if err != nil || !ok {
		return nil, cause("an actor has no subject")
	}
	sid, named, err := m.text("sid")
	if err != nil || named && sid == "" {
		return nil, cause("an actor's credential is not a text")
	}
	a := &Actor{Subject: sub, SessionID: sid}
	if inner, ok := m["act"]; ok {
		if a.Actor, err = decodeActor(inner, depth+1); err != nil {
			return nil, err
		}
	}
	return a, nil
}
