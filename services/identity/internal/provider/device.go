package provider

import (
	"context"
	"crypto/rand"
	"net/http"
	"strings"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const (
	// alphabet of user codes: no vowels, so no words; nothing that is read for something else (RFC 8628 section 6.1).
	alphabet   = "BCDFGHJKLMNPQRSTVWXZ"
	codeLength = 8
	maxTyped   = 32
	maxWait    = 5 * time.Minute
)

// newUserCode makes eight letters of the alphabet, each as likely as the others.
func newUserCode() string {
	out := make([]byte, 0, codeLength)
	var b [16]byte
	for len(out) < codeLength {
		_, _ = rand.Read(b[:]) // never fails
		for _, v := range b {
			if v < 240 && len(out) < codeLength { // 240 is a multiple of 20: what is above would favour some letters
				out = append(out, alphabet[int(v)%len(alphabet)])
			}
		}
	}
	return string(out)
}

// shown is a user code as people read it.
func shown(code string) string { return code[:codeLength/2] + "-" + code[codeLength/2:] }

// canonical is the code that somebody typed, or "".
func canonical(typed string) string {
	if len(typed) > maxTyped {
		return ""
	}
	var b strings.Builder
	for _, r := range strings.ToUpper(typed) {
		switch {
		case r == '-' || r == ' ':
		case strings.ContainsRune(alphabet, r):
			b.WriteRune(r)
		default:
			return ""
		}
	}
	if b.Len() != codeLength {
		return ""
	}
	return b.String()
}

// requestDevice begins a device's sign-in (RFC 8628 section 3.1).
func (p *Provider) requestDevice(ctx context.Context, x *identityv1.Exchange) (*identityv1.Page, error) {
	q, err := tokenForm(x)
	if err != nil {
		return nil, err
	}
	c, err := p.authenticate(ctx, x, q, false)
	if err != nil {
		return nil, err
	}
	if !c.may(GrantDevice) {
		return nil, refuse(errUnauthorzd, "this client does not use the device grant")
	}
	scope, err := c.scope(q["scope"])
	if err != nil {
		return nil, err
	}
	jkt, err := p.proof(x, p.cfg.Issuer+PathDeviceReq)
	if err != nil {
		return nil, err
	}
	if c.needsKey && jkt == "" {
		return nil, refuse(errProof, "this client's tokens are bound to a key: send a DPoP proof (RFC 9449)")
	}
	secret := newSecret(prefixDevice)
	var userCode string
	err = p.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		d := store.Device{ClientID: c.id, Scope: scope, JKT: jkt, Wait: deviceWait, Expire: p.cfg.Now().Add(deviceLife)}
		for range 4 {
			userCode = newUserCode()
			ok, err := p.cfg.Store.InsertDevice(ctx, tx, secret, userCode, d)
			if err != nil {
				return err
			}
			if ok {
				return rpc.From(ctx).Audit(ctx, tx, "client_id", c.id)
			}
		}
		return fault.Unavailable("too many devices wait at once; try again")
	})
	if err != nil {
		return nil, err
	}
	// There is no verification_uri_complete: a link that has the code in it is what a thief would send.
	return answer(map[string]any{
		"device_code": secret.RevealString(), "user_code": shown(userCode), "verification_uri": p.cfg.Issuer + PathDevice,
		"expires_in": int(deviceLife / time.Second), "interval": int(deviceWait / time.Second),
	})
}

// visitDevice is where a person types the code.
func (p *Provider) visitDevice(ctx context.Context, x *identityv1.Exchange) (*identityv1.Page, error) {
	cookie, fresh := cookieOf(x)
	blank := func(status int, why string) (*identityv1.Page, error) {
		sealed, err := p.seal(ctx, request{Expire: p.until(requestLife)}, cookie)
		if err != nil {
			return nil, err
		}
		out, err := p.show(status, "device.html", view{Request: sealed, Error: why})
		if err == nil && fresh {
			out.Cookie = cookie.RevealString()
		}
		return out, err
	}
	if x.GetMethod() == http.MethodGet {
		return blank(http.StatusOK, "")
	}
	q, err := formOf(x)
	if err != nil {
		return p.broken(ctx, "The form cannot be read: "+err.Error()+".")
	}
	if !p.ours(x) {
		return p.forged(ctx)
	}
	_, same, ok, err := p.open(ctx, q["request"], cookie)
	if err != nil {
		return nil, err
	}
	if !ok || !same {
		return blank(http.StatusBadRequest, "This page was out of date. Please type the code again.")
	}
	call, now := rpc.From(ctx), p.cfg.Now()
	// Codes are short: whoever tries many is slowed down by his address, and one that is right costs nothing.
	wait, ok := p.codes.Try(now, "", call.Address)
	if !ok {
		err := fault.ResourceExhausted("too many wrong codes; wait %v and try again", wait.Round(time.Second)).Retry(wait)
		call.Refuse(err)
		return blank(http.StatusTooManyRequests, err.Message())
	}
	code := canonical(q["user_code"])
	var d store.Device
	if ok = code != ""; ok {
		if d, ok, err = p.cfg.Store.FindDevice(ctx, p.cfg.DB.Reader(), code, now); err != nil {
			return nil, err
		}
	}
	if !ok || d.State != store.DeviceWaits {
		call.Refuse(badGrant())
		return blank(http.StatusBadRequest, "No device waits with this code. Look at the device again, or start again there.")
	}
	p.codes.Succeeded("", call.Address)
	c, known, err := p.find(ctx, p.cfg.DB.Reader(), d.ClientID)
	if err != nil {
		return nil, err
	}
	if !known {
		return p.broken(ctx, "The application was removed.")
	}
	r := request{ClientID: c.id, Scope: d.Scope, UserCode: shown(code), Expire: d.Expire.Unix()}
	page := view{Client: c.name, UserCode: r.UserCode}
	if _, user, in, err := p.browser(ctx, cookie); err != nil {
		return nil, err
	} else if in {
		page.As = user.Name()
	}
	return p.ask(ctx, r, page, cookie, fresh, nil)
}

