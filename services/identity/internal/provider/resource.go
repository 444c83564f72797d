package provider

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// ActionIntrospect lets a service principal ask about tokens of others.
const ActionIntrospect = "identity/tokens/introspect"

// verified verifies an access token of ours for outside: of the installation, or of userinfo alone. ok is false for what is none, or is over or
// revoked; an error is one of ours.
func (p *Provider) verified(ctx context.Context, token string) (v *authn.Verified, ok bool, err error) {
	for _, audience := range []string{p.cfg.Issuer, p.cfg.Issuer + PathUserInfo} {
		v, err = p.cfg.Verifier.Verify(ctx, token, audience)
		switch {
		case err == nil:
			return v, true, nil
		case fault.Code(err) != codes.Unauthenticated:
			return nil, false, err
		case fault.ReasonOf(err) != faultv1.Reason_TOKEN_AUDIENCE:
			return nil, false, nil
		}
	}
	return nil, false, nil
}

// userInfo says who a token speaks for (OpenID Connect Core 1.0 section 5.3). The token stands in the header and nowhere else.
func (p *Provider) userInfo(ctx context.Context, x *identityv1.Exchange) (*identityv1.Page, error) {
	scheme, token, found := strings.Cut(x.GetAuthorization(), " ")
	if !found || x.GetQuery() != "" || len(x.GetBody()) > 0 {
		return nil, errTokenInvalid
	}
	v, ok, err := p.verified(ctx, token)
	if err != nil {
		return nil, err
	}
	if !ok || v.Run != "" {
		return nil, errTokenInvalid
	}
	switch {
	case v.Bound() && strings.EqualFold(scheme, "dpop"):
		if err := p.proofs.Check(x.GetDpop(), x.GetMethod(), p.cfg.Issuer+PathUserInfo, token, v.Confirmation); err != nil {
			return nil, fault.Describe(err).With(oauthError, errProof)
		}
	case !v.Bound() && strings.EqualFold(scheme, "bearer"):
	default:
		return nil, errTokenInvalid
	}
	rpc.From(ctx).Identify(v.Subject, v.PrincipalType)
	if !has(v.Scope, scopeOpenID) {
		return nil, fault.New(codes.PermissionDenied, faultv1.Reason_ACCESS_DENIED, "the token's scope has no openid").With(oauthError, "insufficient_scope")
	}
	user, ok, err := p.cfg.Store.Principal(ctx, p.cfg.DB.Reader(), v.Subject)
	if err != nil {
		return nil, err
	}
	if !ok || user.Disabled {
		return nil, errTokenInvalid
	}
	out := map[string]any{"sub": v.Subject}
	if has(v.Scope, scopeProfile) {
		out["preferred_username"] = user.ID
		if user.DisplayName != "" {
			out["name"] = user.DisplayName
		}
	}
	return answer(out)
}

// introspect says what a token is (RFC 7662) to the client that it was given to, and to a service principal that may ask about any.
func (p *Provider) introspect(ctx context.Context, x *identityv1.Exchange) (*identityv1.Page, error) {
	q, err := tokenForm(x)
	if err != nil {
		return nil, err
	}
	c, err := p.authenticate(ctx, x, q, false)
	if err != nil {
		return nil, err
	}
	if !c.confidential {
		return nil, badClient()
	}
	if q["token"] == "" {
		return nil, refuse(errRequest, "token is missing")
	}
	inactive := map[string]any{"active": false}
	mayAll := c.program && p.cfg.May(c.id, ActionIntrospect)
	if strings.HasPrefix(q["token"], prefixRefresh) {
		secret := redact.FromString(q["token"])
		defer secret.Wipe()
		g, expire, ok, err := p.refreshOf(ctx, secret)
		if err != nil {
			return nil, err
		}
		if !ok || g.ClientID != c.id && !mayAll {
			return answer(inactive)
		}
		return answer(map[string]any{"active": true, "client_id": g.ClientID, "sub": g.UID, "scope": g.Scope, "exp": expire.Unix(), "iss": p.cfg.Issuer, "sid": g.SID})
	}
	v, ok, err := p.verified(ctx, q["token"])
	if err != nil {
		return nil, err
	}
	if !ok || v.ClientID != c.id && !mayAll {
		return answer(inactive)
	}
	who, ok, err := p.cfg.Store.Principal(ctx, p.cfg.DB.Reader(), v.Subject)
	if err != nil {
		return nil, err
	}
	if !ok || who.Disabled {
		return answer(inactive)
	}
	out := map[string]any{
		"active": true, "client_id": v.ClientID, "username": who.ID, "token_type": "Bearer", "exp": v.Expiry.Unix(), "iat": v.IssuedAt.Unix(),
		"sub": v.Subject, "aud": v.Audience[0], "iss": v.Issuer, "jti": v.ID,
	}
	for name, value := range map[string]string{"scope": v.Scope, "sid": v.SessionID, "acr": v.ACR} {
		if value != "" {
			out[name] = value
		}
	}
	if v.Actor != nil {
		out["act"] = actorOf(v.Actor)
	}
	if v.Bound() {
		out["token_type"], out["cnf"] = "DPoP", map[string]string{"jkt": v.Confirmation}
	}
	return answer(out)
}

