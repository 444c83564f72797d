package declare

import (
	"context"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

type workspaceSpec struct {
	DisplayName *string            `yaml:"displayName,omitempty"`
	Description *string            `yaml:"description,omitempty"`
	Tags        *map[string]string `yaml:"tags,omitempty"`
}

type workspaces struct{}

func (workspaces) title() string   { return "Workspace" }
func (workspaces) named() bool     { return true }
func (workspaces) rank() int       { return 0 }
func (workspaces) fixed() []string { return nil }
func (workspaces) blank() any      { return &workspaceSpec{} }

// full takes a bare id as one of the chosen resource group: the workspace may not be there yet.
func (workspaces) full(_ context.Context, s *session, name string, _ any) (string, error) {
	if !strings.Contains(name, "/") {
		g, err := s.GroupName(s.c)
		if err != nil {
			return "", err
		}
		name = g + "/" + resource.KindWorkspace.Collection() + "/" + name
	}
	return checked(name, resource.KindWorkspace)
}

func workspaceOf(w *workspacev1.Workspace) *workspaceSpec {
	return &workspaceSpec{ptr(w.GetDisplayName()), ptr(w.GetDescription()), ptr(w.GetTags())}
}

func (workspaces) read(ctx context.Context, s *session, name string, _ any) (any, string, error) {
	w, err := s.c.Resources().GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: name})
	if err != nil {
		return nil, "", err
	}
	return workspaceOf(w), w.GetEtag(), nil
}

func (workspaces) create(ctx context.Context, s *session, name string, spec any) error {
	w := spec.(*workspaceSpec)
	parent, id := split(name)
	_, err := s.c.Resources().CreateWorkspace(ctx, &workspacev1.CreateWorkspaceRequest{
		Parent: parent, WorkspaceId: id, DisplayName: val(w.DisplayName), Description: val(w.Description), Tags: val(w.Tags), RequestId: uuid.NewString(),
	})
	return err
}

func (workspaces) change(ctx context.Context, s *session, name, etag string, spec any, diffs []difference) error {
	w := spec.(*workspaceSpec)
	_, err := s.c.Resources().UpdateWorkspace(ctx, &workspacev1.UpdateWorkspaceRequest{
		Workspace:  &workspacev1.WorkspaceUpdate{Name: name, DisplayName: val(w.DisplayName), Description: val(w.Description), Tags: val(w.Tags), Etag: etag},
		UpdateMask: mask(diffs),
	})
	return err
}

func (workspaces) list(ctx context.Context, s *session, each func(string, any) error) error {
	var list []*workspacev1.Workspace
	_, err := app.Pages(0, func(token string, size int32) ([]*workspacev1.Workspace, string, error) {
		r, err := s.c.Resources().ListWorkspaces(ctx, &workspacev1.ListWorkspacesRequest{PageSize: size, PageToken: token})
		return r.GetWorkspaces(), r.GetNextPageToken(), err
	}, func(w *workspacev1.Workspace) { list = append(list, w) })
	return all(list, err, func(w *workspacev1.Workspace) error { return each(w.GetName(), workspaceOf(w)) })
}

type computeSpec struct {
	Kind    *string `yaml:"kind,omitempty"`
	MaxRuns *int32  `yaml:"maxRuns,omitempty"`
}

func (c *computeSpec) check() error { return word("kind", c.Kind, "local", "self-hosted") }

type computes struct{}

func (computes) title() string   { return "Compute" }
func (computes) named() bool     { return true }
func (computes) rank() int       { return 1 }
func (computes) fixed() []string { return []string{"kind", "maxRuns"} }
func (computes) blank() any      { return &computeSpec{} }

func (computes) full(ctx context.Context, s *session, name string, _ any) (string, error) {
	return s.inWorkspace(ctx, name, resource.KindCompute)
}

func computeOf(c *computev1.Compute) *computeSpec {
	kind := "local"
	if c.GetKind() == computev1.Compute_KIND_SELF_HOSTED {
		kind = "self-hosted"
	}
	return &computeSpec{&kind, ptr(c.GetMaxRuns())}
}

func (computes) read(ctx context.Context, s *session, name string, _ any) (any, string, error) {
	c, err := s.c.Computes().GetCompute(ctx, &computev1.GetComputeRequest{Name: name})
	if err != nil {
		return nil, "", err
	}
	return computeOf(c), "", nil
}

func (computes) create(ctx context.Context, s *session, name string, spec any) error {
	c := spec.(*computeSpec)
	parent, id := split(name)
	req := &computev1.CreateComputeRequest{Parent: parent, ComputeId: id, Kind: computev1.Compute_KIND_LOCAL, MaxRuns: val(c.MaxRuns)}
	if val(c.Kind) == "self-hosted" {
		req.Kind = computev1.Compute_KIND_SELF_HOSTED
	}
	_, err := s.c.Computes().CreateCompute(ctx, req)
	return err
}

func (computes) change(_ context.Context, _ *session, name, _ string, _ any, _ []difference) error {
	return fault.Internal(nil, "nothing of %s can be changed", name)
}

