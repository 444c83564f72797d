package provider

import (
	"context"
	"crypto/ecdsa"
	"encoding/base64"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/clients"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// Grant types.
const (
	GrantCode    = "authorization_code"
	GrantRefresh = "refresh_token"
	GrantClient  = "client_credentials"
	GrantDevice  = "urn:ietf:params:oauth:grant-type:device_code"
	// GrantExchange is token exchange (RFC 8693).
	GrantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
)

// Scopes.
const (
	scopeOpenID  = "openid"
	scopeProfile = "profile"
	scopeOffline = "offline_access"
	// scopeAPI makes tokens that are good for the installation's API, with all that the person may do.
	scopeAPI = "redoubt"
)

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// CommandLine is the client_id of Redoubt's own command line. It is built in, and public; its tokens are bound to a key.
const CommandLine = "redoubt-cli"

var commandLine = client{
	id: CommandLine, name: "the Redoubt command line", needsKey: true,
	redirects: []string{"http://127.0.0.1/callback", "http://[::1]/callback"},
	grants:    []string{GrantCode, GrantRefresh, GrantDevice}, api: true,
}

// Console is the client_id of Redoubt's own console. It is built in, and public: its answers go to the installation's own origin and nowhere
// else, and its tokens are bound to a key.
const Console = "redoubt-console"

// PathConsole is where the console takes its answers, below the issuer.
const PathConsole = "/console/signed-in"

// console is the client of an installation's own console.
func (p *Provider) console() client {
	return client{id: Console, name: "the Redoubt console", needsKey: true, here: true, redirects: []string{p.cfg.Issuer + PathConsole}, grants: []string{GrantCode}, api: true}
}

// Own reports whether a client is Redoubt's own: what a person does with it he does himself.
func Own(id string) bool { return id == CommandLine || id == Console }

// ClientName is what people know a client by, "" for one that there is no more.
func (p *Provider) ClientName(ctx context.Context, q sqldb.DBTX, id string) (string, error) {
	c, _, err := p.find(ctx, q, id)
	return c.name, err
}

// client is who asks: an application, or a service principal.
type client struct {
	id, name          string
	confidential      bool
	needsKey          bool // its tokens are bound to a key, always
	here              bool // its answers go to the installation's own origin alone, so no other program can be it
	redirects, logout []string
	grants            []string
	api               bool
	program           bool           // a service principal
	known             *clients.Facts // of a service principal that has proved itself
	credential        string         // by which it has proved itself
}

// find finds a client, whatever it is. ok is false where there is none, and for a service principal that is disabled.
func (p *Provider) find(ctx context.Context, q sqldb.DBTX, id string) (client, bool, error) {
	switch {
	case id == "" || len(id) > 256:
		return client{}, false, nil
	case id == CommandLine:
		return commandLine, true, nil
	case id == Console:
		return p.console(), true, nil
	case strings.HasPrefix(id, "spn_"):
		sp, ok, err := p.cfg.Store.Principal(ctx, q, id)
		if err != nil || !ok || sp.Disabled || sp.Kind != store.ServicePrincipal {
			return client{}, false, err
		}
		return client{id: id, name: sp.Name(), confidential: true, grants: programGrants, program: true}, true, nil
	}
	a, ok, err := p.cfg.Store.Application(ctx, q, id)
	if err != nil || !ok {
		return client{}, false, err
	}
	return client{
		id: a.UID, name: a.DisplayName, confidential: a.Confidential, redirects: a.RedirectURIs, logout: a.LogoutURIs, grants: a.GrantTypes, api: a.APIAccess,
	}, true, nil
}

func (c client) may(grant string) bool { return slices.Contains(c.grants, grant) }

// authenticate finds out which client asks a program's endpoint. A client uses one way to prove itself, once (RFC 6749 section 2.3). What is
// remembered of a service principal is good for MintFor alone.
func (p *Provider) authenticate(ctx context.Context, x *identityv1.Exchange, q params, remembered bool) (client, error) {
	if shown, ok := proven(ctx); ok {
		return p.byCertificate(ctx, x, q, shown, remembered)
	}
	ways := 0
	for _, given := range []bool{x.GetAuthorization() != "", q["client_secret"] != "", q["client_assertion"] != "" || q["client_assertion_type"] != ""} {
		if given {
			ways++
		}
	}
	id, secret := q["client_id"], q["client_secret"]
	switch {
	case ways > 1:
		return client{}, badClient()
	case x.GetAuthorization() != "":
		var ok bool
		if id, secret, ok = basic(x.GetAuthorization()); !ok || id == "" || secret == "" || q["client_id"] != "" && q["client_id"] != id {
			return client{}, badClient()
		}
	case q["client_assertion"] != "" || q["client_assertion_type"] != "":
		return p.byAssertion(ctx, q, remembered)
	}
	if secret != "" && strings.HasPrefix(id, "spn_") {
		return p.bySecret(ctx, id, secret, remembered)
	}
	db := p.cfg.DB.Reader()
	c, known, err := p.find(ctx, db, id)
	if err != nil {
		return client{}, err
	}
	if secret == "" {
		if !known || c.confidential {
			return client{}, badClient()
		}
		return c, nil
	}
	// A secret has 256 random bits and is found by its digest, so the time of the look-up tells nothing of it.
	s := redact.FromString(secret)
	defer s.Wipe()
	have, ok, err := p.cfg.Store.FindApplicationSecret(ctx, db, s)
	if err != nil {
		return client{}, err
	}
	if !known || !c.confidential || !ok || have.UID != c.id || !p.cfg.Now().Before(have.ExpireTime) {
		return client{}, badClient()
	}
	c.credential = have.ID
	return c, nil
}

// bySecret is a service principal's secret.
func (p *Provider) bySecret(ctx context.Context, id, secret string, remembered bool) (client, error) {
	if len(id) > 256 {
		return client{}, badClient()
	}
	s := redact.FromString(secret)
	defer s.Wipe()
	f, ok, err := p.cfg.BySecret(ctx, id, s, remembered)
	if err != nil {
		return client{}, err
	}
	if !ok {
		return client{}, badClient()
	}
	return program(f), nil
}

// programGrants are those of a service principal.
var programGrants = []string{GrantClient, GrantExchange}

// program is a service principal that has proved itself.
func program(f clients.Facts) client {
	return client{id: f.UID, name: f.Name, confidential: true, grants: programGrants, program: true, known: &f, credential: f.Credential}
}

// basic reads client credentials from the Authorization header: both parts are form encoded first (RFC 6749 section 2.3.1).
func basic(h string) (id, secret string, ok bool) {
	scheme, enc, ok := strings.Cut(h, " ")
	if !ok || !strings.EqualFold(scheme, "basic") {
		return "", "", false
	}
	raw, err := base64.StdEncoding.DecodeString(enc)
	if err != nil {
		return "", "", false
	}
	a, b, ok := strings.Cut(string(raw), ":")
	if !ok {
		return "", "", false
	}
	if id, err = url.QueryUnescape(a); err != nil {
		return "", "", false
	}
	if secret, err = url.QueryUnescape(b); err != nil {
		return "", "", false
	}
	return id, secret, true
}

// byAssertion is private_key_jwt (RFC 7523 section 3).
func (p *Provider) byAssertion(ctx context.Context, q params, remembered bool) (client, error) {
	if q["client_assertion_type"] != assertionType || q["client_assertion"] == "" {
		return client{}, badClient()
	}
	db, now := p.cfg.DB.Reader(), p.cfg.Now()
	var c client
	var failed error // of ours
	a, err := authn.ReadAssertion(q["client_assertion"], now, []string{p.cfg.Issuer, p.cfg.Issuer + PathToken}, func(id, kid string) (*ecdsa.PublicKey, error) {
		if strings.HasPrefix(id, "spn_") && len(id) <= 256 {
			f, ok, err := p.cfg.ByKey(ctx, id, kid, remembered)
			if failed = err; err != nil || !ok {
				return nil, errors.New("no such client, or key")
			}
			c = program(f)
			return f.Public, nil
		}
		var known bool
		if c, known, failed = p.find(ctx, db, id); failed != nil || !known || !c.confidential {
			return nil, errors.New("no such client")
		}
		var spki []byte
		if spki, failed = p.key(ctx, db, c, kid, now); failed != nil || spki == nil {
			return nil, errors.New("no such key")
		}
		c.credential = kid
		return authn.ParsePublicKey(spki)
	})
	switch {
	case failed != nil:
		return client{}, failed
	case err != nil || q["client_id"] != "" && q["client_id"] != a.Client:
		return client{}, badClient()
	}
	first := false
	err = p.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		first, err = p.cfg.Store.UseAssertion(ctx, tx, a.Client, a.ID, a.Expiry)
		return err
	})
	if err != nil {
		return client{}, err
	}
	if !first {
		return client{}, badClient()
	}
	return c, nil
}

