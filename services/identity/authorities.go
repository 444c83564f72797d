package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/identity/internal/rotation"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// authority is the root that signs, with all that are believed, as they were last read. It is never changed.
type authority struct {
	*svid.Authority
	roots []rotation.Root
	vouch []*svid.Authority // have signed: clients may know them alone

	sequence uint64 // of the trust bundle
	bundle   []byte // the trust bundle, as strangers get it

	services func() []*x509.Certificate // Config.ServiceRoots
}

func newAuthority(td spiffeid.TrustDomain, as []store.Authority) (*authority, error) {
	out := &authority{roots: store.Plans(as)}
	var beside []*svid.Authority
	for _, a := range as {
		parsed, err := svid.ParseAuthority(td, svid.State{Root: a.DER, Key: a.Key})
		if err != nil {
			return nil, err
		}
		switch a.Phase {
		case rotation.Active:
			out.Authority = parsed
		case rotation.Prepared:
			beside = append(beside, parsed)
		case rotation.Old, rotation.Tainted:
			beside = append(beside, parsed)
			out.vouch = append(out.vouch, parsed)
		default:
			return nil, fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "a root of the mesh is stored in a phase that there is not: restore identity's database")
		}
	}
	if out.Authority == nil {
		return nil, fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "no root of the mesh signs: restore identity's database and its seal key together")
	}
	for _, b := range beside {
		var err error
		if out.Authority, err = out.WithTrusted(append(out.Bundle(), b.Root())...); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// vouched adds to a chain what leads from the roots beside to the one that signed, for clients who know only those.
func (a *authority) vouched(chain [][]byte, life time.Duration, now time.Time) ([][]byte, error) {
	for _, v := range a.vouch {
		e, err := v.Endorse(a.Root(), now, now.Add(life))
		if fault.Is(err, codes.FailedPrecondition) {
			continue // it has ended, and vouches for nobody
		}
		if err != nil {
			return nil, err
		}
		chain = append(chain, e)
	}
	return chain, nil
}

func (a *authority) pins() []string {
	out := make([]string, 0, len(a.roots))
	for _, r := range a.roots {
		out = append(out, r.Pin)
	}
	return out
}

func (a *authority) told() *identityv1.WatchAuthoritiesResponse {
	out := &identityv1.WatchAuthoritiesResponse{Pins: a.pins(), TrustBundle: a.bundle}
	for _, r := range a.roots {
		if r.Phase == rotation.Tainted {
			out.TaintedPins = append(out.TaintedPins, r.Pin)
		}
	}
	return out
}

// turn tells of a change. Its zero value is usable.
type turn struct {
	mu sync.Mutex
	ch chan struct{}
}

func (t *turn) next() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ch == nil {
		t.ch = make(chan struct{})
	}
	return t.ch
}

func (t *turn) now() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ch != nil {
		close(t.ch)
		t.ch = nil
	}
}

var errStale = errors.New("identity: the root that signed does not sign any more")

// certify signs a certificate and writes down who holds it, in a transaction that sees its root still signing. Only then it is given out: what
// this instance has missed cannot make a leaf that nobody knows of.
func (s *Service) certify(ctx context.Context, holder string, replaces bool, life time.Duration, sign func(*authority, time.Time) ([][]byte, error)) (chain [][]byte, a *authority, err error) {
	for range 3 {
		a = s.authority.Load()
		now := s.cfg.Now()
		if chain, err = sign(a, now); err != nil {
			return nil, nil, err
		}
		err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			signs, err := s.store.Signs(ctx, tx, a.Pin())
			if err != nil {
				return err
			}
			if !signs {
				return errStale
			}
			return s.store.PutLeaf(ctx, tx, rotation.Leaf{Holder: holder, Pin: a.Pin(), Bundle: a.pins(), Expire: now.Add(life)}, replaces, now)
		})
		if !errors.Is(err, errStale) {
			break
		}
		if err := s.openKeys(ctx); err != nil {
			return nil, nil, err
		}
	}
	if err != nil {
		if errors.Is(err, errStale) {
			err = fault.Unavailable("the root of the mesh changes; repeat the call")
		}
		return nil, nil, err
	}
	chain, err = a.vouched(chain, life, s.cfg.Now())
	return chain, a, err
}

