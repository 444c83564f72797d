package identity

import (
	"context"
	"encoding/binary"
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/login"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// minPassword is the least number of characters of a new password.
const minPassword = 12

// newPassword checks a password that is to be set and hashes it.
func (s *Service) newPassword(ctx context.Context, userID string, pw redact.Secret) (phc string, err error) {
	switch {
	case utf8.RuneCount(pw.Reveal()) < minPassword:
		return "", fault.InvalidArgument("a password has at least %d characters", minPassword).Field("password", "too short")
	case login.Canonical(pw.RevealString()) == userID:
		return "", fault.InvalidArgument("the password must not be the user's name").Field("password", "the user's name")
	case login.Common(pw.RevealString(), userID):
		return "", fault.InvalidArgument("the password is one of those that are tried first: common words, rows of keys, repetitions or the user's name, with digits or signs around; take some words that do not belong together").
			Field("password", "too common")
	}
	return s.hasher.Hash(ctx, pw)
}

// CreateUser implements DirectoryService.
func (s *Service) CreateUser(ctx context.Context, req *identityv1.CreateUserRequest) (*identityv1.User, error) {
	call := rpc.From(ctx)
	if err := resource.ValidIDField("user_id", req.GetUserId()); err != nil {
		return nil, err
	}
	pw := redact.FromString(req.GetPassword())
	defer pw.Wipe()
	var phc string
	if !pw.Empty() {
		var err error
		if phc, err = s.newPassword(ctx, req.GetUserId(), pw); err != nil {
			return nil, err
		}
	}
	now := s.cfg.Now()
	p := store.Principal{
		UID: resource.NewUID("usr"), Kind: store.User, ID: req.GetUserId(), DisplayName: req.GetDisplayName(), Version: 1, CreateTime: now,
	}
	err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if err := s.store.InsertPrincipal(ctx, tx, p); err != nil {
			return err
		}
		if phc != "" { // without one he is invited: nobody signs in as him before
			if err := s.store.SetPassword(ctx, tx, p.UID, phc, now); err != nil {
				return err
			}
		}
		return call.Audit(ctx, tx, "name", p.Name(), "uid", p.UID)
	})
	if err != nil {
		return nil, err
	}
	return user(p), nil
}

func user(p store.Principal) *identityv1.User {
	return &identityv1.User{
		Name: p.Name(), Uid: p.UID, DisplayName: p.DisplayName, Disabled: p.Disabled, CreateTime: timestamppb.New(p.CreateTime),
		Etag: etag(p.Version), Home: homeOf(p.Home),
	}
}

// find finds the principal of a kind that a request names.
func (s *Service) find(ctx context.Context, q sqldb.DBTX, name string, kind resource.Kind) (store.Principal, error) {
	n, err := resource.Parse(name)
	if err != nil {
		return store.Principal{}, err
	}
	if n.Kind() != kind {
		return store.Principal{}, fault.InvalidArgument("the name must be %s/{id}", kind.Collection()).Field("name", "another kind of resource")
	}
	p, ok, err := s.store.Find(ctx, q, kinds[kind], n.ID())
	if err != nil {
		return store.Principal{}, err
	}
	if !ok {
		return store.Principal{}, rpc.NotFound(name)
	}
	return p, nil
}

// kinds are the principals that have names.
var kinds = map[resource.Kind]identityv1.PrincipalType{
	resource.KindUser: store.User, resource.KindServicePrincipal: store.ServicePrincipal, resource.KindGroup: store.Group,
	resource.KindManagedIdentity: store.ManagedIdentity,
}

// GetUser implements DirectoryService.
func (s *Service) GetUser(ctx context.Context, req *identityv1.GetUserRequest) (*identityv1.User, error) {
	p, err := s.find(ctx, s.cfg.DB.Reader(), req.GetName(), resource.KindUser)
	if err != nil {
		return nil, err
	}
	return user(p), nil
}

