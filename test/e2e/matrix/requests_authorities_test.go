package matrix

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// firstRoot signs what the services of this package show, so it stays; others come and go beside it.
var firstRoot string

var (
	rootBeside = want{code: codes.FailedPrecondition, reason: faultv1.Reason_PRECONDITION_FAILED, silent: true}
)

// oneRoot leaves the first root alone.
func (f *fixture) oneRoot(t *testing.T) identityv1.KeyServiceClient {
	t.Helper()
	keys := identityv1.NewKeyServiceClient(f.admin)
	all, err := keys.ListAuthorities(t.Context(), &identityv1.ListAuthoritiesRequest{})
	must(t, err)
	if firstRoot == "" {
		firstRoot = all.GetAuthorities()[0].GetPin()
	}
	_, err = keys.ActivateAuthority(t.Context(), &identityv1.ActivateAuthorityRequest{Pin: firstRoot, Force: true})
	must(t, err)
	for _, a := range all.GetAuthorities() {
		if a.GetPin() == firstRoot {
			continue
		}
		if a.GetState() != identityv1.AuthorityState_AUTHORITY_STATE_PREPARED {
			_, err = keys.TaintAuthority(t.Context(), &identityv1.TaintAuthorityRequest{Pin: a.GetPin()})
			must(t, err)
		}
		_, err = keys.RevokeAuthority(t.Context(), &identityv1.RevokeAuthorityRequest{Pin: a.GetPin(), Force: true})
		// The services that this package plays follow nothing.
		if err = fault.FromStatus(err); err != nil && fault.ReasonOf(err) != faultv1.Reason_CHANGE_PENDING {
			t.Fatal(err)
		}
	}
	return keys
}

func (f *fixture) preparedRoot(t *testing.T) string {
	t.Helper()
	a, err := f.oneRoot(t).PrepareAuthority(t.Context(), &identityv1.PrepareAuthorityRequest{})
	must(t, err)
	return a.GetPin()
}

// signedOnce is the root that oldRoot gave.
var signedOnce string

// oldRoot is one that has signed, for a moment. The services that this package plays do not follow, so it waits until the first one's
// certificates are shown again.
func (f *fixture) oldRoot(t *testing.T) string {
	t.Helper()
	keys := identityv1.NewKeyServiceClient(f.admin)
	all, err := keys.ListAuthorities(t.Context(), &identityv1.ListAuthoritiesRequest{})
	must(t, err)
	for _, a := range all.GetAuthorities() {
		if a.GetPin() == signedOnce {
			return signedOnce
		}
	}
	signedOnce = f.preparedRoot(t)
	for _, p := range []string{signedOnce, firstRoot} {
		_, err := keys.ActivateAuthority(t.Context(), &identityv1.ActivateAuthorityRequest{Pin: p, Force: true})
		must(t, err)
	}
	_, err = keys.TaintAuthority(t.Context(), &identityv1.TaintAuthorityRequest{Pin: signedOnce})
	must(t, err)
	must(t, patient(t.Context(), func() error {
		for name, n := range mesh.Nodes {
			if s := n.SVID(); s == nil || s.Issuer() != firstRoot {
				return fault.Unavailable("%s shows another root", name)
			}
		}
		return nil
	}))
	return signedOnce
}

// aboutRoot is a spec about a root. One stands beside the first at a time, so the request that all others were refused is about one that is gone
// in the end: each one that is allowed before had its own.
func aboutRoot(end want, build func(t *testing.T, f *fixture) proto.Message) spec {
	return spec{
		build: func(t *testing.T, f *fixture, _ *place) request { return one(build(t, f)) },
		want:  map[string]want{"allowed in the end": end},
	}
}
