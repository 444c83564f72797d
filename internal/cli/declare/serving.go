package declare

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

type modelSpec struct {
	Description *string            `yaml:"description,omitempty"`
	Tags        *map[string]string `yaml:"tags,omitempty"`
	Aliases     *map[string]int64  `yaml:"aliases,omitempty"`
}

type models struct{}

func (models) title() string   { return "Model" }
func (models) named() bool     { return true }
func (models) rank() int       { return 2 }
func (models) fixed() []string { return nil }
func (models) blank() any      { return &modelSpec{} }

func (models) full(ctx context.Context, s *session, name string, _ any) (string, error) {
	return s.inWorkspace(ctx, name, resource.KindModel)
}

func modelOf(m *inferencev1.Model) *modelSpec {
	return &modelSpec{ptr(m.GetDescription()), ptr(m.GetTags()), ptr(m.GetAliases())}
}

func (models) read(ctx context.Context, s *session, name string, _ any) (any, string, error) {
	m, err := s.c.Models().GetModel(ctx, &inferencev1.GetModelRequest{Name: name})
	if err != nil {
		return nil, "", err
	}
	return modelOf(m), m.GetEtag(), nil
}

func (k models) create(ctx context.Context, s *session, name string, spec any) error {
	m := spec.(*modelSpec)
	parent, id := split(name)
	_, err := s.c.Models().CreateModel(ctx, &inferencev1.CreateModelRequest{Parent: parent, ModelId: id, Description: val(m.Description), Tags: val(m.Tags)})
	if err != nil {
		return err
	}
	return k.alias(ctx, s, name, nil, val(m.Aliases))
}

func (k models) change(ctx context.Context, s *session, name, etag string, spec any, diffs []difference) error {
	m := spec.(*modelSpec)
	if own := slices.DeleteFunc(slices.Clone(diffs), func(d difference) bool { return d.Field == "aliases" }); len(own) > 0 {
		_, err := s.c.Models().UpdateModel(ctx, &inferencev1.UpdateModelRequest{
			Model: &inferencev1.ModelUpdate{Name: name, Description: val(m.Description), Tags: val(m.Tags), Etag: etag}, UpdateMask: mask(own),
		})
		if err != nil {
			return err
		}
	}
	if !set(diffs, "aliases") {
		return nil
	}
	is, err := s.c.Models().GetModel(ctx, &inferencev1.GetModelRequest{Name: name})
	if err != nil {
		return err
	}
	return k.alias(ctx, s, name, is.GetAliases(), val(m.Aliases))
}

// alias makes the aliases those that are wanted: first those that are to be, so that one that is moved names something all the time.
func (models) alias(ctx context.Context, s *session, name string, is, want map[string]int64) error {
	for _, a := range slices.Sorted(maps.Keys(want)) {
		if is[a] == want[a] {
			continue
		}
		if _, err := s.c.Models().SetModelAlias(ctx, &inferencev1.SetModelAliasRequest{Name: name, Alias: a, Version: want[a]}); err != nil {
			return err
		}
	}
	for _, a := range slices.Sorted(maps.Keys(is)) {
		if _, stays := want[a]; stays {
			continue
		}
		if _, err := s.c.Models().DeleteModelAlias(ctx, &inferencev1.DeleteModelAliasRequest{Name: name, Alias: a}); err != nil {
			return err
		}
	}
	return nil
}

func (models) list(ctx context.Context, s *session, each func(string, any) error) error {
	w, err := s.here(ctx)
	if err != nil {
		return err
	}
	var list []*inferencev1.Model
	_, err = app.Pages(0, func(token string, size int32) ([]*inferencev1.Model, string, error) {
		r, err := s.c.Models().ListModels(ctx, &inferencev1.ListModelsRequest{Parent: w, PageSize: size, PageToken: token})
		return r.GetModels(), r.GetNextPageToken(), err
	}, func(m *inferencev1.Model) { list = append(list, m) })
	return all(list, err, func(m *inferencev1.Model) error { return each(m.GetName(), modelOf(m)) })
}

