package provider

import (
	"context"
	"html/template"
	"net/http"
	"net/url"
	"slices"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/login"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const userType = authn.User

const (
	maxUser     = 256
	maxPassword = 1024
	maxFactor   = 64
	maxKey      = 16 << 10
)

// What the buttons of the pages say in the field "action".
const (
	actSignIn = "sign-in"
	actFactor = "factor"
	actGoOn   = "continue"
	actOther  = "other"
	actCancel = "cancel"
)

// submit takes what a person typed or clicked.
func (p *Provider) submit(ctx context.Context, x *identityv1.Exchange) (*identityv1.Page, error) {
	q, err := formOf(x, "user", "password", "code")
	if err != nil {
		return p.broken(ctx, "The form cannot be read: "+err.Error()+".")
	}
	if !p.ours(x) {
		return p.forged(ctx)
	}
	cookie, fresh := cookieOf(x)
	r, same, ok, err := p.open(ctx, q["request"], cookie)
	if err != nil {
		return nil, err
	}
	if !ok || r.SignOut != "" {
		return p.broken(ctx, "This page is out of date. Start again from the application.")
	}
	page, ok, err := p.pageOf(ctx, r)
	if err != nil {
		return nil, err
	}
	if !ok {
		return p.broken(ctx, clientGone)
	}
	if !same {
		// Another tab has signed in, or a stranger made the form. Nothing is done; the page is shown again, for this browser.
		page.Error = "Something else signed in meanwhile in this browser. Please try again."
		r = r.anew()
		if b, user, in, err := p.browser(ctx, cookie); err != nil {
			return nil, err
		} else if in && r.good(b) {
			page.As = user.Name()
		}
		return p.ask(ctx, r, page, cookie, fresh, nil)
	}
	if id := q["home"]; id != "" {
		return p.depart(ctx, r, page, cookie, fresh, id)
	}
	switch q["action"] {
	case actCancel:
		return p.cancel(ctx, r)
	case actOther:
		r = r.anew()
		r.Since = p.cfg.Now().Unix()
		return p.ask(ctx, r, page, cookie, fresh, nil)
	case actGoOn:
		return p.goOn(ctx, r, page, cookie, fresh)
	case actSignIn, actFactor:
		return p.prove(ctx, r, page, cookie, fresh, q)
	}
	return p.broken(ctx, "The form cannot be read: it does not say what to do.")
}

const clientGone = "The application was removed, or has another address now. Start again from the application."

// pageOf is what the pages of a request say of whoever asks. ok is false where the client is not there any more, or is another one.
func (p *Provider) pageOf(ctx context.Context, r request) (page view, ok bool, err error) {
	if r.Manage {
		return view{}, true, nil
	}
	c, known, err := p.find(ctx, p.cfg.DB.Reader(), r.ClientID)
	if err != nil || !known || r.UserCode == "" && !matches(c.redirects, r.RedirectURI) {
		return view{}, false, err
	}
	return view{Client: c.name, To: originOf(r.RedirectURI), UserCode: r.UserCode}, true, nil
}

// cancel says no to the client.
func (p *Provider) cancel(ctx context.Context, r request) (*identityv1.Page, error) {
	if r.Manage {
		return p.show(http.StatusOK, "done.html", view{Text: "Nothing was changed."})
	}
	if r.UserCode == "" {
		return p.redirect(r, url.Values{"error": {errDenied}, "error_description": {"the person said no"}}), nil
	}
	return p.answerDevice(ctx, r, store.Browser{}, false)
}

// goOn lets the client have what it asked for, for whoever is signed in.
func (p *Provider) goOn(ctx context.Context, r request, page view, cookie redact.Secret, fresh bool) (*identityv1.Page, error) {
	b, _, in, err := p.browser(ctx, cookie)
	switch {
	case err != nil:
		return nil, err
	case !in || !r.good(b):
		return p.ask(ctx, r, page, cookie, fresh, nil)
	case r.Manage:
		return toFactors(), nil
	case r.UserCode != "":
		return p.answerDevice(ctx, r, b, true)
	}
	return p.giveCode(ctx, r, b)
}

// prove signs a person in: by his password, or by the factor that was asked for after it.
func (p *Provider) prove(ctx context.Context, r request, page view, cookie redact.Secret, fresh bool, q params) (*identityv1.Page, error) {
	var out given
	finish := p.finish(r, &out)
	var more login.Asked
	var recovery []string
	var err error
	switch user, password := q["user"], q["password"]; {
	case q["action"] == actFactor && (r.Factor == "" || !slices.Contains(r.Factors, q["factor"]) || q["code"] == "" || len(q["code"]) > longest(q["factor"])):
		err = fault.New(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "the code is missing or wrong")
	case q["action"] == actFactor:
		recovery, err = p.cfg.Continue(ctx, &identityv1.ContinueSignInRequest{State: r.Factor, Factor: q["factor"], Response: q["code"]}, finish)
		if err != nil && fault.Describe(err).Metadata()[SignInOver] != "" {
			r = r.anew()
		}
	case user == "" || len(user) > maxUser || password == "" || len(password) > maxPassword:
		err = fault.New(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "user name or password is wrong")
	default:
		r = r.anew()
		r.User = user
		more, err = p.cfg.SignIn(ctx, &identityv1.SignInRequest{User: user, Password: password}, finish)
	}
	switch {
	case err != nil:
		return p.ask(ctx, r, page, cookie, fresh, err)
	case more.Challenge != nil:
		r.Factor, r.Factors, r.Key, r.URI = more.GetState(), asked(more.GetFactors()), more.Secret, more.URI
		return p.ask(ctx, r, page, cookie, fresh, nil)
	}
	return p.give(ctx, r, page, out, recovery)
}

// given is what a finished sign-in made.
type given struct {
	code, next redact.Secret
	b          store.Browser
}

// finish signs the browser in, with a new cookie, and makes the code that the request asks for.
func (p *Provider) finish(r request, out *given) login.Finish {
	return func(ctx context.Context, tx *sqldb.Tx, by login.Proven) (err error) {
		// The cookie is another one from here on: whoever knew the old one has nothing (session fixation).
		now := p.cfg.Now()
		out.next = newSecret(prefixCookie)
		out.b = store.Browser{SID: resource.NewUID("ses"), UID: by.UID, AuthTime: by.At, AMR: by.AMR, ACR: by.ACR, Expire: now.Add(BrowserLife)}
		if err := p.cfg.Store.InsertBrowser(ctx, tx, out.next, out.b, now); err != nil {
			return err
		}
		if r.UserCode == "" && r.Key == "" && !r.Manage {
			if out.code, err = p.insertCode(ctx, tx, r, out.b); err != nil {
				return err
			}
		}
		return rpc.From(ctx).Audit(ctx, tx, "session", out.b.SID, "client_id", r.ClientID)
	}
}

// give answers the request of a browser that has just signed in.
func (p *Provider) give(ctx context.Context, r request, page view, g given, recovery []string) (*identityv1.Page, error) {
	if r.UserCode != "" || len(recovery) > 0 {
		// Signing in is one thing, letting a device in another: it is asked for by itself. So it is after codes that are shown this once.
		page.As, page.Recovery = "you", recovery
		if u, ok, err := p.cfg.Store.Principal(ctx, p.cfg.DB.Reader(), g.b.UID); err == nil && ok {
			page.As = u.Name()
		}
		r = r.anew()
		r.Since = 0
		return p.ask(ctx, r, page, g.next, true, nil)
	}
	out := toFactors()
	if !r.Manage {
		out = p.redirect(r, url.Values{"code": {g.code.RevealString()}})
	}
	out.Cookie = g.next.RevealString()
	return out, nil
}

// kindKey is the kind of a security key, whose answer is JSON and longer than a code.
const kindKey = store.WebAuthn

func longest(kind string) int {
	if kind == kindKey {
		return maxKey
	}
	return maxFactor
}

// typed are the factors that a person types codes of.
func typed(factors []string) []string {
	return slices.DeleteFunc(slices.Clone(factors), func(f string) bool { return f != store.TOTP && f != "recovery_code" })
}

// asked are the factors that a page can ask for.
func asked(factors []string) []string {
	return slices.DeleteFunc(slices.Clone(factors), func(f string) bool { return f != store.TOTP && f != "recovery_code" && f != kindKey })
}

// says puts a refusal on a page, and into the record of the call. One that is not for people stays an error.
func (*Provider) says(ctx context.Context, why error, page *view) (status int, err error) {
	if why == nil {
		return http.StatusOK, nil
	}
	switch fault.Code(why) {
	case codes.Unauthenticated:
		status = http.StatusUnauthorized
	case codes.PermissionDenied:
		status = http.StatusForbidden
	case codes.ResourceExhausted:
		status = http.StatusTooManyRequests
	case codes.Aborted, codes.FailedPrecondition:
		status = http.StatusConflict
	default:
		return 0, why
	}
	rpc.From(ctx).Refuse(why)
	page.Error = fault.Describe(why).Message()
	return status, nil
}

// ask shows the page on which the request can be answered: who to be, a factor, or whether to go on. why is the refusal that it says.
func (p *Provider) ask(ctx context.Context, r request, page view, cookie redact.Secret, fresh bool, why error) (*identityv1.Page, error) {
	status, err := p.says(ctx, why, &page)
	if err != nil {
		return nil, err
	}
	if r.Factor != "" && slices.Contains(r.Factors, kindKey) {
		// Each page asks the key something else. Where the sign-in is over meanwhile the page says so when it is sent.
		key, err := p.cfg.AskKey(ctx, r.Factor)
		if err != nil && fault.ReasonOf(err) != faultv1.Reason_SIGN_IN_FAILED {
			return nil, err
		}
		page.Key = key
	}
	sealed, err := p.seal(ctx, r, cookie)
	if err != nil {
		return nil, err
	}
	page.Request, page.User, page.Factors, page.API = sealed, r.User, typed(r.Factors), has(r.Scope, scopeAPI)
	page.Secret, page.URI = r.Key, template.URL(r.URI) //nolint:gosec // of ours
	name := "sign-in.html"
	switch {
	case r.Factor != "":
		name = "factor.html"
	case page.As != "":
		name = "continue.html"
	default:
		if page.Homes, err = p.cfg.Homes(ctx); err != nil {
			return nil, err
		}
	}
	out, err := p.show(status, name, page)
	if err == nil && fresh {
		out.Cookie = cookie.RevealString()
	}
	return out, err
}
