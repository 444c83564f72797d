package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const (
	maxClientKeys    = 10 // live ones of one service principal
	minRSA, maxRSA   = 2048, 8192
	blockPublicKey   = "PUBLIC KEY"
	blockCertificate = "CERTIFICATE"
)

// credentialEnd is when a credential ends that may say so itself.
func credentialEnd(t *timestamppb.Timestamp, now time.Time) (time.Time, error) {
	if t == nil {
		return now.Add(clientSecretLife), nil
	}
	if !t.IsValid() || !t.AsTime().After(now) || t.AsTime().After(now.Add(maxSecretLife)) {
		return time.Time{}, fault.InvalidArgument("a secret or key ends in the future, at most two years ahead").Field("expire_time", "out of bounds")
	}
	return t.AsTime(), nil
}

// clientKey reads what is to be registered.
func clientKey(text string, now time.Time) (k store.ClientKey, err error) {
	bad := func(why string) (store.ClientKey, error) {
		return store.ClientKey{}, fault.InvalidArgument("the key is not taken: %s", why).Field("pem", why)
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || strings.TrimSpace(string(rest)) != "" {
		return bad("it has to be one block of PEM")
	}
	var public any
	switch block.Type {
	case blockPublicKey:
		if public, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
			return bad("it is no public key in the form of SubjectPublicKeyInfo")
		}
		thumb, err := (&jose.JSONWebKey{Key: public}).Thumbprint(crypto.SHA256)
		if err != nil {
			return bad("it is of a kind that is not known")
		}
		k = store.ClientKey{Kind: store.PublicKey, Thumbprint: base64.RawURLEncoding.EncodeToString(thumb)}
	case blockCertificate:
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return bad("it is no X.509 certificate")
		}
		if !now.Before(c.NotAfter) {
			return bad("the certificate is over")
		}
		public = c.PublicKey
		sum := sha256.Sum256(c.Raw)
		k = store.ClientKey{Kind: store.Certificate, Thumbprint: base64.RawURLEncoding.EncodeToString(sum[:]), ExpireTime: c.NotAfter}
	default:
		return bad("the block has to be a " + blockPublicKey + " or a " + blockCertificate + ", never a private key")
	}
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if c := key.Curve; c != elliptic.P256() && c != elliptic.P384() && c != elliptic.P521() {
			return bad("its curve is none of P-256, P-384 and P-521")
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < minRSA || n > maxRSA {
			return bad("an RSA key has 2048 to 8192 bits")
		}
	default:
		return bad("it is neither ECDSA nor Ed25519 nor RSA")
	}
	k.DER = block.Bytes
	return k, nil
}

// AddServicePrincipalKey implements DirectoryService.
func (s *Service) AddServicePrincipalKey(ctx context.Context, req *identityv1.AddServicePrincipalKeyRequest) (*identityv1.ServicePrincipalCredential, error) {
	call := rpc.From(ctx)
	now := s.cfg.Now()
	end, err := credentialEnd(req.GetExpireTime(), now)
	if err != nil {
		return nil, err
	}
	k, err := clientKey(req.GetPem(), now)
	if err != nil {
		return nil, err
	}
	if k.ExpireTime.IsZero() || end.Before(k.ExpireTime) {
		k.ExpireTime = end
	}
	k.ID, k.CreateTime = resource.NewUID("key"), now
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		p, err := s.find(ctx, tx, req.GetName(), resource.KindServicePrincipal)
		if err != nil {
			return err
		}
		there, err := s.store.ClientKeys(ctx, tx, p.UID, now)
		if err != nil {
			return err
		}
		if len(there) >= maxClientKeys {
			return fault.FailedPrecondition("a service principal has at most %d keys and certificates; delete one first", maxClientKeys)
		}
		k.UID = p.UID
		if err := s.store.InsertClientKey(ctx, tx, k); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", p.Name(), "uid", p.UID, "credential", k.ID, "thumbprint", k.Thumbprint)
	})
	if err != nil {
		return nil, err
	}
	return clientKeyCredential(k), nil
}

func clientKeyCredential(k store.ClientKey) *identityv1.ServicePrincipalCredential {
	return &identityv1.ServicePrincipalCredential{
		CredentialId: k.ID, Kind: k.Kind, Thumbprint: k.Thumbprint, CreateTime: timestamppb.New(k.CreateTime), ExpireTime: timestamppb.New(k.ExpireTime), ClientId: k.UID,
	}
}

// ListServicePrincipalCredentials implements DirectoryService.
func (s *Service) ListServicePrincipalCredentials(ctx context.Context, req *identityv1.ListServicePrincipalCredentialsRequest) (*identityv1.ListServicePrincipalCredentialsResponse, error) {
	out := new(identityv1.ListServicePrincipalCredentialsResponse)
	now := s.cfg.Now()
	err := s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		p, err := s.find(ctx, tx, req.GetName(), resource.KindServicePrincipal)
		if err != nil {
			return err
		}
		secrets, err := s.store.ClientSecrets(ctx, tx, p.UID, now)
		if err != nil {
			return err
		}
		for _, c := range secrets {
			out.Credentials = append(out.Credentials, &identityv1.ServicePrincipalCredential{
				CredentialId: c.ID, Kind: identityv1.ServicePrincipalCredential_KIND_SECRET, CreateTime: timestamppb.New(c.CreateTime), ExpireTime: timestamppb.New(c.ExpireTime), ClientId: c.UID,
			})
		}
		keys, err := s.store.ClientKeys(ctx, tx, p.UID, now)
		for _, k := range keys {
			out.Credentials = append(out.Credentials, clientKeyCredential(k))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteServicePrincipalCredential implements DirectoryService. The tokens that a credential gave have its id for their session.
func (s *Service) DeleteServicePrincipalCredential(ctx context.Context, req *identityv1.DeleteServicePrincipalCredentialRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	now := s.cfg.Now()
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		p, err := s.find(ctx, tx, req.GetName(), resource.KindServicePrincipal)
		if err != nil {
			return err
		}
		ok, err := s.store.DeleteClientCredential(ctx, tx, p.UID, req.GetCredentialId())
		if err != nil {
			return err
		}
		if !ok {
			return fault.NotFound("%s has no credential of this id; ListServicePrincipalCredentials shows those that there are", p.Name()).Field("credential_id", "not one of this service principal")
		}
		revoked := &identityv1.Revocation{Sid: req.GetCredentialId(), ExpireTime: timestamppb.New(now.Add(revokedFor))}
		if err := s.store.Change(ctx, tx, now, []*identityv1.Revocation{revoked}, nil); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", p.Name(), "uid", p.UID, "credential", req.GetCredentialId())
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}
