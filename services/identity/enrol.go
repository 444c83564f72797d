package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/pkg/svid/jointoken"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const (
	serviceJoinLife    = time.Hour // unless the operator asks for another
	maxServiceJoinLife = 7 * 24 * time.Hour
)

// Issue implements EnrolmentService (D10).
func (s *Service) Issue(ctx context.Context, req *identityv1.IssueRequest) (*identityv1.IssueResponse, error) {
	call := rpc.From(ctx)
	call.Detail("service", req.GetService())
	call.Detail("instance", req.GetInstance())
	proved, ok := svid.PeerPublicKey(ctx)
	if !ok {
		return nil, fault.New(codes.Unauthenticated, faultv1.Reason_PEER_UNKNOWN, "certificates are issued on the enrolment listener, to who proves the key there")
	}
	key, err := svid.CSRKey(req.GetCsr())
	if err != nil {
		return nil, err
	}
	if !key.Equal(proved) {
		return nil, fault.New(codes.Unauthenticated, faultv1.Reason_PEER_UNKNOWN, "the certificate request is for another key than the connection's")
	}
	if !s.service(req.GetService()) {
		return nil, badJoin()
	}
	if req.GetInstance() != "" {
		if err := resource.ValidIDField("instance", req.GetInstance()); err != nil {
			return nil, err
		}
	}
	fingerprint, err := svid.KeyFingerprint(key)
	if err != nil {
		return nil, err
	}
	pinned, ok, err := s.store.PinnedKey(ctx, s.cfg.DB.Reader(), req.GetService(), req.GetInstance())
	if err != nil {
		return nil, err
	}
	if !ok || subtle.ConstantTimeCompare([]byte(pinned), []byte(fingerprint)) != 1 {
		if err := s.join(ctx, call, req, fingerprint); err != nil {
			return nil, err
		}
	}
	id, err := svid.ServiceID(s.td, req.GetService())
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	chain, a, err := s.sign(ctx, key, id, req.GetService(), req.GetInstance())
	if err != nil {
		return nil, err
	}
	return a.issued(chain, now.Add(s.cfg.SVIDLife)), nil
}

// join lets a key in that is not the pinned one: by a join token for this very instance, in place of a key that was pinned before.
func (s *Service) join(ctx context.Context, call *rpc.Call, req *identityv1.IssueRequest, fingerprint string) error {
	secret := redact.FromString(req.GetJoinToken())
	defer secret.Wipe()
	return s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		now := s.cfg.Now()
		j, ok, err := s.store.UseJoin(ctx, tx, store.JoinService, secret, fingerprint, now)
		if err != nil {
			return err
		}
		// A token of another instance is not used up: the transaction ends here.
		if !ok || j.Service != req.GetService() || j.Instance != req.GetInstance() {
			return badJoin()
		}
		// From here on the pinned key is enough. Were the token kept, its key could come back after another was pinned in its place.
		if err := s.store.DropJoin(ctx, tx, secret); err != nil {
			return err
		}
		if err := s.store.Pin(ctx, tx, j.Service, j.Instance, fingerprint, now); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "pinned", fingerprint)
	})
}

func (a *authority) issued(chain [][]byte, expire time.Time) *identityv1.IssueResponse {
	if end := a.Root().NotAfter; end.Before(expire) {
		expire = end
	}
	return &identityv1.IssueResponse{Chain: chain, Bundle: bundle(a), ExpireTime: timestamppb.New(expire)}
}

func bundle(a *authority) (out [][]byte) {
	for _, root := range a.Bundle() {
		out = append(out, root.Raw)
	}
	if a.services != nil {
		for _, root := range a.services() {
			out = append(out, root.Raw)
		}
	}
	return out
}

// IssueSelf gives identity its own SVID, in the process that holds the root. It is the svid.IssueFunc of its Keeper.
func (s *Service) IssueSelf(ctx context.Context, _ crypto.Signer, csrDER []byte) (chain, roots [][]byte, err error) {
	id, err := svid.ServiceID(s.td, Name)
	if err != nil {
		return nil, nil, err
	}
	key, err := svid.CSRKey(csrDER)
	if err != nil {
		return nil, nil, err
	}
	chain, a, err := s.sign(ctx, key, id, Name, s.cfg.Instance)
	if err != nil {
		return nil, nil, err
	}
	return chain, bundle(a), nil
}

// Pin names the root of the mesh, for who must believe it without a join token.
func (s *Service) Pin() string { return s.authority.Load().Pin() }

