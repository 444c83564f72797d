package identity

import (
	"context"
	"maps"
	"slices"
	"strconv"
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
	userCodePrefix = "rdi_"
	userCodeLife   = 24 * time.Hour
	maxUserCode    = 7 * 24 * time.Hour
)

// CreateUserCode implements DirectoryService.
func (s *Service) CreateUserCode(ctx context.Context, req *identityv1.CreateUserCodeRequest) (*identityv1.UserCode, error) {
	call := rpc.From(ctx)
	now := s.cfg.Now()
	expire := now.Add(userCodeLife)
	if t := req.GetExpireTime(); t != nil {
		if !t.IsValid() || !t.AsTime().After(now) || t.AsTime().After(now.Add(maxUserCode)) {
			return nil, fault.InvalidArgument("a code ends in the future, at most seven days ahead").Field("expire_time", "out of bounds")
		}
		expire = t.AsTime()
	}
	secret := newSecret(userCodePrefix)
	out := &identityv1.UserCode{ExpireTime: timestamppb.New(expire)}
	err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		p, err := s.find(ctx, tx, req.GetName(), resource.KindUser)
		if err != nil {
			return err
		}
		if p.Disabled {
			return fault.New(codes.FailedPrecondition, faultv1.Reason_ACCOUNT_DISABLED, "the account is disabled; enable it first")
		}
		if err := signsInElsewhere(p); err != nil {
			return err
		}
		_, has, err := s.store.Password(ctx, tx, p.UID)
		if err != nil {
			return err
		}
		out.Invitation = !has
		if err := s.store.DropJoinsFor(ctx, tx, store.JoinPassword, p.UID); err != nil {
			return err
		}
		if err := s.store.InsertJoin(ctx, tx, secret, store.Join{Kind: store.JoinPassword, Submitter: p.UID}, now, expire); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", p.Name(), "uid", p.UID, "invitation", strconv.FormatBool(!has))
	})
	if err != nil {
		return nil, err
	}
	out.Code = secret.RevealString()
	return out, nil
}

// badUserCode is the one answer for a code that never was, was used or is over, and for a user who was disabled.
func badUserCode() error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "this code was used already or is over; ask an administrator for another")
}

// RedeemUserCode implements DirectoryService. A password that is refused leaves the code as it was.
func (s *Service) RedeemUserCode(ctx context.Context, req *identityv1.RedeemUserCodeRequest) (*identityv1.RedeemUserCodeResponse, error) {
	call := rpc.From(ctx)
	secret, pw := redact.FromString(req.GetCode()), redact.FromString(req.GetNewPassword())
	defer secret.Wipe()
	defer pw.Wipe()
	now := s.cfg.Now()
	// The code has 256 random bits and is found by its digest. No hash is computed for who has none.
	uid, ok, err := s.store.JoinOf(ctx, s.cfg.DB.Reader(), store.JoinPassword, secret, now)
	if err != nil || !ok {
		return nil, orElse(err, badUserCode())
	}
	p, ok, err := s.store.Principal(ctx, s.cfg.DB.Reader(), uid)
	if err != nil || !ok || p.Disabled {
		return nil, orElse(err, badUserCode())
	}
	phc, err := s.newPassword(ctx, p.ID, pw)
	if err != nil {
		return nil, err
	}
	err = s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if _, ok, err := s.store.UseJoin(ctx, tx, store.JoinPassword, secret, resource.NewUID("use"), now); err != nil || !ok {
			return orElse(err, badUserCode())
		}
		if p, ok, err := s.store.Principal(ctx, tx, uid); err != nil || !ok || p.Disabled {
			return orElse(err, badUserCode())
		}
		ended, err := s.setPassword(ctx, tx, uid, phc, nil, now)
		if err != nil {
			return err
		}
		call.Identify(uid, authn.User)
		return call.Audit(ctx, tx, "name", p.Name(), "uid", uid, "sessions_ended", strconv.Itoa(ended))
	})
	if err != nil {
		return nil, err
	}
	return &identityv1.RedeemUserCodeResponse{Principal: p.Name()}, nil
}

// setPassword stores a new password, and ends what the old one gave: sessions but those that are kept, sign-ins that wait for a factor, and codes
// that would set another.
func (s *Service) setPassword(ctx context.Context, tx *sqldb.Tx, uid, phc string, kept map[string]bool, now time.Time) (ended int, err error) {
	if err := s.store.SetPassword(ctx, tx, uid, phc, now); err != nil {
		return 0, err
	}
	if err := s.store.DropJoinsFor(ctx, tx, store.JoinPassword, uid); err != nil {
		return 0, err
	}
	if err := s.store.DropSignIns(ctx, tx, uid); err != nil {
		return 0, err
	}
	return s.endSessions(ctx, tx, uid, kept, now)
}

// endSessions ends a user's sessions but those that are kept, and not his runs.
func (s *Service) endSessions(ctx context.Context, tx *sqldb.Tx, uid string, kept map[string]bool, now time.Time) (ended int, err error) {
	sids, err := s.store.EndSessionsBut(ctx, tx, uid, slices.Collect(maps.Keys(kept)), now)
	if err != nil {
		return 0, err
	}
	return len(sids), s.revokeSessions(ctx, tx, sids, now)
}

// revokeSessions revokes the tokens of sessions that were ended.
func (s *Service) revokeSessions(ctx context.Context, tx *sqldb.Tx, sids []string, now time.Time) error {
	var revoked []*identityv1.Revocation
	for _, sid := range sids {
		revoked = append(revoked, &identityv1.Revocation{Sid: sid, ExpireTime: timestamppb.New(now.Add(revokedFor))})
	}
	return s.store.Change(ctx, tx, now, revoked, nil)
}
