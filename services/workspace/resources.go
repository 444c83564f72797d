package workspace

import (
	"context"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store"
)

// The prefixes of uids.
const (
	subscriptionUID = "sub"
	groupUID        = "rgp"
	workspaceUID    = "ws"
)

// CreateSubscription implements ResourceService.
func (s *Service) CreateSubscription(ctx context.Context, req *workspacev1.CreateSubscriptionRequest) (*workspacev1.Subscription, error) {
	if err := resource.ValidIDField("subscription_id", req.GetSubscriptionId()); err != nil {
		return nil, err
	}
	sc := store.Scope{UID: resource.NewUID(subscriptionUID), Kind: store.Subscription, ID: req.GetSubscriptionId()}
	body := store.Body{DisplayName: req.GetDisplayName(), Region: req.GetRegion()}
	sc, err := s.addFolder(ctx, sc, body)
	if err != nil {
		return nil, err
	}
	return subscription(sc, body), nil
}

// CreateResourceGroup implements ResourceService.
func (s *Service) CreateResourceGroup(ctx context.Context, req *workspacev1.CreateResourceGroupRequest) (*workspacev1.ResourceGroup, error) {
	if err := resource.ValidIDField("resource_group_id", req.GetResourceGroupId()); err != nil {
		return nil, err
	}
	sc := store.Scope{UID: resource.NewUID(groupUID), Kind: store.ResourceGroup, ParentUID: rpc.From(ctx).Scope.UID, ID: req.GetResourceGroupId()}
	body := store.Body{DisplayName: req.GetDisplayName()}
	sc, err := s.addFolder(ctx, sc, body)
	if err != nil {
		return nil, err
	}
	return group(req.GetParent(), sc, body), nil
}

// addFolder makes a subscription or a resource group.
func (s *Service) addFolder(ctx context.Context, sc store.Scope, body store.Body) (store.Scope, error) {
	call := rpc.From(ctx)
	sc.State, sc.CreatedBy = store.Active, call.Principal
	sealed, err := s.store.SealBody(ctx, sc.Kind, sc.UID, body)
	if err != nil {
		return store.Scope{}, err
	}
	err = s.change(ctx, func(ctx context.Context, t *store.Tx) error {
		if err := parent(ctx, t, sc.ParentUID, call.Scope.Name.String()); err != nil {
			return err
		}
		added, err := t.AddScope(ctx, sc, sealed)
		if err != nil {
			return err
		}
		if !added {
			return exists(sc.ID)
		}
		if sc, err = t.GetScope(ctx, sc.UID); err != nil {
			return err
		}
		return call.Audit(ctx, t.Raw(), "id", sc.ID, "uid", sc.UID)
	})
	return sc, err
}

// parent refuses to make something in what is gone since the chain looked.
func parent(ctx context.Context, t *store.Tx, uid, name string) error {
	if uid == "" {
		return nil
	}
	above, err := t.GetScope(ctx, uid)
	if fault.Is(err, codes.NotFound) || err == nil && above.State != store.Active {
		return rpc.NotFound(name)
	}
	return err
}

func exists(id string) error {
	return fault.AlreadyExists("%q exists there already; choose another id", id).With("id", id)
}

