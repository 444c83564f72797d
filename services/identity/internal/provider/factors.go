package provider

import (
	"context"
	"net/http"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const (
	actAdd     = "add"
	maxKeyName = 64
)

// ownFactor is one of a person's own, as he reads of it.
type ownFactor struct {
	Kind, Name, Added, Used string
}

func badForm() error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "the form was out of date, or the name is longer than %d bytes; try again", maxKeyName)
}

func toFactors() *identityv1.Page {
	return &identityv1.Page{Status: http.StatusSeeOther, Location: PathFactors}
}

// visitFactors is where a person sees his own factors and adds a security key. It wants a sign-in of the last minutes, and leads to one.
func (p *Provider) visitFactors(ctx context.Context, x *identityv1.Exchange) (*identityv1.Page, error) {
	cookie, fresh := cookieOf(x)
	b, user, in, err := p.browser(ctx, cookie)
	if err != nil {
		return nil, err
	}
	if !in {
		return p.ask(ctx, request{Manage: true, Expire: p.until(requestLife)}, view{}, cookie, fresh, nil)
	}
	call := rpc.From(ctx)
	call.Identify(user.UID, userType)
	if x.GetMethod() == http.MethodGet {
		return p.showFactors(ctx, b, user, cookie, nil)
	}
	q, err := formOf(x)
	if err != nil {
		return p.broken(ctx, "The form cannot be read: "+err.Error()+".")
	}
	if !p.ours(x) {
		return p.forged(ctx)
	}
	r, same, ok, err := p.open(ctx, q["request"], cookie)
	if err != nil {
		return nil, err
	}
	if !ok || !same || !r.Manage || r.Adding == "" || q["action"] != actAdd || len(q["name"]) > maxKeyName || len(q["code"]) > maxKey {
		return p.showFactors(ctx, b, user, cookie, badForm())
	}
	var out given
	recovery, err := p.cfg.AddKey(ctx, b.SID, r.Adding, q["name"], q["code"], p.finish(r, &out))
	switch {
	case err != nil:
		return p.showFactors(ctx, b, user, cookie, err)
	case len(recovery) == 0:
		return toFactors(), nil
	}
	// It was his first: the session that he came with is over, and this one took its place.
	return p.give(ctx, r, view{}, out, recovery)
}

// showFactors shows them, with a form that adds a key where one can be asked.
func (p *Provider) showFactors(ctx context.Context, b store.Browser, user store.Principal, cookie redact.Secret, why error) (*identityv1.Page, error) {
	var page view
	status, err := p.says(ctx, why, &page)
	if err != nil {
		return nil, err
	}
	state, options, has, ok, err := p.cfg.BeginKey(ctx, b.SID)
	if err != nil {
		return nil, err
	}
	r := request{Manage: true, Adding: state, Expire: p.until(requestLife)}
	if !ok {
		r.Since, r.User = p.cfg.Now().Unix(), user.ID
		return p.ask(ctx, r, view{}, cookie, false, nil)
	}
	if page.Request, err = p.seal(ctx, r, cookie); err != nil {
		return nil, err
	}
	page.As, page.Key = user.Name(), options
	for _, f := range has {
		own := ownFactor{Kind: "authenticator app", Name: f.Name, Added: f.Created.Format(time.DateOnly), Used: f.Using.Format(time.DateOnly)}
		if f.Kind == kindKey {
			own.Kind = "security key"
		}
		page.Own = append(page.Own, own)
	}
	return p.show(status, "factors.html", page)
}
