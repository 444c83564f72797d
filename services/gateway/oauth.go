package gateway

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"google.golang.org/grpc"

	"github.com/redoubt-ml/redoubt/gen/openapi"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/oauthwire"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/console"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/intake"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/onward"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/rest"
)

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
	s.rest = v1
	mlflow, err := mlflowapi.New(mlflowapi.Config{Peers: peers, Held: held, Now: s.cfg.Now})
	if err != nil {
		return nil, err
	}
	pages, err := console.New(console.Config{Peers: s.cfg.Peers, PublicURL: s.cfg.PublicURL, Context: caller, Now: s.cfg.Now, Logger: s.cfg.Logger})
	if err != nil {
		return nil, err
	}
	others := s.otherRoutes(identityv1.NewTokenServiceClient(peers["identity"]), identityv1.NewProviderServiceClient(peers["identity"]),
		identityv1.NewWorkloadIdentityServiceClient(peers["identity"]), pages)
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

// pathBundle is the bundle endpoint (SPIFFE Federation): the trust bundle, for who federates with this mesh.
const pathBundle = "/spiffe/bundle"

// otherRoutes are those of OAuth, the bundle endpoint, the OpenAPI document, the console, and what is not there.
func (s *Service) otherRoutes(tokens identityv1.TokenServiceClient, provider identityv1.ProviderServiceClient, workloads identityv1.WorkloadIdentityServiceClient, pages http.Handler) http.Handler {
	mux := http.NewServeMux()
	s.providerRoutes(mux, provider)
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
	mux.HandleFunc("GET "+pathBundle, func(w http.ResponseWriter, r *http.Request) {
		b, err := workloads.GetSPIFFEBundle(anonymous(r), &identityv1.GetSPIFFEBundleRequest{})
		if err != nil {
			oauthwire.Refuse(w, err, s.cfg.Logger)
			return
		}
		w.Header().Set("Content-Type", "application/json") // and no cache between: the document says itself how long it is good
		_, _ = w.Write(b.GetJson())
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

// document serves a JSON text of identity. These two say the same to everyone, so they may be kept for a while.
func (s *Service) document(w http.ResponseWriter, doc *identityv1.Document, err error) {
	if err != nil {
		oauthwire.Refuse(w, err, s.cfg.Logger)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "public, max-age=300")
	_, _ = w.Write(doc.GetJson())
}

func answer(w http.ResponseWriter, status int, body map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
