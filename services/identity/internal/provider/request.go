package provider

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"time"

	"google.golang.org/grpc/codes"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const kindRequest = "authorization-request"

// request is what waits for a person: an authorization request that is known to be good, a device's, or a sign-out. It is kept in the page that
// is shown, sealed.
type request struct {
	ClientID    string `json:"c,omitempty"`
	RedirectURI string `json:"r,omitempty"`
	State       string `json:"s,omitempty"`
	Scope       string `json:"o,omitempty"`
	Nonce       string `json:"n,omitempty"`
	Challenge   string `json:"p,omitempty"`
	JKT         string `json:"k,omitempty"`
	// Since is the time, in seconds, after which the person must have proved himself; 0 is any.
	Since int64 `json:"f,omitempty"`
	// UserCode of a device. There is no redirect then.
	UserCode string `json:"d,omitempty"`
	// Manage says that it is about the page of one's own factors, of no client. Adding is the state in which a key is registered there.
	Manage bool   `json:"w,omitempty"`
	Adding string `json:"a,omitempty"`
	// SignOut is the session that a sign-out is about.
	SignOut string `json:"q,omitempty"`
	// Factor is the state of a sign-in that waits for a further factor, and Factors which would do.
	Factor  string   `json:"m,omitempty"`
	Factors []string `json:"t,omitempty"`
	// Key and URI are of the factor that is enrolled in it, as texts.
	Key string `json:"x,omitempty"`
	URI string `json:"i,omitempty"`
	// User is what to fill in for the name.
	User string `json:"u,omitempty"`

	Expire  int64  `json:"e"`
	Browser []byte `json:"b"` // digest of the cookie
}

// anew is the request without the sign-in that waited.
func (r request) anew() request {
	r.Factor, r.Factors, r.Key, r.URI = "", nil, "", ""
	return r
}

func digest(cookie redact.Secret) []byte {
	sum := sha256.Sum256(cookie.Reveal())
	return sum[:]
}

// seal gives the request as it stands in a page for the browser with the cookie.
func (p *Provider) seal(ctx context.Context, r request, cookie redact.Secret) (string, error) {
	r.Browser = digest(cookie)
	plain, err := json.Marshal(r)
	if err != nil {
		return "", fault.Internal(err, "a request could not be encoded")
	}
	sealed, err := p.cfg.Box.Seal(ctx, kindRequest, "form", plain)
	return base64.RawURLEncoding.EncodeToString(sealed), err
}

// open reads a request that a page sent back. ok is false if it is none of ours, or over; same whether it is this browser's.
func (p *Provider) open(ctx context.Context, sealed string, cookie redact.Secret) (r request, same, ok bool, err error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(sealed)
	if err != nil || len(raw) == 0 {
		return request{}, false, false, nil //nolint:nilerr // it is none of ours
	}
	plain, err := p.cfg.Box.Open(ctx, kindRequest, "form", raw)
	if fault.Is(err, codes.DataLoss) {
		return request{}, false, false, nil
	}
	if err != nil {
		return request{}, false, false, err
	}
	if json.Unmarshal(plain, &r) != nil || p.cfg.Now().Unix() >= r.Expire {
		return request{}, false, false, nil //nolint:nilerr // it is none of ours, or over
	}
	return r, subtle.ConstantTimeCompare(r.Browser, digest(cookie)) == 1, true, nil
}

// cookieOf is the browser's cookie, or a new one.
func cookieOf(x *identityv1.Exchange) (cookie redact.Secret, fresh bool) {
	if c := x.GetCookie(); len(c) == len(prefixCookie)+43 && c[:len(prefixCookie)] == prefixCookie {
		return redact.FromString(c), false
	}
	return newSecret(prefixCookie), true
}

// browser finds who is signed in with a cookie, unless he is disabled.
func (p *Provider) browser(ctx context.Context, cookie redact.Secret) (b store.Browser, user store.Principal, ok bool, err error) {
	q := p.cfg.DB.Reader()
	if b, ok, err = p.cfg.Store.FindBrowser(ctx, q, cookie, p.cfg.Now()); err != nil || !ok {
		return store.Browser{}, store.Principal{}, false, err
	}
	user, ok, err = p.cfg.Store.Principal(ctx, q, b.UID)
	if err != nil || !ok || user.Disabled {
		return store.Browser{}, store.Principal{}, false, err
	}
	return b, user, true, nil
}

// good reports whether a browser's sign-in is recent enough for the request.
func (r request) good(b store.Browser) bool { return r.Since == 0 || b.AuthTime.Unix() >= r.Since }

func (p *Provider) until(d time.Duration) int64 { return p.cfg.Now().Add(d).Unix() }
