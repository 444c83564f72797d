package identity

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authn/password"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/login"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// SignIn implements SignInService.
func (s *Service) SignIn(ctx context.Context, req *identityv1.SignInRequest) (*identityv1.SignInResponse, error) {
	var session *identityv1.Session
	asked, err := s.signIn(ctx, req, forSession, s.session(&session))
	return signInResponse(session, asked.Challenge, err)
}

func signInResponse(session *identityv1.Session, challenge *identityv1.Challenge, err error) (*identityv1.SignInResponse, error) {
	switch {
	case err != nil:
		return nil, err
	case challenge != nil:
		return &identityv1.SignInResponse{Outcome: &identityv1.SignInResponse_Challenge{Challenge: challenge}}, nil
	}
	return &identityv1.SignInResponse{Outcome: &identityv1.SignInResponse_Session{Session: session}}, nil
}

// session gives the finish of a sign-in over gRPC: a session of Redoubt's own clients, in *to.
func (s *Service) session(to **identityv1.Session) login.Finish {
	return func(ctx context.Context, tx *sqldb.Tx, p login.Proven) error {
		sid := resource.NewUID("ses")
		token, claims, err := s.mint(ctx, tx, authn.Claims{
			Audience: []string{s.cfg.Issuer}, Subject: p.UID, PrincipalType: authn.User, ClientID: firstParty,
			SessionID: sid, AuthTime: p.At, AMR: p.AMR, ACR: p.ACR,
		}, s.cfg.TokenLife)
		if err != nil {
			return err
		}
		if err := s.store.InsertSession(ctx, tx, sid, p.UID, store.Auth{Time: p.At, ACR: p.ACR, AMR: p.AMR}, p.At, claims.Expiry); err != nil {
			return err
		}
		*to = &identityv1.Session{
			AccessToken: token, TokenType: "Bearer", ExpireTime: timestamppb.New(claims.Expiry), Principal: p.Name, Uid: p.UID,
		}
		return rpc.From(ctx).Audit(ctx, tx, "session", sid)
	}
}

// signIn checks a name and a password, whoever asks: a client over gRPC or the pages of the provider. What the sign-in gives is made by
// finish, in the transaction that looks once more whether it still may be given. Where one more factor is needed nothing is given, and the
// challenge says which would do; continueSignIn with the same purpose answers it.
func (s *Service) signIn(ctx context.Context, req *identityv1.SignInRequest, purpose string, finish login.Finish) (asked login.Asked, err error) {
	call := rpc.From(ctx)
	account := login.Canonical(req.GetUser())
	pw := redact.FromString(req.GetPassword())
	defer pw.Wipe()
	var user store.Principal
	var checked string
	var again bool
	if err := s.try(account, call.Address, func() (err error) {
		user, checked, again, err = s.checkPassword(ctx, account, pw)
		return err
	}); err != nil {
		return login.Asked{}, err
	}
	call.Identify(user.UID, authn.User)
	if user.Disabled {
		// Only who knows the password learns this. It is no success: the account stays guarded.
		return login.Asked{}, fault.New(codes.PermissionDenied, faultv1.Reason_ACCOUNT_DISABLED, "the account is disabled; ask an administrator to enable it")
	}
	s.guard.Succeeded(account, call.Address)

	var stronger string
	if again { // the cost of hashes was raised, and the password is at hand
		if stronger, err = s.hasher.Hash(ctx, pw); err != nil {
			return login.Asked{}, err
		}
	}
	now := s.cfg.Now()
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		// Between the check and here he may have been disabled.
		if user, ok, err := s.store.Principal(ctx, tx, user.UID); err != nil || !ok || user.Disabled {
			return orElse(err, signInFailed())
		}
		// Or his password was changed, which ends the sessions that the old one gave: it must not give another, nor be stored again.
		if stored, _, err := s.store.Password(ctx, tx, user.UID); err != nil || stored != checked {
			return orElse(err, fault.Aborted("the password was changed meanwhile; sign in again"))
		}
		bound := checked
		if stronger != "" {
			if err := s.store.SetPassword(ctx, tx, user.UID, stronger, now); err != nil {
				return err
			}
			bound = stronger
		}
		var more bool
		if asked, more, err = s.challenge(ctx, tx, user, store.SignIn{Checked: fingerprint(bound), For: purpose}, now); err != nil || more {
			return err
		}
		return finish(ctx, tx, login.Proven{UID: user.UID, Name: user.Name(), At: now, AMR: []string{authn.ByPassword}, ACR: authn.ACRPassword})
	})
	if err != nil {
		return login.Asked{}, err
	}
	return asked, nil
}

