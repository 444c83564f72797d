package workspace

import (
	"context"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store"
)

// CreateWorkspace implements ResourceService: the workspace with all of its parts, or nothing (H1).
func (s *Service) CreateWorkspace(ctx context.Context, req *workspacev1.CreateWorkspaceRequest) (*workspacev1.Workspace, error) {
	if err := resource.ValidIDField("workspace_id", req.GetWorkspaceId()); err != nil {
		return nil, err
	}
	plain := proto.CloneOf(req)
	plain.RequestId = ""
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(plain)
	if err != nil {
		return nil, fault.Internal(err, "the request could not be encoded")
	}
	call := rpc.From(ctx)
	in := creation{
		scope: store.Scope{
			UID: resource.NewUID(workspaceUID), Kind: store.Workspace, ParentUID: call.Scope.UID, ID: req.GetWorkspaceId(), State: store.Creating, CreatedBy: call.Principal,
		},
		body:   store.Body{DisplayName: req.GetDisplayName(), Description: req.GetDescription(), Tags: req.GetTags()},
		parent: req.GetParent(), requestID: req.GetRequestId(), content: string(content),
		// Who may give roles in the whole group needs no role of his own in the workspace.
		ownerAbove: call.May("authorization/roleAssignments/write", false, call.Scope.Name),
	}
	sc, err := s.create(ctx, in)
	if err != nil {
		return nil, err
	}
	return s.workspace(ctx, req.GetParent()+"/"+string(store.Workspace)+"/"+sc.ID, sc)
}

// replay answers a request_id that was seen before.
func (s *Service) replay(ctx context.Context, t *store.Tx, uid string, same bool) (store.Scope, error) {
	if !same {
		return store.Scope{}, fault.New(codes.InvalidArgument, faultv1.Reason_REQUEST_ID_REUSED, "this request_id was used for another request; make a new one").Field("request_id", "was used for another request")
	}
	sc, err := t.GetScope(ctx, uid)
	switch {
	case fault.Is(err, codes.NotFound):
		return sc, fault.FailedPrecondition("the workspace that this request_id made has been deleted since; make a new request_id to make it again")
	case err != nil:
		return sc, err
	case sc.State == store.Creating:
		return sc, fault.Aborted("the same request is still being carried out; repeat it in a moment").Retry(time.Second)
	case sc.State != store.Active:
		return sc, fault.Aborted("what the same request made is being removed; repeat it in a moment").Retry(time.Second)
	}
	return sc, nil
}

// GetWorkspace implements ResourceService.
func (s *Service) GetWorkspace(ctx context.Context, req *workspacev1.GetWorkspaceRequest) (*workspacev1.Workspace, error) {
	sc, err := s.scope(ctx, rpc.From(ctx).Scope.UID, req.GetName())
	if err != nil {
		return nil, err
	}
	return s.workspace(ctx, req.GetName(), sc)
}

// scope finds the row of a scope that the chain has found by name.
func (s *Service) scope(ctx context.Context, uid, name string) (sc store.Scope, err error) {
	err = s.store.Read(ctx, func(ctx context.Context, t *store.Tx) error {
		sc, err = t.GetScope(ctx, uid)
		return err
	})
	if fault.Is(err, codes.NotFound) {
		return sc, rpc.NotFound(name)
	}
	return sc, err
}

