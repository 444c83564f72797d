package identity

import (
	"context"
	"crypto"
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/identity/internal/rotation"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// jwtSVIDLife is how long a JWT-SVID lives: nothing revokes it.
const jwtSVIDLife = 5 * time.Minute

// keyUses are the sets of keys that sign, each by a plan of its own.
var keyUses = []store.KeyUse{store.TokenKeys, store.SVIDKeys}

// policyOf is how the keys of one use rotate.
func (s *Service) policyOf(use store.KeyUse) rotation.Policy {
	p := s.policy
	if use == store.SVIDKeys {
		p.Life = jwtSVIDLife
	}
	return p
}

// planNow is the plan of the keys of one use as they were last read.
func (s *Service) planNow(use store.KeyUse) []rotation.Key {
	if use == store.SVIDKeys {
		return planOf(*s.svidKeys.Load())
	}
	return s.keys.state.Load().plan
}

// jwtKey is the key that signs JWT-SVIDs now.
func (s *Service) jwtKey() (svid.JWTKey, error) {
	keys := *s.svidKeys.Load()
	i := rotation.Signer(s.cfg.Now(), planOf(keys))
	if i < 0 {
		return svid.JWTKey{}, fault.Unavailable("no key of JWT-SVIDs is valid now; check the clock of identity")
	}
	return svid.JWTKey{Key: keys[i].Key, ID: keys[i].KeyID}, nil
}

// IssueJWTSVID implements WorkloadIdentityService (A3, A4). The subject is who the connection proves the caller to be: no request can name another.
func (s *Service) IssueJWTSVID(ctx context.Context, req *identityv1.IssueJWTSVIDRequest) (*identityv1.IssueJWTSVIDResponse, error) {
	call := rpc.From(ctx)
	call.Detail("audience", strings.Join(req.GetAudience(), " "))
	id, err := spiffeid.FromString(call.Peer)
	if err != nil || !id.MemberOf(s.td) || !s.service(call.PeerService) {
		return nil, fault.Wrap(err, codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED, "JWT-SVIDs are issued to services of the mesh, each for itself")
	}
	if s.cfg.ServiceRoots != nil {
		return nil, notHere()
	}
	key, err := s.jwtKey()
	if err != nil {
		return nil, err
	}
	token, expire, err := key.Sign(id, req.GetAudience(), jwtSVIDLife, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	return &identityv1.IssueJWTSVIDResponse{Token: token, ExpireTime: timestamppb.New(expire)}, nil
}

// GetSPIFFEBundle implements WorkloadIdentityService.
func (s *Service) GetSPIFFEBundle(context.Context, *identityv1.GetSPIFFEBundleRequest) (*identityv1.SPIFFEBundle, error) {
	if s.cfg.ServiceRoots != nil {
		return nil, notHere() // its own roots name no service, and must not be taken for those that do
	}
	return &identityv1.SPIFFEBundle{Json: s.authority.Load().bundle}, nil
}

func notHere() error {
	return fault.FailedPrecondition("the services of this installation have their SVIDs from another authority: ask its Workload API, and its bundle endpoint")
}

// refreshHint is how soon whoever has the trust bundle should ask again: a key of JWT-SVIDs is told for longer than that before it signs.
func (s *Service) refreshHint() time.Duration { return min(s.policy.Ahead, longestCache) }

// render makes the trust bundle of a's roots and the keys. It is a function of rows alone, so that what it says changes with its number and not
// with the clock: a key that is over stands there until it is deleted.
func (a *authority) render(keys []store.SigningKey, sequence uint64, refresh time.Duration) (err error) {
	public := make(map[string]crypto.PublicKey, len(keys))
	for _, k := range keys {
		public[k.KeyID] = &k.Key.PublicKey
	}
	roots := a.Bundle() // the one that signs first, which is no part of what the bundle says
	slices.SortFunc(roots, func(x, y *x509.Certificate) int { return strings.Compare(svid.Pin(x), svid.Pin(y)) })
	b := spiffebundle.FromX509Authorities(a.TrustDomain(), roots)
	b.SetJWTAuthorities(public)
	b.SetSequenceNumber(sequence)
	b.SetRefreshHint(refresh)
	if a.bundle, err = b.Marshal(); err != nil {
		return fault.Internal(err, "the trust bundle could not be rendered")
	}
	a.sequence = sequence
	return nil
}