// try runs one check of a password within the limits of the account and the address. It counts as failed; who knows that it was no failure says so to
// the guard.
func (s *Service) try(account, address string, check func() error) error {
	if wait, ok := s.guard.Try(s.cfg.Now(), account, address); !ok {
		return fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED, "too many failed sign-ins; wait %v and try again", wait.Round(time.Second)).Retry(wait)
	}
	err := check()
	// Too many waited, or what computes hashes failed: nothing was learned of the password. Who gives up by himself is not told of by this.
	if code := fault.Code(err); code == codes.ResourceExhausted || code == codes.Unavailable {
		s.guard.Withdraw(account, address)
	}
	return err
}

func orElse(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// signInFailed is the one answer for a user that does not exist and for a password that is wrong.
func signInFailed() error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "user name or password is wrong")
}

// hasher checks passwords; *password.Hasher is one.
type hasher interface {
	Hash(ctx context.Context, pw redact.Secret) (string, error)
	Verify(ctx context.Context, stored string, pw redact.Secret) (ok, again bool, err error)
	Dummy(ctx context.Context, pw redact.Secret) error
	Stats() password.Stats
	Close()
}

// checkPassword finds the user that the canonical id names and checks the password, in the same steps for every outcome: two look-ups
// and one hash. stored is the hash that it was checked against.
func (s *Service) checkPassword(ctx context.Context, account string, pw redact.Secret) (user store.Principal, stored string, again bool, err error) {
	q := s.cfg.DB.Reader()
	user, known, err := s.store.Find(ctx, q, store.User, account)
	if err != nil {
		return store.Principal{}, "", false, err
	}
	stored, has, err := s.store.Password(ctx, q, user.UID)
	if err != nil {
		return store.Principal{}, "", false, err
	}
	if !known || !has {
		return store.Principal{}, "", false, orElse(s.hasher.Dummy(ctx, pw), signInFailed())
	}
	rpc.From(ctx).Tried(user.UID, authn.User) // counted in memory, as the tries at no account are: it tells nobody which there are
	ok, again, err := s.hasher.Verify(ctx, stored, pw)
	if err != nil {
		return store.Principal{}, "", false, err
	}
	if !ok {
		return store.Principal{}, "", false, signInFailed()
	}
	return user, stored, again, nil
}

// SignOut implements SignInService.
func (s *Service) SignOut(ctx context.Context, req *identityv1.SignOutRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	if call.Claims.Actor != nil {
		return nil, fault.PermissionDenied("who acts for somebody does not sign him out; a client revokes its own token at the revocation endpoint")
	}
	if req.GetBrowser() { // an application asks for that in the browser itself
		if _, err := s.ownSession(ctx, false); err != nil {
			return nil, err
		}
	}
	now := s.cfg.Now()
	revoked := &identityv1.Revocation{Jti: call.Claims.ID, ExpireTime: timestamppb.New(now.Add(revokedFor))}
	// A program's session is the credential that it came with: that one is not over because a token of it is.
	if sid := call.Claims.SessionID; sid != "" && call.Claims.PrincipalType == authn.User {
		revoked.Jti, revoked.Sid = "", sid
	}
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if revoked.Sid != "" && req.GetBrowser() {
			if err := s.signOutBrowser(ctx, tx, revoked.Sid, now); err != nil {
				return err
			}
		}
		if revoked.Sid != "" {
			if err := s.store.DeleteSession(ctx, tx, revoked.Sid); err != nil {
				return err
			}
		}
		if err := s.store.Change(ctx, tx, now, []*identityv1.Revocation{revoked}, nil); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "session", revoked.Sid)
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// signOutBrowser ends the browser that a session was given in, if it was, with all else that was given there.
func (s *Service) signOutBrowser(ctx context.Context, tx *sqldb.Tx, sid string, now time.Time) error {
	g, ok, err := s.store.Grant(ctx, tx, sid, now)
	if err != nil || !ok || g.BrowserSID == "" {
		return err
	}
	sids, err := s.store.EndBrowser(ctx, tx, g.BrowserSID)
	if err != nil {
		return err
	}
	return s.revokeSessions(ctx, tx, sids, now)
}

// WhoAmI implements SignInService.
func (s *Service) WhoAmI(ctx context.Context, _ *identityv1.WhoAmIRequest) (*identityv1.WhoAmIResponse, error) {
	c := rpc.From(ctx).Claims
	p, ok, err := s.store.Principal(ctx, s.cfg.DB.Reader(), c.Subject)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED, "the account that this token is for was deleted")
	}
	return &identityv1.WhoAmIResponse{
		Principal: p.Name(), Uid: p.UID, Type: p.Kind, DisplayName: p.DisplayName, TokenExpireTime: timestamppb.New(c.Expiry),
		RunUid: c.Run, WorkspaceUid: c.Workspace, Actions: c.Actions, Actors: actors(c), Home: homeOf(p.Home),
	}, nil
}

// actors are the services that act for the subject, the one that calls first.
func actors(c *authn.Claims) []string {
	var out []string
	for a := c.Actor; a != nil; a = a.Actor {
		out = append(out, a.Subject)
	}
	return out
}
