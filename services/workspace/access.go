package workspace

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store"
)

// ListRoleDefinitions implements AccessService.
func (s *Service) ListRoleDefinitions(context.Context, *workspacev1.ListRoleDefinitionsRequest) (*workspacev1.ListRoleDefinitionsResponse, error) {
	return &workspacev1.ListRoleDefinitionsResponse{RoleDefinitions: authz.BuiltinRoles()}, nil
}

// place finds where a role can be assigned: the uid of the scope, "" for the installation.
func place(call *rpc.Call) (string, error) {
	switch call.Scope.Name.Kind() {
	case resource.KindRoot:
		return "", nil
	case resource.KindSubscription, resource.KindResourceGroup, resource.KindWorkspace:
		return call.Scope.UID, nil
	}
	const wrong = `is neither "/" nor a subscription, resource group or workspace`
	return "", fault.InvalidArgument("roles are assigned at the installation, a subscription, a resource group or a workspace; the scope %s", wrong).Field("scope", wrong)
}

// principal finds whom a uid or a name stands for.
func (s *Service) principal(ctx context.Context, who string) (*identityv1.Principal, error) {
	req := &identityv1.ResolvePrincipalsRequest{}
	if resource.IsUID(who) {
		req.Uids = []string{who}
	} else if _, err := resource.ParseField("principal", who); err != nil {
		return nil, fault.InvalidArgument("principal is neither a uid nor a name as users/{user}, groups/{group} or servicePrincipals/{id}").Field("principal", "is neither a uid nor the name of a principal")
	} else {
		req.Names = []string{who}
	}
	found, err := s.cfg.Identity.ResolvePrincipals(ctx, req)
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	for _, p := range found.GetPrincipals() {
		if p.GetUid() != "" && (p.GetUid() == who || p.GetName() == who) {
			return p, nil
		}
	}
	return nil, fault.InvalidArgument("the principal does not exist").Field("principal", "does not exist")
}

// CreateRoleAssignment implements AccessService.
func (s *Service) CreateRoleAssignment(ctx context.Context, req *workspacev1.CreateRoleAssignmentRequest) (*workspacev1.RoleAssignment, error) {
	call := rpc.From(ctx)
	scope, err := place(call)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(authz.BuiltinRoles(), func(r *workspacev1.RoleDefinition) bool { return r.GetName() == req.GetRole() }) {
		return nil, fault.InvalidArgument("there is no role %q; ListRoleDefinitions shows those that there are", req.GetRole()).Field("role", "does not exist")
	}
	who, err := s.principal(ctx, req.GetPrincipal())
	if err != nil {
		return nil, err
	}
	var out store.Assignment
	err = s.give(ctx, func(ctx context.Context, t *store.Tx) error {
		if err := parent(ctx, t, scope, req.GetScope()); err != nil {
			return err
		}
		var added bool
		if out, added, err = t.Assign(ctx, scope, req.GetRole(), who.GetUid(), call.Principal); err != nil {
			return err
		}
		if !added {
			return fault.AlreadyExists("the principal has this role at this scope already")
		}
		return call.Audit(ctx, t.Raw(), "assignment", out.UID, "role", out.Role, "principal", out.Principal)
	})
	if err != nil {
		return nil, err
	}
	return roleAssignment(out, req.GetScope(), who.GetName()), nil
}

// ListRoleAssignments implements AccessService.
func (s *Service) ListRoleAssignments(ctx context.Context, req *workspacev1.ListRoleAssignmentsRequest) (*workspacev1.ListRoleAssignmentsResponse, error) {
	call := rpc.From(ctx)
	scope, err := place(call)
	if err != nil {
		return nil, err
	}
	uids, query := []string{scope}, "assignments at "+scope
	names := map[string]string{"": resource.Root, scope: req.GetScope()}
	if req.GetInherited() {
		uids, query = []string{""}, "assignments reaching "+scope
		for kind, uid := range map[resource.Kind]string{
			resource.KindSubscription: call.Scope.SubscriptionUID, resource.KindResourceGroup: call.Scope.ResourceGroupUID, resource.KindWorkspace: call.Scope.WorkspaceUID,
		} {
			if above, ok := call.Scope.Name.Ancestor(kind); ok && uid != "" {
				uids, names[uid] = append(uids, uid), above.String()
			}
		}
	}
	p, err := s.page(ctx, query, req.GetPageToken(), req.GetPageSize())
	if err != nil {
		return nil, err
	}
	var rows []store.Assignment
	var token string
	err = s.store.Read(ctx, func(ctx context.Context, t *store.Tx) error {
		rows, token, err = fill(p, func(after store.Cursor, limit int) ([]store.Assignment, error) {
			return t.ListAssignments(ctx, uids, after, limit)
		}, func(store.Assignment) (bool, error) { return true, nil })
		return err
	})
	if err != nil {
		return nil, err
	}
	who := s.principalNames(ctx, rows)
	out := &workspacev1.ListRoleAssignmentsResponse{NextPageToken: token}
	for _, a := range rows {
		out.RoleAssignments = append(out.RoleAssignments, roleAssignment(a, names[a.ScopeUID], who[a.Principal]))
	}
	return out, nil
}

