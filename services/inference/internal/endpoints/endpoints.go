package endpoints

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

// maxEndpoints is how many endpoints a workspace has at most: the listener holds all of them in memory.
const maxEndpoints = 1000

// kind is a kind of endpoint with its rules for authentication.
type kind struct {
	name    string
	initial inferencev1.Endpoint_Auth
	tokens  bool
}

// kinds have each their rules (A5): a local endpoint is closed unless somebody opens it; one of kind container-instance is open unless
// somebody closes it, and has no tokens.
func kindOf(k inferencev1.Endpoint_Kind) (kind, bool) {
	switch k {
	case inferencev1.Endpoint_KIND_LOCAL:
		return kind{"local", inferencev1.Endpoint_AUTH_KEY, true}, true
	case inferencev1.Endpoint_KIND_CONTAINER_INSTANCE:
		return kind{"container-instance", inferencev1.Endpoint_AUTH_NONE, false}, true
	}
	return kind{}, false
}

func checkAuth(k inferencev1.Endpoint_Kind, auth inferencev1.Endpoint_Auth) error {
	rules, ok := kindOf(k)
	switch {
	case !ok:
		return fault.InvalidArgument("the kind of an endpoint is KIND_LOCAL or KIND_CONTAINER_INSTANCE").Field("kind", "is not a kind")
	case auth == inferencev1.Endpoint_AUTH_TOKEN && !rules.tokens:
		return fault.InvalidArgument("an endpoint of kind %s takes no tokens: choose AUTH_KEY, or AUTH_NONE to let everybody in who reaches its address", rules.name).Field("auth", "is not available for this kind")
	}
	return nil
}

func checkTTL(d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return tokenTTL, nil
	}
	if t := d.AsDuration(); d.IsValid() && t >= minTokenTTL && t <= maxTokenTTL {
		return t, nil
	}
	return 0, fault.InvalidArgument("tokens live from 5 minutes to 24 hours").Field("token_ttl", "is not from 5 min to 24 h")
}

// changeNamed is change for the endpoint that the call is about.
func (s *Service) changeNamed(ctx context.Context, fn func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints, e *store.Endpoint) error) error {
	call := rpc.From(ctx)
	e, err := s.endpoint(ctx, call)
	if err != nil {
		return err
	}
	err = s.change(ctx, e.Workspace, e.UID, func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints) error {
		now, err := x.Get(ctx, e.UID)
		if err != nil {
			return err
		}
		if now.Deleting {
			return rpc.NotFound(e.Body.GetName())
		}
		return fn(ctx, tx, x, now)
	})
	return absent(err, e.Body.GetName())
}

func (s *Service) message(e *store.Endpoint) *inferencev1.Endpoint {
	m := e.Body
	m.Uid, m.Etag = e.UID, strconv.FormatInt(e.Revision, 10)
	m.BaseUri = s.cfg.ScoringURL + "/endpoints/" + e.UID
	m.ScoringUri = m.GetBaseUri() + "/score"
	m.CreateTime, m.UpdateTime = timestamppb.New(e.Created), timestamppb.New(e.Updated)
	return m
}

// ListEndpointKinds implements inferencev1.EndpointServiceServer.
func (api) ListEndpointKinds(context.Context, *inferencev1.ListEndpointKindsRequest) (*inferencev1.ListEndpointKindsResponse, error) {
	out := &inferencev1.ListEndpointKindsResponse{}
	for _, k := range []inferencev1.Endpoint_Kind{inferencev1.Endpoint_KIND_LOCAL, inferencev1.Endpoint_KIND_CONTAINER_INSTANCE} {
		rules, _ := kindOf(k)
		out.Kinds = append(out.Kinds, rules.name)
	}
	return out, nil
}

// CreateEndpoint implements inferencev1.EndpointServiceServer.
func (h api) CreateEndpoint(ctx context.Context, req *inferencev1.CreateEndpointRequest) (*inferencev1.Endpoint, error) {
	call := rpc.From(ctx)
	if err := resource.ValidIDField("endpoint_id", req.GetEndpointId()); err != nil {
		return nil, err
	}
	in := req.GetEndpoint()
	k, auth := in.GetKind(), in.GetAuth()
	if k == inferencev1.Endpoint_KIND_UNSPECIFIED {
		k = inferencev1.Endpoint_KIND_LOCAL
	}
	if auth == inferencev1.Endpoint_AUTH_UNSPECIFIED {
		rules, _ := kindOf(k)
		auth = rules.initial
	}
	if err := checkAuth(k, auth); err != nil {
		return nil, err
	}
	ttl, err := checkTTL(in.GetTokenTtl())
	if err != nil {
		return nil, err
	}
	e := &store.Endpoint{
		UID: resource.NewUID("ep"), Workspace: call.Scope.WorkspaceUID, Primary: newSecret(keyPrefix), Secondary: newSecret(keyPrefix), Created: h.s.cfg.Now(),
		Body: &inferencev1.Endpoint{
			Name: call.Scope.Name.String() + "/endpoints/" + req.GetEndpointId(), Kind: k, Auth: auth, Description: in.GetDescription(), Tags: in.GetTags(),
			TokenTtl: durationpb.New(ttl), CreatedBy: call.Principal,
		},
	}
	err = h.s.change(ctx, e.Workspace, e.UID, func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints) error {
		n, err := x.Count(ctx)
		if err != nil {
			return err
		}
		if n >= maxEndpoints {
			return fault.ResourceExhausted("the workspace has %d endpoints, which is the most; delete some", n)
		}
		if err := x.Insert(ctx, e); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "endpoint", e.UID, "kind", k.String(), "auth", auth.String())
	})
	if err != nil {
		return nil, err
	}
	h.s.warnOpen(ctx, e)
	return h.s.message(e), nil
}

