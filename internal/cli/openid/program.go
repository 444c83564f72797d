package openid

import (
	"context"
	"crypto/tls"
	"net/url"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// Program signs in as a service principal, by its secret. The token is bound to our key, and nothing renews it: the secret is not kept.
func (p *Provider) Program(ctx context.Context, id string, secret redact.Secret) (settings.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, httpLimit)
	defer cancel()
	cfg := clientcredentials.Config{ClientID: id, ClientSecret: secret.RevealString(), TokenURL: p.meta.Token, AuthStyle: oauth2.AuthStyleInParams, EndpointParams: url.Values{}}
	t, err := cfg.Token(p.with(ctx))
	if err != nil {
		return settings.Token{}, p.explain(ctx, err)
	}
	return p.keep(t)
}

// Certified signs in as a service principal, by a certificate that was registered for it (RFC 8705): at the address that the provider names for that, on
// the installation's own host.
func (p *Provider) Certified(ctx context.Context, id string, certificate tls.Certificate) (settings.Token, error) {
	at, err := url.Parse(p.meta.MTLS.Token)
	own, errOwn := url.Parse(p.server)
	switch {
	case p.meta.MTLS.Token == "":
		return settings.Token{}, refused(fault.FailedPrecondition("the installation at %s takes no certificates of programs: its identity service has no mtls_listen", p.server))
	case err != nil || errOwn != nil || at.Scheme != "https" || at.User != nil || at.Fragment != "" || at.Hostname() != own.Hostname():
		return settings.Token{}, refused(fault.FailedPrecondition("the provider of %s names an endpoint elsewhere: %s", p.server, clean(p.meta.MTLS.Token)))
	}
	ctx, cancel := context.WithTimeout(ctx, httpLimit)
	defer cancel()
	web := p.client(certificate)
	defer web.CloseIdleConnections()
	cfg := clientcredentials.Config{ClientID: id, TokenURL: p.meta.MTLS.Token, AuthStyle: oauth2.AuthStyleInParams}
	t, err := cfg.Token(context.WithValue(ctx, oauth2.HTTPClient, web))
	if err != nil {
		return settings.Token{}, p.explain(ctx, err)
	}
	return p.keep(t)
}
