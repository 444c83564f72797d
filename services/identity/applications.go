package identity

import (
	"context"
	"encoding/binary"
	"encoding/pem"
	"slices"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// CreateApplication implements ApplicationService.
func (s *Service) CreateApplication(ctx context.Context, req *identityv1.CreateApplicationRequest) (*identityv1.Application, error) {
	call := rpc.From(ctx)
	if err := resource.ValidIDField("application_id", req.GetApplicationId()); err != nil {
		return nil, err
	}
	a := store.Application{
		UID: resource.NewUID("app"), ID: req.GetApplicationId(), DisplayName: strings.TrimSpace(req.GetDisplayName()), RedirectURIs: req.GetRedirectUris(),
		LogoutURIs: req.GetPostLogoutRedirectUris(), Confidential: req.GetConfidential(), GrantTypes: req.GetGrantTypes(), APIAccess: req.GetApiAccess(),
		CreateTime: s.cfg.Now(),
	}
	if len(a.GrantTypes) == 0 {
		a.GrantTypes = []string{provider.GrantCode, provider.GrantRefresh}
	}
	if err := checkApplication(a); err != nil {
		return nil, err
	}
	err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if err := s.store.InsertApplication(ctx, tx, a); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", a.Name(), "uid", a.UID)
	})
	if err != nil {
		return nil, err
	}
	return application(a), nil
}

func checkApplication(a store.Application) error {
	// What people read on the sign-in page must not look like something else: no controls, no marks that turn the direction of a text.
	if a.DisplayName == "" || strings.ContainsFunc(a.DisplayName, func(r rune) bool {
		return !unicode.IsPrint(r) || unicode.Is(unicode.Bidi_Control, r) || r == unicode.ReplacementChar
	}) {
		return fault.InvalidArgument("the display name has to be printable text").Field("display_name", "not printable")
	}
	for i, g := range a.GrantTypes {
		if !slices.Contains([]string{provider.GrantCode, provider.GrantRefresh, provider.GrantDevice, provider.GrantExchange}, g) || slices.Contains(a.GrantTypes[:i], g) {
			return fault.InvalidArgument("the grant types of an application are authorization_code, refresh_token, %s and %s, each once; a program that signs in as itself is a service principal", provider.GrantDevice, provider.GrantExchange).
				Field("grant_types", "unknown or twice")
		}
		if g == provider.GrantExchange && !a.Confidential {
			return fault.InvalidArgument("a public application exchanges no tokens: anybody could be it").Field("grant_types", "for confidential applications alone")
		}
	}
	if slices.Contains(a.GrantTypes, provider.GrantCode) != (len(a.RedirectURIs) > 0) {
		return fault.InvalidArgument("redirect URIs and the grant authorization_code belong together").Field("redirect_uris", "missing, or without use")
	}
	for _, uri := range append(slices.Clone(a.RedirectURIs), a.LogoutURIs...) {
		if err := provider.CheckRedirect(uri); err != nil {
			return err
		}
	}
	return nil
}

func application(a store.Application) *identityv1.Application {
	return &identityv1.Application{
		Name: a.Name(), Uid: a.UID, DisplayName: a.DisplayName, RedirectUris: a.RedirectURIs, PostLogoutRedirectUris: a.LogoutURIs,
		Confidential: a.Confidential, GrantTypes: a.GrantTypes, ApiAccess: a.APIAccess, CreateTime: timestamppb.New(a.CreateTime),
	}
}

// findApplication finds the application that a request names.
func (s *Service) findApplication(ctx context.Context, q sqldb.DBTX, name string) (store.Application, error) {
	n, err := resource.Parse(name)
	if err != nil {
		return store.Application{}, err
	}
	if n.Kind() != resource.KindApplication {
		return store.Application{}, fault.InvalidArgument("the name must be applications/{application}").Field("name", "another kind of resource")
	}
	a, ok, err := s.store.FindApplication(ctx, q, n.ID())
	if err != nil {
		return store.Application{}, err
	}
	if !ok {
		return store.Application{}, rpc.NotFound(name)
	}
	return a, nil
}

// GetApplication implements ApplicationService.
func (s *Service) GetApplication(ctx context.Context, req *identityv1.GetApplicationRequest) (*identityv1.Application, error) {
	a, err := s.findApplication(ctx, s.cfg.DB.Reader(), req.GetName())
	if err != nil {
		return nil, err
	}
	return application(a), nil
}

