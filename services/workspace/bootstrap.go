package workspace

import (
	"context"

	"google.golang.org/grpc/codes"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store"
)

// firstID is the id of the subscription and of the resource group that an installation begins with.
const firstID = "default"

// Bootstrap makes the first administrator Owner of the installation, unless someone has a role there already, and a subscription
// "default" with a resource group "default", unless there is a subscription. It can be repeated at every start; it is called by
// whoever runs the service, and by no method.
func (s *Service) Bootstrap(ctx context.Context, adminUID string) error {
	if !resource.IsUID(adminUID) {
		return fault.InvalidArgument("the first administrator is named by uid")
	}
	sub := store.Scope{UID: resource.NewUID(subscriptionUID), Kind: store.Subscription, ID: firstID, State: store.Active}
	group := store.Scope{UID: resource.NewUID(groupUID), Kind: store.ResourceGroup, ParentUID: sub.UID, ID: firstID, State: store.Active}
	subBody, err := s.store.SealBody(ctx, sub.Kind, sub.UID, store.Body{DisplayName: "Default"})
	if err != nil {
		return err
	}
	groupBody, err := s.store.SealBody(ctx, group.Kind, group.UID, store.Body{DisplayName: "Default"})
	if err != nil {
		return err
	}
	// Nobody can be waited for yet: they wait for this service. Its number is put into the log when it runs.
	_, err = s.quietly(ctx, func(ctx context.Context, t *store.Tx) error {
		there, err := t.AssignmentsAt(ctx, "")
		if err != nil {
			return err
		}
		if len(there) == 0 {
			a, _, err := t.Assign(ctx, "", authz.Owner, adminUID, "")
			if err != nil {
				return err
			}
			if err := s.recordFirst(ctx, t, workspacev1.AccessService_CreateRoleAssignment_FullMethodName, "authorization/roleAssignments/write",
				"", map[string]string{"assignment": a.UID, "role": a.Role, "principal": a.Principal}); err != nil {
				return err
			}
		}
		if n, err := t.Count(ctx, store.Subscription); err != nil || n > 0 {
			return err
		}
		if _, err := t.AddScope(ctx, sub, subBody); err != nil {
			return err
		}
		if _, err := t.AddScope(ctx, group, groupBody); err != nil {
			return err
		}
		if err := s.recordFirst(ctx, t, workspacev1.ResourceService_CreateSubscription_FullMethodName, "workspace/subscriptions/write",
			"", map[string]string{"id": sub.ID, "uid": sub.UID}); err != nil {
			return err
		}
		return s.recordFirst(ctx, t, workspacev1.ResourceService_CreateResourceGroup_FullMethodName, "workspace/resourceGroups/write",
			sub.UID, map[string]string{"id": group.ID, "uid": group.UID})
	})
	return err
}

// recordFirst is the record of what the platform makes by itself at its first start.
func (s *Service) recordFirst(ctx context.Context, t *store.Tx, method, action, subscription string, details map[string]string) error {
	details["made_by"] = "the first start of the installation"
	scope := resource.Root
	if subscription != "" {
		scope = string(store.Subscription) + "/" + firstID
	}
	return s.cfg.Outbox.Append(ctx, t.Raw(), &audit.Event{
		Method: method, Action: action, Scope: scope, ScopeUid: subscription, SubscriptionUid: subscription,
		Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, Code: codes.OK.String(), Details: details,
	})
}
