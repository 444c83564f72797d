package openid

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/oauth2"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// ClientID is the command line's own, which every installation knows.
const ClientID = "redoubt-cli"

const (
	wellKnown = "/.well-known/openid-configuration"
	// httpLimit bounds one request to the provider, its answer included.
	httpLimit = 30 * time.Second
	maxAnswer = 1 << 20
	maxShown  = 300
	maxLife   = 30 * 24 * 3600 // seconds that a token is taken to live
)

var scopes = []string{"openid", "offline_access", "redoubt"}

// metadata is what is used of the provider's own description (RFC 8414).
type metadata struct {
	Issuer        string   `json:"issuer"`
	Authorization string   `json:"authorization_endpoint"`
	Token         string   `json:"token_endpoint"`
	Keys          string   `json:"jwks_uri"`
	Revocation    string   `json:"revocation_endpoint"`
	Device        string   `json:"device_authorization_endpoint"`
	Challenges    []string `json:"code_challenge_methods_supported"`
	Proofs        []string `json:"dpop_signing_alg_values_supported"`
	// MTLS is where programs prove themselves by a certificate (RFC 8705 section 5).
	MTLS struct {
		Token string `json:"token_endpoint"`
	} `json:"mtls_endpoint_aliases"`
}

// Provider is an installation's provider, and the key with which one is its client. It is safe for concurrent use.
type Provider struct {
	server string // as the user wrote it
	meta   metadata
	key    redact.Secret // PKCS #8
	prover *authn.Prover
	roots  *x509.CertPool
	web    *http.Client
	now    func() time.Time
}

// Find asks an installation for its provider. key is that of a session; an empty one makes a new key. Nothing is believed that is at another
// address than the context's.
func Find(ctx context.Context, c client.Context, key redact.Secret, now func() time.Time) (*Provider, error) {
	roots, err := c.Roots()
	if err != nil {
		return nil, err
	}
	p := &Provider{server: strings.TrimSuffix(c.Server, "/"), key: key, roots: roots, now: now}
	if u, err := url.Parse(p.server); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" {
		return nil, fault.InvalidArgument("%q is no address of an installation: write https://host:port", c.Server)
	}
	if p.key.Empty() {
		made, err := authn.GenerateKey()
		if err != nil {
			return nil, err
		}
		if p.key, err = authn.MarshalKey(made); err != nil {
			return nil, err
		}
	}
	if p.prover, err = proverOf(p.key, now); err != nil {
		return nil, err
	}
	// One TLS connection for a command, in HTTP/1.1, by which the gateway tells what is no gRPC.
	p.web = p.client()
	if err := p.discover(ctx); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// client is an HTTP client that proves our key, and shows the certificates if there are any.