// ListApplications implements ApplicationService.
func (s *Service) ListApplications(ctx context.Context, req *identityv1.ListApplicationsRequest) (*identityv1.ListApplicationsResponse, error) {
	n, err := resource.PageSize(req.GetPageSize(), defaultPage, largestPage)
	if err != nil {
		return nil, err
	}
	const query = "list applications"
	var after store.Cursor
	if token := req.GetPageToken(); token != "" {
		raw, err := s.box.openPage(ctx, query, token)
		if err != nil {
			return nil, err
		}
		if len(raw) < 8 {
			return nil, badPage(nil)
		}
		after = store.Cursor{CreateTime: time.UnixMicro(int64(binary.BigEndian.Uint64(raw))), UID: string(raw[8:])}
	}
	page, err := s.store.ListApplications(ctx, s.cfg.DB.Reader(), after, n+1)
	if err != nil {
		return nil, err
	}
	out := &identityv1.ListApplicationsResponse{}
	if len(page) > n {
		page = page[:n]
		last := page[n-1]
		if out.NextPageToken, err = s.box.sealPage(ctx, query, append(binary.BigEndian.AppendUint64(nil, uint64(last.CreateTime.UnixMicro())), last.UID...)); err != nil {
			return nil, err
		}
	}
	for _, a := range page {
		out.Applications = append(out.Applications, application(a))
	}
	return out, nil
}

// DeleteApplication implements ApplicationService.
func (s *Service) DeleteApplication(ctx context.Context, req *identityv1.DeleteApplicationRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	now := s.cfg.Now()
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		a, err := s.findApplication(ctx, tx, req.GetName())
		if err != nil {
			return err
		}
		sids, err := s.store.DeleteApplication(ctx, tx, a.UID)
		if err != nil {
			return err
		}
		// What it was given in somebody's name by exchange is of that person's session, and ends with the application too.
		revoked := []*identityv1.Revocation{subjectUntil(a.UID, now, now)}
		for _, sid := range sids {
			revoked = append(revoked, &identityv1.Revocation{Sid: sid, ExpireTime: timestamppb.New(now.Add(revokedFor))})
		}
		if err := s.store.Change(ctx, tx, now, revoked, nil); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", a.Name(), "uid", a.UID)
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// AddApplicationSecret implements ApplicationService.
func (s *Service) AddApplicationSecret(ctx context.Context, req *identityv1.AddApplicationSecretRequest) (*identityv1.ApplicationSecret, error) {
	call, now := rpc.From(ctx), s.cfg.Now()
	expire, err := credentialEnd(req.GetExpireTime(), now)
	if err != nil {
		return nil, err
	}
	secret := newSecret(clientSecretPrefix)
	c := store.ClientSecret{ID: resource.NewUID("sec"), ExpireTime: expire}
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		a, err := s.findApplication(ctx, tx, req.GetName())
		if err != nil {
			return err
		}
		if !a.Confidential {
			return fault.FailedPrecondition("a public application has no secret; make one that is confidential")
		}
		n, err := s.store.CountApplicationSecrets(ctx, tx, a.UID, now)
		if err != nil {
			return err
		}
		if n >= maxClientSecrets {
			return fault.FailedPrecondition("an application has at most %d secrets; let some run out", maxClientSecrets)
		}
		c.UID = a.UID
		if err := s.store.InsertApplicationSecret(ctx, tx, c, secret, now); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", a.Name(), "uid", a.UID, "secret_id", c.ID)
	})
	if err != nil {
		return nil, err
	}
	return &identityv1.ApplicationSecret{SecretId: c.ID, Secret: secret.RevealString(), ExpireTime: timestamppb.New(expire), ClientId: c.UID}, nil
}

// AddApplicationKey implements ApplicationService.
func (s *Service) AddApplicationKey(ctx context.Context, req *identityv1.AddApplicationKeyRequest) (*identityv1.ApplicationKey, error) {
	call, now := rpc.From(ctx), s.cfg.Now()
	expire, err := credentialEnd(req.GetExpireTime(), now)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode([]byte(req.GetPublicKeyPem()))
	if block == nil || block.Type != "PUBLIC KEY" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, fault.InvalidArgument("the key has to be one public key in PEM; never send a private one").Field("public_key_pem", "not a PUBLIC KEY")
	}
	key, err := authn.ParsePublicKey(block.Bytes)
	if err != nil {
		return nil, fault.InvalidArgument("the key has to be an EC key on P-256").Field("public_key_pem", "not on P-256")
	}
	kid, name := authn.Thumbprint(key), req.GetName()
	var uid string
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		a, err := s.findApplication(ctx, tx, name)
		if err != nil {
			return err
		}
		if !a.Confidential {
			return fault.FailedPrecondition("a public application has no key; make one that is confidential")
		}
		uid = a.UID
		n, err := s.store.CountApplicationKeys(ctx, tx, uid, now)
		if err != nil {
			return err
		}
		if n >= maxClientKeys {
			return fault.FailedPrecondition("an application has at most %d keys; let some run out", maxClientKeys)
		}
		if err := s.store.PutApplicationKey(ctx, tx, uid, kid, block.Bytes, now, expire); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", name, "uid", uid, "key_id", kid)
	})
	if err != nil {
		return nil, err
	}
	return &identityv1.ApplicationKey{KeyId: kid, ExpireTime: timestamppb.New(expire), ClientId: uid}, nil
}
