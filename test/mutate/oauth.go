package main

const (
	descent   = "pkg/authn/descend.go"
	exchange  = "services/identity/internal/provider/delegate.go"
	shown     = "services/identity/internal/provider/certificate.go"
	doorway   = "services/identity/internal/certport/certport.go"
	ofClients = "Delegat|AttackExchange@services/identity"
	ofDoorway = "Certificate@services/identity"
)

// programs are the checks of clients that prove themselves by a certificate, and of tokens that clients exchange (A1, A3, A4, ADR 46). What is refused twice
// is no mutant here: a subject who is disabled (his tokens are revoked too), a certificate that is over (its entry ends with it), a public client (it
// has not the grant either).
var programs = []mutant{
	{"what a client was given outlives it", verify, `if a.Client() && v.cfg.Revocations.Revoked(a.Subject, a.SessionID, "", "", nil, c.IssuedAt) {`, "if a.Client() && false {", ofClients},
	{"what a credential gave outlives it", verify, `Revoked(a.Subject, a.SessionID, "", "", nil, c.IssuedAt)`, `Revoked(a.Subject, "", "", "", nil, c.IssuedAt)`, ofClients},
	{"a client acts after a service", claims, "if a.Actor != nil && !a.Actor.Client() {", "if false {", tokens},
	{"a service acts with a credential", claims, `if a.SessionID != "" {`, "if false {", tokens},
	{"anybody may act", claims, "if !slices.ContainsFunc(clientPrefixes, func(p string) bool { return strings.HasPrefix(a.Subject, p) }) {", "if !slices.ContainsFunc(clientPrefixes, func(p string) bool { return p != \"\" }) {", tokens},
	{"a client acts inside the mesh", claims, "if c.Actor != nil && c.Actor.Client() && strings.HasPrefix(c.Audience[0], schemeSPIFFE) {", "if false {", ofClients},
	{"a client stands for a run's key", claims, "(c.Actor == nil || c.Actor.Client())", "c.Actor == nil", ofClients},

	{"an exchanged token outlives its parent's revocation", descent, "append(slices.Clone(c.Ancestors), c.ID)", "slices.Clone(c.Ancestors)", ofClients},
	{"an exchanged token outlives its parent", descent, "Expiry: c.Expiry, ", "", ofClients},
	{"an exchanged token is younger than its parent", descent, "IssuedAt: c.IssuedAt, ", "", ofClients},
	{"who acted before is forgotten", descent, "	by.Actor = c.Actor\n", "", ofClients},

	{"a bound token is exchanged without its key", exchange, "case subject.Bound() && jkt != subject.Confirmation:", "case false:", ofClients},
	{"a run's token is exchanged", exchange, `case subject.Run != "":`, "case false:", ofClients},
	{"the scope grows", exchange, "if !slices.Contains(have, s) {", "if false {", ofClients},
	{"a refresh is asked for", exchange, "func(s string) bool { return s == scopeOffline }", "func(s string) bool { return false }", ofClients},
	{"the API for who was not registered for it", exchange, "if !c.program && !c.api {", "if false {", ofClients},
	{"any number of clients act", exchange, "|| actingClients(claims.Actor) > maxClients {", "{", ofClients},
	{"a token is given that is dead at birth", exchange, "if !until.IsZero() && !issued.After(until) {", "if !until.IsZero() && issued.IsZero() {", ofClients},
	{"an actor is ignored", exchange, `case q["actor_token"] != "" || q["actor_token_type"] != "":`, "case false:", ofClients},
	{"a token of any type is brought", exchange, `case q["subject_token_type"] != typeAccess:`, "case false:", ofClients},
	{"a token of any type is wanted", exchange, `case q["requested_token_type"] != "" && q["requested_token_type"] != typeAccess:`, "case false:", ofClients},
	{"a token is for any target", exchange, `if target != "" && target != p.cfg.Issuer && target != userInfo {`, "if false {", ofClients},
	{"two targets", exchange, `if target != "" && target != r {`, "if false {", ofClients},
	{"an exchanged token is not bound", exchange, "claims.ClientID, claims.Scope, claims.Confirmation = c.id, scope, jkt", "claims.ClientID, claims.Scope = c.id, scope", ofClients},
	{"a public application exchanges", "services/identity/applications.go", "if g == provider.GrantExchange && !a.Confidential {", "if false {", ofClients},
	{"what an application was given outlives it", "services/identity/applications.go", "revoked := []*identityv1.Revocation{subjectUntil(a.UID, now, now)}", "var revoked []*identityv1.Revocation", ofClients},
	{"who acts for somebody signs him out", "services/identity/signin.go", "if call.Claims.Actor != nil {", "if false {", ofClients},
	{"who acts for somebody revokes his tokens", "services/identity/tokens.go", "c.Actor != nil && v.ID != c.ID && !slices.Contains(v.Ancestors, c.ID) {", "c.Actor != nil && false {", ofClients},

	{"any certificate will do", minted, "subtle.ConstantTimeCompare(k.DER, der) == 1", "subtle.ConstantTimeCompare(k.DER, k.DER) == 1", ofDoorway},
	{"a certificate and a password", shown, `x.GetAuthorization() != "" || `, "", ofDoorway},
	{"a certificate and a secret", shown, `q["client_secret"] != "" || `, "", ofDoorway},
	{"a certificate and an assertion", shown, ` || q["client_assertion"] != "" || q["client_assertion_type"] != ""`, "", ofDoorway},
	{"a certificate before its time", shown, "now.Before(shown.NotBefore) || ", "", ofDoorway},
	{"an SVID is a client's certificate", shown, " || isSVID(shown)", "", ofDoorway},
	{"a proof names the gateway's address", shown, "return p.cfg.CertificateURL + PathToken", "return p.cfg.Issuer + PathToken", ofDoorway},
	{"a connection without a certificate", doorway, "tls.RequireAnyClientCert", "tls.RequestClientCert", ofDoorway},
	{"an older TLS", doorway, "tls.VersionTLS13, nil,", "tls.VersionTLS12, nil,", ofDoorway},
	{"any route is the token endpoint", doorway, "r.URL.Path != provider.PathToken || ", "", ofDoorway},
}
