package federation

import (
	"context"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const (
	documentLife = 10 * time.Minute
	maxAge       = 10 * time.Minute // of an ID token
	maxAhead     = time.Minute      // by which the home's clock may be fast
	maxSubject   = 255              // OpenID Connect Core 1.0 section 2
	maxDisplay   = 128
	maxEmail     = 254
	maxGroups    = 200
	maxGroup     = 256
	maxCode      = 4096
	maxIDToken   = 64 << 10
)

// Algorithms that ID tokens may be signed with. There is no symmetric one: a client secret is no key.
var Algorithms = []string{oidc.RS256, oidc.PS256, oidc.ES256, oidc.EdDSA}

// Relying is the relying party of all issuers. It is safe for concurrent use.
type Relying struct {
	now func() time.Time

	mu    sync.Mutex
	known map[string]*home // by uid
}

// New makes one.
func New(now func() time.Time) *Relying { return &Relying{now: now, known: make(map[string]*home)} }

// home is what is known of an issuer for a while.
type home struct {
	version  int64
	until    time.Time
	client   *http.Client
	provider *oidc.Provider
	says     bool // iss in its answers
	style    oauth2.AuthStyle
}

// CheckURL reports why something cannot be an issuer's URL.
func CheckURL(raw string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.String() != raw || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Opaque != "" || strings.ContainsAny(raw, "?#\\ "):
		return fault.InvalidArgument("an issuer is an https URL without user, query or fragment, spelled as its own document has it").Field("issuer_url", "not an issuer's URL")
	case u.Host != strings.ToLower(u.Host) || strings.HasSuffix(u.Hostname(), ".") || strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return fault.InvalidArgument("the host of an issuer is in lower-case ASCII; a name of another script looks like what it is not").Field("issuer_url", "not in plain ASCII")
	}
	return nil
}

// Roots reads certificates in PEM; nil for none.
func Roots(text string) (*x509.CertPool, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // nil means the system's, as it does in tls.Config
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(text)) {
		return nil, fault.InvalidArgument("there is no certificate in it: the roots are certificates in PEM").Field("settings.trusted_roots_pem", "no certificate")
	}
	return pool, nil
}

// unavailable is a home that cannot be reached or speaks nonsense.
func unavailable(cause error) error {
	return fault.Wrap(cause, codes.Aborted, faultv1.Reason_SIGN_IN_FAILED, "your organisation's sign-in cannot be reached, or does not answer as it should; try again later, or ask your administrator")
}

// refused is an answer that is not believed.
func refused(format string, args ...any) error {
	return fault.Wrap(fmt.Errorf(format, args...), codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "the answer of your organisation's sign-in is not one that is taken here; start again, or ask an administrator")
}

// open gives what is known of an issuer, and asks it where that is old.
func (r *Relying) open(ctx context.Context, i store.Issuer) (*home, error) {
	now := r.now()
	r.mu.Lock()
	h := r.known[i.UID]
	r.mu.Unlock()
	if h != nil && h.version == i.Version && now.Before(h.until) {
		return h, nil
	}
	roots, err := Roots(i.RootsPEM)
	if err != nil {
		return nil, err
	}
	h = &home{version: i.Version, until: now.Add(documentLife), client: newClient(i.PrivateHosts, roots, r.now, nil)}
	// The keys are fetched later, when nobody waits for this call any more.
	asking := oidc.ClientContext(context.WithoutCancel(ctx), h.client)
	if h.provider, err = oidc.NewProvider(asking, i.URL); err != nil {
		return nil, unavailable(err)
	}
	var doc struct {
		Issuer  string   `json:"issuer"`
		Auth    string   `json:"authorization_endpoint"`
		Token   string   `json:"token_endpoint"`
		Keys    string   `json:"jwks_uri"`
		Says    bool     `json:"authorization_response_iss_parameter_supported"`
		Methods []string `json:"token_endpoint_auth_methods_supported"`
		PKCE    []string `json:"code_challenge_methods_supported"`
	}
	if err := h.provider.Claims(&doc); err != nil {
		return nil, unavailable(err)
	}
	if doc.Issuer != i.URL {
		return nil, unavailable(errors.New("the document is another issuer's"))
	}
	for name, e := range map[string]string{"authorization_endpoint": doc.Auth, "token_endpoint": doc.Token, "jwks_uri": doc.Keys} {
		if u, err := url.Parse(e); err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" || len(e) > 2048 {
			return nil, unavailable(fmt.Errorf("%s is not an https URL", name))
		}
	}
	if len(doc.PKCE) > 0 && !slices.Contains(doc.PKCE, "S256") {
		return nil, unavailable(errors.New("it does not know S256"))
	}
	h.says = doc.Says
	switch { // one way, decided before: to try one after the other would show the code twice
	case i.Secret.Empty():
		h.style = oauth2.AuthStyleInParams
	case len(doc.Methods) == 0 || slices.Contains(doc.Methods, "client_secret_basic"):
		h.style = oauth2.AuthStyleInHeader
	case slices.Contains(doc.Methods, "client_secret_post"):
		h.style = oauth2.AuthStyleInParams
	default:
		return nil, unavailable(errors.New("it takes client secrets neither by Basic nor by body"))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[i.UID] = h
	return h, nil
}