// principalNames finds the names of principals. They only help to read: where identity does not answer, the uids stand alone.
func (s *Service) principalNames(ctx context.Context, rows []store.Assignment) map[string]string {
	req := &identityv1.ResolvePrincipalsRequest{}
	for _, a := range rows {
		if !slices.Contains(req.Uids, a.Principal) {
			req.Uids = append(req.Uids, a.Principal)
		}
	}
	names := make(map[string]string, len(req.Uids))
	if len(req.Uids) == 0 {
		return names
	}
	found, err := s.cfg.Identity.ResolvePrincipals(ctx, req)
	if err != nil {
		s.cfg.Logger.WarnContext(ctx, "the names of principals are not known", "error", err)
	}
	for _, p := range found.GetPrincipals() {
		names[p.GetUid()] = p.GetName()
	}
	return names
}

// DeleteRoleAssignment implements AccessService.
func (s *Service) DeleteRoleAssignment(ctx context.Context, req *workspacev1.DeleteRoleAssignmentRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	scope, err := place(call)
	if err != nil {
		return nil, err
	}
	kept, err := s.keepAdministrator(ctx, scope, req.GetUid())
	if err != nil {
		return nil, err
	}
	err = s.grant(ctx, func(ctx context.Context, t *store.Tx) error {
		a, err := t.GetAssignment(ctx, req.GetUid())
		if fault.Is(err, codes.NotFound) || err == nil && a.ScopeUID != scope {
			return fault.NotFound("there is no such role assignment at %s", req.GetScope())
		}
		if err != nil {
			return err
		}
		if scope == "" && a.Role == authz.Owner {
			// Between then and now another's may have gone.
			owners, err := ownersBut(ctx, t, a.UID)
			if err != nil {
				return err
			}
			if !slices.Contains(owners, kept) {
				return fault.Aborted("the administrators were changed meanwhile; repeat it")
			}
		}
		if err := t.RemoveAssignment(ctx, a); err != nil {
			return err
		}
		return call.Audit(ctx, t.Raw(), "assignment", a.UID, "role", a.Role, "principal", a.Principal)
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// ownersBut are those to whom the installation is given by other assignments than one.
func ownersBut(ctx context.Context, t *store.Tx, assignment string) ([]string, error) {
	there, err := t.AssignmentsAt(ctx, "")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, a := range there {
		if a.Role == authz.Owner && a.UID != assignment {
			out = append(out, a.Principal)
		}
	}
	return out, nil
}

// keepAdministrator asks identity, before an Owner of the installation is taken away, to keep one that is left. It returns to whom the
// assignment is made that reaches him. For any other assignment there is nothing to ask.
func (s *Service) keepAdministrator(ctx context.Context, scope, assignment string) (string, error) {
	if scope != "" {
		return "", nil
	}
	var owners []string
	err := s.store.Read(ctx, func(ctx context.Context, t *store.Tx) error {
		a, err := t.GetAssignment(ctx, assignment)
		if fault.Is(err, codes.NotFound) || err == nil && a.Role != authz.Owner {
			return nil // what is to be said of it is said later
		}
		if err == nil {
			owners, err = ownersBut(ctx, t, assignment)
		}
		if err == nil && len(owners) == 0 {
			return fault.New(codes.FailedPrecondition, faultv1.Reason_AUTHZ_LAST_OWNER, "this is the last Owner of the installation, without whom nobody could give access; make another one first")
		}
		return err
	})
	if err != nil || len(owners) == 0 {
		return "", err
	}
	kept, err := s.cfg.Identity.KeepAdministrator(ctx, &identityv1.KeepAdministratorRequest{PrincipalUids: owners})
	if err != nil {
		return "", fault.FromStatus(err)
	}
	return kept.GetPrincipalUid(), nil
}

// Explain implements AccessService: for the caller himself.
func (s *Service) Explain(ctx context.Context, req *workspacev1.ExplainRequest) (*workspacev1.ExplainResponse, error) {
	call := rpc.From(ctx)
	name, err := resource.ParseField("scope", req.GetScope())
	if err != nil {
		return nil, err
	}
	scope, ok := s.cfg.Engine.Resolve(name)
	if !ok {
		return nil, rpc.NotFound(req.GetScope())
	}
	x := s.cfg.Engine.Explain(authz.Query{Principal: call.Principal, Action: req.GetAction(), Data: req.GetData(), Scope: scope, Consumer: call.Claims.HomeClass == authn.Consumer})
	if !x.Allowed && !x.MayKnow {
		return nil, rpc.NotFound(req.GetScope())
	}
	out := &workspacev1.ExplainResponse{Allowed: x.Allowed, Explanation: x.Text}
	err = s.store.Read(ctx, func(ctx context.Context, t *store.Tx) error {
		for _, g := range x.Grants {
			a, err := t.GetAssignment(ctx, g.Assignment)
			if fault.Is(err, codes.NotFound) {
				continue // gone since
			}
			if err != nil {
				return err
			}
			out.Assignments = append(out.Assignments, roleAssignment(a, g.ScopeName, ""))
		}
		return nil
	})
	return out, err
}

func roleAssignment(a store.Assignment, scope, principalName string) *workspacev1.RoleAssignment {
	return &workspacev1.RoleAssignment{
		Uid: a.UID, Scope: scope, Role: a.Role, Principal: a.Principal, PrincipalName: principalName,
		CreateTime: timestamppb.New(a.Created), CreatedBy: a.CreatedBy,
	}
}
