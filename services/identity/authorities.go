package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
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
