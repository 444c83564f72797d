package openid

import (
	"context"
	"net/url"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/redoubt-ml/redoubt/internal/cli/settings"
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