// CreateServiceJoin makes the join token with which one instance of a service enrols: the string that jointoken.Parse reads. Life is at
// most 7 days, and 1 h when 0. It is for the operator of the process, not for callers.
//
// Errors: INVALID_ARGUMENT for an unknown service or a life out of bounds.
func (s *Service) CreateServiceJoin(ctx context.Context, service, instance string, life time.Duration) (redact.Secret, error) {
	if life == 0 {
		life = serviceJoinLife
	}
	switch {
	case !s.service(service):
		return redact.Secret{}, fault.InvalidArgument("there is no service of this name; there are %v", s.cfg.Services)
	case life < 0 || life > maxServiceJoinLife:
		return redact.Secret{}, fault.InvalidArgument("a join token lives for at most %v", maxServiceJoinLife)
	}
	if instance != "" {
		if err := resource.ValidIDField("instance", instance); err != nil {
			return redact.Secret{}, err
		}
	}
	secret := newSecret(joinSecretPrefix)
	token, err := jointoken.Token{Address: s.cfg.EnrolAddress, Pin: s.Pin(), Secret: secret}.Encode()
	if err != nil {
		return redact.Secret{}, err
	}
	now := s.cfg.Now()
	j := store.Join{Kind: store.JoinService, Service: service, Instance: instance}
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if err := s.store.InsertJoin(ctx, tx, secret, j, now, now.Add(life)); err != nil {
			return err
		}
		return s.recordOwn(ctx, tx, "service join", "service", service, "instance", instance)
	})
	if err != nil {
		return redact.Secret{}, err
	}
	return token, nil
}

// IssueOperatorCertificate implements OperatorService. The certificate says who connects; each call on the connection still needs his
// token, so disabling him ends what it is good for.
func (s *Service) IssueOperatorCertificate(ctx context.Context, req *identityv1.IssueOperatorCertificateRequest) (*identityv1.IssueResponse, error) {
	call := rpc.From(ctx)
	if c := call.Claims; c.PrincipalType != authn.User || c.Run != "" || c.Actor != nil {
		return nil, fault.PermissionDenied("an operator is a user who asks for himself: sign in and ask again")
	}
	id, err := svid.OperatorID(s.td, call.Principal)
	if err != nil {
		return nil, err
	}
	key, err := svid.CSRKey(req.GetCsr())
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	chain, a, err := s.certify(ctx, "operator/"+call.Principal, false, s.cfg.OperatorLife, func(a *authority, now time.Time) ([][]byte, error) {
		return a.Sign(key, id, s.cfg.OperatorLife, now)
	})
	if err != nil {
		return nil, err
	}
	fingerprint, err := svid.KeyFingerprint(key)
	if err != nil {
		return nil, err
	}
	call.Detail("key", fingerprint)
	return a.issued(chain, now.Add(s.cfg.OperatorLife)), nil
}

// sign issues a service's SVID. Beside the SPIFFE ID it says the name <service>.<trust domain>, for clients that can only check names,
// such as grpcurl; and those of the services that strangers reach, the gateway's and inference's, say how: by the host of the issuer
// URL and, where that is this machine, by its other loopback names. Identity's says the host of its own listener for strangers, if it has one.
func (s *Service) sign(ctx context.Context, key crypto.PublicKey, id spiffeid.ID, service, instance string) ([][]byte, *authority, error) {
	names := []string{service + "." + s.td.Name()}
	var ips []net.IP
	at := ""
	switch {
	case slices.Contains(publicServices, service):
		at = s.cfg.Issuer
	case service == Name:
		at = s.cfg.CertificateURL
	}
	if at != "" {
		u, err := url.Parse(at)
		if err != nil {
			return nil, nil, err
		}
		for _, host := range append([]string{u.Hostname()}, s.cfg.PublicHosts...) {
			ip := net.ParseIP(host)
			if host == "localhost" || ip != nil && ip.IsLoopback() {
				names, ips = append(names, "localhost"), append(ips, net.IPv4(127, 0, 0, 1), net.IPv6loopback)
			}
			if ip != nil {
				ips = append(ips, ip)
			} else {
				names = append(names, host)
			}
		}
		slices.Sort(names)
		names = slices.Compact(names)
		slices.SortFunc(ips, func(a, b net.IP) int { return bytes.Compare(a.To16(), b.To16()) })
		ips = slices.CompactFunc(ips, net.IP.Equal)
	}
	return s.certify(ctx, holder(service, instance), true, s.cfg.SVIDLife, func(a *authority, now time.Time) ([][]byte, error) {
		return a.SignNamed(key, id, names, ips, s.cfg.SVIDLife, now)
	})
}

// Roots are every root of the mesh that is believed, the signing one first.
func (s *Service) Roots() []*x509.Certificate { return s.authority.Load().Bundle() }