// Walk is what is kept while a person is away at an issuer.
type Walk struct {
	Verifier string `json:"v"`
	Nonce    string `json:"n"`
	// Since is the time, in seconds, after which he must have proved himself; 0 is any.
	Since int64 `json:"f,omitempty"`
}

// NewWalk makes one with a verifier and a nonce of its own.
func NewWalk(since int64) Walk {
	return Walk{Verifier: oauth2.GenerateVerifier(), Nonce: oauth2.GenerateVerifier(), Since: since}
}

func (h *home) config(i store.Issuer, redirect string) *oauth2.Config {
	e := h.provider.Endpoint()
	e.AuthStyle = h.style
	return &oauth2.Config{
		ClientID: i.ClientID, ClientSecret: i.Secret.RevealString(), Endpoint: e, RedirectURL: redirect, Scopes: append([]string{oidc.ScopeOpenID}, i.Scopes...),
	}
}

// Leave gives the URL at which a person signs in.
func (r *Relying) Leave(ctx context.Context, i store.Issuer, w Walk, redirect, state string) (string, error) {
	h, err := r.open(ctx, i)
	if err != nil {
		return "", err
	}
	opts := []oauth2.AuthCodeOption{oidc.Nonce(w.Nonce), oauth2.S256ChallengeOption(w.Verifier)}
	if w.Since > 0 {
		opts = append(opts, oauth2.SetAuthURLParam("prompt", "login"), oauth2.SetAuthURLParam("max_age", strconv.FormatInt(max(0, r.now().Unix()-w.Since), 10)))
	}
	return h.config(i, redirect).AuthCodeURL(state, opts...), nil
}

// Person is who an issuer says came back.
type Person struct {
	Subject string
	// Session is the one that he has there, "" if it does not say.
	Session string
	// DisplayName and Email are "" where there is none, or none that is verified.
	DisplayName, Email string
	Groups             []string
	// AuthTime is when he proved himself there, zero if it does not say; MFA whether that was by more than one factor.
	AuthTime time.Time
	MFA      bool
}

// CheckIssuer holds the iss of an answer to the issuer (RFC 9207).
func (r *Relying) CheckIssuer(ctx context.Context, i store.Issuer, iss string) error {
	h, err := r.open(ctx, i)
	if err != nil {
		return err
	}
	if iss != i.URL && (iss != "" || h.says) {
		return refused("the answer is another issuer's, or does not say whose it is")
	}
	return nil
}

// Return turns an answer into a person.
func (r *Relying) Return(ctx context.Context, i store.Issuer, w Walk, redirect, code string) (Person, error) {
	h, err := r.open(ctx, i)
	if err != nil {
		return Person{}, err
	}
	if code == "" || len(code) > maxCode {
		return Person{}, refused("there is no code")
	}
	asking := oidc.ClientContext(ctx, h.client)
	tokens, err := h.config(i, redirect).Exchange(asking, code, oauth2.VerifierOption(w.Verifier))
	if err != nil {
		var said *oauth2.RetrieveError
		if errors.As(err, &said) && said.Response != nil && said.Response.StatusCode < 500 {
			return Person{}, refused("the token endpoint refuses: %d %q", said.Response.StatusCode, plain(said.ErrorCode, 64))
		}
		if errors.As(err, &said) {
			err = errors.New("the token endpoint fails") // its body is a stranger's
		}
		return Person{}, unavailable(err)
	}
	raw, ok := tokens.Extra("id_token").(string)
	if !ok || raw == "" || len(raw) > maxIDToken {
		return Person{}, refused("there is no ID token, or a huge one")
	}
	t, err := h.provider.Verifier(&oidc.Config{ClientID: i.ClientID, SupportedSigningAlgs: i.Algorithms, Now: r.now}).Verify(asking, raw)
	if err != nil {
		return Person{}, refused("the ID token: %w", err)
	}
	if err := r.check(i, w, t, tokens.AccessToken); err != nil {
		return Person{}, err
	}
	return r.person(i, w, t)
}

