package identity

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/identity/internal/rotation"
)

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
