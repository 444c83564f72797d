package gateway

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/gen/openapi"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/console"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/intake"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/onward"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/rest"
)

// maxForm bounds the body of a token request.
const maxForm = 64 << 10

// routesHTTP are the HTTP routes. Each is one ruled RPC; whatever is not among them is 404.
func (s *Service) routesHTTP(ctx context.Context) (http.Handler, error) {
	peers := make(map[string]grpc.ClientConnInterface, len(s.cfg.Peers))
	for name, p := range s.cfg.Peers {
		peers[name] = &onward.Conn{
			Peer: p, Service: name, Rules: s.cfg.Rules, MaxMessageBytes: s.cfg.MaxMessageBytes, PublicTimeout: s.cfg.PublicTimeout, Logger: s.cfg.Logger,
		}
	}
	held := &intake.Held{}
	v1, err := rest.New(ctx, rest.Config{Rules: s.cfg.Rules, Peers: peers, Installation: s.cfg.Installation, Held: held})
	if err != nil {
		return nil, err
	}
	mlflow, err := mlflowapi.New(mlflowapi.Config{Peers: peers, Held: held, Now: s.cfg.Now})
	if err != nil {
		return nil, err
	}
	pages, err := console.New(console.Config{Peers: s.cfg.Peers, Context: caller, Now: s.cfg.Now, Logger: s.cfg.Logger})
	if err != nil {
		return nil, err
	}
	others := s.otherRoutes(identityv1.NewTokenServiceClient(peers["identity"]), pages)
	// These two see paths as they were sent: http.ServeMux would clean them first.
	return hardened(intake.Paced(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case rest.Owns(r.URL.Path):
			v1.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, mlflowapi.Prefix):
			mlflow.ServeHTTP(w, r)
		default:
			others.ServeHTTP(w, r)
		}
	}), s.cfg.BodyGrace)), nil
}

// otherRoutes are those of OAuth, the OpenAPI document, the console, and what is not there.
func (s *Service) otherRoutes(tokens identityv1.TokenServiceClient, pages http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /oauth2/token", func(w http.ResponseWriter, r *http.Request) { s.token(w, r, tokens) })
	discovery := func(w http.ResponseWriter, r *http.Request) {
		doc, err := tokens.GetDiscovery(anonymous(r), &identityv1.GetDiscoveryRequest{})
		s.document(w, doc, err)
	}
	mux.HandleFunc("GET /.well-known/openid-configuration", discovery)
	mux.HandleFunc("GET /.well-known/oauth-authorization-server", discovery)
	mux.HandleFunc("GET /oauth2/keys", func(w http.ResponseWriter, r *http.Request) {
		doc, err := tokens.GetKeys(anonymous(r), &identityv1.GetKeysRequest{})
		s.document(w, doc, err)
	})
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		_, _ = w.Write(openapi.Document)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusNotFound, map[string]any{"error": "not_found", "error_description": "there is no such route; gRPC clients have to offer h2 alone"})
	})
	mux.Handle(console.Prefix, pages)
	return mux
}

// anonymous is the context of the RPC that a request of OAuth becomes: what it carries for the token endpoint is no token of its own.
func anonymous(r *http.Request) context.Context { return onward.WithToken(onward.Context(r), "") }

// caller is the same for the console, which adds a token of its own.
func caller(r *http.Request) context.Context { return onward.Outgoing(anonymous(r)) }