// key finds a public key of an application by its thumbprint; nil for none.
func (p *Provider) key(ctx context.Context, db sqldb.DBTX, c client, kid string, now time.Time) (spki []byte, err error) {
	spki, ok, err := p.cfg.Store.ApplicationKey(ctx, db, c.id, kid, now)
	if !ok {
		spki = nil
	}
	return spki, err
}

// scope checks what a client asks for and gives it in one spelling. "" means openid.
func (c client) scope(asked string) (string, error) {
	if asked == "" {
		asked = scopeOpenID
	}
	var out []string
	for _, s := range strings.Split(asked, " ") {
		switch {
		case slices.Contains(out, s):
			continue
		case s == scopeOpenID || s == scopeProfile:
		case s == scopeOffline && c.may(GrantRefresh):
		case s == scopeAPI && c.api:
		default:
			return "", refuse(errScope, "the scopes of this client are %s", strings.Join(c.scopes(), " "))
		}
		out = append(out, s)
	}
	return strings.Join(out, " "), nil
}

func (c client) scopes() []string {
	out := []string{scopeOpenID, scopeProfile}
	if c.may(GrantRefresh) {
		out = append(out, scopeOffline)
	}
	if c.api {
		out = append(out, scopeAPI)
	}
	return out
}

func has(scope, one string) bool { return slices.Contains(strings.Fields(scope), one) }

// proof reads the DPoP proof of a request to one of a program's endpoints, at url, if it has one, and gives the thumbprint of its key.
func (p *Provider) proof(x *identityv1.Exchange, url string) (jkt string, err error) {
	if x.GetDpop() == "" {
		return "", nil
	}
	jkt, err = p.proofs.Bind(x.GetDpop(), x.GetMethod(), url)
	if err != nil {
		return "", fault.Describe(err).With(oauthError, errProof)
	}
	return jkt, nil
}
