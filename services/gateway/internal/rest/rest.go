package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/intake"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/onward"
)

// Config of the routes. All of it is required.
type Config struct {
	Rules *rule.Table
	// Peers are the connections to the services, by name: those of package onward.
	Peers map[string]grpc.ClientConnInterface
	// Installation is the domain that stands in the ErrorInfo of errors.
	Installation string
	// Held counts the bodies of all routes together.
	Held *intake.Held
}

// Handler serves /v1.
type Handler struct {
	cfg    Config
	routes map[string]*route
	mux    *runtime.ServeMux
}

// New makes the routes of every service that there is a peer of.
func New(ctx context.Context, cfg Config) (*Handler, error) {
	h := &Handler{cfg: cfg}
	var err error
	if h.routes, err = routesOf(cfg.Rules); err != nil {
		return nil, err
	}
	none := func(string) (string, bool) { return "", false }
	h.mux = runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &strict{runtime.JSONPb{MarshalOptions: protojson.MarshalOptions{EmitUnpopulated: true}}}),
		runtime.WithUnescapingMode(runtime.UnescapingModeAllExceptReserved),
		runtime.WithIncomingHeaderMatcher(none), runtime.WithOutgoingHeaderMatcher(none), runtime.WithOutgoingTrailerMatcher(none),
		runtime.WithDisablePathLengthFallback(), runtime.WithDisableHTTPMethodOverride(),
		runtime.WithErrorHandler(func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
			h.Refuse(w, r, err)
		}),
		runtime.WithStreamErrorHandler(func(_ context.Context, err error) *status.Status { return h.statusOf(err, "") }),
		runtime.WithRoutingErrorHandler(h.routing),
		runtime.WithMiddlewares(h.admit),
	)
	return h, h.register(ctx)
}

// register joins the generated handlers with the connections. A service without a connection has no routes.
func (h *Handler) register(ctx context.Context) error {
	for service, add := range map[string][]func(context.Context, *runtime.ServeMux, grpc.ClientConnInterface) error{
		"identity": {
			client(identityv1.RegisterSignInServiceHandlerClient, identityv1.NewSignInServiceClient),
			client(identityv1.RegisterDirectoryServiceHandlerClient, identityv1.NewDirectoryServiceClient),
			client(identityv1.RegisterTokenServiceHandlerClient, identityv1.NewTokenServiceClient),
			client(identityv1.RegisterAgentServiceHandlerClient, identityv1.NewAgentServiceClient),
			client(identityv1.RegisterOperatorServiceHandlerClient, identityv1.NewOperatorServiceClient),
			client(identityv1.RegisterKeyServiceHandlerClient, identityv1.NewKeyServiceClient),
			client(identityv1.RegisterApplicationServiceHandlerClient, identityv1.NewApplicationServiceClient),
			client(identityv1.RegisterFactorServiceHandlerClient, identityv1.NewFactorServiceClient),
			client(identityv1.RegisterFederationServiceHandlerClient, identityv1.NewFederationServiceClient),
			client(identityv1.RegisterAccountServiceHandlerClient, identityv1.NewAccountServiceClient),
		},
		"workspace": {
			client(workspacev1.RegisterResourceServiceHandlerClient, workspacev1.NewResourceServiceClient),
			client(workspacev1.RegisterAccessServiceHandlerClient, workspacev1.NewAccessServiceClient),
			client(workspacev1.RegisterSnapshotServiceHandlerClient, workspacev1.NewSnapshotServiceClient),
		},
		"keyvault": {
			client(keyvaultv1.RegisterSecretServiceHandlerClient, keyvaultv1.NewSecretServiceClient),
			client(keyvaultv1.RegisterKeyServiceHandlerClient, keyvaultv1.NewKeyServiceClient),
		},
		"telemetry": {
			client(telemetryv1.RegisterActivityServiceHandlerClient, telemetryv1.NewActivityServiceClient),
			client(telemetryv1.RegisterMetricServiceHandlerClient, telemetryv1.NewMetricServiceClient),
			client(telemetryv1.RegisterRequestLogServiceHandlerClient, telemetryv1.NewRequestLogServiceClient),
		},
		"compute": {
			client(computev1.RegisterComputeServiceHandlerClient, computev1.NewComputeServiceClient),
			client(computev1.RegisterRunServiceHandlerClient, computev1.NewRunServiceClient),
			client(computev1.RegisterAgentRunServiceHandlerClient, computev1.NewAgentRunServiceClient),
			client(computev1.RegisterExperimentServiceHandlerClient, computev1.NewExperimentServiceClient),
			client(computev1.RegisterTrackingServiceHandlerClient, computev1.NewTrackingServiceClient),
		},
		"inference": {
			client(inferencev1.RegisterModelServiceHandlerClient, inferencev1.NewModelServiceClient),
			client(inferencev1.RegisterEndpointServiceHandlerClient, inferencev1.NewEndpointServiceClient),
			client(inferencev1.RegisterScoringServiceHandlerClient, inferencev1.NewScoringServiceClient),
		},
	} {
		peer, ok := h.cfg.Peers[service]
		if !ok {
			continue
		}
		for _, f := range add {
			if err := f(ctx, h.mux, peer); err != nil {
				return fmt.Errorf("rest: routes of %s: %w", service, err)
			}
		}
	}
	return nil
}

