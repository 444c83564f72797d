package svid

import (
	"crypto/x509"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// maxChain bounds what a peer may present: a leaf, two intermediates of a foreign authority, and a root.
const maxChain = 4

// Verify checks an X.509-SVID by the rules of the standard at the time now: one SPIFFE ID, of the trust domain td, in a leaf
// that is no authority, with a chain to one of bundle's roots, meant for usage (ExtKeyUsageAny: not looked at).
//
// What Endorse makes is no part of such a chain: a root is believed because it stands in the bundle, and not for another root's word, which
// would outlive its place there.
func Verify(chain []*x509.Certificate, td spiffeid.TrustDomain, bundle x509bundle.Source, usage x509.ExtKeyUsage, now time.Time) (spiffeid.ID, error) {
	return verify(slices.DeleteFunc(slices.Clone(chain), func(c *x509.Certificate) bool { return endorsement(c, td.IDString()) }), td, bundle, usage, now)
}

func verify(chain []*x509.Certificate, td spiffeid.TrustDomain, bundle x509bundle.Source, usage x509.ExtKeyUsage, now time.Time) (spiffeid.ID, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return spiffeid.ID{}, untrusted(nil, "an SVID has a chain of 1 to %d certificates", maxChain)
	}
	id, _, err := x509svid.Verify(chain, bundle, x509svid.WithTime(now))
	if err != nil {
		return spiffeid.ID{}, untrusted(err, "the peer has no valid SVID of this mesh")
	}
	leaf := chain[0]
	switch {
	case !id.MemberOf(td):
		return spiffeid.ID{}, untrusted(nil, "the peer is of trust domain %s, not %s", id.TrustDomain(), td)
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return spiffeid.ID{}, untrusted(nil, "the peer's SVID may not sign a handshake")
	case usage != x509.ExtKeyUsageAny && len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 && !slices.Contains(leaf.ExtKeyUsage, usage):
		return spiffeid.ID{}, untrusted(nil, "the peer's SVID is not for this side of a connection")
	}
	return id, nil
}

func untrusted(cause error, format string, args ...any) *fault.Error {
	return fault.Wrap(cause, codes.Unauthenticated, faultv1.Reason_PEER_UNKNOWN, format, args...)
}

func damaged(format string, args ...any) *fault.Error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, format, args...)
}
