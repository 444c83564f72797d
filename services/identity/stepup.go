package identity

import (
	"context"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// maxStepUps is how often a token and what came of it is stepped up.
const maxStepUps = 3

// StepUp implements FactorService. The token is the caller's own with another time and another proof: of the same session, client, scope and key, and
// over no later. What the session says of itself stays, so a refreshed token is as old as before.
func (s *Service) StepUp(ctx context.Context, req *identityv1.StepUpRequest) (*identityv1.StepUpResponse, error) {
	call, err := s.ownSession(ctx, false)
	if err != nil {
		return nil, err
	}
	if k := req.GetFactor(); k != kindTOTP && k != kindRecovery {
		return nil, fault.InvalidArgument("a code of an authenticator app (%s) or a recovery code (%s) steps up here; a security key does in a browser, by an authorization request with max_age",
			kindTOTP, kindRecovery).Field("factor", "neither totp nor recovery_code")
	}
	if len(call.Claims.Ancestors) >= maxStepUps { // each hop through a service adds to them too
		return nil, fault.FailedPrecondition("this token was stepped up %d times: renew it, or sign in again with `redoubt login`", maxStepUps)
	}
	now := s.cfg.Now()
	// Counted before it is tried, with those of sign-ins.
	if err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		user, factors, err := s.live(ctx, tx, call)
		if err != nil {
			return err
		}
		if len(proved(factors)) == 0 {
			return fault.FailedPrecondition("you have no second factor: sign in again with `redoubt login`")
		}
		return s.countUserTry(ctx, tx, user.UID, now)
	}); err != nil {
		return nil, err
	}
	var out *identityv1.StepUpResponse
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		user, _, err := s.live(ctx, tx, call)
		if err != nil {
			return err
		}
		by, err := s.useFactor(ctx, tx, user, req.GetFactor(), req.GetResponse(), nil, now)
		if err != nil {
			return err
		}
		if err := s.store.ForgetFactorTries(ctx, tx, user.UID); err != nil {
			return err
		}
		c := call.Claims
		amr := append(slices.DeleteFunc(slices.Clone(c.AMR), func(m string) bool { return m != authn.ByPassword && m != authn.ByHome }), by...)
		token, claims, err := s.mint(ctx, tx, authn.Claims{
			Audience: []string{s.cfg.Issuer}, Subject: c.Subject, PrincipalType: c.PrincipalType, ClientID: c.ClientID, SessionID: c.SessionID, Scope: c.Scope,
			Confirmation: c.Confirmation, Expiry: c.Expiry, AuthTime: now, AMR: append(amr, authn.ByTwo), ACR: authn.ACRMFA, Ancestors: append(slices.Clone(c.Ancestors), c.ID),
		}, s.cfg.TokenLife)
		if err != nil {
			return err
		}
		out = &identityv1.StepUpResponse{AccessToken: token, TokenType: "Bearer", ExpireTime: timestamppb.New(claims.Expiry)}
		if claims.Confirmation != "" {
			out.TokenType = "DPoP"
		}
		return call.Audit(ctx, tx, "session", c.SessionID)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