func (p *Provider) client(certificates ...tls.Certificate) *http.Client {
	base := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: p.roots, Certificates: certificates}, Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 10 * time.Second}
	return &http.Client{
		Timeout: httpLimit, Transport: &proving{next: base, prover: p.prover},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func proverOf(key redact.Secret, now func() time.Time) (*authn.Prover, error) {
	k, err := authn.ParseKey(key)
	if err != nil {
		return nil, fault.FailedPrecondition("the session's key cannot be used: sign in again with `redoubt login`")
	}
	return authn.NewProver(k, now)
}

// Close ends its connections.
func (p *Provider) Close() { p.web.CloseIdleConnections() }

func (p *Provider) discover(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.server+wellKnown, http.NoBody)
	if err != nil {
		return fault.InvalidArgument("%q is no address of an installation", p.server)
	}
	res, err := p.web.Do(req)
	if err != nil {
		return p.unreachable(ctx, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return refused(fault.FailedPrecondition("%s has no OpenID provider (%s answers %d): sign in with --ask-password", p.server, wellKnown, res.StatusCode))
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return p.unreachable(ctx, err)
	}
	m := &p.meta
	if json.Unmarshal(body, m) != nil {
		return refused(fault.FailedPrecondition("%s%s is no description of a provider", p.server, wellKnown))
	}
	switch own, ok := authn.NormalizeURL(p.server); {
	case !ok || !same(own, m.Issuer):
		return refused(fault.FailedPrecondition("the installation at %s calls itself %s: sign in at that address, with --server", p.server, clean(m.Issuer)))
	case !slices.Contains(m.Challenges, "S256"):
		return refused(fault.FailedPrecondition("the provider does not say that it does PKCE with S256; no code is taken from it"))
	case !slices.Contains(m.Proofs, "ES256"):
		return refused(fault.FailedPrecondition("the provider does not say that it binds tokens to keys (DPoP, ES256); none is taken from it"))
	}
	for _, at := range []string{m.Authorization, m.Token, m.Keys, m.Revocation, m.Device} {
		if !p.ours(at) {
			return refused(fault.FailedPrecondition("the provider of %s names an endpoint elsewhere: %s", p.server, clean(at)))
		}
	}
	return nil
}

// ours reports whether an address is at the installation.
func (p *Provider) ours(at string) bool {
	u, err := url.Parse(at)
	return err == nil && u.User == nil && u.Fragment == "" && same(p.server, u.Scheme+"://"+u.Host)
}

func same(a, b string) bool {
	x, okX := authn.NormalizeURL(a)
	y, okY := authn.NormalizeURL(b)
	return okX && okY && x == y
}

func (p *Provider) config(id string) *oauth2.Config {
	return &oauth2.Config{ClientID: id, Scopes: scopes, Endpoint: oauth2.Endpoint{
		AuthURL: p.meta.Authorization, TokenURL: p.meta.Token, DeviceAuthURL: p.meta.Device, AuthStyle: oauth2.AuthStyleInParams,
	}}
}

// with is the context by which x/oauth2 uses our client.
func (p *Provider) with(ctx context.Context) context.Context {
	return context.WithValue(ctx, oauth2.HTTPClient, p.web)
}

// keep is the answer of the token endpoint as it is kept. What is not bound to our key is not taken.
func (p *Provider) keep(t *oauth2.Token) (settings.Token, error) {
	if !strings.EqualFold(t.TokenType, "DPoP") {
		return settings.Token{}, refused(fault.FailedPrecondition("the provider gave a token that is not bound to this machine's key (%s); it is not taken", clean(t.TokenType)))
	}
	now, life := p.now(), time.Duration(min(t.ExpiresIn, maxLife))*time.Second
	if life == 0 && !t.Expiry.IsZero() { // x/oauth2 does not give both for a program
		life = min(time.Until(t.Expiry), maxLife*time.Second)
	}
	if life <= 0 || t.AccessToken == "" {
		return settings.Token{}, refused(fault.FailedPrecondition("the provider gave a token that is over"))
	}
	return settings.Token{
		Server: p.server, Value: t.AccessToken, Refresh: t.RefreshToken, Expires: now.Add(life), Renew: now.Add(life - min(life/4, renewAhead)),
		Key: base64.StdEncoding.EncodeToString(p.key.Reveal()),
	}, nil
}

// errOver says that a refresh token will never be good again. A proof that was not taken does not say so: a clock may be wrong.
var errOver = errors.New("the refresh token is over")

// refresh uses the refresh token, which is used up by it.
func (p *Provider) refresh(ctx context.Context, t settings.Token) (settings.Token, error) {
	// A token that is over makes the source ask.
	got, err := p.config(ClientID).TokenSource(p.with(ctx), &oauth2.Token{RefreshToken: t.Refresh}).Token()
	var r *oauth2.RetrieveError
	switch {
	case errors.As(err, &r) && r.ErrorCode == errGrant:
		return settings.Token{}, errOver
	case err != nil:
		return settings.Token{}, p.explain(ctx, err)
	}
	return p.keep(got)
}

// Revoke ends the session of a refresh token, with all access tokens of it (RFC 7009).
func (p *Provider) Revoke(ctx context.Context, refresh string) error {
	form := url.Values{"client_id": {ClientID}, "token": {refresh}, "token_type_hint": {"refresh_token"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.meta.Revocation, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := p.web.Do(req)
	if err != nil {
		return p.unreachable(ctx, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode == http.StatusOK {
		return nil
	}
	var said struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if body, err := io.ReadAll(res.Body); err == nil {
		_ = json.Unmarshal(body, &said) // an answer that is none says nothing
	}
	return p.says(said.Error, said.Description, res.StatusCode)
}

// explain turns an error of x/oauth2 into one of ours. Nothing of a body that was not understood is shown.
func (p *Provider) explain(ctx context.Context, err error) error {
	var r *oauth2.RetrieveError
	if errors.As(err, &r) {
		return p.says(r.ErrorCode, r.ErrorDescription, r.Response.StatusCode)
	}
	var u *url.Error
	if errors.As(err, &u) || ctx.Err() != nil {
		return p.unreachable(ctx, err)
	}
	return refused(fault.FailedPrecondition("the provider's answer cannot be read"))
}

// says is a refusal in the words of RFC 6749 section 5.2.
func (p *Provider) says(code, description string, status int) error {
	what := clean(description)
	if what == "" {
		what = fmt.Sprintf("it answered %d", status)
	}
	switch code {
	case errProof:
		return refused(fault.Unauthenticated("the installation did not accept this machine's proof of its key (%s): look at the clock of this machine, then repeat", what))
	case errGrant, "invalid_client":
		return denied("%s", what)
	case "access_denied":
		return refused(fault.PermissionDenied("the sign-in was refused: %s", what))
	case "expired_token":
		return refused(fault.FailedPrecondition("nobody answered in time; start again"))
	case "temporarily_unavailable", "server_error":
		return refused(fault.Unavailable("the installation cannot answer now: %s", what))
	case "":
		if status >= http.StatusInternalServerError || status == http.StatusTooManyRequests {
			return refused(fault.Unavailable("the installation cannot answer now (%d)", status))
		}
		return refused(fault.FailedPrecondition("the provider answered %d, without a reason", status))
	}
	return refused(fault.FailedPrecondition("the provider refused (%s): %s", clean(code), what))
}

func (p *Provider) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var u *url.Error // its text has the URL in it, which may hold a code
	if errors.As(err, &u) {
		err = u.Err
	}
	return refused(fault.Unavailable("%s cannot be asked: %s", p.server, clean(err.Error())))
}

// The codes of the protocol that are told apart.
const (
	errProof    = "invalid_dpop_proof"
	errNonce    = "use_dpop_nonce"
	errGrant    = "invalid_grant"
	errPending  = "authorization_pending"
	errSlowDown = "slow_down"
)

// refused is a refusal by the installation: it looks like one that came by gRPC, so that a command ends the same way for both.
func refused(e *fault.Error) error { return fault.ToStatus(e, "redoubt.cli", "").Err() }

// denied is the refusal of a session that is over, or of a credential.
func denied(format string, args ...any) error {
	return refused(fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, format, args...))
}

// clean keeps what a server sent from steering the terminal, and short.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return '·'
		}
		return r
	}, s)
	if len(s) > maxShown {
		s = strings.ToValidUTF8(s[:maxShown], "") + "…"
	}
	return s
}