// ListUsers implements DirectoryService.
func (s *Service) ListUsers(ctx context.Context, req *identityv1.ListUsersRequest) (*identityv1.ListUsersResponse, error) {
	page, next, err := s.page(ctx, s.cfg.DB.Reader(), store.User, req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	out := &identityv1.ListUsersResponse{NextPageToken: next}
	for _, p := range page {
		out.Users = append(out.Users, user(p))
	}
	return out, nil
}

const (
	defaultPage = 100
	largestPage = 1000
)

// page reads one page of a list, and the token of the next.
func (s *Service) page(ctx context.Context, q sqldb.DBTX, kind identityv1.PrincipalType, size int32, token string) (page []store.Principal, next string, err error) {
	n, err := resource.PageSize(size, defaultPage, largestPage)
	if err != nil {
		return nil, "", err
	}
	query := "list " + kind.String()
	var after store.Cursor
	if token != "" {
		raw, err := s.box.openPage(ctx, query, token)
		if err != nil {
			return nil, "", err
		}
		if len(raw) < 8 {
			return nil, "", badPage(nil)
		}
		after = store.Cursor{CreateTime: time.UnixMicro(int64(binary.BigEndian.Uint64(raw))), UID: string(raw[8:])}
	}
	if page, err = s.store.List(ctx, q, kind, after, n+1); err != nil || len(page) <= n {
		return page, "", err
	}
	page = page[:n]
	last := page[n-1]
	next, err = s.box.sealPage(ctx, query, append(binary.BigEndian.AppendUint64(nil, uint64(last.CreateTime.UnixMicro())), last.UID...))
	return page, next, err
}

// SetUserDisabled implements DirectoryService.
func (s *Service) SetUserDisabled(ctx context.Context, req *identityv1.SetUserDisabledRequest) (*identityv1.User, error) {
	call := rpc.From(ctx)
	now := s.cfg.Now()
	var p store.Principal
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		if p, err = s.find(ctx, tx, req.GetName(), resource.KindUser); err != nil {
			return err
		}
		if req.GetDisabled() && p.UID == call.Principal {
			return fault.FailedPrecondition("you cannot disable your own account; another administrator can")
		}
		until := now
		if p.Disabled != req.GetDisabled() {
			if until, err = s.dated(ctx, tx, p.UID, now); err != nil {
				return err
			}
			if err := s.administered(ctx, tx, func() error { return s.store.SetDisabled(ctx, tx, p.UID, req.GetDisabled()) }); err != nil {
				return err
			}
			p.Disabled = req.GetDisabled()
			p.Version++
		}
		if p.Disabled {
			if _, err := s.store.EndSessions(ctx, tx, p.UID, now); err != nil {
				return err
			}
			if err := s.store.DropSignIns(ctx, tx, p.UID); err != nil {
				return err
			}
			if err := s.store.Change(ctx, tx, now, []*identityv1.Revocation{subjectUntil(p.UID, until, now)}, nil); err != nil {
				return err
			}
		}
		return call.Audit(ctx, tx, "name", p.Name(), "uid", p.UID, "disabled", strconv.FormatBool(p.Disabled))
	})
	if err != nil {
		return nil, err
	}
	return user(p), nil
}

// subjectUntil revokes all tokens of a principal that are dated up to until.
func subjectUntil(uid string, until, now time.Time) *identityv1.Revocation {
	return &identityv1.Revocation{Subject: uid, IssuedUntil: timestamppb.New(until), ExpireTime: timestamppb.New(now.Add(revokedFor))}
}

// dated is the latest moment that a token of a principal can be dated by now: a token of the second in which the principal's were revoked is dated
// in the next one (mint), which may be still to come, and who ends the account then means that token too.
func (s *Service) dated(ctx context.Context, tx *sqldb.Tx, uid string, now time.Time) (time.Time, error) {
	revoked, err := s.store.IssuedUntil(ctx, tx, uid)
	if next := revoked.Truncate(time.Second).Add(time.Second); err == nil && next.After(now) {
		return next, nil
	}
	return now, err
}

// SetUserPassword implements DirectoryService. It ends the user's sessions, and not his runs, whose tokens no password gave.
func (s *Service) SetUserPassword(ctx context.Context, req *identityv1.SetUserPasswordRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	p, err := s.find(ctx, s.cfg.DB.Reader(), req.GetName(), resource.KindUser)
	if err != nil {
		return nil, err
	}
	if err := signsInElsewhere(p); err != nil {
		return nil, err
	}
	pw := redact.FromString(req.GetNewPassword())
	defer pw.Wipe()
	phc, err := s.newPassword(ctx, p.ID, pw)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	err = s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		ended, err := s.setPassword(ctx, tx, p.UID, phc, nil, now)
		if err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", p.Name(), "uid", p.UID, "sessions_ended", strconv.Itoa(ended))
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// DeleteUser implements DirectoryService. What he made stays, under a uid that nobody gets again.
func (s *Service) DeleteUser(ctx context.Context, req *identityv1.DeleteUserRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		p, err := s.find(ctx, tx, req.GetName(), resource.KindUser)
		if err != nil {
			return err
		}
		if p.UID == call.Principal {
			return fault.FailedPrecondition("you cannot delete your own account; another administrator can")
		}
		if err := s.store.DropJoinsFor(ctx, tx, store.JoinPassword, p.UID); err != nil {
			return err
		}
		if err := s.administered(ctx, tx, func() error { return s.remove(ctx, tx, p.UID) }); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", p.Name(), "uid", p.UID)
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}
