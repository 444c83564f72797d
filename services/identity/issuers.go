package identity

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/federation"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// maxIssuers of an installation: each is a button on the sign-in page.
const maxIssuers = 64

// homeClasses are the classes as tokens have them.
var homeClasses = map[identityv1.HomeClass]string{
	identityv1.HomeClass_HOME_CLASS_GUEST: authn.Guest, identityv1.HomeClass_HOME_CLASS_CONSUMER: authn.Consumer,
}

// admits reports whether people of a class are let in at all.
func (s *Service) admits(class identityv1.HomeClass) bool {
	return class == identityv1.HomeClass_HOME_CLASS_GUEST || class == identityv1.HomeClass_HOME_CLASS_CONSUMER && s.cfg.Consumers
}

func noConsumers() error {
	return fault.FailedPrecondition("this installation takes no consumers; service.consumers in the configuration of identity would let them in")
}

// CreateIssuer implements FederationService.
func (s *Service) CreateIssuer(ctx context.Context, req *identityv1.CreateIssuerRequest) (*identityv1.Issuer, error) {
	call := rpc.From(ctx)
	if err := resource.ValidIDField("issuer_id", req.GetIssuerId()); err != nil {
		return nil, err
	}
	if err := federation.CheckURL(req.GetIssuerUrl()); err != nil {
		return nil, err
	}
	switch {
	case req.GetIssuerUrl() == s.cfg.Issuer:
		return nil, fault.InvalidArgument("this installation is no foreign issuer to itself").Field("issuer_url", "our own")
	case homeClasses[req.GetClass()] == "":
		return nil, fault.InvalidArgument("the class is guest or consumer").Field("class", "unknown")
	case !s.admits(req.GetClass()):
		return nil, noConsumers()
	}
	i := store.Issuer{
		UID: resource.NewUID("iss"), ID: req.GetIssuerId(), URL: req.GetIssuerUrl(), Class: req.GetClass(), Secret: redact.FromString(req.GetClientSecret()),
		Version: 1, CreateTime: s.cfg.Now(),
	}
	defer i.Secret.Wipe()
	var out *identityv1.Issuer
	err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		there, err := s.store.Issuers(ctx, tx)
		if err != nil {
			return err
		}
		if len(there) >= maxIssuers {
			return fault.FailedPrecondition("an installation has at most %d issuers; delete one first", maxIssuers)
		}
		if err := s.settle(ctx, tx, &i, req.GetSettings()); err != nil {
			return err
		}
		if err := s.store.InsertIssuer(ctx, tx, i); err != nil {
			return err
		}
		if out, err = s.issuer(ctx, tx, i); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", i.Name(), "uid", i.UID, "issuer_url", i.URL, "class", homeClasses[i.Class])
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// settle checks settings and puts them into the issuer.
func (s *Service) settle(ctx context.Context, tx *sqldb.Tx, i *store.Issuer, in *identityv1.IssuerSettings) error {
	bad := func(field, why string) error {
		return fault.InvalidArgument("%s: %s", field, why).Field("settings."+field, why)
	}
	i.DisplayName, i.ClientID = strings.TrimSpace(in.GetDisplayName()), in.GetClientId()
	if i.DisplayName == "" || strings.ContainsFunc(i.DisplayName, func(r rune) bool {
		return !unicode.IsPrint(r) || unicode.Is(unicode.Bidi_Control, r) || r == unicode.ReplacementChar
	}) {
		return bad("display_name", "it has to be printable text")
	}
	if i.ClientID == "" {
		return bad("client_id", "it is missing")
	}
	if i.Algorithms = in.GetAllowedAlgorithms(); len(i.Algorithms) == 0 {
		i.Algorithms = []string{"RS256", "ES256"}
	}
	for _, a := range i.Algorithms {
		if !slices.Contains(federation.Algorithms, a) {
			return bad("allowed_algorithms", "they are of "+strings.Join(federation.Algorithms, ", ")+"; a symmetric one, or none, is no proof")
		}
	}
	for _, scope := range in.GetScopes() {
		if scope == "openid" || strings.ContainsFunc(scope, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\\' }) {
			return bad("scopes", "each is one word; openid is asked for anyway")
		}
	}
	i.Audiences, i.Scopes = in.GetAllowedAudiences(), in.GetScopes()
	i.NameClaim, i.EmailClaim, i.GroupsClaim = in.GetDisplayNameClaim(), in.GetEmailClaim(), in.GetGroupsClaim()
	if i.NameClaim == "" {
		i.NameClaim = "name"
	}
	if i.EmailClaim == "" {
		i.EmailClaim = "email"
	}
	if i.GroupsClaim == "" && len(in.GetGroupMappings()) > 0 {
		return bad("groups_claim", "group mappings need the claim that has the groups")
	}
	i.Domains, i.PrivateHosts = nil, nil
	for _, l := range []struct {
		field string
		in    []string
		to    *[]string
	}{{"allowed_domains", in.GetAllowedDomains(), &i.Domains}, {"allow_private_hosts", in.GetAllowPrivateHosts(), &i.PrivateHosts}} {
		for _, host := range l.in {
			if host != strings.ToLower(host) || strings.HasSuffix(host, ".") || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("*/@,", r) }) {
				return bad(l.field, "each is one exact name in lower-case ASCII, without wildcards")
			}
			*l.to = append(*l.to, host)
		}
	}
	if _, err := federation.Roots(in.GetTrustedRootsPem()); err != nil {
		return err
	}
	i.RootsPEM, i.TrustMFA, i.Disabled = in.GetTrustedRootsPem(), in.GetTrustMfa(), in.GetDisabled()
	i.Groups = nil
	for _, m := range in.GetGroupMappings() {
		g, err := s.find(ctx, tx, m.GetGroup(), resource.KindGroup)
		if err != nil {
			return err
		}
		i.Groups = append(i.Groups, store.GroupMapping{Value: m.GetValue(), GroupUID: g.UID})
	}
	return nil
}

