package provider

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
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

// tokens is the answer of the token endpoint (RFC 6749 section 5.1).
type tokens struct {
	AccessToken  string `json:"access_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"`
	RefreshToken string `json:"refresh_token,omitempty"`
	IDToken      string `json:"id_token,omitempty"`
	Scope        string `json:"scope,omitempty"`
	// IssuedType is of an exchange alone (RFC 8693 section 2.2.1).
	IssuedType string `json:"issued_token_type,omitempty"`
}

// token is the token endpoint.
func (p *Provider) token(ctx context.Context, x *identityv1.Exchange) (*identityv1.Page, error) {
	q, err := tokenForm(x)
	if err != nil {
		return nil, err
	}
	grant := q["grant_type"]
	switch grant {
	case GrantCode, GrantRefresh, GrantClient, GrantDevice, GrantExchange:
	case "":
		return nil, refuse(errRequest, "grant_type is missing")
	default:
		return nil, refuse(errGrantType, "the grant types are %s", strings.Join(Grants, ", "))
	}
	c, err := p.authenticate(ctx, x, q, grant == GrantClient)
	if err != nil {
		return nil, err
	}
	call := rpc.From(ctx)
	call.Detail("client_id", c.id)
	if !c.may(grant) {
		return nil, refuse(errUnauthorzd, "this client does not use the grant %s", grant)
	}
	if t := q["resource"]; t != "" && t != p.cfg.Issuer && grant != GrantExchange {
		return nil, refuse(errTarget, "tokens are for %s; leave the resource out", p.cfg.Issuer)
	}
	if t := q["audience"]; t != "" && t != p.cfg.Issuer && grant != GrantExchange {
		return nil, refuse(errTarget, "tokens are for %s; leave the audience out", p.cfg.Issuer)
	}
	jkt, err := p.proof(x, p.tokenURL(ctx))
	if err != nil {
		return nil, err
	}
	if c.needsKey && jkt == "" {
		return nil, refuse(errProof, "this client's tokens are bound to a key: send a DPoP proof (RFC 9449)")
	}
	var out *tokens
	switch grant {
	case GrantCode:
		out, err = p.byCode(ctx, call, c, q, jkt)
	case GrantRefresh:
		out, err = p.byRefresh(ctx, call, c, q, jkt)
	case GrantClient:
		out, err = p.byClient(call, c, q, jkt)
	case GrantExchange:
		out, err = p.byExchange(ctx, call, c, q, jkt)
	default:
		out, err = p.byDevice(ctx, call, c, q, jkt)
	}
	if err != nil {
		return nil, err
	}
	return answer(out)
}

// Grants are the grant types of the token endpoint.
var Grants = []string{GrantCode, GrantRefresh, GrantClient, GrantDevice, GrantExchange}

// byCode is the code grant (RFC 6749 section 4.1.3 with RFC 7636).
func (p *Provider) byCode(ctx context.Context, call *rpc.Call, c client, q params, jkt string) (*tokens, error) {
	verifier := q["code_verifier"]
	switch {
	case q["code"] == "" || q["redirect_uri"] == "":
		return nil, refuse(errRequest, "code or redirect_uri is missing")
	case verifier == "":
		return nil, refuse(errRequest, "code_verifier is missing (RFC 7636)")
	case q["scope"] != "":
		return nil, refuse(errRequest, "the scope stands in the authorization request")
	}
	secret := redact.FromString(q["code"])
	defer secret.Wipe()
	var out *tokens
	var replayed string // session of the grant that a replayed code gave
	err := p.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		out, replayed = nil, ""
		now := p.cfg.Now()
		code, ok, err := p.cfg.Store.UseCode(ctx, tx, secret)
		if err != nil || !ok {
			return err
		}
		// From here on the code is used up, whatever is wrong with the request: whoever sent it should not have had it.
		if code.Uses > 1 {
			replayed = code.GrantSID
			return nil
		}
		if code.ClientID != c.id || !now.Before(code.Expire) || code.RedirectURI != q["redirect_uri"] || !s256(verifier, code.Challenge) ||
			code.JKT != "" && code.JKT != jkt {
			return nil
		}
		b, user, ok, err := p.who(ctx, tx, code.BrowserSID)
		if err != nil || !ok {
			return err
		}
		g := store.Grant{
			SID: code.GrantSID, UID: b.UID, ClientID: c.id, BrowserSID: b.SID, Scope: code.Scope, JKT: jkt,
			AuthTime: b.AuthTime, AMR: b.AMR, ACR: b.ACR, Expire: grantEnd(b, now),
		}
		out, err = p.begin(ctx, tx, c, g, user, code.Nonce)
		if err != nil {
			return err
		}
		call.Identify(user.UID, userType)
		return call.Audit(ctx, tx, "grant", GrantCode, "session", g.SID)
	})
	switch {
	case err != nil:
		return nil, err
	case replayed != "":
		return nil, p.end(ctx, call, []string{replayed}, "an authorization code was used again")
	case out == nil:
		return nil, badGrant()
	}
	return out, nil
}

