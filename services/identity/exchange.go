package identity

import (
	"context"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// ExchangeToken implements TokenService (RFC 8693). The calling service brings the token that it was called with, which is for the
// installation or for itself, and gets one for the next service: the same subject, session and run, itself as actor, and what it
// descends from.
//
// The new token is bound to the caller by act: the next service takes it from that peer only. The key that a subject token was
// bound to (DPoP) plays no part any more: the service that it was shown to has checked the proof, and this method is open to
// services only.
func (s *Service) ExchangeToken(ctx context.Context, req *identityv1.ExchangeTokenRequest) (*identityv1.TokenResponse, error) {
	call := rpc.From(ctx)
	audience, err := s.next(call, req.GetAudience())
	if err != nil {
		return nil, err
	}
	var subject *authn.Verified
	if err := call.Hold(func() (err error) { subject, err = s.subject(ctx, call, req.GetSubjectToken()); return err }); err != nil {
		return nil, err
	}
	q := s.cfg.DB.Reader()
	if _, ok, err := s.store.Principal(ctx, q, subject.Subject); err != nil || !ok {
		return nil, orElse(err, fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED, "the account that the token is for was deleted"))
	}
	c, err := subject.Descendant(audience, authn.Actor{Subject: call.Peer})
	if err != nil {
		return nil, fault.FailedPrecondition("the call went through too many services: at most %d may act for someone", authn.MaxActorDepth)
	}
	token, claims, err := s.mint(ctx, q, c, exchangedLife)
	if err != nil {
		return nil, err
	}
	return s.tokenResponse(token, claims), nil
}

// subject verifies the token that a service brings: it must be for the installation, or for that service from the one that acts in it.
func (s *Service) subject(ctx context.Context, call *rpc.Call, token string) (*authn.Verified, error) {
	v, err := s.verifier.Verify(ctx, token, s.cfg.Issuer)
	if fault.ReasonOf(err) != faultv1.Reason_TOKEN_AUDIENCE {
		return v, err
	}
	return s.verifier.Verify(ctx, token, s.serviceID(call.PeerService))
}
