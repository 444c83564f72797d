package identity

import (
	"context"
	"fmt"
	"strconv"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// ChangePassword implements AccountService. Whoever has got hold of a session alone must not turn it into the account: the present password is
// asked for, its tries are those of the sign-in, and who has a second factor has to have proved it just now.
func (s *Service) ChangePassword(ctx context.Context, req *identityv1.ChangePasswordRequest) (*identityv1.ChangePasswordResponse, error) {
	call, err := s.ownSession(ctx, false)
	if err != nil {
		return nil, err
	}
	var user store.Principal
	err = s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		var factors []store.Factor
		if user, factors, err = s.live(ctx, tx, call); err != nil {
			return err
		}
		if err := signsInElsewhere(user); err != nil {
			return err
		}
		if len(proved(factors)) > 0 && (call.Claims.ACR != authn.ACRMFA || s.cfg.Now().Sub(call.Claims.AuthTime) > freshFor) {
			return stale(fmt.Sprintf("this needs a second factor of the last %v", freshFor))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if req.GetCurrentPassword() == req.GetNewPassword() {
		return nil, fault.InvalidArgument("the new password is the one that you have").Field("new_password", "the current one")
	}
	current, next := redact.FromString(req.GetCurrentPassword()), redact.FromString(req.GetNewPassword())
	defer current.Wipe()
	defer next.Wipe()
	checked, err := s.provePassword(ctx, call, user, current)
	if err != nil {
		return nil, err
	}
	phc, err := s.newPassword(ctx, user.ID, next)
	if err != nil {
		return nil, err
	}
	out := new(identityv1.ChangePasswordResponse)
	err = s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		now := s.cfg.Now()
		// Between the check and here the session may have been ended, or the password set by somebody else.
		if _, _, err := s.live(ctx, tx, call); err != nil {
			return err
		}
		if stored, _, err := s.store.Password(ctx, tx, user.UID); err != nil || stored != checked {
			return orElse(err, fault.Aborted("the password was changed meanwhile; sign in again"))
		}
		mine, err := s.kept(ctx, tx, call)
		if err != nil {
			return err
		}
		ended, err := s.setPassword(ctx, tx, user.UID, phc, mine, now)
		if err != nil {
			return err
		}
		out.SessionsEnded = int32(ended)
		return call.Audit(ctx, tx, "session", call.Claims.SessionID, "sessions_ended", strconv.Itoa(ended))
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// provePassword checks the password of a user who is signed in, within the limits of sign-ins, and gives the hash that it was checked against.
func (s *Service) provePassword(ctx context.Context, call *rpc.Call, user store.Principal, pw redact.Secret) (checked string, err error) {
	stored, has, err := s.store.Password(ctx, s.cfg.DB.Reader(), user.UID)
	if err != nil || !has {
		return "", orElse(err, fault.FailedPrecondition("this account has no password yet; ask an administrator for a code that sets one"))
	}
	if err := s.try(user.ID, call.Address, func() error {
		ok, _, err := s.hasher.Verify(ctx, stored, pw)
		if err == nil && !ok {
			err = fault.New(codes.PermissionDenied, faultv1.Reason_SIGN_IN_FAILED, "the current password is wrong")
		}
		return err
	}); err != nil {
		return "", err
	}
	s.guard.Succeeded(user.ID, call.Address)
	return stored, nil
}