type endpointSpec struct {
	Kind        *string            `yaml:"kind,omitempty"`
	Auth        *string            `yaml:"auth,omitempty"`
	Description *string            `yaml:"description,omitempty"`
	Tags        *map[string]string `yaml:"tags,omitempty"`
	TokenTTL    *duration          `yaml:"tokenTtl,omitempty"`
	Traffic     *map[string]int32  `yaml:"traffic,omitempty"`
	Mirror      *map[string]int32  `yaml:"mirror,omitempty"`
}

func (e *endpointSpec) check() error {
	if err := word("kind", e.Kind, "local", "container-instance"); err != nil {
		return err
	}
	return word("auth", e.Auth, "key", "token", "none")
}

// kindValue and authValue are the words as the contract has them.
func (e *endpointSpec) kindValue() inferencev1.Endpoint_Kind {
	return inferencev1.Endpoint_Kind(inferencev1.Endpoint_Kind_value["KIND_"+strings.ToUpper(strings.ReplaceAll(val(e.Kind), "-", "_"))])
}

func (e *endpointSpec) authValue() inferencev1.Endpoint_Auth {
	return inferencev1.Endpoint_Auth(inferencev1.Endpoint_Auth_value["AUTH_"+strings.ToUpper(val(e.Auth))])
}

type endpoints struct{}

func (endpoints) title() string   { return "Endpoint" }
func (endpoints) named() bool     { return true }
func (endpoints) rank() int       { return 3 }
func (endpoints) fixed() []string { return []string{"kind"} }
func (endpoints) blank() any      { return &endpointSpec{} }

func (endpoints) full(ctx context.Context, s *session, name string, _ any) (string, error) {
	return s.inWorkspace(ctx, name, resource.KindEndpoint)
}

func endpointOf(e *inferencev1.Endpoint) *endpointSpec {
	return &endpointSpec{
		ptr(strings.ReplaceAll(show.Enum(e.GetKind().String(), "KIND_"), " ", "-")), ptr(show.Enum(e.GetAuth().String(), "AUTH_")), ptr(e.GetDescription()), ptr(e.GetTags()),
		durationOf(e.GetTokenTtl()), ptr(e.GetTraffic()), ptr(e.GetMirror()),
	}
}

func (endpoints) read(ctx context.Context, s *session, name string, _ any) (any, string, error) {
	e, err := s.c.Endpoints().GetEndpoint(ctx, &inferencev1.GetEndpointRequest{Name: name})
	if err != nil {
		return nil, "", err
	}
	return endpointOf(e), e.GetEtag(), nil
}

// create leaves traffic and mirror for later: the deployments are not there yet.
func (endpoints) create(ctx context.Context, s *session, name string, spec any) error {
	e := spec.(*endpointSpec)
	parent, id := split(name)
	_, err := s.c.Endpoints().CreateEndpoint(ctx, &inferencev1.CreateEndpointRequest{Parent: parent, EndpointId: id, Endpoint: &inferencev1.NewEndpoint{
		Kind: e.kindValue(), Auth: e.authValue(), Description: val(e.Description), Tags: val(e.Tags), TokenTtl: e.TokenTTL.proto(),
	}})
	return err
}

func (endpoints) change(ctx context.Context, s *session, name, etag string, spec any, diffs []difference) error {
	own := slices.DeleteFunc(slices.Clone(diffs), func(d difference) bool { return routes(d.Field) })
	if len(own) == 0 {
		return nil
	}
	e := spec.(*endpointSpec)
	_, err := s.c.Endpoints().UpdateEndpoint(ctx, &inferencev1.UpdateEndpointRequest{
		Endpoint:   &inferencev1.EndpointUpdate{Name: name, Auth: e.authValue(), Description: val(e.Description), Tags: val(e.Tags), TokenTtl: e.TokenTTL.proto(), Etag: etag},
		UpdateMask: mask(own),
	})
	return err
}

// routes reports fields that name deployments.
func routes(field string) bool { return field == "traffic" || field == "mirror" }

