package gateway

import (
	"context"
	"net/http"

	"google.golang.org/grpc"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/oauthwire"
)

// providerCookie holds what a browser is known by at the provider. Authorization requests are navigations from other sites, so it is Lax.
const providerCookie = "__Host-redoubt-login"

// providerRoutes are the routes of the OpenID provider: each is one RPC of identity, which gets the request as it was sent and says what to
// answer. Nothing is decided here.
func (s *Service) providerRoutes(mux *http.ServeMux, c identityv1.ProviderServiceClient) {
	// The answers of foreign issuers come to a path of each, by browsers, and so do their logout tokens, by themselves.
	for _, pattern := range both("/oauth2/home/{issuer}") {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, req *http.Request) {
			s.carry(w, req, carried(c.ReturnHome, func(x *identityv1.Exchange) *identityv1.ReturnHomeRequest {
				return &identityv1.ReturnHomeRequest{Http: x, Issuer: req.PathValue("issuer")}
			}))
		})
	}
	for _, r := range []struct {
		patterns []string
		call     func(context.Context, *identityv1.Exchange) (*identityv1.Page, error)
	}{
		{both("/oauth2/authorize"), carried(c.Authorize, func(x *identityv1.Exchange) *identityv1.AuthorizeRequest {
			return &identityv1.AuthorizeRequest{Http: x}
		})},
		{post("/oauth2/sign-in"), carried(c.SubmitSignIn, func(x *identityv1.Exchange) *identityv1.SubmitSignInRequest {
			return &identityv1.SubmitSignInRequest{Http: x}
		})},
		{post("/oauth2/token"), carried(c.RequestToken, func(x *identityv1.Exchange) *identityv1.RequestTokenRequest {
			return &identityv1.RequestTokenRequest{Http: x}
		})},
		{post("/oauth2/introspect"), carried(c.IntrospectToken, func(x *identityv1.Exchange) *identityv1.IntrospectTokenRequest {
			return &identityv1.IntrospectTokenRequest{Http: x}
		})},
		{post("/oauth2/revoke"), carried(c.WithdrawToken, func(x *identityv1.Exchange) *identityv1.WithdrawTokenRequest {
			return &identityv1.WithdrawTokenRequest{Http: x}
		})},
		{both("/oauth2/userinfo"), carried(c.GetUserInfo, func(x *identityv1.Exchange) *identityv1.GetUserInfoRequest {
			return &identityv1.GetUserInfoRequest{Http: x}
		})},
		{both("/oauth2/end-session"), carried(c.EndSession, func(x *identityv1.Exchange) *identityv1.EndSessionRequest {
			return &identityv1.EndSessionRequest{Http: x}
		})},
		{post("/oauth2/device_authorization"), carried(c.RequestDevice, func(x *identityv1.Exchange) *identityv1.RequestDeviceRequest {
			return &identityv1.RequestDeviceRequest{Http: x}
		})},
		{both("/oauth2/device"), carried(c.VisitDevice, func(x *identityv1.Exchange) *identityv1.VisitDeviceRequest {
			return &identityv1.VisitDeviceRequest{Http: x}
		})},
		{both("/oauth2/factors"), carried(c.VisitFactors, func(x *identityv1.Exchange) *identityv1.VisitFactorsRequest {
			return &identityv1.VisitFactorsRequest{Http: x}
		})},
		{[]string{"GET /oauth2/key.js"}, carried(c.GetKeyScript, func(x *identityv1.Exchange) *identityv1.GetKeyScriptRequest {
			return &identityv1.GetKeyScriptRequest{Http: x}
		})},
	} {
		for _, pattern := range r.patterns {
			mux.HandleFunc(pattern, func(w http.ResponseWriter, req *http.Request) { s.carry(w, req, r.call) })
		}
	}
}

func both(path string) []string { return []string{"GET " + path, "POST " + path} }
func post(path string) []string { return []string{"POST " + path} }

// carried makes one shape of the provider's methods.
func carried[R any](call func(context.Context, *R, ...grpc.CallOption) (*identityv1.Page, error), wrap func(*identityv1.Exchange) *R) func(context.Context, *identityv1.Exchange) (*identityv1.Page, error) {
	return func(ctx context.Context, x *identityv1.Exchange) (*identityv1.Page, error) { return call(ctx, wrap(x)) }
}

// carry passes a request to the provider and its answer back.
func (s *Service) carry(w http.ResponseWriter, r *http.Request, call func(context.Context, *identityv1.Exchange) (*identityv1.Page, error)) {
	x, err := oauthwire.Read(w, r, providerCookie)
	if err != nil {
		oauthwire.Say(w, http.StatusBadRequest, "invalid_request", err.Error())
		return
	}
	page, err := call(anonymous(r), x)
	if err != nil {
		oauthwire.Refuse(w, err, s.cfg.Logger)
		return
	}
	h := w.Header()
	h.Set("Pragma", "no-cache")
	if t := page.GetContentType(); t != "" {
		h.Set("Content-Type", t)
	}
	if p := page.GetContentSecurityPolicy(); p != "" {
		h.Set("Content-Security-Policy", p)
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
	}
	cookie := &http.Cookie{Name: providerCookie, Value: page.GetCookie(), Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}
	switch {
	case page.GetClearCookie():
		cookie.Value, cookie.MaxAge = "", -1
		http.SetCookie(w, cookie)
	case page.GetCookie() != "":
		http.SetCookie(w, cookie)
	}
	if l := page.GetLocation(); l != "" {
		h.Set("Location", l)
	}
	status := int(page.GetStatus())
	if status < 200 || status > 599 {
		status = http.StatusInternalServerError
	}
	w.WriteHeader(status)
	_, _ = w.Write(page.GetBody()) // fails when the caller is gone
}
