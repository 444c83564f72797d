package node

import (
	"context"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// followAgain is how often a service that is behind what identity has told tries again, and how soon it listens again.
const followAgain = time.Second

// followAuthorities renews the SVID at once when the roots are others than it came with, or when its own root is tainted (D10).
func (n *Node) followAuthorities(m *mesh, keys identityv1.KeyServiceClient) {
	n.background("authorities", func(ctx context.Context) error {
		tick := time.NewTicker(followAgain)
		defer tick.Stop()
		for {
			if err := n.watchAuthorities(ctx, m, keys, tick.C); err != nil && ctx.Err() == nil {
				n.log.DebugContext(ctx, "identity does not tell of the roots; the SVID is renewed by its time alone", "error", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
}

func (n *Node) watchAuthorities(ctx context.Context, m *mesh, keys identityv1.KeyServiceClient, tick <-chan time.Time) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := keys.WatchAuthorities(ctx, &identityv1.WatchAuthoritiesRequest{})
	if err != nil {
		return err
	}
	told, ended := make(chan *identityv1.WatchAuthoritiesResponse), make(chan error, 1)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case told <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	var last *identityv1.WatchAuthoritiesResponse
	for {
		if last != nil && m.keeper != nil && (behind(m.keeper, last) || n.showsAnother(m.keeper)) {
			m.keeper.Refresh()
		}
		select {
		case last = <-told:
			n.believe(m, last)
		case <-tick:
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// believe takes up the keys of JWT-SVIDs that identity has told; or, where services have their SVIDs from elsewhere, its roots, which name runs
// and operators there and nobody else.
func (n *Node) believe(m *mesh, told *identityv1.WatchAuthoritiesResponse) {
	if len(told.GetTrustBundle()) == 0 {
		return
	}
	if m.jwts == nil {
		b, err := spiffebundle.Parse(m.td, told.GetTrustBundle())
		if err != nil {
			n.log.Error("the roots that identity has told are not taken up", "error", err)
			return
		}
		m.source.Delegate(b.X509Authorities())
		return
	}
	if err := m.jwts.SetBundle(told.GetTrustBundle()); err != nil {
		n.log.Error("the trust bundle that identity has told is not taken up", "error", err)
	}
}

// issueJWT asks identity for JWT-SVIDs of this service, on a connection that proves who asks.
func (m *mesh) issueJWT(ctx context.Context, audience []string) (string, error) {
	c := m.issuer.Load()
	if c == nil {
		return "", fault.Unavailable("the service is starting; try again in a moment")
	}
	r, err := identityv1.NewWorkloadIdentityServiceClient(c).IssueJWTSVID(ctx, &identityv1.IssueJWTSVIDRequest{Audience: audience})
	if err != nil {
		return "", fault.FromStatus(err)
	}
	return r.GetToken(), nil
}

// showsAnother reports whether identity itself shows a certificate of another root than the one that its join tokens name: it renews at once
// when another one signs, since who enrols knows no root but that.
func (n *Node) showsAnother(k *svid.Keeper) bool {
	if n.identity == nil {
		return false
	}
	s, err := k.Current()
	return err == nil && s.Issuer() != n.identity.Pin()
}

// behind reports whether a new SVID would be of another bundle, or of a root in the place of a tainted one.
func behind(k *svid.Keeper, told *identityv1.WatchAuthoritiesResponse) bool {
	s, err := k.Current()
	if err != nil {
		return false // it asks already
	}
	has := make([]string, 0, len(s.Bundle))
	for _, root := range s.Bundle {
		has = append(has, svid.Pin(root))
	}
	want := slices.Clone(told.GetPins())
	slices.Sort(has)
	slices.Sort(want)
	return !slices.Equal(has, want) || slices.Contains(told.GetTaintedPins(), s.Issuer())
}
