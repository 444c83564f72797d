package federation

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// Bounds of a logout token.
const (
	maxLogoutToken = 16 << 10
	maxLogoutAge   = 2 * time.Minute // since iat
	typeLogout     = "logout+jwt"
)

// Leaver is whom an issuer has signed out.
type Leaver struct {
	// Subject is his, and Session the one that he had there; one of them may be "".
	Subject, Session string
	// TokenID is of the token that says so, which counts once; it is taken by nobody from Until on.
	TokenID string
	Until   time.Time
}

// LogOut reads a logout token of an issuer (OpenID Connect Back-Channel Logout 1.0 section 2.6).
func (r *Relying) LogOut(ctx context.Context, i store.Issuer, raw string) (Leaver, error) {
	if raw == "" || len(raw) > maxLogoutToken {
		return Leaver{}, refused("there is no logout token, or a huge one")
	}
	// Before its keys are asked for: an ID token or an access token of the same issuer is none.
	if !logoutType(raw) {
		return Leaver{}, refused("its typ is not %s", typeLogout)
	}
	h, err := r.open(ctx, i)
	if err != nil {
		return Leaver{}, err
	}
	v := h.provider.Verifier(&oidc.Config{ClientID: i.ClientID, SupportedSigningAlgs: i.Algorithms, Now: r.now})
	t, err := v.VerifyLogout(oidc.ClientContext(ctx, h.client), raw)
	if err != nil {
		return Leaver{}, refused("the logout token: %w", err)
	}
	if err := r.checkLogout(i, t); err != nil {
		return Leaver{}, err
	}
	return Leaver{Subject: t.Subject, Session: t.SessionID, TokenID: t.TokenID, Until: t.IssuedAt.Add(maxLogoutAge + time.Second)}, nil
}

// logoutType reports whether the header of a JWT says that it is a logout token. A media type is written in any case, with or without its tree
// (RFC 7515 section 4.1.9).
func logoutType(raw string) bool {
	head, _, _ := strings.Cut(raw, ".")
	text, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return false
	}
	var h struct {
		Type string `json:"typ"`
	}
	if json.Unmarshal(text, &h) != nil {
		return false
	}
	return strings.TrimPrefix(strings.ToLower(h.Type), "application/") == typeLogout
}

// checkLogout holds a token whose signature is good to what the library leaves to its callers.
func (r *Relying) checkLogout(i store.Issuer, t *oidc.LogoutToken) error {
	now := r.now()
	var more struct {
		Events map[string]json.RawMessage `json:"events"`
	}
	if err := t.Claims(&more); err != nil {
		return refused("the logout token: %w", err)
	}
	var event map[string]json.RawMessage
	if json.Unmarshal(more.Events["http://schemas.openid.net/event/backchannel-logout"], &event) != nil || event == nil {
		return refused("it is not about a logout")
	}
	switch {
	case t.Issuer != i.URL:
		return refused("the logout token is another issuer's")
	case len(i.Algorithms) == 0:
		return refused("no algorithm is allowed")
	case slices.ContainsFunc(t.Audience, func(a string) bool { return a != i.ClientID && !slices.Contains(i.Audiences, a) }):
		return refused("the logout token has an audience that is not allowed")
	case !now.Before(t.Expiry):
		return refused("the logout token is over")
	case t.IssuedAt.After(now.Add(maxAhead)):
		return refused("the logout token is from the future")
	case t.IssuedAt.Before(now.Add(-maxLogoutAge)):
		return refused("the logout token is old")
	case t.Subject != "" && !identifier(t.Subject, maxSubject), t.SessionID != "" && !identifier(t.SessionID, maxSubject), !identifier(t.TokenID, maxSubject):
		return refused("sub, sid or jti is not 1 to %d characters of printable ASCII", maxSubject)
	}
	return nil
}

// identifier reports whether something is 1 to most characters of printable ASCII.
func identifier(s string, most int) bool {
	return s != "" && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r >= 0x7f })
}
