package identity

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const (
	signInCodePrefix = "rdl_"
	signInCodeLife   = time.Minute
)

// CreateSignInCode implements SignInService. A code is made from a session that a person signed in to, never from a token that a service
// holds for him, nor from a program's.
func (s *Service) CreateSignInCode(ctx context.Context, _ *identityv1.CreateSignInCodeRequest) (*identityv1.SignInCode, error) {
	call := rpc.From(ctx)
	c, now := call.Claims, s.cfg.Now()
	if c.SessionID == "" || c.Actor != nil || c.Run != "" || c.PrincipalType != authn.User {
		return nil, fault.FailedPrecondition("only a user's own session opens a browser; sign in with `redoubt login`")
	}
	secret, expire := newSecret(signInCodePrefix), now.Add(signInCodeLife)
	err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if _, ok, err := s.store.FindSession(ctx, tx, c.SessionID, now); err != nil || !ok {
			return orElse(err, fault.FailedPrecondition("this session is over; sign in with `redoubt login`"))
		}
		j := store.Join{Kind: store.JoinBrowser, Instance: c.SessionID, Submitter: c.Subject}
		if err := s.store.InsertJoin(ctx, tx, secret, j, now, expire); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "session", c.SessionID)
	})
	if err != nil {
		return nil, err
	}
	return &identityv1.SignInCode{Code: secret.RevealString(), ExpireTime: timestamppb.New(expire)}, nil
}

// RedeemSignInCode implements SignInService. The browser joins the session that made the code: what ends that session, such as signing
// out at either place, ends both.
func (s *Service) RedeemSignInCode(ctx context.Context, req *identityv1.RedeemSignInCodeRequest) (*identityv1.Session, error) {
	call := rpc.From(ctx)
	secret := redact.FromString(req.GetCode())
	defer secret.Wipe()
	now := s.cfg.Now()
	var out *identityv1.Session
	err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		j, ok, err := s.store.UseJoin(ctx, tx, store.JoinBrowser, secret, resource.NewUID("use"), now)
		if err != nil || !ok {
			return orElse(err, badSignInCode())
		}
		if err := s.store.DropJoin(ctx, tx, secret); err != nil { // once
			return err
		}
		session, ok, err := s.store.FindSession(ctx, tx, j.Instance, now)
		if err != nil || !ok || session.UID != j.Submitter {
			return orElse(err, badSignInCode())
		}
		user, ok, err := s.store.Principal(ctx, tx, session.UID)
		if err != nil || !ok || user.Disabled {
			return orElse(err, badSignInCode())
		}
		token, claims, err := s.mint(ctx, tx, authn.Claims{
			Audience: []string{s.cfg.Issuer}, Subject: user.UID, PrincipalType: authn.User, ClientID: firstParty,
			SessionID: j.Instance, AuthTime: session.Auth.Time, AMR: session.Auth.AMR, ACR: session.Auth.ACR,
		}, min(s.cfg.TokenLife, session.Expire.Sub(now)))
		if err != nil {
			return err
		}
		out = &identityv1.Session{
			AccessToken: token, TokenType: "Bearer", ExpireTime: timestamppb.New(claims.Expiry), Principal: user.Name(), Uid: user.UID,
		}
		call.Identify(user.UID, authn.User)
		return call.Audit(ctx, tx, "session", j.Instance)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// badSignInCode is the one answer for a code that never was, was used, or is over.
func badSignInCode() error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "this link was used already or is over; `redoubt console` makes a new one")
}
