package provider

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// typeAccess is the one type of token that is exchanged, and that comes of it (RFC 8693 section 3).
const typeAccess = "urn:ietf:params:oauth:token-type:access_token"

// maxClients is how many clients may act for a subject, one after the other. The rest of authn.MaxActorDepth is for services.
const maxClients = 2

// badSubject is the one answer for a subject token that is none of ours, is over or revoked, or whose subject is no more (RFC 8693 section 2.2.2 has
// it be invalid_request).
func badSubject() *fault.Error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID, "the subject_token is no access token that is valid now and is for this installation's API").With(oauthError, errRequest)
}

// byExchange is token exchange (RFC 8693): a client that was called with somebody's access token gets one of its own, with which it acts for him. The
// client is the actor; it is the subject who is authorized, as with the token that was brought. What comes of it is never more than that
// token: it ends no later, has no scope that that one has not, is as fresh, and ends with that one, with its session, with the subject, with the client
// and with the credential that the client proved itself by.
func (p *Provider) byExchange(ctx context.Context, call *rpc.Call, c client, q params, jkt string) (*tokens, error) {
	if !c.confidential || c.credential == "" {
		return nil, refuse(errUnauthorzd, "only a client that proves itself exchanges tokens")
	}
	if c.program {
		call.Identify(c.id, authn.ServicePrincipal) // until the subject is known
	}
	call.Detail("credential", c.credential)
	if err := exchangeForm(q); err != nil {
		return nil, err
	}
	var subject *authn.Verified
	err := call.Hold(func() (err error) {
		subject, err = p.cfg.Verifier.Verify(ctx, q["subject_token"], p.cfg.Issuer)
		return err
	})
	switch {
	case fault.Code(err) == codes.Unauthenticated:
		return nil, badSubject()
	case err != nil:
		return nil, err
	}
	call.Detail("subject_token", subject.ID)
	if err := p.exchangeable(ctx, c, subject, jkt); err != nil {
		return nil, err
	}
	call.Identify(subject.Subject, subject.PrincipalType)
	scope, audience, err := p.within(c, subject, q)
	if err != nil {
		return nil, err
	}
	claims, err := subject.Descendant(audience, authn.Actor{Subject: c.id, SessionID: c.credential})
	if err != nil || actingClients(claims.Actor) > maxClients {
		return nil, refuse(errRequest, "too many act for the subject already: at most %d clients do", maxClients)
	}
	claims.ClientID, claims.Scope, claims.Confirmation = c.id, scope, jkt
	access, claims, err := p.cfg.Mint(ctx, p.cfg.DB.Reader(), claims, p.cfg.TokenLife)
	if err != nil {
		return nil, err
	}
	if err := p.stillThere(ctx, c, subject.IssuedAt); err != nil {
		return nil, err
	}
	call.Detail("grant", GrantExchange)
	call.Detail("token", claims.ID)
	out := &tokens{
		AccessToken: access, TokenType: "Bearer", ExpiresIn: int64(max(0, claims.Expiry.Sub(p.cfg.Now())) / time.Second), Scope: scope, IssuedType: typeAccess,
	}
	if jkt != "" {
		out.TokenType = "DPoP"
	}
	return out, nil
}

// exchangeForm looks at what stands in the request.
func exchangeForm(q params) error {
	switch {
	case q["actor_token"] != "" || q["actor_token_type"] != "":
		return refuse(errRequest, "actor_token is not supported: the client that asks is the actor")
	case q["subject_token"] == "":
		return refuse(errRequest, "subject_token is missing")
	case q["subject_token_type"] != typeAccess:
		return refuse(errRequest, "subject_token_type has to be %s", typeAccess)
	case q["requested_token_type"] != "" && q["requested_token_type"] != typeAccess:
		return refuse(errRequest, "requested_token_type is %s or left out", typeAccess)
	}
	return nil
}

