package provider

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const (
	maxState = 2048
	maxNonce = 512
	maxHint  = 256
)

// authorize answers an authorization request: with the client's redirect, or with a page.
func (p *Provider) authorize(ctx context.Context, x *identityv1.Exchange) (*identityv1.Page, error) {
	q, err := either(x)
	if err != nil {
		return p.broken(ctx, "The application's request cannot be read: "+err.Error()+".")
	}
	c, known, err := p.find(ctx, p.cfg.DB.Reader(), q["client_id"])
	if err != nil {
		return nil, err
	}
	// Until here, and in the next two cases, it is not known where an error may be sent: a person reads it.
	switch {
	case !known || c.program:
		return p.broken(ctx, "There is no application of this name (client_id).")
	case !matches(c.redirects, q["redirect_uri"]):
		return p.broken(ctx, "The application did not register the address to which the answer should go (redirect_uri).")
	}
	r, prompt, err := p.check(c, q)
	if err != nil {
		code := fault.Describe(err).Metadata()[oauthError]
		return p.redirect(r, url.Values{"error": {code}, "error_description": {fault.Describe(err).Message()}}), nil
	}
	cookie, fresh := cookieOf(x)
	b, user, in, err := p.browser(ctx, cookie)
	if err != nil {
		return nil, err
	}
	in = in && r.good(b)
	if hint := q["id_token_hint"]; hint != "" && in {
		in = p.hints(ctx, hint, b.UID)
	}
	switch {
	case in && (c.confidential || c.here) && prompt != "consent" && prompt != "select_account":
		return p.giveCode(ctx, r, b)
	case prompt == "none" && in:
		return p.redirect(r, url.Values{"error": {errInteraction}, "error_description": {"a public client gets no code without a click"}}), nil
	case prompt == "none":
		return p.redirect(r, url.Values{"error": {errLogin}, "error_description": {"nobody is signed in here"}}), nil
	}
	page := view{Client: c.name, To: originOf(r.RedirectURI)}
	if in && prompt != "select_account" {
		page.As = user.Name()
	}
	return p.ask(ctx, r, page, cookie, fresh, nil)
}

// check holds an authorization request to the protocol. The request that it gives can be answered by redirect, also where it fails.
func (p *Provider) check(c client, q params) (r request, prompt string, err error) {
	r = request{ClientID: c.id, RedirectURI: q["redirect_uri"], Expire: p.until(requestLife)}
	if len(q["state"]) > maxState {
		return r, "", refuse(errRequest, "state is longer than %d bytes", maxState)
	}
	r.State = q["state"]
	switch {
	case q["request"] != "":
		return r, "", refuse("request_not_supported", "there are no request objects")
	case q["request_uri"] != "":
		return r, "", refuse("request_uri_not_supported", "there are no request objects")
	case q["registration"] != "":
		return r, "", refuse("registration_not_supported", "applications are registered by an administrator")
	case q["response_type"] == "":
		return r, "", refuse(errRequest, "response_type is missing")
	case q["response_type"] != "code":
		return r, "", refuse("unsupported_response_type", "the response type is code")
	case q["response_mode"] != "" && q["response_mode"] != "query":
		return r, "", refuse(errRequest, "the response mode is query")
	case !c.may(GrantCode):
		return r, "", refuse(errUnauthorzd, "this client does not use the code grant")
	case q["resource"] != "" && q["resource"] != p.cfg.Issuer || q["audience"] != "" && q["audience"] != p.cfg.Issuer:
		return r, "", refuse(errTarget, "tokens are for %s", p.cfg.Issuer)
	case q["code_challenge"] == "":
		return r, "", refuse(errRequest, "code_challenge is missing: PKCE is needed of every client (RFC 7636)")
	case q["code_challenge_method"] != "S256":
		return r, "", refuse(errRequest, "the code_challenge_method is S256")
	case !isDigest(q["code_challenge"]):
		return r, "", refuse(errRequest, "the code_challenge is not a SHA-256 in base64url")
	case len(q["nonce"]) > maxNonce || len(q["login_hint"]) > maxHint:
		return r, "", refuse(errRequest, "nonce or login_hint is too long")
	case q["dpop_jkt"] != "" && !isDigest(q["dpop_jkt"]):
		return r, "", refuse(errRequest, "dpop_jkt is not a thumbprint")
	case c.needsKey && q["dpop_jkt"] == "":
		return r, "", refuse(errRequest, "this client's tokens are bound to a key: dpop_jkt is missing (RFC 9449 section 10)")
	}
	r.Challenge, r.Nonce, r.JKT, r.User = q["code_challenge"], q["nonce"], q["dpop_jkt"], q["login_hint"]
	if r.Scope, err = c.scope(q["scope"]); err != nil {
		return r, "", err
	}
	now := p.cfg.Now()
	if age := q["max_age"]; age != "" {
		n, err := strconv.ParseUint(age, 10, 31)
		if err != nil {
			return r, "", refuse(errRequest, "max_age is not a number of seconds")
		}
		r.Since = now.Unix() - int64(n)
	}
	asked := strings.Fields(q["prompt"])
	for _, a := range asked {
		if !slices.Contains([]string{"none", "login", "consent", "select_account"}, a) || a == "none" && len(asked) > 1 {
			return r, "", refuse(errRequest, "prompt is none alone, or of login, consent and select_account")
		}
	}
	switch {
	case slices.Contains(asked, "login"):
		r.Since, prompt = now.Unix(), "login"
	case slices.Contains(asked, "select_account"):
		prompt = "select_account"
	case len(asked) > 0:
		prompt = asked[0]
	}
	if prompt == "select_account" { // who is asked which account it is proves it
		r.Since = now.Unix()
	}
	return r, prompt, nil
}