// hardened sets what every answer carries.
func hardened(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Strict-Transport-Security", "max-age=31536000")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// token is the OAuth token endpoint (RFC 6749 section 3.2), form encoded.
func (s *Service) token(w http.ResponseWriter, r *http.Request, tokens identityv1.TokenServiceClient) {
	w.Header().Set("Pragma", "no-cache")
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/x-www-form-urlencoded" {
		oauthError(w, http.StatusBadRequest, "invalid_request", "the body has to be application/x-www-form-urlencoded")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil || r.URL.RawQuery != "" {
		oauthError(w, http.StatusBadRequest, "invalid_request", "the body cannot be read, is longer than 64 KiB, or parameters stand in the URL")
		return
	}
	for k, v := range r.PostForm {
		if len(v) > 1 {
			oauthError(w, http.StatusBadRequest, "invalid_request", "the parameter "+strconv.Quote(truncate(k))+" is given twice")
			return
		}
	}
	req := &identityv1.IssueTokenRequest{
		GrantType: r.PostForm.Get("grant_type"), ClientId: r.PostForm.Get("client_id"), ClientSecret: r.PostForm.Get("client_secret"),
		Scope: r.PostForm.Get("scope"), Audience: r.PostForm.Get("audience"),
	}
	if h := r.Header.Get("Authorization"); h != "" {
		id, secret, ok := basic(h)
		if !ok || req.GetClientSecret() != "" || req.GetClientId() != "" && req.GetClientId() != id {
			oauthError(w, http.StatusUnauthorized, "invalid_client", "one form of client authentication, once")
			return
		}
		req.ClientId, req.ClientSecret = id, secret
	}
	res, err := tokens.IssueToken(anonymous(r), req)
	if err != nil {
		s.oauthFault(w, err)
		return
	}
	out := map[string]any{"access_token": res.GetAccessToken(), "token_type": res.GetTokenType(), "expires_in": int64(res.GetExpiresIn().AsDuration() / time.Second)}
	if res.GetScope() != "" {
		out["scope"] = res.GetScope()
	}
	answer(w, http.StatusOK, out)
}

// basic reads client credentials from the Authorization header: both parts are form encoded first (RFC 6749 section 2.3.1).
func basic(h string) (id, secret string, ok bool) {
	scheme, enc, ok := strings.Cut(h, " ")
	if !ok || !strings.EqualFold(scheme, "basic") {
		return "", "", false
	}
	raw, err := base64.StdEncoding.DecodeString(enc)
	if err != nil {
		return "", "", false
	}
	a, b, ok := strings.Cut(string(raw), ":")
	if !ok {
		return "", "", false
	}
	if id, err = url.QueryUnescape(a); err != nil {
		return "", "", false
	}
	if secret, err = url.QueryUnescape(b); err != nil {
		return "", "", false
	}
	return id, secret, true
}

// oauthFault is a refusal of identity in the words of RFC 6749 section 5.2.
func (s *Service) oauthFault(w http.ResponseWriter, err error) {
	f := fault.Describe(err)
	code := f.Metadata()["oauth_error"]
	switch c := fault.Code(err); {
	case c == codes.ResourceExhausted:
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(f.RetryAfter()/time.Second))))
		oauthError(w, http.StatusTooManyRequests, "temporarily_unavailable", f.Message())
	case code == "invalid_client":
		w.Header().Set("WWW-Authenticate", `Basic realm="redoubt"`)
		oauthError(w, http.StatusUnauthorized, code, f.Message())
	case code != "":
		oauthError(w, http.StatusBadRequest, code, f.Message())
	case c == codes.InvalidArgument:
		oauthError(w, http.StatusBadRequest, "invalid_request", f.Message())
	case c == codes.Unavailable || c == codes.DeadlineExceeded:
		oauthError(w, http.StatusServiceUnavailable, "temporarily_unavailable", "identity does not answer; repeat the request")
	default:
		s.cfg.Logger.Error("token endpoint", "error", err.Error())
		oauthError(w, http.StatusInternalServerError, "server_error", "internal fault")
	}
}

// document serves a JSON text of identity. These two say the same to everyone, so they may be kept for a while.
func (s *Service) document(w http.ResponseWriter, doc *identityv1.Document, err error) {
	if err != nil {
		s.oauthFault(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "public, max-age=300")
	_, _ = w.Write(doc.GetJson())
}

func oauthError(w http.ResponseWriter, status int, code, description string) {
	answer(w, status, map[string]any{"error": code, "error_description": description})
}

func answer(w http.ResponseWriter, status int, body map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func truncate(s string) string {
	if len(s) > 64 {
		return s[:64]
	}
	return s
}