// route makes traffic and mirror as they are to be, once deployments that were made just now answer. What was there before answers.
func (endpoints) route(ctx context.Context, s *session, name string, e *endpointSpec) ([]difference, error) {
	for _, id := range slices.Sorted(maps.Keys(val(e.Traffic))) {
		d := name + "/deployments/" + id
		if !s.made[d] || (*e.Traffic)[id] == 0 {
			continue
		}
		got, err := s.c.WaitDeployment(ctx, d, 0, func(d *inferencev1.Deployment) {
			s.Say("waiting for %s: %s", id, strings.TrimSpace(show.Enum(d.GetState().String(), "STATE_")+" "+show.Text(d.GetMessage())))
		})
		if err != nil {
			return nil, err
		}
		if got.GetState() != inferencev1.Deployment_STATE_READY {
			return nil, &app.Exit{Code: app.ExitRefused, Message: "the deployment " + d + " does not answer: " + show.Text(got.GetMessage()) +
				"\n  → the log of its host: redoubt deployment logs; then correct it, and apply again"}
		}
	}
	is, etag, err := endpoints{}.read(ctx, s, name, nil)
	if err != nil {
		return nil, err
	}
	diffs := compare(is, &endpointSpec{Traffic: e.Traffic, Mirror: e.Mirror})
	if len(diffs) == 0 {
		return nil, nil
	}
	_, err = s.c.Endpoints().UpdateEndpoint(ctx, &inferencev1.UpdateEndpointRequest{
		Endpoint: &inferencev1.EndpointUpdate{Name: name, Traffic: val(e.Traffic), Mirror: val(e.Mirror), Etag: etag}, UpdateMask: mask(diffs),
	})
	return diffs, err
}

func (endpoints) list(ctx context.Context, s *session, each func(string, any) error) error {
	list, err := listEndpoints(ctx, s)
	return all(list, err, func(e *inferencev1.Endpoint) error { return each(e.GetName(), endpointOf(e)) })
}

func listEndpoints(ctx context.Context, s *session) (list []*inferencev1.Endpoint, err error) {
	w, err := s.here(ctx)
	if err != nil {
		return nil, err
	}
	_, err = app.Pages(0, func(token string, size int32) ([]*inferencev1.Endpoint, string, error) {
		r, err := s.c.Endpoints().ListEndpoints(ctx, &inferencev1.ListEndpointsRequest{Parent: w, PageSize: size, PageToken: token})
		return r.GetEndpoints(), r.GetNextPageToken(), err
	}, func(e *inferencev1.Endpoint) { list = append(list, e) })
	return list, err
}

type deploymentSpec struct {
	Model          *string            `yaml:"model,omitempty"`
	Snapshot       *string            `yaml:"snapshot,omitempty"`
	EntryScript    *string            `yaml:"entryScript,omitempty"`
	Compute        *string            `yaml:"compute,omitempty"`
	Replicas       *int32             `yaml:"replicas,omitempty"`
	Workers        *int32             `yaml:"workers,omitempty"`
	Environment    *map[string]string `yaml:"environment,omitempty"`
	QueueLength    *int32             `yaml:"queueLength,omitempty"`
	MaxBodyBytes   *int64             `yaml:"maxBodyBytes,omitempty"`
	RequestTimeout *duration          `yaml:"requestTimeout,omitempty"`
	StartTimeout   *duration          `yaml:"startTimeout,omitempty"`
	MemoryBytes    *int64             `yaml:"memoryBytes,omitempty"`
}

type deployments struct{}

func (deployments) title() string   { return "Deployment" }
func (deployments) named() bool     { return true }
func (deployments) rank() int       { return 4 }
func (deployments) fixed() []string { return nil }
func (deployments) blank() any      { return &deploymentSpec{} }

func (deployments) full(ctx context.Context, s *session, name string, spec any) (string, error) {
	if parts := strings.Split(name, "/"); len(parts) == 2 { // ENDPOINT/DEPLOYMENT, as the commands take it
		name = "endpoints/" + parts[0] + "/deployments/" + parts[1]
	}
	full, err := s.inWorkspace(ctx, name, resource.KindDeployment)
	if err != nil {
		return "", err
	}
	d := spec.(*deploymentSpec)
	for _, ref := range []struct {
		p  **string
		of resource.Kind
	}{{&d.Model, resource.KindModelVersion}, {&d.Snapshot, resource.KindSnapshot}, {&d.Compute, resource.KindCompute}} {
		if *ref.p == nil {
			continue
		}
		to, err := below(full, **ref.p, ref.of)
		if err != nil {
			return "", err
		}
		*ref.p = &to
	}
	return full, nil
}

