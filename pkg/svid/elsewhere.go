package svid

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// A Source on another's Workload API, a SPIRE agent's say: it may give a process more than one SVID, and its authorities know nothing of runs.

// one picks the SVID of id. Nothing is in its place: a service never shows another's name.
func one(id spiffeid.ID) func([]*x509svid.SVID) *x509svid.SVID {
	return func(all []*x509svid.SVID) *x509svid.SVID {
		for _, s := range all {
			if s.ID == id {
				return s
			}
		}
		return nil
	}
}

// svid is the SVID of the moment.
func (s *Source) svid() (*x509svid.SVID, error) {
	own, err := s.x.GetX509SVID()
	if err == nil && !s.cfg.Workload.IsZero() && own.ID != s.cfg.Workload {
		return nil, errors.New("svid: the Workload API gives another workload's SVID")
	}
	return own, err
}

// await waits for the SVID of the own name: an API that has been told of the workload only now gives it a little later.
func (s *Source) await(ctx context.Context) error {
	for {
		if _, err := s.svid(); err == nil {
			return nil
		}
		if err := s.x.WaitUntilUpdated(ctx); err != nil {
			return fault.Wrap(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE,
				"the Workload API has no SVID %s for this process: register it there", s.cfg.Workload)
		}
	}
}

// Current is the SVID of the moment with its bundle, for who shows it by other means than this Source's credentials.
//
// Errors: UNAVAILABLE when it has ended; FAILED_PRECONDITION when its key is not ECDSA on P-256.
func (s *Source) Current() (*SVID, error) {
	own, err := s.svid()
	if err != nil {
		return nil, fault.Wrap(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "the Workload API has given no SVID")
	}
	out := &SVID{ID: own.ID, Chain: own.Certificates, Bundle: s.Bundle()}
	if !s.cfg.Now().Before(out.NotAfter()) {
		return nil, fault.Wrap(errOwnEnded, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "the Workload API has given no new SVID")
	}
	key, ok := own.PrivateKey.(*ecdsa.PrivateKey)
	if _, err := p256(own.PrivateKey.Public()); err != nil || !ok {
		return nil, fault.FailedPrecondition("the SVID's key is not ECDSA on P-256: set the key type of the Workload API's workloads")
	}
	out.Key = key
	return out, nil
}

// Bundle is every root of the own trust domain that the Workload API gives, nil after Close.
func (s *Source) Bundle() []*x509.Certificate {
	b, err := s.x.GetX509BundleForTrustDomain(s.cfg.TrustDomain)
	if err != nil {
		return nil
	}
	return b.X509Authorities()
}

// Delegate has the roots in issuers believed too, for the certificates of runs and of operators and for no others: those that identity issues
// where services have theirs from another's Workload API. What hangs on a root that is not among them any more is closed.
func (s *Source) Delegate(issuers []*x509.Certificate) {
	issuers = slices.Clone(issuers)
	s.issuers.Store(&issuers)
	s.closeGone()
}

// verify is by whom a chain is believed.
func (s *Source) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (spiffeid.ID, error) {
	id, err := Verify(chain, s.cfg.TrustDomain, s.x, usage, now)
	issuers := s.issuers.Load()
	if err == nil || issuers == nil {
		return id, err
	}
	id, derr := Verify(chain, s.cfg.TrustDomain, x509bundle.FromX509Authorities(s.cfg.TrustDomain, *issuers), usage, now)
	if derr != nil {
		return spiffeid.ID{}, err
	}
	if got, _ := ParseID(id.String()); got.Kind != KindRun && got.Kind != KindOperator {
		return spiffeid.ID{}, untrusted(err, "%s is not one of those that this authority may name", id)
	}
	return id, nil
}