// hints reports whether an ID token of ours is about the user.
func (p *Provider) hints(ctx context.Context, token, uid string) bool {
	h, err := p.hint(ctx, token)
	return err == nil && h.Subject == uid
}

// redirect sends the browser back to the client. Every answer says whose it is (RFC 9207).
func (p *Provider) redirect(r request, q url.Values) *identityv1.Page {
	if r.State != "" {
		q.Set("state", r.State)
	}
	q.Set("iss", p.cfg.Issuer)
	return &identityv1.Page{Status: http.StatusSeeOther, Location: withQuery(r.RedirectURI, q)}
}

// giveCode gives a code to the client by the browser that is signed in.
func (p *Provider) giveCode(ctx context.Context, r request, b store.Browser) (*identityv1.Page, error) {
	var code redact.Secret
	err := p.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		// Between the look at the cookie and here it may have been signed out.
		if _, ok, err := p.cfg.Store.Browser(ctx, tx, b.SID, p.cfg.Now()); err != nil || !ok {
			return errors.Join(err, signedOut(ok))
		}
		call := rpc.From(ctx)
		call.Identify(b.UID, userType)
		if code, err = p.insertCode(ctx, tx, r, b); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "session", b.SID, "client_id", r.ClientID)
	})
	if err != nil {
		return nil, err
	}
	return p.redirect(r, url.Values{"code": {code.RevealString()}}), nil
}

func signedOut(ok bool) error {
	if ok {
		return nil
	}
	return fault.Aborted("this browser was signed out meanwhile; start again")
}

// insertCode makes a code for the request.
func (p *Provider) insertCode(ctx context.Context, tx *sqldb.Tx, r request, b store.Browser) (redact.Secret, error) {
	code, now := newSecret(prefixCode), p.cfg.Now()
	return code, p.cfg.Store.InsertCode(ctx, tx, code, store.Code{
		BrowserSID: b.SID, GrantSID: resource.NewUID("ses"), ClientID: r.ClientID, RedirectURI: r.RedirectURI, Challenge: r.Challenge,
		Scope: r.Scope, Nonce: r.Nonce, JKT: r.JKT, Expire: now.Add(codeLife),
	}, now.Add(codeKept))
}
