package identity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const grantClientCredentials = "client_credentials"

// oauthError is the metadata key with the error code of RFC 6749 section 5.2.
const oauthError = "oauth_error"

func badGrant(code, format string, args ...any) error {
	return fault.New(codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, format, args...).With(oauthError, code)
}

// invalidClient is the one answer for a client that does not exist, a wrong secret and one that is over.
func invalidClient() error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_CREDENTIAL_INVALID, "the client is not known, or its secret is wrong or over").With(oauthError, "invalid_client")
}

// IssueToken implements TokenService.
func (s *Service) IssueToken(ctx context.Context, req *identityv1.IssueTokenRequest) (*identityv1.TokenResponse, error) {
	call := rpc.From(ctx)
	switch {
	case req.GetGrantType() == "":
		return nil, badGrant("invalid_request", "grant_type is missing")
	case req.GetGrantType() != grantClientCredentials:
		return nil, badGrant("unsupported_grant_type", "the grant types are: %s", grantClientCredentials)
	case req.GetClientId() == "" || req.GetClientSecret() == "":
		return nil, invalidClient()
	case req.GetScope() != "":
		return nil, badGrant("invalid_scope", "there are no scopes: roles decide what a client may do; leave scope out")
	case req.GetAudience() != "" && req.GetAudience() != s.cfg.Issuer:
		return nil, badGrant("invalid_target", "tokens are for %s; leave the audience out", s.cfg.Issuer)
	}
	secret := redact.FromString(req.GetClientSecret())
	defer secret.Wipe()
	f, ok, err := s.clientBySecret(ctx, req.GetClientId(), secret, true)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, s.refusedClient(ctx, call, req.GetClientId(), secret)
	}
	call.Identify(f.UID, authn.ServicePrincipal)
	token, claims, err := s.mintFor(call, f, authn.Claims{Audience: []string{s.cfg.Issuer}}, s.cfg.TokenLife)
	if err != nil {
		return nil, err
	}
	call.Detail("secret_id", f.Credential)
	return s.tokenResponse(token, claims), nil
}

// refusedClient says why: only to who has a secret that is good, of an account that is disabled.
func (s *Service) refusedClient(ctx context.Context, call *rpc.Call, uid string, secret redact.Secret) error {
	q := s.cfg.DB.Reader()
	// The secret has 256 random bits and is found by its digest, so the time of the look-up tells nothing of it.
	c, ok, err := s.store.FindClientSecret(ctx, q, secret)
	if err != nil {
		return err
	}
	if !ok || c.UID != uid || !s.cfg.Now().Before(c.ExpireTime) {
		return invalidClient()
	}
	p, ok, err := s.store.Principal(ctx, q, c.UID)
	if err != nil {
		return err
	}
	if !ok || !p.Disabled {
		return invalidClient()
	}
	call.Identify(p.UID, authn.ServicePrincipal)
	return fault.New(codes.PermissionDenied, faultv1.Reason_ACCOUNT_DISABLED, "the account is disabled; ask an administrator to enable it").With(oauthError, "invalid_client")
}

func (s *Service) tokenResponse(token string, c authn.Claims) *identityv1.TokenResponse {
	out := &identityv1.TokenResponse{
		AccessToken: token, TokenType: "Bearer", ExpireTime: timestamppb.New(c.Expiry),
		ExpiresIn: durationpb.New(max(0, c.Expiry.Sub(s.cfg.Now())).Truncate(time.Second)), Scope: c.Scope,
	}
	if c.Confirmation != "" {
		out.TokenType = "DPoP"
	}
	return out
}

// RevokeToken implements TokenService. A token that is over or revoked already is fine; what is no token of this installation is
// REQUEST_INVALID.
func (s *Service) RevokeToken(ctx context.Context, req *identityv1.RevokeTokenRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	v, err := s.verifier.Verify(ctx, req.GetToken(), audienceOf(req.GetToken()))
	switch fault.ReasonOf(err) {
	case faultv1.Reason_REASON_UNSPECIFIED:
	case faultv1.Reason_TOKEN_EXPIRED:
		return &emptypb.Empty{}, nil
	case faultv1.Reason_TOKEN_REVOKED:
		// It may be pending still: who repeats it waits too.
		return &emptypb.Empty{}, s.feed.everywhere(ctx)
	case faultv1.Reason_AUTHZ_STATE_STALE, faultv1.Reason_SERVICE_UNAVAILABLE:
		return nil, err
	default:
		return nil, fault.InvalidArgument("this is not an access token of this installation").Field("token", "not a token of ours")
	}
	const action = "identity/tokens/revoke"
	if c := call.Claims; c.Actor != nil && v.ID != c.ID && !slices.Contains(v.Ancestors, c.ID) {
		return nil, fault.PermissionDenied("who acts for somebody revokes the token that he does it with, and what came of it, and no other")
	}
	if v.Subject != call.Principal && !call.May(action, false, resource.RootName()) {
		return nil, fault.New(codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING, "the action %s is missing at /; without it you can revoke your own tokens only", action).
			With("action", action).With("scope", resource.Root)
	}
	now := s.cfg.Now()
	revoked := &identityv1.Revocation{Jti: v.ID, ExpireTime: timestamppb.New(now.Add(revokedFor))}
	if v.Run != "" && v.Bound() {
		// A run token is renewed under the same session, so that is what dies.
		revoked.Jti, revoked.Sid = "", v.SessionID
	}
	err = s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if err := s.store.Change(ctx, tx, now, []*identityv1.Revocation{revoked}, nil); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "token", v.ID, "subject", v.Subject)
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// audienceOf reads for whom a token says it is, unverified: the one to verify it for.
func audienceOf(token string) string {
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	raw, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return ""
	}
	var c struct {
		Audience string `json:"aud"`
	}
	if json.Unmarshal(raw, &c) != nil {
		return ""
	}
	return c.Audience
}