// refreshOf finds the grant of a refresh token that could still be used.
func (p *Provider) refreshOf(ctx context.Context, secret redact.Secret) (g store.Grant, expire time.Time, ok bool, err error) {
	q, now := p.cfg.DB.Reader(), p.cfg.Now()
	r, ok, err := p.cfg.Store.Refresh(ctx, q, secret)
	if err != nil || !ok || !r.Used.IsZero() || !now.Before(r.Expire) {
		return store.Grant{}, expire, false, err
	}
	g, ok, err = p.cfg.Store.Grant(ctx, q, r.SID, now)
	return g, r.Expire, ok, err
}

// withdraw revokes a token (RFC 7009). A refresh token takes its whole family with it. What is no token, or none any more, is fine.
func (p *Provider) withdraw(ctx context.Context, x *identityv1.Exchange) (*identityv1.Page, error) {
	q, err := tokenForm(x)
	if err != nil {
		return nil, err
	}
	c, err := p.authenticate(ctx, x, q, false)
	if err != nil {
		return nil, err
	}
	call := rpc.From(ctx)
	call.Detail("client_id", c.id)
	others := refuse(errUnauthorzd, "the token is another client's")
	done := &identityv1.Page{Status: http.StatusOK}
	switch token := q["token"]; {
	case token == "":
		return nil, refuse(errRequest, "token is missing")
	case strings.HasPrefix(token, prefixRefresh):
		secret := redact.FromString(token)
		defer secret.Wipe()
		db := p.cfg.DB.Reader()
		r, ok, err := p.cfg.Store.Refresh(ctx, db, secret)
		if err != nil || !ok {
			return done, err
		}
		g, ok, err := p.cfg.Store.Grant(ctx, db, r.SID, p.cfg.Now())
		if err != nil || !ok {
			return done, err
		}
		if g.ClientID != c.id {
			return nil, others
		}
		call.Identify(g.UID, userType)
		return done, p.cfg.Secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			if err := p.drop(ctx, tx, []string{g.SID}); err != nil {
				return err
			}
			return call.Audit(ctx, tx, "session", g.SID)
		})
	default:
		v, ok, err := p.verified(ctx, token)
		if err != nil || !ok {
			return done, err
		}
		if v.ClientID != c.id {
			return nil, others
		}
		call.Identify(v.Subject, v.PrincipalType)
		return done, p.cfg.Secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			now := p.cfg.Now()
			if err := p.cfg.Store.Change(ctx, tx, now, []*identityv1.Revocation{{Jti: v.ID, ExpireTime: timestamppb.New(now.Add(revokedFor))}}, nil); err != nil {
				return err
			}
			return call.Audit(ctx, tx, "token", v.ID)
		})
	}
}

func (p *Provider) hint(ctx context.Context, token string) (authn.Hint, error) {
	return authn.ReadHint(ctx, token, p.cfg.Issuer, p.cfg.Keys)
}

