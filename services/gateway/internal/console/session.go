package console

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	// clientID is what the provider knows the console by.
	clientID = "redoubt-console"
	// beginPath begins a sign-in and answerPath takes its answer; leftPath is where signing out ends.
	beginPath  = Prefix + "sign-in"
	answerPath = Prefix + "signed-in"

	cookieName = "__Host-redoubt-session"
	// wayName begins the name of the cookie of a sign-in that is under way. The rest is of its state.
	wayName  = "__Host-redoubt-way-"
	wayLife  = 15 * time.Minute
	wayParts = 4
	// between stands between what a cookie holds. It is in no base64 and in no token.
	between = "~"
)

var raw = base64.RawURLEncoding

// session is what a browser proves itself with: a token, and the key that it is bound to. One that joined the command line's has no key.
type session struct {
	token  string
	key    redact.Secret
	prover *authn.Prover // of the key; nil without one
}

// cookie is the session as it stands in its cookie.
func (s session) cookie() string {
	if s.prover == nil {
		return s.token
	}
	return s.key.RevealString() + between + s.token
}

// sessionOf reads the cookie of a request; ok is false where there is none, or none that could be one.
func sessionOf(r *http.Request, now func() time.Time) (s session, ok bool) {
	cookies := r.CookiesNamed(cookieName)
	if len(cookies) != 1 || cookies[0].Value == "" {
		return session{}, false
	}
	text, token, bound := strings.Cut(cookies[0].Value, between)
	if !bound {
		return session{token: text}, true
	}
	s = session{token: token, key: redact.FromString(text)}
	var err error
	s.prover, err = authn.HeldProver(s.key, now)
	return s, err == nil && token != ""
}

// proofs is the console's connection to a service: each call of a session carries its token, and a proof for this try of it.
type proofs struct {
	grpc.ClientConnInterface
	publicURL string
}

type sessionKey struct{}

func (p proofs) options(ctx context.Context, method string, opts []grpc.CallOption) []grpc.CallOption {
	s, ok := ctx.Value(sessionKey{}).(session)
	if !ok {
		return opts
	}
	return append(opts, grpc.PerRPCCredentials(proof{session: s, url: p.publicURL + method}))
}

// Invoke implements grpc.ClientConnInterface.
func (p proofs) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return p.ClientConnInterface.Invoke(ctx, method, args, reply, p.options(ctx, method, opts)...)
}

// NewStream implements grpc.ClientConnInterface.
func (p proofs) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return p.ClientConnInterface.NewStream(ctx, desc, method, p.options(ctx, method, opts)...)
}

// proof implements credentials.PerRPCCredentials for one call.
type proof struct {
	session
	url string
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (p proof) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if p.prover == nil {
		return map[string]string{"authorization": "Bearer " + p.token}, nil
	}
	text, err := p.prover.Proof(http.MethodPost, p.url, p.token, "")
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "DPoP " + p.token, "dpop": text}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (proof) RequireTransportSecurity() bool { return true }

// with is a context whose calls are the session's.
func (c *Console) with(r *http.Request, s session) context.Context {
	ctx := c.cfg.Context(r)
	if md, ok := metadata.FromOutgoingContext(ctx); ok { // a proof that the browser sent is of nothing here
		md.Delete("dpop")
		ctx = metadata.NewOutgoingContext(ctx, md)
	}
	return context.WithValue(ctx, sessionKey{}, s)
}

// way is a sign-in that is under way.
type way struct {
	state, verifier string
	key             redact.Secret
	prover          *authn.Prover
	to              string
}

func (w way) name() string { return wayName + w.state[:12] }

func (w way) cookie() string {
	return strings.Join([]string{w.state, w.verifier, w.key.RevealString(), raw.EncodeToString([]byte(w.to))}, between)
}

// wayOf finds the sign-in of an answer.
func wayOf(r *http.Request, state string, now func() time.Time) (way, bool) {
	if len(state) != raw.EncodedLen(32) {
		return way{}, false
	}
	cookies := r.CookiesNamed(way{state: state}.name())
	if len(cookies) != 1 {
		return way{}, false
	}
	parts := strings.Split(cookies[0].Value, between)
	if len(parts) != wayParts || subtle.ConstantTimeCompare([]byte(parts[0]), []byte(state)) != 1 {
		return way{}, false
	}
	key := redact.FromString(parts[2])
	prover, err := authn.HeldProver(key, now)
	to, bad := raw.DecodeString(parts[3])
	return way{state: state, verifier: parts[1], key: key, prover: prover, to: here(string(to))}, err == nil && bad == nil
}

// here is a path of the console, or its first page where it is none.
func here(path string) string {
	u, err := url.Parse(path)
	if err != nil || len(path) > 1024 || u.Scheme != "" || u.Host != "" || !strings.HasPrefix(path, Prefix) || strings.ContainsAny(path, "\\\r\n") || strings.Contains(u.Path, "..") {
		return Prefix
	}
	return path
}

// toSignIn is the page that begins a sign-in, and goes on at a page of the console. age is how many seconds ago it may have been; "" is any.
func toSignIn(to, age string) string {
	q := url.Values{"to": {to}}
	if age != "" {
		q.Set("max_age", age)
	}
	return beginPath + "?" + q.Encode()
}