// check holds an ID token whose signature is good to what the library leaves to its callers.
func (r *Relying) check(i store.Issuer, w Walk, t *oidc.IDToken, access string) error {
	now := r.now()
	var more struct {
		Party *string `json:"azp"`
	}
	if err := t.Claims(&more); err != nil {
		return refused("the ID token: %w", err)
	}
	switch {
	case t.Issuer != i.URL:
		return refused("the ID token is another issuer's")
	case len(i.Algorithms) == 0:
		return refused("no algorithm is allowed")
	case w.Nonce == "" || subtle.ConstantTimeCompare([]byte(t.Nonce), []byte(w.Nonce)) != 1:
		return refused("the nonce is another")
	case slices.ContainsFunc(t.Audience, func(a string) bool { return a != i.ClientID && !slices.Contains(i.Audiences, a) }):
		return refused("the ID token has an audience that is not allowed")
	case more.Party != nil && *more.Party != i.ClientID || more.Party == nil && len(t.Audience) > 1:
		return refused("the ID token was given to another client (azp)")
	case !now.Before(t.Expiry):
		return refused("the ID token is over")
	case t.IssuedAt.After(now.Add(maxAhead)):
		return refused("the ID token is from the future")
	case t.IssuedAt.Before(now.Add(-maxAge)):
		return refused("the ID token is old")
	case !identifier(t.Subject, maxSubject):
		return refused("the subject is not 1 to %d characters of printable ASCII", maxSubject)
	}
	if t.AccessTokenHash != "" {
		if err := t.VerifyAccessToken(access); err != nil {
			return refused("at_hash: %w", err)
		}
	}
	return nil
}

// person reads the claims that the issuer's entry names.
func (r *Relying) person(i store.Issuer, w Walk, t *oidc.IDToken) (Person, error) {
	var claims map[string]any
	if err := t.Claims(&claims); err != nil {
		return Person{}, refused("the ID token: %w", err)
	}
	p := Person{Subject: t.Subject}
	if sid, _ := claims["sid"].(string); identifier(sid, maxSubject) {
		p.Session = sid
	}
	name, _ := claims[i.NameClaim].(string)
	p.DisplayName = plain(name, maxDisplay)
	if verified, _ := claims["email_verified"].(bool); verified {
		if email, _ := claims[i.EmailClaim].(string); validEmail(email) {
			p.Email = email
		}
	}
	if len(i.Domains) > 0 {
		_, domain, _ := strings.Cut(p.Email, "@")
		if p.Email == "" || !slices.Contains(i.Domains, strings.ToLower(domain)) {
			return Person{}, fault.Wrap(errors.New("no verified e-mail address of an allowed domain"), codes.PermissionDenied, faultv1.Reason_ACCESS_DENIED,
				"only people with a verified e-mail address of certain domains sign in here from there; ask an administrator")
		}
	}
	switch groups := claims[i.GroupsClaim].(type) {
	case string:
		p.Groups = []string{groups}
	case []any:
		if len(groups) > maxGroups {
			return Person{}, refused("there are more than %d groups", maxGroups)
		}
		for _, g := range groups {
			if text, ok := g.(string); ok && text != "" && len(text) <= maxGroup {
				p.Groups = append(p.Groups, text)
			}
		}
	}
	if at, ok := claims["auth_time"].(float64); ok && at > 0 && at < 1<<40 {
		p.AuthTime = time.Unix(int64(at), 0)
		if p.AuthTime.After(r.now().Add(maxAhead)) {
			return Person{}, refused("auth_time is in the future")
		}
	}
	if w.Since > 0 && p.AuthTime.Unix() < w.Since-int64(maxAhead/time.Second) {
		return Person{}, refused("he did not prove himself anew there (auth_time)")
	}
	amr, _ := claims["amr"].([]any)
	p.MFA = slices.Contains(amr, any("mfa"))
	return p, nil
}

// validEmail accepts what is plainly an address: one @, printable ASCII, no quotes or spaces.
func validEmail(s string) bool {
	local, domain, ok := strings.Cut(s, "@")
	return ok && local != "" && domain != "" && len(s) <= maxEmail && !strings.Contains(domain, "@") &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"<>()[],;:\`, r) })
}

// plain is text of a stranger as it may be shown: printable, of one direction, cut.
func plain(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) || unicode.Is(unicode.Bidi_Control, r) || unicode.Is(unicode.Variation_Selector, r) {
			return -1
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.TrimSpace(strings.ToValidUTF8(s[:most], ""))
	}
	return s
}