// warnOpen says in the log that everybody may score an endpoint who reaches its address.
func (s *Service) warnOpen(ctx context.Context, e *store.Endpoint) {
	if e.Body.GetAuth() == inferencev1.Endpoint_AUTH_NONE {
		s.cfg.Logger.WarnContext(ctx, "an endpoint is open to everybody who reaches its address", "endpoint_uid", e.UID, "workspace_uid", e.Workspace)
	}
}

// GetEndpoint implements inferencev1.EndpointServiceServer.
func (h api) GetEndpoint(ctx context.Context, _ *inferencev1.GetEndpointRequest) (*inferencev1.Endpoint, error) {
	e, err := h.s.endpoint(ctx, rpc.From(ctx))
	if err != nil {
		return nil, err
	}
	return h.s.message(e), nil
}

// page opens a page token, and gives the queries and what seals the next one.
func (s *Service) page(ctx context.Context, workspace, query, token string) (x store.Endpoints, cur store.Cursor, next func(cur store.Cursor, got, limit int) (string, error), err error) {
	key, err := s.store.Key(ctx, workspace)
	if err != nil {
		return x, cur, nil, err
	}
	x = s.store.Endpoints(s.store.Reader(), key)
	next = func(cur store.Cursor, got, limit int) (string, error) {
		if got < limit {
			return "", nil
		}
		return key.SealPage(query, cur.Bytes())
	}
	if token == "" {
		return x, cur, next, nil
	}
	b, err := key.OpenPage(query, token)
	if err != nil {
		return x, cur, nil, err
	}
	cur, err = store.ParseCursor(b)
	return x, cur, next, err
}

// ListEndpoints implements inferencev1.EndpointServiceServer.
func (h api) ListEndpoints(ctx context.Context, req *inferencev1.ListEndpointsRequest) (*inferencev1.ListEndpointsResponse, error) {
	n, err := resource.PageSize(req.GetPageSize(), 100, 1000)
	if err != nil {
		return nil, err
	}
	ws := rpc.From(ctx).Scope.WorkspaceUID
	x, cur, next, err := h.s.page(ctx, ws, "inference/endpoints/"+ws, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, cur, err := x.List(ctx, cur, n)
	if err != nil {
		return nil, err
	}
	out := &inferencev1.ListEndpointsResponse{}
	for _, e := range list {
		out.Endpoints = append(out.Endpoints, h.s.message(e))
	}
	out.NextPageToken, err = next(cur, len(list), n)
	return out, err
}

// updates are the parts of an endpoint that can be changed, by their names in a mask.
func updates(req *inferencev1.UpdateEndpointRequest) (map[string]bool, error) {
	in := req.GetEndpoint()
	set := map[string]bool{
		"auth": in.GetAuth() != 0, "traffic": len(in.GetTraffic()) > 0, "mirror": len(in.GetMirror()) > 0, "description": in.GetDescription() != "",
		"tags": len(in.GetTags()) > 0, "token_ttl": in.GetTokenTtl() != nil,
	}
	paths := req.GetUpdateMask().GetPaths()
	if len(paths) == 0 {
		return set, nil
	}
	out := make(map[string]bool)
	for _, p := range paths {
		if _, ok := set[p]; !ok {
			return nil, fault.InvalidArgument("an endpoint has auth, traffic, mirror, description, tags and token_ttl to change").Field("update_mask", "names what cannot be changed")
		}
		out[p] = true
	}
	return out, nil
}

// UpdateEndpoint implements inferencev1.EndpointServiceServer.
func (h api) UpdateEndpoint(ctx context.Context, req *inferencev1.UpdateEndpointRequest) (*inferencev1.Endpoint, error) {
	call := rpc.From(ctx)
	set, err := updates(req)
	if err != nil {
		return nil, err
	}
	var out *store.Endpoint
	err = h.s.changeNamed(ctx, func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints, e *store.Endpoint) error {
		if etag := req.GetEndpoint().GetEtag(); etag != "" && etag != strconv.FormatInt(e.Revision, 10) {
			return fault.Aborted("the endpoint was changed meanwhile; read it and repeat the call")
		}
		details, err := h.apply(ctx, x, e, req.GetEndpoint(), set)
		if err != nil {
			return err
		}
		if err := x.Update(ctx, e, h.s.cfg.Now()); err != nil {
			return err
		}
		out = e
		return call.Audit(ctx, tx, details...)
	})
	if err != nil {
		return nil, err
	}
	if set["auth"] {
		h.s.warnOpen(ctx, out)
	}
	return h.s.message(out), nil
}