// begin sends a browser to the provider.
func (c *Console) begin(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	prover, key, err := authn.NewHeldProver(c.cfg.Now)
	if err != nil {
		c.refused(w, r, "", fault.Internal(err, "a key could not be made"))
		return
	}
	under := way{state: random(), verifier: random(), key: key, prover: prover, to: here(q.Get("to"))}
	challenge := sha256.Sum256([]byte(under.verifier))
	ask := url.Values{
		"client_id": {clientID}, "redirect_uri": {c.cfg.PublicURL + answerPath}, "response_type": {"code"}, "scope": {"redoubt"}, "state": {under.state},
		"code_challenge": {raw.EncodeToString(challenge[:])}, "code_challenge_method": {"S256"}, "dpop_jkt": {prover.Thumbprint()},
	}
	if age := q.Get("max_age"); age != "" {
		if _, err := strconv.ParseUint(age, 10, 31); err != nil {
			c.refused(w, r, "", fault.InvalidArgument("max_age is not a number of seconds"))
			return
		}
		ask.Set("max_age", age)
	}
	// Lax: the answer may come along a way that began at another site, a guest's home.
	http.SetCookie(w, &http.Cookie{Name: under.name(), Value: under.cookie(), Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(wayLife / time.Second)})
	http.Redirect(w, r, c.cfg.PublicURL+"/oauth2/authorize?"+ask.Encode(), http.StatusSeeOther)
}

func random() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return raw.EncodeToString(b[:])
}

// answered takes what the provider sent a browser back with.
func (c *Console) answered(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	under, ok := wayOf(r, q.Get("state"), c.cfg.Now)
	if !ok {
		c.failed(w, "This sign-in did not begin in this browser, or it began too long ago.", Prefix)
		return
	}
	http.SetCookie(w, &http.Cookie{Name: under.name(), Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: -1})
	switch {
	case len(q["iss"]) != 1 || q.Get("iss") != c.cfg.PublicURL: // RFC 9207
		c.failed(w, "The answer is not this installation's.", under.to)
		return
	case q.Get("error") == "access_denied":
		c.failed(w, "You did not go on with the sign-in.", under.to)
		return
	case q.Get("error") != "" || len(q["code"]) != 1:
		c.failed(w, "The sign-in did not succeed.", under.to)
		return
	}
	ctx, cancel := context.WithTimeout(c.cfg.Context(r), callTime)
	defer cancel()
	token, life, err := c.redeem(ctx, under, q.Get("code"))
	if err != nil {
		c.refused(w, r, "", err)
		return
	}
	made := session{token: token, key: under.key, prover: under.prover}
	if before, ok := sessionOf(r, c.cfg.Now); ok && before.prover != nil { // this one takes its place
		if _, err := c.signIn.SignOut(c.with(r, before), &identityv1.SignOutRequest{}); err != nil {
			c.cfg.Logger.Debug("an earlier session of a browser goes on until it is over", "error", err)
		}
	}
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: made.cookie(), Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode, MaxAge: int(life / time.Second)})
	c.show(w, http.StatusOK, "signed-in.html", view{Title: "Signed in", Next: under.to})
}

// failed says why a sign-in gave nothing.
func (c *Console) failed(w http.ResponseWriter, why, to string) {
	c.show(w, http.StatusBadRequest, "refused.html", view{Title: "Not signed in", Body: refusal{Status: http.StatusBadRequest, Message: why, SignIn: toSignIn(to, "")}})
}

// redeem turns a code into a token that is bound to the key.
func (c *Console) redeem(ctx context.Context, under way, code string) (token string, life time.Duration, err error) {
	shown, err := under.prover.Proof(http.MethodPost, c.cfg.PublicURL+"/oauth2/token", "", "")
	if err != nil {
		return "", 0, fault.Internal(err, "a proof could not be made")
	}
	form := url.Values{
		"grant_type": {"authorization_code"}, "client_id": {clientID}, "code": {code}, "redirect_uri": {c.cfg.PublicURL + answerPath}, "code_verifier": {under.verifier},
	}
	page, err := c.provider.RequestToken(ctx, &identityv1.RequestTokenRequest{Http: &identityv1.Exchange{
		Method: http.MethodPost, ContentType: "application/x-www-form-urlencoded", Body: []byte(form.Encode()), Dpop: shown,
	}})
	if err != nil {
		return "", 0, err
	}
	var given struct {
		Token string `json:"access_token"`
		Type  string `json:"token_type"`
		Life  int64  `json:"expires_in"`
	}
	if err := json.Unmarshal(page.GetBody(), &given); err != nil || given.Token == "" || given.Type != "DPoP" || given.Life <= 0 || strings.ContainsAny(given.Token, "~ ;,\"") {
		return "", 0, fault.Internal(errors.Join(err, errors.New("the token endpoint gave no bound token")), "internal fault")
	}
	return given.Token, time.Duration(given.Life) * time.Second, nil
}

// leave ends the session, the provider's in this browser, and, of a session that joined the command line's, that one.
func (c *Console) leave(w http.ResponseWriter, r *http.Request) {
	c.signedIn(func(w http.ResponseWriter, v *visit) {
		ctx, cancel := context.WithTimeout(v.ctx, callTime)
		defer cancel()
		if _, err := c.signIn.SignOut(ctx, &identityv1.SignOutRequest{Browser: true}); err != nil {
			c.refused(w, v.r, "", err)
			return
		}
		forget(w)
		c.show(w, http.StatusOK, "left.html", view{Title: "Signed out"})
	})(w, r)
}