// redirectURI is where the issuer sends people back to.
func (s *Service) redirectURI(i store.Issuer) string { return s.cfg.Issuer + provider.PathHome + i.ID }

func (s *Service) issuer(ctx context.Context, q sqldb.DBTX, i store.Issuer) (*identityv1.Issuer, error) {
	in := &identityv1.IssuerSettings{
		DisplayName: i.DisplayName, ClientId: i.ClientID, AllowedAudiences: i.Audiences, AllowedAlgorithms: i.Algorithms, Scopes: i.Scopes, DisplayNameClaim: i.NameClaim,
		EmailClaim: i.EmailClaim, GroupsClaim: i.GroupsClaim, AllowedDomains: i.Domains, AllowPrivateHosts: i.PrivateHosts, TrustedRootsPem: i.RootsPEM,
		TrustMfa: i.TrustMFA, Disabled: i.Disabled,
	}
	for _, m := range i.Groups {
		g, ok, err := s.store.Principal(ctx, q, m.GroupUID)
		if err != nil {
			return nil, err
		}
		if ok { // one that was deleted maps to nothing
			in.GroupMappings = append(in.GroupMappings, &identityv1.GroupMapping{Value: m.Value, Group: g.Name()})
		}
	}
	return &identityv1.Issuer{
		Name: i.Name(), Uid: i.UID, IssuerUrl: i.URL, Class: i.Class, Settings: in, HasClientSecret: !i.Secret.Empty(), RedirectUri: s.redirectURI(i),
		CreateTime: timestamppb.New(i.CreateTime), Etag: etag(i.Version),
	}, nil
}

func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// findIssuer finds the issuer that a request names.
func (s *Service) findIssuer(ctx context.Context, q sqldb.DBTX, name string) (store.Issuer, error) {
	n, err := resource.Parse(name)
	if err != nil {
		return store.Issuer{}, err
	}
	if n.Kind() != resource.KindIssuer {
		return store.Issuer{}, fault.InvalidArgument("the name must be issuers/{issuer}").Field("name", "another kind of resource")
	}
	i, ok, err := s.store.FindIssuer(ctx, q, n.ID())
	if err != nil {
		return store.Issuer{}, err
	}
	if !ok {
		return store.Issuer{}, rpc.NotFound(name)
	}
	return i, nil
}