// endSession signs a browser out (OpenID Connect RP-Initiated Logout 1.0), with all that was given in it. A request that brings an ID token of
// this browser's own is done at once; any other is asked for first, for anybody can make a link.
func (p *Provider) endSession(ctx context.Context, x *identityv1.Exchange) (*identityv1.Page, error) {
	q, err := either(x)
	if err != nil {
		return p.broken(ctx, "The request cannot be read: "+err.Error()+".")
	}
	cookie, fresh := cookieOf(x)
	if sealed := q["request"]; sealed != "" {
		return p.leave(ctx, x, sealed, cookie)
	}
	var h authn.Hint
	if token := q["id_token_hint"]; token != "" {
		if h, err = p.hint(ctx, token); err != nil {
			if fault.Code(err) != codes.Unauthenticated {
				return nil, err
			}
			return p.broken(ctx, "The id_token_hint is none of this installation.")
		}
	}
	id := q["client_id"]
	if id != "" && h.Audience != "" && id != h.Audience {
		return p.broken(ctx, "The client_id and the id_token_hint are of two applications.")
	}
	if id == "" {
		id = h.Audience
	}
	r := request{ClientID: id, Expire: p.until(requestLife)}
	if to := q["post_logout_redirect_uri"]; to != "" {
		c, known, err := p.find(ctx, p.cfg.DB.Reader(), id)
		if err != nil {
			return nil, err
		}
		if !known || !slices.Contains(c.logout, to) || len(q["state"]) > maxState {
			return p.broken(ctx, "The application did not register the address to go to after signing out (post_logout_redirect_uri).")
		}
		r.RedirectURI, r.State = to, q["state"]
	}
	b, in, err := p.cfg.Store.FindBrowser(ctx, p.cfg.DB.Reader(), cookie, p.cfg.Now())
	if err != nil {
		return nil, err
	}
	if !in {
		return p.left(r)
	}
	r.SignOut = b.SID
	if h.SessionID != "" && h.Subject == b.UID {
		g, ok, err := p.cfg.Store.Grant(ctx, p.cfg.DB.Reader(), h.SessionID, p.cfg.Now())
		if err != nil {
			return nil, err
		}
		if ok && g.BrowserSID == b.SID {
			return p.signOut(ctx, r, b)
		}
	}
	sealed, err := p.seal(ctx, r, cookie)
	if err != nil {
		return nil, err
	}
	out, err := p.show(http.StatusOK, "leave.html", view{Request: sealed, To: originOr(r.RedirectURI)})
	if err == nil && fresh {
		out.Cookie = cookie.RevealString()
	}
	return out, err
}

func originOr(redirect string) string {
	if redirect == "" {
		return ""
	}
	return originOf(redirect)
}

// leave takes the click on the page that asks.
func (p *Provider) leave(ctx context.Context, x *identityv1.Exchange, sealed string, cookie redact.Secret) (*identityv1.Page, error) {
	if x.GetMethod() != http.MethodPost || !p.ours(x) {
		return p.forged(ctx)
	}
	r, same, ok, err := p.open(ctx, sealed, cookie)
	if err != nil {
		return nil, err
	}
	if !ok || !same || r.SignOut == "" {
		return p.broken(ctx, "This page is out of date. Start again.")
	}
	b, in, err := p.cfg.Store.Browser(ctx, p.cfg.DB.Reader(), r.SignOut, p.cfg.Now())
	if err != nil {
		return nil, err
	}
	if !in {
		return p.left(r)
	}
	return p.signOut(ctx, r, b)
}

func (p *Provider) signOut(ctx context.Context, r request, b store.Browser) (*identityv1.Page, error) {
	call := rpc.From(ctx)
	call.Identify(b.UID, userType)
	now := p.cfg.Now()
	err := p.cfg.Secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		sids, err := p.cfg.Store.EndBrowser(ctx, tx, b.SID)
		if err != nil {
			return err
		}
		revoked := make([]*identityv1.Revocation, 0, len(sids))
		for _, sid := range sids {
			revoked = append(revoked, &identityv1.Revocation{Sid: sid, ExpireTime: timestamppb.New(now.Add(revokedFor))})
		}
		if err := p.cfg.Store.Change(ctx, tx, now, revoked, nil); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "session", b.SID)
	})
	if err != nil {
		return nil, err
	}
	out, err := p.left(r)
	if err == nil {
		out.ClearCookie = true
	}
	return out, err
}

// left is what comes after a sign-out.
func (p *Provider) left(r request) (*identityv1.Page, error) {
	if r.RedirectURI == "" {
		return p.show(http.StatusOK, "done.html", view{Text: "You are signed out of this installation in this browser."})
	}
	to := r.RedirectURI
	if r.State != "" {
		to = withQuery(to, url.Values{"state": {r.State}})
	}
	return &identityv1.Page{Status: http.StatusSeeOther, Location: to}, nil
}
