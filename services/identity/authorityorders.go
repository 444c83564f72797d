package identity

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/identity/internal/rotation"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// order changes the roots as an operator says, on the rows as its transaction reads them: the clock leaves alone then what stands beside the root
// that signs. When it returns nil every instance of identity goes by the change.
func (s *Service) order(ctx context.Context, pin string, fn func(ctx context.Context, tx *sqldb.Tx, as []store.Authority, leaves []rotation.Leaf, now time.Time) (next []rotation.Root, err error)) error {
	call := rpc.From(ctx)
	call.Detail("root", pin)
	return s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if err := s.store.LockInstallation(ctx, tx); err != nil {
			return err
		}
		as, err := s.store.Authorities(ctx, tx)
		if err != nil {
			return err
		}
		defer store.Wipe(as)
		leaves, err := s.store.Leaves(ctx, tx)
		if err != nil {
			return err
		}
		now := s.cfg.Now()
		next, err := fn(ctx, tx, as, leaves, now)
		if err != nil {
			return err
		}
		if next != nil {
			if err := s.store.SetAuthorities(ctx, tx, store.Plans(as), rotation.ByHand(next)); err != nil {
				return err
			}
		}
		if err := s.store.ChangeKeys(ctx, tx, now, nil); err != nil {
			return err
		}
		return call.Audit(ctx, tx)
	})
}

// followWithin is how long an order waits for those who have to follow it.
const followWithin = 5 * time.Second

// followed waits until nobody is left in who, as long as followWithin, and gives those who are.
func (s *Service) followed(ctx context.Context, who func(now time.Time, leaves []rotation.Leaf, pin string) []rotation.Leaf, pin string) (late []rotation.Leaf, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.FollowWithin)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		leaves, err := s.store.Leaves(context.WithoutCancel(ctx), s.cfg.DB.Reader())
		if err != nil {
			return nil, err
		}
		if late = who(s.cfg.Now(), leaves, pin); len(late) == 0 {
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return late, nil
		case <-tick.C:
		}
	}
}

// holdingServices are the services that hold a certificate of a root.
func holdingServices(now time.Time, leaves []rotation.Leaf, pin string) []rotation.Leaf {
	return slices.DeleteFunc(rotation.Holding(now, leaves, pin), func(l rotation.Leaf) bool { return !strings.HasPrefix(l.Holder, "service/") })
}

// PrepareAuthority implements KeyService (D10).
func (s *Service) PrepareAuthority(ctx context.Context, _ *identityv1.PrepareAuthorityRequest) (*identityv1.Authority, error) {
	next, err := svid.NewAuthority(s.td, s.cfg.Now(), s.cfg.RootLife)
	if err != nil {
		return nil, err
	}
	err = s.order(ctx, next.Pin(), func(ctx context.Context, tx *sqldb.Tx, as []store.Authority, _ []rotation.Leaf, now time.Time) ([]rotation.Root, error) {
		if err := rotation.Beside(store.Plans(as)); err != nil {
			return nil, err
		}
		return nil, s.insertAuthority(ctx, tx, next, rotation.Root{Phase: rotation.Prepared, Made: now, Manual: true})
	})
	if err != nil {
		return nil, err
	}
	if _, err := s.followed(ctx, rotation.Unaware, next.Pin()); err != nil {
		return nil, err
	}
	return s.oneAuthority(ctx, next.Pin())
}

func (s *Service) insertAuthority(ctx context.Context, tx *sqldb.Tx, a *svid.Authority, as rotation.Root) error {
	state, err := a.Marshal()
	if err != nil {
		return err
	}
	defer state.Key.Wipe()
	as.Pin = a.Pin()
	return s.store.InsertAuthority(ctx, tx, store.Authority{Root: as, DER: state.Root, Key: state.Key})
}

// ActivateAuthority implements KeyService (D10).
func (s *Service) ActivateAuthority(ctx context.Context, req *identityv1.ActivateAuthorityRequest) (*identityv1.Authority, error) {
	err := s.order(ctx, req.GetPin(), func(_ context.Context, _ *sqldb.Tx, as []store.Authority, leaves []rotation.Leaf, now time.Time) ([]rotation.Root, error) {
		return rotation.Activated(now, store.Plans(as), leaves, req.GetPin(), req.GetForce())
	})
	if err != nil {
		return nil, err
	}
	return s.oneAuthority(ctx, req.GetPin())
}

// TaintAuthority implements KeyService (D10).
func (s *Service) TaintAuthority(ctx context.Context, req *identityv1.TaintAuthorityRequest) (*identityv1.Authority, error) {
	if err := s.taint(ctx, req.GetPin(), true); err != nil {
		return nil, err
	}
	if _, err := s.followed(ctx, holdingServices, req.GetPin()); err != nil {
		return nil, err
	}
	return s.oneAuthority(ctx, req.GetPin())
}

// UntaintAuthority implements KeyService (D10).
func (s *Service) UntaintAuthority(ctx context.Context, req *identityv1.UntaintAuthorityRequest) (*identityv1.Authority, error) {
	if err := s.taint(ctx, req.GetPin(), false); err != nil {
		return nil, err
	}
	return s.oneAuthority(ctx, req.GetPin())
}

func (s *Service) taint(ctx context.Context, pin string, taint bool) error {
	return s.order(ctx, pin, func(_ context.Context, _ *sqldb.Tx, as []store.Authority, _ []rotation.Leaf, now time.Time) ([]rotation.Root, error) {
		return rotation.WithTaint(now, store.Plans(as), pin, taint)
	})
}

// RevokeAuthority implements KeyService (D10).
func (s *Service) RevokeAuthority(ctx context.Context, req *identityv1.RevokeAuthorityRequest) (*identityv1.ListAuthoritiesResponse, error) {
	err := s.order(ctx, req.GetPin(), func(ctx context.Context, tx *sqldb.Tx, as []store.Authority, leaves []rotation.Leaf, now time.Time) ([]rotation.Root, error) {
		roots := store.Plans(as)
		// An order that was followed may have lost its answer, since the connection that it came by hangs on the root: who repeats it is answered.
		if done, err := s.store.RevokedAuthority(ctx, tx, req.GetPin()); err != nil || done {
			rpc.From(ctx).Detail("done_before", "true")
			return nil, err
		}
		if err := rotation.Revocable(now, roots, leaves, req.GetPin(), s.clock().Waits, req.GetForce()); err != nil {
			return nil, err
		}
		// The clock counts anew from here: what was dropped by hand is not made again at once.
		if err := s.store.SetAuthorities(ctx, tx, roots, rotation.Anew(now, roots)); err != nil {
			return nil, err
		}
		return nil, s.store.RevokeAuthority(ctx, tx, req.GetPin(), now)
	})
	if err != nil {
		return nil, err
	}
	late, err := s.followed(ctx, rotation.Believing, req.GetPin())
	if err != nil {
		return nil, err
	}
	if len(late) > 0 {
		return nil, fault.New(codes.DeadlineExceeded, faultv1.Reason_CHANGE_PENDING,
			"the root is revoked, and is still believed by %s: see that they run and reach identity; who does not is cut off when his certificate ends", strings.Join(holders(late), ", "))
	}
	return s.authorities(ctx)
}