func (computes) list(ctx context.Context, s *session, each func(string, any) error) error {
	w, err := s.here(ctx)
	if err != nil {
		return err
	}
	var list []*computev1.Compute
	_, err = app.Pages(0, func(token string, size int32) ([]*computev1.Compute, string, error) {
		r, err := s.c.Computes().ListComputes(ctx, &computev1.ListComputesRequest{Parent: w, PageSize: size, PageToken: token})
		return r.GetComputes(), r.GetNextPageToken(), err
	}, func(c *computev1.Compute) { list = append(list, c) })
	return all(list, err, func(c *computev1.Compute) error { return each(c.GetName(), computeOf(c)) })
}

type assignmentSpec struct {
	Scope     *string `yaml:"scope,omitempty"`
	Role      *string `yaml:"role,omitempty"`
	Principal *string `yaml:"principal,omitempty"`
}

func (a *assignmentSpec) check() error {
	if val(a.Scope) == "" || val(a.Role) == "" || val(a.Principal) == "" {
		return app.Usagef("an assignment has scope, role and principal")
	}
	return nil
}

// assignments are known by what they say: there is nothing about one that could be changed.
type assignments struct{}

func (assignments) title() string   { return "RoleAssignment" }
func (assignments) named() bool     { return false }
func (assignments) rank() int       { return 6 }
func (assignments) fixed() []string { return nil }
func (assignments) blank() any      { return &assignmentSpec{} }

func (assignments) full(ctx context.Context, s *session, _ string, spec any) (string, error) {
	a := spec.(*assignmentSpec)
	scope := val(a.Scope)
	if scope != resource.Root && !strings.HasPrefix(scope, "subscriptions/") {
		w, err := s.here(ctx)
		if err != nil {
			return "", err
		}
		scope = w + "/" + scope
	}
	if _, err := resource.Parse(scope); err != nil {
		return "", err
	}
	role := val(a.Role)
	if !strings.Contains(role, "/") {
		role = "roleDefinitions/" + strings.ToLower(role)
	}
	a.Scope, a.Role, a.Principal = &scope, &role, ptr(app.Principal(val(a.Principal)))
	return scope + ": " + role + " for " + *a.Principal, nil
}

func assignmentOf(r *workspacev1.RoleAssignment) *assignmentSpec {
	who := r.GetPrincipalName()
	if who == "" {
		who = r.GetPrincipal()
	}
	return &assignmentSpec{ptr(r.GetScope()), ptr(r.GetRole()), &who}
}

func (assignments) at(ctx context.Context, s *session, scope string) (list []*workspacev1.RoleAssignment, err error) {
	_, err = app.Pages(0, func(token string, size int32) ([]*workspacev1.RoleAssignment, string, error) {
		r, err := s.c.Access().ListRoleAssignments(ctx, &workspacev1.ListRoleAssignmentsRequest{Scope: scope, PageSize: size, PageToken: token})
		return r.GetRoleAssignments(), r.GetNextPageToken(), err
	}, func(r *workspacev1.RoleAssignment) { list = append(list, r) })
	return list, err
}

func (k assignments) read(ctx context.Context, s *session, name string, want any) (any, string, error) {
	a := want.(*assignmentSpec)
	list, err := k.at(ctx, s, *a.Scope)
	if err != nil {
		return nil, "", err
	}
	for _, r := range list {
		if r.GetScope() == *a.Scope && r.GetRole() == *a.Role && (r.GetPrincipal() == *a.Principal || r.GetPrincipalName() == *a.Principal) {
			return &assignmentSpec{a.Scope, a.Role, a.Principal}, "", nil
		}
	}
	return nil, "", fault.NotFound("%s is not given", name)
}

func (assignments) create(ctx context.Context, s *session, _ string, spec any) error {
	a := spec.(*assignmentSpec)
	_, err := s.c.Access().CreateRoleAssignment(ctx, &workspacev1.CreateRoleAssignmentRequest{Scope: *a.Scope, Role: *a.Role, Principal: *a.Principal})
	return err
}

func (assignments) change(_ context.Context, _ *session, name, _ string, _ any, _ []difference) error {
	return fault.Internal(nil, "nothing of %s can be changed", name)
}

func (k assignments) list(ctx context.Context, s *session, each func(string, any) error) error {
	scope, err := s.Scope(ctx, s.c, "")
	if err != nil {
		return err
	}
	list, err := k.at(ctx, s, scope)
	return all(list, err, func(r *workspacev1.RoleAssignment) error { return each("", assignmentOf(r)) })
}

// mask names the fields that differ, as the contracts call them.
func mask(diffs []difference) *fieldmaskpb.FieldMask {
	m := &fieldmaskpb.FieldMask{}
	for _, d := range diffs {
		var b strings.Builder
		for _, r := range d.Field {
			if r >= 'A' && r <= 'Z' {
				b.WriteByte('_')
				r += 'a' - 'A'
			}
			b.WriteRune(r)
		}
		m.Paths = append(m.Paths, b.String())
	}
	return m
}

// all gives each of a list that was read whole.
func all[T any](list []T, err error, each func(T) error) error {
	if err != nil {
		return err
	}
	for _, x := range list {
		if err := each(x); err != nil {
			return err
		}
	}
	return nil
}