// who finds the person of a browser that is still signed in, unless he is disabled.
func (p *Provider) who(ctx context.Context, tx *sqldb.Tx, sid string) (b store.Browser, user store.Principal, ok bool, err error) {
	if b, ok, err = p.cfg.Store.Browser(ctx, tx, sid, p.cfg.Now()); err != nil || !ok {
		return b, user, false, err
	}
	user, ok, err = p.cfg.Store.Principal(ctx, tx, b.UID)
	return b, user, ok && !user.Disabled, err
}

// begin stores a new grant and gives its first tokens.
func (p *Provider) begin(ctx context.Context, tx *sqldb.Tx, c client, g store.Grant, user store.Principal, nonce string) (*tokens, error) {
	now := p.cfg.Now()
	var refresh redact.Secret
	if has(g.Scope, scopeOffline) && c.may(GrantRefresh) {
		refresh = newSecret(prefixRefresh)
	} else {
		g.Expire = now.Add(p.cfg.TokenLife) // nothing prolongs it
	}
	if err := p.cfg.Store.InsertGrant(ctx, tx, g, now); err != nil {
		return nil, err
	}
	if !refresh.Empty() {
		if err := p.cfg.Store.InsertRefresh(ctx, tx, refresh, g.SID, sooner(now.Add(refreshIdle), g.Expire)); err != nil {
			return nil, err
		}
	}
	return p.issue(ctx, tx, g, user, g.Scope, nonce, refresh)
}

// issue gives tokens of a grant, for the scope.
func (p *Provider) issue(ctx context.Context, tx *sqldb.Tx, g store.Grant, user store.Principal, scope, nonce string, refresh redact.Secret) (*tokens, error) {
	access, claims, err := p.cfg.Mint(ctx, tx, authn.Claims{
		Audience: []string{p.audience(scope)}, Subject: user.UID, PrincipalType: userType, ClientID: g.ClientID, SessionID: g.SID,
		Scope: scope, AuthTime: g.AuthTime, AMR: g.AMR, ACR: g.ACR, Confirmation: g.JKT, Expiry: g.Expire,
	}, p.cfg.TokenLife)
	if err != nil {
		return nil, err
	}
	now := p.cfg.Now()
	out := &tokens{
		AccessToken: access, TokenType: "Bearer", ExpiresIn: int64(max(0, claims.Expiry.Sub(now)) / time.Second), Scope: scope,
		RefreshToken: refresh.RevealString(),
	}
	if g.JKT != "" {
		out.TokenType = "DPoP"
	}
	if !has(scope, scopeOpenID) {
		return out, nil
	}
	signer, err := p.cfg.Signer()
	if err != nil {
		return nil, err
	}
	id := authn.IDClaims{
		Issuer: p.cfg.Issuer, Subject: user.UID, Audience: g.ClientID, IssuedAt: claims.IssuedAt, Expiry: claims.IssuedAt.Add(idLife),
		AuthTime: g.AuthTime, Nonce: nonce, AccessToken: access, AMR: g.AMR, ACR: g.ACR, SessionID: g.SID,
	}
	if has(scope, scopeProfile) {
		id.Username, id.Name = user.ID, user.DisplayName
	}
	if out.IDToken, err = signer.MintID(id); err != nil {
		return nil, fault.Internal(err, "the ID token could not be made")
	}
	return out, nil
}

// audience is whom an access token with the scope is for: the installation, or no more than the userinfo endpoint.
func (p *Provider) audience(scope string) string {
	if has(scope, scopeAPI) {
		return p.cfg.Issuer
	}
	return p.cfg.Issuer + PathUserInfo
}