// exchangeable reports whether a valid token of the installation may be exchanged by the client.
func (p *Provider) exchangeable(ctx context.Context, c client, subject *authn.Verified, jkt string) error {
	switch {
	case subject.Run != "":
		return refuse(errRequest, "the token of a run is not exchanged: its agent alone uses it")
	case subject.PrincipalType != authn.User && subject.PrincipalType != authn.ServicePrincipal:
		return refuse(errRequest, "tokens of users and service principals are exchanged, and no others")
	case subject.Actor != nil && actingClients(subject.Actor) != subject.Actor.Depth():
		return refuse(errRequest, "the token of a service is not exchanged")
	case subject.Bound() && jkt != subject.Confirmation:
		// Whoever found the token has not found its key.
		return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_PROOF_INVALID, "the subject_token is bound to a key: send a DPoP proof by that key").With(oauthError, errRequest)
	}
	who, ok, err := p.cfg.Store.Principal(ctx, p.cfg.DB.Reader(), subject.Subject)
	switch {
	case err != nil:
		return err
	case !ok || who.Disabled:
		return badSubject()
	}
	return p.stillThere(ctx, c, subject.IssuedAt)
}

// stillThere reports whether what was given to the client at issued would be good now. The new token counts as issued when its parent was, and what
// disables a service principal revokes all that it was given up to that moment: a token of before would be dead at birth.
func (p *Provider) stillThere(ctx context.Context, c client, issued time.Time) error {
	db := p.cfg.DB.Reader()
	_, ok, err := p.find(ctx, db, c.id)
	if err != nil {
		return err
	}
	if !ok {
		return badClient()
	}
	until, err := p.cfg.Store.IssuedUntil(ctx, db, c.id)
	if err != nil {
		return err
	}
	if !until.IsZero() && !issued.After(until) {
		return refuse(errRequest, "the subject_token is older than the last change that ended what this client had: get a new one")
	}
	return nil
}

// within gives the scope and the audience of what a client gets for a token: never more than the token has, nor than the client may have.
func (p *Provider) within(c client, subject *authn.Verified, q params) (scope, audience string, err error) {
	target := q["audience"]
	if r := q["resource"]; r != "" {
		if target != "" && target != r {
			return "", "", refuse(errTarget, "resource and audience name two targets; a token is for one")
		}
		target = r
	}
	userInfo := p.cfg.Issuer + PathUserInfo
	if target != "" && target != p.cfg.Issuer && target != userInfo {
		return "", "", refuse(errTarget, "tokens are for %s or %s", p.cfg.Issuer, userInfo)
	}
	// A token of Redoubt's own clients, and of a program, has no scope: it is for the API, and says nothing at userinfo.
	have := strings.Fields(subject.Scope)
	if len(have) == 0 {
		have = []string{scopeAPI}
	}
	have = slices.DeleteFunc(have, func(s string) bool { return s == scopeOffline }) // nothing comes after what is exchanged
	want := have
	if asked := q["scope"]; asked != "" {
		want = strings.Split(asked, " ")
		for i, s := range want {
			if !slices.Contains(have, s) {
				return "", "", refuse(errScope, "the scope is more than that of the subject_token: %s", strings.Join(have, " "))
			}
			if slices.Contains(want[:i], s) {
				return "", "", refuse(errScope, "the scope names %s twice", s)
			}
		}
	}
	if target == userInfo {
		want = slices.DeleteFunc(slices.Clone(want), func(s string) bool { return s == scopeAPI })
	}
	if slices.Contains(want, scopeAPI) {
		if !c.program && !c.api {
			return "", "", refuse(errScope, "this client was not registered for the API: ask for a narrower scope")
		}
		return strings.Join(want, " "), p.cfg.Issuer, nil
	}
	switch {
	case target == p.cfg.Issuer:
		return "", "", refuse(errTarget, "without the scope %s a token is for %s alone", scopeAPI, userInfo)
	case !slices.Contains(want, scopeOpenID):
		return "", "", refuse(errScope, "without the scopes %s and %s a token is for nothing", scopeAPI, scopeOpenID)
	}
	return strings.Join(want, " "), userInfo, nil
}

// actingClients is how many of a chain are clients.
func actingClients(a *authn.Actor) int {
	n := 0
	for ; a != nil; a = a.Actor {
		if a.Client() {
			n++
		}
	}
	return n
}

// actorOf is an act claim as it is shown to those who ask about a token.
func actorOf(a *authn.Actor) map[string]any {
	out := map[string]any{"sub": a.Subject}
	if a.Actor != nil {
		out["act"] = actorOf(a.Actor)
	}
	return out
}
