package identity

import (
	"context"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// keptFor is how long an administrator stays one while workspace takes the role from another. By then identity has heard of the change, or
// decides nothing any more: it is longer than any state of workspace's counts for.
const keptFor = 6 * authz.DefaultMaxStale

func lastOwner() error {
	return fault.New(codes.FailedPrecondition, faultv1.Reason_AUTHZ_LAST_OWNER,
		"this would leave no enabled user who is Owner of the installation; give another user the role roleDefinitions/owner at / first")
}

// administered runs a change after which fewer users may be administrators, and refuses it if none would be left. Such changes happen one
// after the other, in all instances.
func (s *Service) administered(ctx context.Context, tx *sqldb.Tx, change func() error) error {
	if err := s.store.LockInstallation(ctx, tx); err != nil {
		return err
	}
	owners := s.cfg.Engine.Holders(authz.Owner)
	before, err := s.anyOf(ctx, tx, owners)
	if err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	after, err := s.anyOf(ctx, tx, owners)
	if err != nil {
		return err
	}
	if before.User != "" && after.User == "" {
		return lastOwner()
	}
	// What workspace relies on may be newer than what identity has heard from it.
	kept, err := s.store.KeptAdministrators(ctx, tx, s.cfg.Now())
	if err != nil {
		return err
	}
	for _, k := range kept {
		still := false
		if err := s.store.Reach(ctx, tx, []string{k.Via}, func(user, _ string) bool {
			still = user == k.User
			return !still
		}); err != nil {
			return err
		}
		if !still {
			return fault.Aborted("the administrators are being changed, and this user stays one meanwhile; repeat it in %v", keptFor)
		}
	}
	return nil
}

// anyOf finds an enabled user among principals and in their groups, nobody if there is none.
func (s *Service) anyOf(ctx context.Context, q sqldb.DBTX, uids []string) (k store.Kept, err error) {
	err = s.store.Reach(ctx, q, uids, func(user, from string) bool {
		k = store.Kept{User: user, Via: from}
		return false
	})
	return k, err
}

// KeepAdministrator implements PrincipalService.
func (s *Service) KeepAdministrator(ctx context.Context, req *identityv1.KeepAdministratorRequest) (*identityv1.KeepAdministratorResponse, error) {
	var k store.Kept
	err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		if err := s.store.LockInstallation(ctx, tx); err != nil {
			return err
		}
		if k, err = s.anyOf(ctx, tx, req.GetPrincipalUids()); err != nil {
			return err
		}
		if k.User == "" {
			return lastOwner()
		}
		return s.store.KeepAdministrator(ctx, tx, k, s.cfg.Now().Add(keptFor))
	})
	if err != nil {
		return nil, err
	}
	call := rpc.From(ctx)
	call.Detail("kept", k.User)
	return &identityv1.KeepAdministratorResponse{PrincipalUid: k.Via, UserUid: k.User}, nil
}