// GetIssuer implements FederationService.
func (s *Service) GetIssuer(ctx context.Context, req *identityv1.GetIssuerRequest) (*identityv1.Issuer, error) {
	var out *identityv1.Issuer
	err := s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		i, err := s.findIssuer(ctx, tx, req.GetName())
		if err != nil {
			return err
		}
		out, err = s.issuer(ctx, tx, i)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ListIssuers implements FederationService.
func (s *Service) ListIssuers(ctx context.Context, _ *identityv1.ListIssuersRequest) (*identityv1.ListIssuersResponse, error) {
	out := new(identityv1.ListIssuersResponse)
	err := s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		all, err := s.store.Issuers(ctx, tx)
		if err != nil {
			return err
		}
		for _, i := range all {
			shown, err := s.issuer(ctx, tx, i)
			if err != nil {
				return err
			}
			out.Issuers = append(out.Issuers, shown)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// UpdateIssuer implements FederationService.
func (s *Service) UpdateIssuer(ctx context.Context, req *identityv1.UpdateIssuerRequest) (*identityv1.Issuer, error) {
	call := rpc.From(ctx)
	var out *identityv1.Issuer
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		i, err := s.findIssuer(ctx, tx, req.GetName())
		if err != nil {
			return err
		}
		moved := fault.Aborted("the issuer was changed meanwhile; read it again")
		if req.GetEtag() != "" && req.GetEtag() != etag(i.Version) {
			return moved
		}
		if !s.admits(i.Class) && !req.GetSettings().GetDisabled() {
			return noConsumers()
		}
		if err := s.settle(ctx, tx, &i, req.GetSettings()); err != nil {
			return err
		}
		if text := req.GetClientSecret(); text != "" {
			i.Secret = redact.FromString(text)
		}
		defer i.Secret.Wipe()
		if ok, err := s.store.UpdateIssuer(ctx, tx, i); err != nil || !ok {
			return orElse(err, moved)
		}
		i.Version++
		if out, err = s.issuer(ctx, tx, i); err != nil {
			return err
		}
		ended := 0
		if i.Disabled {
			if ended, err = s.endHome(ctx, tx, i); err != nil {
				return err
			}
		}
		return call.Audit(ctx, tx, "name", i.Name(), "uid", i.UID, "disabled", strconv.FormatBool(i.Disabled), "secret_changed", strconv.FormatBool(req.GetClientSecret() != ""),
			"sessions_ended", strconv.Itoa(ended))
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// endHome ends the sessions of an issuer's people, and the sign-ins that are under way.
func (s *Service) endHome(ctx context.Context, tx *sqldb.Tx, i store.Issuer) (ended int, err error) {
	uids, err := s.store.UsersAt(ctx, tx, i.URL)
	if err != nil {
		return 0, err
	}
	return s.endHomeOf(ctx, tx, uids, s.cfg.Now())
}

// endHomeOf ends what users have who sign in elsewhere.
func (s *Service) endHomeOf(ctx context.Context, tx *sqldb.Tx, uids []string, now time.Time) (ended int, err error) {
	var all []string
	for _, uid := range uids {
		sids, err := s.store.EndSessions(ctx, tx, uid, now)
		if err != nil {
			return 0, err
		}
		if err := s.store.DropSignIns(ctx, tx, uid); err != nil {
			return 0, err
		}
		all = append(all, sids...)
	}
	return len(all), s.revokeSessions(ctx, tx, all, now)
}

// DeleteIssuer implements FederationService.
func (s *Service) DeleteIssuer(ctx context.Context, req *identityv1.DeleteIssuerRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		i, err := s.findIssuer(ctx, tx, req.GetName())
		if err != nil {
			return err
		}
		ended, err := s.endHome(ctx, tx, i)
		if err != nil {
			return err
		}
		if err := s.store.DeleteIssuer(ctx, tx, i.UID); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", i.Name(), "uid", i.UID, "issuer_url", i.URL, "sessions_ended", strconv.Itoa(ended))
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}