func deploymentOf(d *inferencev1.Deployment) *deploymentSpec {
	s := d.GetSpec()
	return &deploymentSpec{
		ptr(s.GetModel()), ptr(s.GetSnapshot()), ptr(s.GetEntryScript()), ptr(s.GetCompute()), ptr(s.GetReplicas()), ptr(s.GetWorkers()), ptr(s.GetEnvironment()),
		ptr(s.GetQueueLength()), ptr(s.GetMaxBodyBytes()), durationOf(s.GetRequestTimeout()), durationOf(s.GetStartTimeout()), ptr(s.GetMemoryBytes()),
	}
}

// into writes what a document names over a spec.
func (d *deploymentSpec) into(s *inferencev1.DeploymentSpec) {
	over(&s.Model, d.Model)
	over(&s.Snapshot, d.Snapshot)
	over(&s.EntryScript, d.EntryScript)
	over(&s.Compute, d.Compute)
	over(&s.Replicas, d.Replicas)
	over(&s.Workers, d.Workers)
	over(&s.Environment, d.Environment)
	over(&s.QueueLength, d.QueueLength)
	over(&s.MaxBodyBytes, d.MaxBodyBytes)
	over(&s.MemoryBytes, d.MemoryBytes)
	if d.RequestTimeout != nil {
		s.RequestTimeout = d.RequestTimeout.proto()
	}
	if d.StartTimeout != nil {
		s.StartTimeout = d.StartTimeout.proto()
	}
}

func over[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// read settles first which version an alias means now: a deployment has a number.
func (deployments) read(ctx context.Context, s *session, name string, want any) (any, string, error) {
	if w, ok := want.(*deploymentSpec); ok && w.Model != nil {
		parent, id := split(*w.Model)
		if _, err := strconv.ParseInt(id, 10, 64); err != nil {
			v, err := s.c.Models().GetModelVersion(ctx, &inferencev1.GetModelVersionRequest{Name: *w.Model})
			switch status.Code(err) { //nolint:exhaustive // the others are failures
			case codes.OK:
				w.Model = ptr(parent + "/versions/" + strconv.FormatInt(v.GetVersion(), 10))
			case codes.NotFound: // it stays as it is written: the installation refuses it, or a dry run shows it
			default:
				return nil, "", err
			}
		}
	}
	d, err := s.c.Endpoints().GetDeployment(ctx, &inferencev1.GetDeploymentRequest{Name: name})
	if err != nil {
		return nil, "", err
	}
	return deploymentOf(d), d.GetEtag(), nil
}

func (deployments) create(ctx context.Context, s *session, name string, spec any) error {
	out := &inferencev1.DeploymentSpec{}
	spec.(*deploymentSpec).into(out)
	parent, id := split(name)
	_, err := s.c.Endpoints().CreateDeployment(ctx, &inferencev1.CreateDeploymentRequest{Parent: parent, DeploymentId: id, Deployment: out})
	if err == nil {
		s.made[name] = true
	}
	return err
}

func (deployments) change(ctx context.Context, s *session, name, etag string, spec any, _ []difference) error {
	d, err := s.c.Endpoints().GetDeployment(ctx, &inferencev1.GetDeploymentRequest{Name: name})
	if err != nil {
		return err
	}
	out := proto.CloneOf(d.GetSpec())
	spec.(*deploymentSpec).into(out)
	_, err = s.c.Endpoints().UpdateDeployment(ctx, &inferencev1.UpdateDeploymentRequest{Name: name, Deployment: out, Etag: etag})
	return err
}

func (deployments) list(ctx context.Context, s *session, each func(string, any) error) error {
	es, err := listEndpoints(ctx, s)
	return all(es, err, func(e *inferencev1.Endpoint) error {
		var list []*inferencev1.Deployment
		_, err := app.Pages(0, func(token string, size int32) ([]*inferencev1.Deployment, string, error) {
			r, err := s.c.Endpoints().ListDeployments(ctx, &inferencev1.ListDeploymentsRequest{Parent: e.GetName(), PageSize: size, PageToken: token})
			return r.GetDeployments(), r.GetNextPageToken(), err
		}, func(d *inferencev1.Deployment) { list = append(list, d) })
		return all(list, err, func(d *inferencev1.Deployment) error { return each(d.GetName(), deploymentOf(d)) })
	})
}
