package identity

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const (
	clientSecretPrefix = "rdt_" // so that scanners of repositories can know one
	joinSecretPrefix   = "rdj_"
	clientSecretLife   = 90 * 24 * time.Hour
	maxSecretLife      = 2 * 366 * 24 * time.Hour
	maxClientSecrets   = 10 // live ones of one service principal
)

// newSecret makes a secret of 256 random bits.
func newSecret(prefix string) redact.Secret {
	var bits [32]byte
	_, _ = rand.Read(bits[:]) // never fails
	return redact.FromString(prefix + base64.RawURLEncoding.EncodeToString(bits[:]))
}

// CreateServicePrincipal implements DirectoryService.
func (s *Service) CreateServicePrincipal(ctx context.Context, req *identityv1.CreateServicePrincipalRequest) (*identityv1.ServicePrincipal, error) {
	call := rpc.From(ctx)
	if err := resource.ValidIDField("service_principal_id", req.GetServicePrincipalId()); err != nil {
		return nil, err
	}
	p := store.Principal{
		UID: resource.NewUID("spn"), Kind: store.ServicePrincipal, ID: req.GetServicePrincipalId(), DisplayName: req.GetDisplayName(),
		CreateTime: s.cfg.Now(),
	}
	err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if err := s.store.InsertPrincipal(ctx, tx, p); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", p.Name(), "uid", p.UID)
	})
	if err != nil {
		return nil, err
	}
	return servicePrincipal(p), nil
}

func servicePrincipal(p store.Principal) *identityv1.ServicePrincipal {
	return &identityv1.ServicePrincipal{
		Name: p.Name(), Uid: p.UID, DisplayName: p.DisplayName, Disabled: p.Disabled, CreateTime: timestamppb.New(p.CreateTime),
	}
}

// ListServicePrincipals implements DirectoryService.
func (s *Service) ListServicePrincipals(ctx context.Context, req *identityv1.ListServicePrincipalsRequest) (*identityv1.ListServicePrincipalsResponse, error) {
	page, next, err := s.page(ctx, s.cfg.DB.Reader(), store.ServicePrincipal, req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	out := &identityv1.ListServicePrincipalsResponse{NextPageToken: next}
	for _, p := range page {
		out.ServicePrincipals = append(out.ServicePrincipals, servicePrincipal(p))
	}
	return out, nil
}

// GetServicePrincipal implements DirectoryService.
func (s *Service) GetServicePrincipal(ctx context.Context, req *identityv1.GetServicePrincipalRequest) (*identityv1.ServicePrincipal, error) {
	p, err := s.find(ctx, s.cfg.DB.Reader(), req.GetName(), resource.KindServicePrincipal)
	if err != nil {
		return nil, err
	}
	return servicePrincipal(p), nil
}

// SetServicePrincipalDisabled implements DirectoryService.
func (s *Service) SetServicePrincipalDisabled(ctx context.Context, req *identityv1.SetServicePrincipalDisabledRequest) (*identityv1.ServicePrincipal, error) {
	call := rpc.From(ctx)
	var p store.Principal
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		now := s.cfg.Now() // here: every token whose record is committed is dated by now
		if p, err = s.find(ctx, tx, req.GetName(), resource.KindServicePrincipal); err != nil {
			return err
		}
		until := now
		if p.Disabled != req.GetDisabled() {
			if until, err = s.dated(ctx, tx, p.UID, now); err != nil {
				return err
			}
			if err := s.store.SetDisabled(ctx, tx, p.UID, req.GetDisabled()); err != nil {
				return err
			}
			p.Disabled = req.GetDisabled()
		}
		if p.Disabled {
			if err := s.store.Change(ctx, tx, now, []*identityv1.Revocation{subjectUntil(p.UID, until, now)}, nil); err != nil {
				return err
			}
		}
		return call.Audit(ctx, tx, "name", p.Name(), "uid", p.UID, "disabled", strconv.FormatBool(p.Disabled))
	})
	if err != nil {
		return nil, err
	}
	return servicePrincipal(p), nil
}

// AddServicePrincipalSecret implements DirectoryService.
func (s *Service) AddServicePrincipalSecret(ctx context.Context, req *identityv1.AddServicePrincipalSecretRequest) (*identityv1.ServicePrincipalSecret, error) {
	call := rpc.From(ctx)
	now := s.cfg.Now()
	expire, err := credentialEnd(req.GetExpireTime(), now)
	if err != nil {
		return nil, err
	}
	secret := newSecret(clientSecretPrefix)
	c := store.ClientSecret{ID: resource.NewUID("sec"), ExpireTime: expire}
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		p, err := s.find(ctx, tx, req.GetName(), resource.KindServicePrincipal)
		if err != nil {
			return err
		}
		n, err := s.store.CountClientSecrets(ctx, tx, p.UID, now)
		if err != nil {
			return err
		}
		if n >= maxClientSecrets {
			return fault.FailedPrecondition("a service principal has at most %d secrets; delete one first", maxClientSecrets)
		}
		c.UID = p.UID
		if err := s.store.InsertClientSecret(ctx, tx, c, secret, now); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", p.Name(), "uid", p.UID, "secret_id", c.ID)
	})
	if err != nil {
		return nil, err
	}
	return &identityv1.ServicePrincipalSecret{
		SecretId: c.ID, Secret: secret.RevealString(), ExpireTime: timestamppb.New(expire), ClientId: c.UID,
	}, nil
}

// DeleteServicePrincipal implements DirectoryService.
func (s *Service) DeleteServicePrincipal(ctx context.Context, req *identityv1.DeleteServicePrincipalRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		p, err := s.find(ctx, tx, req.GetName(), resource.KindServicePrincipal)
		if err != nil {
			return err
		}
		if err := s.remove(ctx, tx, p.UID); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", p.Name(), "uid", p.UID)
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// remove deletes a principal, takes it out of its groups and kills its tokens.
func (s *Service) remove(ctx context.Context, tx *sqldb.Tx, uid string) error {
	groups, err := s.store.DeletePrincipal(ctx, tx, uid)
	if err != nil {
		return err
	}
	now := s.cfg.Now()
	until, err := s.dated(ctx, tx, uid, now)
	if err != nil {
		return err
	}
	return s.store.Change(ctx, tx, now, []*identityv1.Revocation{subjectUntil(uid, until, now)}, groups)
}