// answerDevice lets a device in, or not.
func (p *Provider) answerDevice(ctx context.Context, r request, b store.Browser, allow bool) (*identityv1.Page, error) {
	call, answered := rpc.From(ctx), false
	if b.UID != "" {
		call.Identify(b.UID, userType)
	}
	err := p.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		if answered, err = p.cfg.Store.AnswerDevice(ctx, tx, canonical(r.UserCode), allow, b.SID, p.cfg.Now()); err != nil || !answered {
			return err
		}
		says := "refused"
		if allow {
			says = "allowed"
		}
		return call.Audit(ctx, tx, "device", says, "client_id", r.ClientID, "session", b.SID)
	})
	switch {
	case err != nil:
		return nil, err
	case !answered:
		return p.broken(ctx, "The device does not wait any more. Start again there.")
	case !allow:
		return p.show(http.StatusOK, "done.html", view{Text: "The device was refused."})
	}
	return p.show(http.StatusOK, "done.html", view{Text: "The device is let in. You can close this page."})
}

// byDevice is a device that asks whether it was let in (RFC 8628 section 3.4).
func (p *Provider) byDevice(ctx context.Context, call *rpc.Call, c client, q params, jkt string) (*tokens, error) {
	if q["device_code"] == "" {
		return nil, refuse(errRequest, "device_code is missing")
	}
	secret := redact.FromString(q["device_code"])
	defer secret.Wipe()
	var out *tokens
	var no error
	err := p.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		out, no = nil, badGrant()
		now := p.cfg.Now()
		d, ok, err := p.cfg.Store.Device(ctx, tx, secret)
		if err != nil || !ok || d.ClientID != c.id || d.JKT != "" && d.JKT != jkt {
			return err
		}
		if !now.Before(d.Expire) {
			no = refuse("expired_token", "the device's code is over; start again")
			return nil
		}
		if now.Before(d.LastPoll.Add(d.Wait)) {
			no = refuse("slow_down", "ask less often")
			return p.cfg.Store.PollDevice(ctx, tx, secret, now, min(d.Wait+deviceWait, maxWait))
		}
		switch d.State {
		case store.DeviceWaits:
			no = refuse("authorization_pending", "nobody has typed the code yet")
			return p.cfg.Store.PollDevice(ctx, tx, secret, now, d.Wait)
		case store.DeviceDenied:
			no = refuse(errDenied, "the person said no")
			_, err := p.cfg.Store.DropDevice(ctx, tx, secret)
			return err
		}
		// It counts once: the row is gone with the tokens that it gave.
		first, err := p.cfg.Store.DropDevice(ctx, tx, secret)
		if err != nil || !first {
			return err
		}
		b, user, ok, err := p.who(ctx, tx, d.BrowserSID)
		if err != nil || !ok {
			return err
		}
		g := store.Grant{
			SID: resource.NewUID("ses"), UID: b.UID, ClientID: c.id, BrowserSID: b.SID, Scope: d.Scope, JKT: jkt,
			AuthTime: b.AuthTime, AMR: b.AMR, ACR: b.ACR, Expire: grantEnd(b, now),
		}
		if out, err = p.begin(ctx, tx, c, g, user, ""); err != nil {
			return err
		}
		call.Identify(user.UID, userType)
		return call.Audit(ctx, tx, "grant", GrantDevice, "session", g.SID)
	})
	switch {
	case err != nil:
		return nil, err
	case out == nil:
		return nil, no
	}
	return out, nil
}