// client joins what is generated for a service: its handlers, and its client.
func client[C any](handlers func(context.Context, *runtime.ServeMux, C) error, dial func(grpc.ClientConnInterface) C) func(context.Context, *runtime.ServeMux, grpc.ClientConnInterface) error {
	return func(ctx context.Context, mux *runtime.ServeMux, peer grpc.ClientConnInterface) error {
		return handlers(ctx, mux, dial(peer))
	}
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	in := r.Clone(onward.Context(r))
	if id := onward.RequestID(r); id != "" {
		in.Header = http.Header{"X-Request-Id": {id}}
	} else {
		in.Header = http.Header{}
	}
	for _, k := range []string{"Content-Type", "Content-Encoding"} {
		if v := r.Header.Values(k); len(v) > 0 {
			in.Header[k] = v
		}
	}
	if strings.Contains(strings.ToLower(r.URL.RawPath), "%2f") {
		h.Refuse(w, in, fault.InvalidArgument("the path has an encoded slash; names stand in paths as they are, and what else has a slash belongs in the query"))
		return
	}
	h.mux.ServeHTTP(&answering{ResponseWriter: w}, in)
}

// admit takes the body in and holds the request to what its route takes, before grpc-gateway reads it.
func (h *Handler) admit(next runtime.HandlerFunc) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, path map[string]string) {
		p, ok := runtime.HTTPPattern(r.Context())
		route := h.routes[r.Method+" "+p.String()]
		if !ok || route == nil {
			h.Refuse(w, r, fault.Internal(errors.New("a route that no rule knows: "+p.String()), "internal fault"))
			return
		}
		if name := route.unknown(r.URL.Query(), path); name != "" {
			h.Refuse(w, r, fault.InvalidArgument("the query has a parameter that this route does not take").Field(name, "is not known here"))
			return
		}
		release, err := h.body(w, r, route)
		if err != nil {
			h.Refuse(w, r, err)
			return
		}
		defer release()
		next(w, r, path)
	}
}

// body reads the whole body and leaves it in the request. What a route without one is sent is refused.
func (h *Handler) body(w http.ResponseWriter, r *http.Request, route *route) (release func(), err error) {
	if r.ContentLength == 0 {
		return func() {}, nil
	}
	if route.body == "" {
		return nil, fault.InvalidArgument("this route takes no body; its fields stand in the query")
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" || len(r.Header.Values("Content-Encoding")) > 0 {
		return nil, fault.InvalidArgument("the body has to be JSON, not compressed: send Content-Type: application/json")
	}
	release, err = h.cfg.Held.Reserve(w, r, route.most)
	if err != nil {
		return nil, unread(err)
	}
	b, err := io.ReadAll(r.Body)
	switch {
	case err != nil:
		release()
		return nil, unread(err)
	case len(bytes.TrimSpace(b)) > 0 && !json.Valid(b):
		release()
		return nil, fault.InvalidArgument("the body is not one JSON value")
	}
	r.Body = io.NopCloser(bytes.NewReader(b))
	return release, nil
}

// strict is protojson that refuses what it does not know.
type strict struct{ runtime.JSONPb }

// Marshal implements runtime.Marshaler. An error at the end of a stream reads as other errors do.
func (s *strict) Marshal(v any) ([]byte, error) {
	if m, ok := v.(map[string]proto.Message); ok {
		if st, ok := m["error"].(*spb.Status); ok {
			return encode(st, httpCode(status.FromProto(st))), nil
		}
	}
	return s.JSONPb.Marshal(v)
}

// answering says on its way out how a caller is to say who he is, where a stream was refused.
type answering struct{ http.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (a *answering) WriteHeader(code int) {
	if code == http.StatusUnauthorized && a.Header().Get("WWW-Authenticate") == "" {
		Challenge(a.Header(), status.New(codes.Unauthenticated, ""))
	}
	a.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (a *answering) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// Owns tells whether a path is one of REST's.
func Owns(path string) bool { return strings.HasPrefix(path, "/v1/") }