func holder(service, instance string) string { return "service/" + service + "/" + instance }

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

// ListAuthorities implements KeyService.
func (s *Service) ListAuthorities(ctx context.Context, _ *identityv1.ListAuthoritiesRequest) (*identityv1.ListAuthoritiesResponse, error) {
	return s.authorities(ctx)
}

var authorityStates = map[rotation.Phase]identityv1.AuthorityState{
	rotation.Prepared: identityv1.AuthorityState_AUTHORITY_STATE_PREPARED, rotation.Active: identityv1.AuthorityState_AUTHORITY_STATE_ACTIVE,
	rotation.Old: identityv1.AuthorityState_AUTHORITY_STATE_OLD, rotation.Tainted: identityv1.AuthorityState_AUTHORITY_STATE_TAINTED,
}

func (s *Service) authorities(ctx context.Context) (*identityv1.ListAuthoritiesResponse, error) {
	leaves, err := s.store.Leaves(ctx, s.cfg.DB.Reader())
	if err != nil {
		return nil, err
	}
	now, a := s.cfg.Now(), s.authority.Load()
	out := &identityv1.ListAuthoritiesResponse{Clock: clockOf(s.clock(), s.clock().Next(now, a.roots, leaves))}
	for _, r := range a.roots {
		one := &identityv1.Authority{Pin: r.Pin, State: authorityStates[r.Phase], CreateTime: stamp(r.Made), SignEndTime: stamp(r.Signed), Holders: holders(rotation.Holding(now, leaves, r.Pin))}
		for _, root := range a.Bundle() {
			if svid.Pin(root) == r.Pin {
				one.Root, one.ExpireTime = root.Raw, timestamppb.New(root.NotAfter)
			}
		}
		switch r.Phase {
		case rotation.Prepared:
			one.Pending = holders(rotation.Unaware(now, leaves, r.Pin))
		case rotation.Tainted:
			one.Pending = holders(holdingServices(now, leaves, r.Pin))
		}
		out.Authorities = append(out.Authorities, one)
	}
	return out, nil
}

func holders(leaves []rotation.Leaf) []string {
	out := make([]string, 0, len(leaves))
	for _, l := range leaves {
		out = append(out, l.Holder)
	}
	return out
}

func (s *Service) oneAuthority(ctx context.Context, pin string) (*identityv1.Authority, error) {
	all, err := s.authorities(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range all.GetAuthorities() {
		if a.GetPin() == pin {
			return a, nil
		}
	}
	return nil, fault.Unavailable("the root was changed again meanwhile; look at `redoubt ca list`")
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
		if err := rotation.Revocable(now, roots, leaves, req.GetPin(), s.clock().Waits, req.GetForce()); err != nil {
			return nil, err
		}
		// The clock counts anew from here: what was dropped by hand is not made again at once.
		if err := s.store.SetAuthorities(ctx, tx, roots, rotation.Anew(now, roots)); err != nil {
			return nil, err
		}
		return nil, s.store.DeleteAuthority(ctx, tx, req.GetPin())
	})
	// Who repeats an order that was followed waits as well for those who are late.
	if err != nil && fault.Code(err) != codes.NotFound {
		return nil, err
	}
	late, e := s.followed(ctx, rotation.Believing, req.GetPin())
	if e != nil {
		return nil, e
	}
	if len(late) > 0 {
		return nil, fault.New(codes.DeadlineExceeded, faultv1.Reason_CHANGE_PENDING,
			"the root is revoked, and is still believed by %s: see that they run and reach identity; who does not is cut off when his certificate ends", strings.Join(holders(late), ", "))
	}
	if err != nil {
		return nil, err
	}
	return s.authorities(ctx)
}

// WatchAuthorities implements KeyService.
func (s *Service) WatchAuthorities(_ *identityv1.WatchAuthoritiesRequest, stream grpc.ServerStreamingServer[identityv1.WatchAuthoritiesResponse]) error {
	ctx := stream.Context()
	var last *authority
	for {
		turned := s.turned.next() // before reading: a change after that wakes us
		if a := s.authority.Load(); a != last {
			if err := stream.Send(a.told()); err != nil {
				return err
			}
			last = a
		}
		select {
		case <-turned:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.feed.closed:
			return fault.Unavailable("identity is stopping; watch again")
		}
	}
}