// byRefresh is the refresh grant (RFC 6749 section 6), with rotation (RFC 9700 section 4.14.2).
func (p *Provider) byRefresh(ctx context.Context, call *rpc.Call, c client, q params, jkt string) (*tokens, error) {
	if q["refresh_token"] == "" {
		return nil, refuse(errRequest, "refresh_token is missing")
	}
	secret := redact.FromString(q["refresh_token"])
	defer secret.Wipe()
	var out *tokens
	var reused string // session of the family
	err := p.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		out, reused = nil, ""
		now := p.cfg.Now()
		r, ok, err := p.cfg.Store.Refresh(ctx, tx, secret)
		if err != nil || !ok {
			return err
		}
		g, ok, err := p.cfg.Store.Grant(ctx, tx, r.SID, now)
		if err != nil || !ok || g.ClientID != c.id || g.JKT != "" && g.JKT != jkt {
			return err
		}
		user, ok, err := p.cfg.Store.Principal(ctx, tx, g.UID)
		if err != nil || !ok || user.Disabled {
			return err
		}
		scope := g.Scope
		if asked := q["scope"]; asked != "" {
			if scope, err = narrowed(g.Scope, asked); err != nil {
				return err
			}
		}
		next := r.Successor
		switch {
		case r.Used.IsZero() && !now.Before(r.Expire):
			return nil
		case r.Used.IsZero():
			next = newSecret(prefixRefresh)
			first, err := p.cfg.Store.UseRefresh(ctx, tx, secret, next, g.SID, now, sooner(now.Add(refreshIdle), g.Expire))
			if err != nil {
				return err
			}
			if !first {
				return fault.Aborted("the refresh token is being used by another request; repeat")
			}
		default:
			// Its answer may have been lost: the same successor again, for a moment, unless that was used itself.
			after, ok, err := p.cfg.Store.Refresh(ctx, tx, next)
			if err != nil {
				return err
			}
			if now.Sub(r.Used) > refreshSlip || !ok || !after.Used.IsZero() {
				reused = g.SID
				return nil
			}
		}
		if out, err = p.issue(ctx, tx, g, user, scope, "", next); err != nil {
			return err
		}
		call.Identify(user.UID, userType)
		return call.Audit(ctx, tx, "grant", GrantRefresh, "session", g.SID)
	})
	switch {
	case err != nil:
		return nil, err
	case reused != "":
		return nil, p.end(ctx, call, []string{reused}, "a refresh token was used again")
	case out == nil:
		return nil, badGrant()
	}
	return out, nil
}

// narrowed is the scope that was asked for, if it is not more than was granted (RFC 6749 section 6).
func narrowed(granted, asked string) (string, error) {
	for _, s := range strings.Split(asked, " ") {
		if !has(granted, s) {
			return "", refuse(errScope, "the scope is more than what was granted")
		}
	}
	return asked, nil
}

// end ends sessions everywhere, for the reason, and gives the refusal.
func (p *Provider) end(ctx context.Context, call *rpc.Call, sids []string, why string) error {
	err := p.cfg.Secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if err := p.drop(ctx, tx, sids); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "ended", why, "session", strings.Join(sids, " "))
	})
	if err != nil {
		return err
	}
	return badGrant()
}

// drop deletes sessions and revokes their tokens, within Secure.
func (p *Provider) drop(ctx context.Context, tx *sqldb.Tx, sids []string) error {
	now := p.cfg.Now()
	revoked := make([]*identityv1.Revocation, 0, len(sids))
	for _, sid := range sids {
		if err := p.cfg.Store.DeleteSession(ctx, tx, sid); err != nil {
			return err
		}
		revoked = append(revoked, &identityv1.Revocation{Sid: sid, ExpireTime: timestamppb.New(now.Add(revokedFor))})
	}
	return p.cfg.Store.Change(ctx, tx, now, revoked, nil)
}

// byClient is the client credentials grant (RFC 6749 section 4.4): a service principal's.
func (p *Provider) byClient(call *rpc.Call, c client, q params, jkt string) (*tokens, error) {
	if c.known == nil {
		return nil, refuse(errUnauthorzd, "only a service principal signs in as itself")
	}
	if q["scope"] != "" && q["scope"] != scopeAPI {
		return nil, refuse(errScope, "there is no scope for programs: roles decide what they may do; leave scope out")
	}
	call.Identify(c.id, authn.ServicePrincipal)
	call.Detail("credential", c.known.Credential)
	access, claims, err := p.cfg.MintFor(call, *c.known, authn.Claims{Audience: []string{p.cfg.Issuer}, Confirmation: jkt}, p.cfg.TokenLife)
	if err != nil {
		return nil, err
	}
	out := &tokens{AccessToken: access, TokenType: "Bearer", ExpiresIn: int64(max(0, claims.Expiry.Sub(p.cfg.Now())) / time.Second)}
	if jkt != "" {
		out.TokenType = "DPoP"
	}
	return out, nil
}

func sooner(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// s256 reports whether the verifier is the challenge's (RFC 7636 section 4.6).
func s256(verifier, challenge string) bool {
	if len(verifier) < 43 || len(verifier) > 128 || strings.ContainsFunc(verifier, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._~", r)
	}) {
		return false
	}
	sum := sha256.Sum256([]byte(verifier))
	return subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(challenge)) == 1
}

// isDigest reports whether s is a SHA-256 in base64url.
func isDigest(s string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && len(b) == sha256.Size
}

// errTokenInvalid is the one answer for an access token that is none, is over, or is not for here.
var errTokenInvalid = fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID, "the access token is missing, not valid here, or over").With(oauthError, errToken)

// grantEnd is when a grant ends that is made in a browser. Of who signed in elsewhere it ends with the browser's sign-in: nobody tells us when
// he was let go there.
func grantEnd(b store.Browser, now time.Time) time.Time {
	end := now.Add(grantLife)
	if slices.Contains(b.AMR, authn.ByHome) && b.Expire.Before(end) {
		return b.Expire
	}
	return end
}
