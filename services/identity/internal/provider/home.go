package provider

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/federation"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const (
	kindWalk = "foreign-sign-in"
	walkLife = 10 * time.Minute
	walker   = "foreign-sign-in" // whose used states are kept as used assertions
)

// walk is what is kept of a person who signs in at a foreign issuer: in the state, sealed.
type walk struct {
	federation.Walk

	Request request `json:"r"`
	// Issuer is the uid of the issuer that he was sent to.
	Issuer string `json:"i"`
	// ID counts once.
	ID      string `json:"j"`
	Expire  int64  `json:"e"`
	Browser []byte `json:"b"` // digest of the cookie
}

func (p *Provider) callback(i store.Issuer) string { return p.cfg.Issuer + PathHome + i.ID }

// depart sends a person to a foreign issuer, with the request that waits.
func (p *Provider) depart(ctx context.Context, r request, page view, cookie redact.Secret, fresh bool, id string) (*identityv1.Page, error) {
	homes, err := p.cfg.Homes(ctx)
	if err != nil {
		return nil, err
	}
	n := slices.IndexFunc(homes, func(i store.Issuer) bool { return i.ID == id })
	if n < 0 {
		return p.broken(ctx, "This way to sign in is not there any more. Start again from the application.")
	}
	i, now := homes[n], p.cfg.Now()
	r = r.anew()
	w := walk{
		Walk: federation.NewWalk(r.Since), Request: r, Issuer: i.UID, ID: resource.NewUID("walk"), Expire: min(now.Add(walkLife).Unix(), r.Expire), Browser: digest(cookie),
	}
	plain, err := json.Marshal(w)
	if err != nil {
		return nil, fault.Internal(err, "a sign-in could not be encoded")
	}
	sealed, err := p.cfg.Box.Seal(ctx, kindWalk, i.UID, plain)
	if err != nil {
		return nil, err
	}
	away, err := p.cfg.Relying.Leave(ctx, i, w.Walk, p.callback(i), base64.RawURLEncoding.EncodeToString(sealed))
	if err != nil {
		return p.ask(ctx, r, page, cookie, fresh, err)
	}
	u, err := url.Parse(away)
	if err != nil {
		return nil, fault.Internal(err, "the address of an issuer could not be read")
	}
	out, err := p.show(http.StatusOK, "away.html", view{Away: away, Host: u.Host})
	if err == nil && fresh {
		out.Cookie = cookie.RevealString()
	}
	return out, err
}

// openWalk reads a state that came back at an issuer's callback. ok is false if it is not of that issuer, or over.
func (p *Provider) openWalk(ctx context.Context, issuer, state string) (w walk, ok bool, err error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(state)
	if err != nil || len(raw) == 0 {
		return walk{}, false, nil //nolint:nilerr // it is none of ours
	}
	plain, err := p.cfg.Box.Open(ctx, kindWalk, issuer, raw)
	if fault.Is(err, codes.DataLoss) {
		return walk{}, false, nil
	}
	if err != nil {
		return walk{}, false, err
	}
	if json.Unmarshal(plain, &w) != nil || w.Issuer != issuer || p.cfg.Now().Unix() >= w.Expire {
		return walk{}, false, nil //nolint:nilerr // it is none of ours, or over
	}
	return w, true, nil
}

// notOurs refuses an answer that nobody asked for here.
func (p *Provider) notOurs(ctx context.Context, why, text string) (*identityv1.Page, error) {
	rpc.From(ctx).Refuse(fault.New(codes.PermissionDenied, faultv1.Reason_ACCESS_DENIED, "%s", why))
	out, err := p.broken(ctx, text)
	if err == nil {
		out.Status = http.StatusForbidden
	}
	return out, err
}

// returnHome takes the answer of a foreign issuer.
func (p *Provider) returnHome(ctx context.Context, x *identityv1.Exchange, id string) (*identityv1.Page, error) {
	if x.GetMethod() != http.MethodGet {
		return p.broken(ctx, "The answer has to come by redirect.")
	}
	q, err := parse(x.GetQuery())
	if err != nil {
		return p.broken(ctx, "The answer cannot be read: "+err.Error()+".")
	}
	homes, err := p.cfg.Homes(ctx)
	if err != nil {
		return nil, err
	}
	n := slices.IndexFunc(homes, func(i store.Issuer) bool { return i.ID == id })
	if n < 0 {
		return p.broken(ctx, "This way to sign in is not there any more. Start again from the application.")
	}
	i := homes[n]
	// The state opens under the issuer of this path alone: one that was made for another is none (mix-up).
	w, ok, err := p.openWalk(ctx, i.UID, q["state"])
	if err != nil {
		return nil, err
	}
	if !ok {
		return p.notOurs(ctx, "the state is not of this issuer, or over", "This sign-in is not known here, or took too long. Start again from the application.")
	}
	cookie, fresh := cookieOf(x)
	if subtle.ConstantTimeCompare(w.Browser, digest(cookie)) != 1 {
		return p.notOurs(ctx, "the state is another browser's", "This sign-in was begun in another browser, or something else signed in meanwhile. Start again from the application.")
	}
	r := w.Request
	page, ok, err := p.pageOf(ctx, r)
	if err != nil {
		return nil, err
	}
	if !ok {
		return p.broken(ctx, clientGone)
	}
	if err := p.cfg.Relying.CheckIssuer(ctx, i, q["iss"]); err != nil {
		return p.ask(ctx, r, page, cookie, fresh, err)
	}
	if q["error"] != "" {
		return p.ask(ctx, r, page, cookie, fresh, fault.Wrap(errors.New(cut(q["error"])), codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "%s did not sign you in", i.DisplayName))
	}
	first := false
	if err := p.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		first, err = p.cfg.Store.UseAssertion(ctx, tx, walker, w.ID, time.Unix(w.Expire, 0))
		return err
	}); err != nil {
		return nil, err
	}
	if !first {
		return p.notOurs(ctx, "the state was used", "This sign-in was finished already. Start again from the application.")
	}
	who, err := p.cfg.Relying.Return(ctx, i, w.Walk, p.callback(i), q["code"])
	if err != nil {
		return p.ask(ctx, r, page, cookie, fresh, err)
	}
	var made given
	more, err := p.cfg.Arrive(ctx, i, who, p.finish(r, &made))
	switch {
	case err != nil:
		return p.ask(ctx, r, page, cookie, fresh, err)
	case more.Challenge != nil:
		r.Factor, r.Factors, r.Key, r.URI = more.GetState(), asked(more.GetFactors()), more.Secret, more.URI
		return p.ask(ctx, r, page, cookie, fresh, nil)
	}
	return p.give(ctx, r, page, made, nil)
}