// ListWorkspaces implements ResourceService: those that the caller may read.
func (s *Service) ListWorkspaces(ctx context.Context, req *workspacev1.ListWorkspacesRequest) (*workspacev1.ListWorkspacesResponse, error) {
	call := rpc.From(ctx)
	var at resource.Name
	if req.GetParent() != "" && req.GetParent() != resource.Root {
		var err error
		if at, err = resource.ParseField("parent", req.GetParent()); err != nil {
			return nil, err
		}
		if k := at.Kind(); k != resource.KindSubscription && k != resource.KindResourceGroup {
			return nil, fault.InvalidArgument("parent is neither a subscription nor a resource group; leave it out for all workspaces").Field("parent", "is neither a subscription nor a resource group")
		}
	}
	p, err := s.page(ctx, "workspaces in "+at.String()+" of "+call.Principal, req.GetPageToken(), req.GetPageSize())
	if err != nil {
		return nil, err
	}
	var rows []store.Scope
	var token string
	names := make(map[string]string)
	err = s.store.Read(ctx, func(ctx context.Context, t *store.Tx) error {
		above, err := s.listed(ctx, t, call, at)
		if err != nil {
			return err
		}
		rows, token, err = fill(p, func(after store.Cursor, limit int) ([]store.Scope, error) {
			return t.List(ctx, store.Workspace, above, after, limit)
		}, func(sc store.Scope) (bool, error) {
			name, err := t.Path(ctx, sc)
			if err != nil {
				return false, err
			}
			parsed, err := resource.Parse(name)
			if err != nil {
				return false, err
			}
			names[sc.UID] = name
			return call.May("workspace/workspaces/read", false, parsed), nil
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &workspacev1.ListWorkspacesResponse{NextPageToken: token}
	for _, sc := range rows {
		w, err := s.workspace(ctx, names[sc.UID], sc)
		if fault.Is(err, codes.NotFound) {
			continue // removed since it was read
		}
		if err != nil {
			return nil, err
		}
		out.Workspaces = append(out.Workspaces, w)
	}
	return out, nil
}

// listed finds the scope whose workspaces are asked for: nil for all. Where the caller may see nothing, it does not exist.
func (s *Service) listed(ctx context.Context, t *store.Tx, call *rpc.Call, at resource.Name) (*store.Scope, error) {
	if at.IsZero() {
		return nil, nil //nolint:nilnil // nil is the whole tree
	}
	seen := visible{call: call, tree: t.Tree}
	ok, err := seen.any(ctx, at.String())
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, rpc.NotFound(at.String())
	}
	sub, _ := at.Ancestor(resource.KindSubscription)
	sc, err := t.FindScope(ctx, store.Subscription, "", sub.ID())
	if err == nil && at.Kind() == resource.KindResourceGroup {
		sc, err = t.FindScope(ctx, store.ResourceGroup, sc.UID, at.ID())
	}
	if fault.Is(err, codes.NotFound) {
		return nil, rpc.NotFound(at.String())
	}
	return &sc, err
}

// UpdateWorkspace implements ResourceService.
func (s *Service) UpdateWorkspace(ctx context.Context, req *workspacev1.UpdateWorkspaceRequest) (*workspacev1.Workspace, error) {
	call, in := rpc.From(ctx), req.GetWorkspace()
	changed := func() error {
		return fault.New(codes.Aborted, faultv1.Reason_ETAG_MISMATCH, "the workspace has changed since it was read; read it again").With("resource", in.GetName())
	}
	sc, err := s.scope(ctx, call.Scope.UID, in.GetName())
	if err != nil {
		return nil, err
	}
	if in.GetEtag() != "" && in.GetEtag() != etag(sc) {
		return nil, changed()
	}
	b, err := s.body(ctx, in.GetName(), sc)
	if err != nil {
		return nil, err
	}
	if err := overwrite(&b, req); err != nil {
		return nil, err
	}
	sealed, err := s.store.SealBody(ctx, sc.Kind, sc.UID, b)
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, func(ctx context.Context, t *store.Tx) error {
		switch ok, err := t.SetBody(ctx, sc, sealed); {
		case err != nil:
			return err
		case !ok:
			return changed()
		}
		return call.Audit(ctx, t.Raw())
	})
	if err != nil {
		return nil, err
	}
	if sc, err = s.scope(ctx, call.Scope.UID, in.GetName()); err != nil {
		return nil, err
	}
	return s.workspace(ctx, in.GetName(), sc)
}

// overwrite makes the changes that the mask names, or without one those that are set.
func overwrite(b *store.Body, req *workspacev1.UpdateWorkspaceRequest) error {
	in, paths := req.GetWorkspace(), req.GetUpdateMask().GetPaths()
	all := len(paths) == 0
	if all {
		paths = []string{"display_name", "description", "tags"}
	}
	for _, p := range paths {
		switch p {
		case "display_name":
			if !all || in.GetDisplayName() != "" {
				b.DisplayName = in.GetDisplayName()
			}
		case "description":
			if !all || in.GetDescription() != "" {
				b.Description = in.GetDescription()
			}
		case "tags":
			if !all || len(in.GetTags()) > 0 {
				b.Tags = in.GetTags()
			}
		default:
			return fault.InvalidArgument("a workspace has display_name, description and tags to change").Field("update_mask", "names what cannot be changed")
		}
	}
	return nil
}

// DeleteWorkspace implements ResourceService. While it goes on, or after it was broken off, it can be called again.
func (s *Service) DeleteWorkspace(ctx context.Context, req *workspacev1.DeleteWorkspaceRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	sc, err := s.scope(ctx, call.Scope.UID, req.GetName())
	if err != nil {
		return nil, err
	}
	if req.GetEtag() != "" && req.GetEtag() != etag(sc) {
		return nil, fault.New(codes.Aborted, faultv1.Reason_ETAG_MISMATCH, "the workspace has changed since it was read; read it again").With("resource", req.GetName())
	}
	if err := s.deleteWorkspace(ctx, sc); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func etag(sc store.Scope) string {
	return sc.UID[len(sc.UID)-8:] + "-" + strconv.FormatInt(sc.Revision, 10)
}

var states = map[store.State]workspacev1.Workspace_State{
	store.Creating: workspacev1.Workspace_STATE_CREATING, store.Active: workspacev1.Workspace_STATE_ACTIVE,
	store.Deleting: workspacev1.Workspace_STATE_DELETING, store.Abandoned: workspacev1.Workspace_STATE_DELETING,
}

// body opens what the tenant wrote of a workspace. Its key is destroyed in the transaction that removes the workspace, so a row that was read
// before and cannot be opened any more is one that is not there.
func (s *Service) body(ctx context.Context, name string, sc store.Scope) (store.Body, error) {
	b, err := s.store.Body(ctx, sc)
	if fault.ReasonOf(err) == faultv1.Reason_KEY_DISABLED {
		return b, rpc.NotFound(name)
	}
	return b, err
}

// workspace opens what the tenant wrote.
func (s *Service) workspace(ctx context.Context, name string, sc store.Scope) (*workspacev1.Workspace, error) {
	b, err := s.body(ctx, name, sc)
	if err != nil {
		return nil, err
	}
	return &workspacev1.Workspace{
		Name: name, Uid: sc.UID, DisplayName: b.DisplayName, Description: b.Description, State: states[sc.State], ManagedIdentity: sc.ManagedIdentity,
		CreateTime: timestamppb.New(sc.Created), UpdateTime: timestamppb.New(sc.Updated), Etag: etag(sc), Tags: b.Tags,
	}, nil
}