// apply makes the changes of an update, and gives what is recorded of them.
func (h api) apply(ctx context.Context, x store.Endpoints, e *store.Endpoint, in *inferencev1.EndpointUpdate, set map[string]bool) (details []string, err error) {
	if set["auth"] {
		before, auth := e.Body.GetAuth(), in.GetAuth()
		if auth == inferencev1.Endpoint_AUTH_UNSPECIFIED {
			rules, _ := kindOf(e.Body.GetKind())
			auth = rules.initial
		}
		if err := checkAuth(e.Body.GetKind(), auth); err != nil {
			return nil, err
		}
		if auth != before { // tokens end with their form; the two keys stay, for the way back
			if err := x.DropTokens(ctx, e.UID); err != nil {
				return nil, err
			}
		}
		e.Body.Auth = auth
		details = append(details, "auth", auth.String(), "auth_before", before.String())
	}
	if set["token_ttl"] {
		ttl, err := checkTTL(in.GetTokenTtl())
		if err != nil {
			return nil, err
		}
		e.Body.TokenTtl = durationpb.New(ttl)
		details = append(details, "token_ttl", ttl.String())
	}
	if set["traffic"] || set["mirror"] {
		there, err := h.deployable(ctx, x, e.UID)
		if err != nil {
			return nil, err
		}
		if set["traffic"] {
			if e.Body.Traffic, err = shares("traffic", in.GetTraffic(), there); err != nil {
				return nil, err
			}
			details = append(details, "traffic", listed(e.Body.GetTraffic()))
		}
		if set["mirror"] {
			if e.Body.Mirror, err = shares("mirror", in.GetMirror(), there); err != nil {
				return nil, err
			}
			details = append(details, "mirror", listed(e.Body.GetMirror()))
		}
	}
	if set["description"] {
		e.Body.Description = in.GetDescription()
	}
	if set["tags"] {
		e.Body.Tags = in.GetTags()
	}
	return details, nil
}

// listed is a split as the activity log has it: "blue 90, green 10".
func listed(shares map[string]int32) string {
	out := make([]string, 0, len(shares))
	for _, id := range slices.Sorted(maps.Keys(shares)) {
		out = append(out, fmt.Sprintf("%s %d", id, shares[id]))
	}
	return strings.Join(out, ", ")
}

// deployable are the ids of an endpoint's deployments that can get traffic.
func (h api) deployable(ctx context.Context, x store.Endpoints, endpoint string) (map[string]bool, error) {
	list, err := x.DeploymentsOf(ctx, endpoint)
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool)
	for _, d := range list {
		if !d.Deleting {
			out[d.ID()] = true
		}
	}
	return out, nil
}

// shares checks percentages: of deployments that are there, and for traffic 100 in all, or none at all.
func shares(field string, in map[string]int32, there map[string]bool) (map[string]int32, error) {
	out, sum := maps.Clone(in), int32(0)
	maps.DeleteFunc(out, func(_ string, percent int32) bool { return percent == 0 })
	for id, percent := range in {
		if !there[id] {
			return nil, fault.InvalidArgument("the endpoint has no deployment %q; deploy it first", id).Field(field, "names a deployment that is not there")
		}
		sum += percent
	}
	if field == "traffic" && sum != 100 && len(out) > 0 {
		return nil, fault.InvalidArgument("the percentages of traffic sum up to 100, or there are none; these sum up to %d", sum).Field(field, "does not sum up to 100")
	}
	return out, nil
}

// DeleteEndpoint implements inferencev1.EndpointServiceServer. When it returns, the endpoint is closed; its replicas are stopped after
// that.
func (h api) DeleteEndpoint(ctx context.Context, _ *inferencev1.DeleteEndpointRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	var gone *store.Endpoint
	var left []*store.Deployment
	err := h.s.changeNamed(ctx, func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints, e *store.Endpoint) error {
		gone = e
		if err := x.DropTokens(ctx, e.UID); err != nil {
			return err
		}
		var err error
		if left, err = x.DeploymentsOf(ctx, e.UID); err != nil {
			return err
		}
		for _, d := range left {
			if d.Deleting {
				continue
			}
			if err := h.s.markDeleting(ctx, x, d); err != nil {
				return err
			}
		}
		if len(left) == 0 {
			err = x.Delete(ctx, e.UID)
		} else {
			e.Deleting = true
			err = x.Update(ctx, e, h.s.cfg.Now())
		}
		if err != nil {
			return err
		}
		return call.Audit(ctx, tx, "endpoint", e.UID, "deployments", strconv.Itoa(len(left)))
	})
	if err != nil {
		return nil, err
	}
	for _, d := range left {
		h.s.keepers.Look(gone.Workspace, d.UID)
	}
	return &emptypb.Empty{}, nil
}
