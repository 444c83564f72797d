package provider

import (
	"context"
	"net/http"
	"slices"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// leaveHome takes a logout token of a foreign issuer, which its server posts (OpenID Connect Back-Channel Logout 1.0 section 2.5). No browser and no
// session is asked for: the token proves itself. The answer is the same whether the person is known here.
func (p *Provider) leaveHome(ctx context.Context, x *identityv1.Exchange, id string) (*identityv1.Page, error) {
	q, err := tokenForm(x)
	if err != nil {
		return nil, err
	}
	homes, err := p.cfg.Homes(ctx)
	if err != nil {
		return nil, err
	}
	n := slices.IndexFunc(homes, func(i store.Issuer) bool { return i.ID == id })
	if n < 0 {
		return nil, refuse(errRequest, "no issuer is entered here whose people sign in by this address")
	}
	who, err := p.cfg.Relying.LogOut(ctx, homes[n], q["logout_token"])
	if err == nil {
		err = p.cfg.Left(ctx, homes[n], who)
	}
	switch fault.Code(err) {
	case codes.OK:
		return &identityv1.Page{Status: http.StatusOK}, nil
	case codes.Unauthenticated, codes.FailedPrecondition:
		return nil, fault.Wrap(err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, "the logout token is not one that is taken here, or was taken before").With(oauthError, errRequest)
	default: // ours, or that the issuer's keys cannot be had: it may try again
		return nil, err
	}
}