// ListSubscriptions implements ResourceService: those in which the caller may see anything.
func (s *Service) ListSubscriptions(ctx context.Context, req *workspacev1.ListSubscriptionsRequest) (*workspacev1.ListSubscriptionsResponse, error) {
	call := rpc.From(ctx)
	p, err := s.page(ctx, "subscriptions of "+call.Principal, req.GetPageToken(), req.GetPageSize())
	if err != nil {
		return nil, err
	}
	var rows []store.Scope
	var token string
	err = s.store.Read(ctx, func(ctx context.Context, t *store.Tx) error {
		seen := visible{call: call, tree: t.Tree}
		rows, token, err = fill(p, func(after store.Cursor, limit int) ([]store.Scope, error) {
			return t.List(ctx, store.Subscription, nil, after, limit)
		}, func(sc store.Scope) (bool, error) { return seen.any(ctx, string(sc.Kind)+"/"+sc.ID) })
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &workspacev1.ListSubscriptionsResponse{NextPageToken: token}
	for _, sc := range rows {
		body, err := s.store.Body(ctx, sc)
		if err != nil {
			return nil, err
		}
		out.Subscriptions = append(out.Subscriptions, subscription(sc, body))
	}
	return out, nil
}

// visible says in which subscriptions and groups the caller may see anything: where he may see the node itself, or one below it.
type visible struct {
	call  *rpc.Call
	tree  func(context.Context) ([]store.Node, error)
	nodes []store.Node // once it was asked for
}

// seeing is the action that shows a node.
var seeing = map[store.Kind]string{
	store.Subscription: "workspace/subscriptions/read", store.ResourceGroup: "workspace/resourceGroups/read", store.Workspace: "workspace/workspaces/read",
}

func (v *visible) any(ctx context.Context, name string) (bool, error) {
	at, err := resource.Parse(name)
	if err != nil {
		return false, err
	}
	for _, action := range seeing {
		if v.call.May(action, false, at) {
			return true, nil
		}
	}
	if v.nodes == nil {
		if v.nodes, err = v.tree(ctx); err != nil {
			return false, err
		}
	}
	for _, n := range v.nodes {
		if len(n.Name) <= len(name) || n.Name[:len(name)] != name || n.Name[len(name)] != '/' {
			continue
		}
		below, err := resource.Parse(n.Name)
		if err != nil {
			return false, err
		}
		if v.call.May(seeing[n.Kind], false, below) {
			return true, nil
		}
	}
	return false, nil
}

// ListResourceGroups implements ResourceService.
func (s *Service) ListResourceGroups(ctx context.Context, req *workspacev1.ListResourceGroupsRequest) (*workspacev1.ListResourceGroupsResponse, error) {
	at := store.Scope{UID: rpc.From(ctx).Scope.UID, Kind: store.Subscription}
	p, err := s.page(ctx, "groups in "+at.UID, req.GetPageToken(), req.GetPageSize())
	if err != nil {
		return nil, err
	}
	var rows []store.Scope
	var token string
	err = s.store.Read(ctx, func(ctx context.Context, t *store.Tx) error {
		rows, token, err = fill(p, func(after store.Cursor, limit int) ([]store.Scope, error) {
			return t.List(ctx, store.ResourceGroup, &at, after, limit)
		}, func(store.Scope) (bool, error) { return true, nil })
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &workspacev1.ListResourceGroupsResponse{NextPageToken: token}
	for _, sc := range rows {
		body, err := s.store.Body(ctx, sc)
		if err != nil {
			return nil, err
		}
		out.ResourceGroups = append(out.ResourceGroups, group(req.GetParent(), sc, body))
	}
	return out, nil
}

// DeleteSubscription implements ResourceService.
func (s *Service) DeleteSubscription(ctx context.Context, req *workspacev1.DeleteSubscriptionRequest) (*emptypb.Empty, error) {
	return s.removeFolder(ctx, req.GetName(), "resource groups")
}

// DeleteResourceGroup implements ResourceService.
func (s *Service) DeleteResourceGroup(ctx context.Context, req *workspacev1.DeleteResourceGroupRequest) (*emptypb.Empty, error) {
	return s.removeFolder(ctx, req.GetName(), "workspaces")
}

// removeFolder removes a subscription or a resource group that is empty.
func (s *Service) removeFolder(ctx context.Context, name, what string) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	err := s.change(ctx, func(ctx context.Context, t *store.Tx) error {
		sc, err := t.GetScope(ctx, call.Scope.UID)
		if fault.Is(err, codes.NotFound) {
			return rpc.NotFound(name)
		}
		if err != nil {
			return err
		}
		n, err := t.Children(ctx, sc.UID)
		if err != nil {
			return err
		}
		if n > 0 {
			return fault.New(codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE, "%s still has %d %s; delete them first", name, n, what).
				With("resource", name).With(what, strconv.FormatInt(n, 10))
		}
		if err := t.RemoveScope(ctx, sc); err != nil {
			return err
		}
		return call.Audit(ctx, t.Raw())
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func subscription(sc store.Scope, b store.Body) *workspacev1.Subscription {
	return &workspacev1.Subscription{
		Name: string(sc.Kind) + "/" + sc.ID, Uid: sc.UID, DisplayName: b.DisplayName, Region: b.Region, CreateTime: timestamppb.New(sc.Created),
	}
}

func group(parent string, sc store.Scope, b store.Body) *workspacev1.ResourceGroup {
	return &workspacev1.ResourceGroup{
		Name: parent + "/" + string(sc.Kind) + "/" + sc.ID, Uid: sc.UID, DisplayName: b.DisplayName, CreateTime: timestamppb.New(sc.Created),
	}
}