// RevokeRun implements TokenService.
func (s *Service) RevokeRun(ctx context.Context, req *identityv1.RevokeRunRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	now := s.cfg.Now()
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if err := s.store.DropJoinsOf(ctx, tx, req.GetRunUid()); err != nil {
			return err
		}
		revoked := &identityv1.Revocation{RunUid: req.GetRunUid(), ExpireTime: timestamppb.New(now.Add(revokedFor)), DeliverUntil: deliverUntil(req, now)}
		if err := s.store.Change(ctx, tx, now, []*identityv1.Revocation{revoked}, nil); err != nil {
			return err
		}
		details := []string{"run_uid", req.GetRunUid(), "workspace_uid", req.GetWorkspaceUid()}
		if t := revoked.GetDeliverUntil(); t != nil {
			details = append(details, "deliver_until", t.AsTime().Format(time.RFC3339))
		}
		return call.Audit(ctx, tx, details...)
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// deliverUntil is until when the agent of a run may deliver, nil for not at all. A time that makes no sense ends it at once: the revocation must
// come about in any case.
func deliverUntil(req *identityv1.RevokeRunRequest, now time.Time) *timestamppb.Timestamp {
	t := req.GetDeliverUntil()
	if !t.IsValid() || !t.AsTime().After(now) {
		return nil
	}
	if latest := now.Add(authn.MaxDelivery); t.AsTime().After(latest) {
		return timestamppb.New(latest)
	}
	return t
}

// actsAt is the service that ActAs makes tokens for.
const actsAt = "workspace"

// ActAs implements TokenService. The token speaks for the principal without the limits of a run, for it is compute's and not the
// agent's: what is done with it is authorized as the principal's own doing, at that moment.
func (s *Service) ActAs(ctx context.Context, req *identityv1.ActAsRequest) (*identityv1.TokenResponse, error) {
	call := rpc.From(ctx)
	// The one service that a queued run's start asks in its submitter's name. Compute can become nobody anywhere else.
	if req.GetAudience() != actsAt {
		return nil, fault.InvalidArgument("a token for background work is for %s alone", actsAt).Field("audience", "not "+actsAt).With(oauthError, "invalid_target")
	}
	q := s.cfg.DB.Reader()
	p, err := s.acting(ctx, q, req.GetPrincipal())
	if err != nil {
		return nil, err
	}
	token, claims, err := s.mint(ctx, q, authn.Claims{
		Audience: []string{s.serviceID(actsAt)}, Subject: p.UID, PrincipalType: principalTypes[p.Kind], ClientID: firstParty,
		Actor: &authn.Actor{Subject: call.Peer},
	}, exchangedLife)
	if err != nil {
		return nil, err
	}
	for _, d := range [][2]string{
		{"subject", p.UID}, {"audience", req.GetAudience()}, {"run_uid", req.GetRunUid()}, {"workspace_uid", req.GetWorkspaceUid()},
		{"token", claims.ID},
	} {
		call.Detail(d[0], d[1])
	}
	return s.tokenResponse(token, claims), nil
}

// acting finds a principal for whom work may be done in the background.
func (s *Service) acting(ctx context.Context, q sqldb.DBTX, uid string) (store.Principal, error) {
	p, ok, err := s.store.Principal(ctx, q, uid)
	switch {
	case err != nil:
		return store.Principal{}, err
	case !ok || principalTypes[p.Kind] == "":
		return store.Principal{}, fault.New(codes.FailedPrecondition, faultv1.Reason_RUN_SUBMITTER_DENIED, "the principal was deleted, or is none that can act")
	case p.Disabled:
		return store.Principal{}, fault.New(codes.FailedPrecondition, faultv1.Reason_ACCOUNT_DISABLED, "the principal is disabled")
	}
	return p, nil
}

// next is the audience of tokens for another service: its SPIFFE ID.
func (s *Service) next(call *rpc.Call, service string) (string, error) {
	if !slices.Contains(s.cfg.Services, service) || service == rpc.Gateway || service == call.PeerService {
		return "", fault.InvalidArgument("the audience must be another service of the mesh, by name").Field("audience", "not another service").With(oauthError, "invalid_target")
	}
	return s.serviceID(service), nil
}

func (s *Service) serviceID(name string) string { return s.td.IDString() + "/service/" + name }
