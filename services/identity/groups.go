package identity

import (
	"context"
	"strconv"

	"google.golang.org/protobuf/types/known/emptypb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// CreateGroup implements DirectoryService.
func (s *Service) CreateGroup(ctx context.Context, req *identityv1.CreateGroupRequest) (*identityv1.Group, error) {
	call := rpc.From(ctx)
	if err := resource.ValidIDField("group_id", req.GetGroupId()); err != nil {
		return nil, err
	}
	p := store.Principal{
		UID: resource.NewUID("grp"), Kind: store.Group, ID: req.GetGroupId(), DisplayName: req.GetDisplayName(), CreateTime: s.cfg.Now(),
	}
	err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if err := s.store.InsertPrincipal(ctx, tx, p); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", p.Name(), "uid", p.UID)
	})
	if err != nil {
		return nil, err
	}
	return group(p, nil), nil
}

func group(p store.Principal, members []string) *identityv1.Group {
	return &identityv1.Group{Name: p.Name(), Uid: p.UID, DisplayName: p.DisplayName, Members: members}
}

// ListGroups implements DirectoryService.
func (s *Service) ListGroups(ctx context.Context, req *identityv1.ListGroupsRequest) (*identityv1.ListGroupsResponse, error) {
	out := new(identityv1.ListGroupsResponse)
	err := s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		page, next, err := s.page(ctx, tx, store.Group, req.GetPageSize(), req.GetPageToken())
		if err != nil {
			return err
		}
		out.NextPageToken = next
		for _, p := range page {
			members, err := s.store.Members(ctx, tx, p.UID)
			if err != nil {
				return err
			}
			out.Groups = append(out.Groups, group(p, members))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// GetGroup implements DirectoryService.
func (s *Service) GetGroup(ctx context.Context, req *identityv1.GetGroupRequest) (*identityv1.Group, error) {
	var out *identityv1.Group
	err := s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		g, err := s.find(ctx, tx, req.GetName(), resource.KindGroup)
		if err != nil {
			return err
		}
		members, err := s.store.Members(ctx, tx, g.UID)
		out = group(g, members)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteGroup implements DirectoryService. Role assignments that name the group reach nobody any more: its uid is nobody's again.
func (s *Service) DeleteGroup(ctx context.Context, req *identityv1.DeleteGroupRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		g, err := s.find(ctx, tx, req.GetName(), resource.KindGroup)
		if err != nil {
			return err
		}
		if err := s.administered(ctx, tx, func() error {
			outer, err := s.store.DeletePrincipal(ctx, tx, g.UID)
			if err != nil {
				return err
			}
			return s.store.Change(ctx, tx, s.cfg.Now(), nil, append(outer, g.UID))
		}); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "name", g.Name(), "uid", g.UID)
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// AddGroupMember implements DirectoryService. It works in every service when it returns.
func (s *Service) AddGroupMember(ctx context.Context, req *identityv1.AddGroupMemberRequest) (*identityv1.Group, error) {
	return s.changeMember(ctx, req.GetName(), req.GetMember(), func(ctx context.Context, tx *sqldb.Tx, g store.Principal) (bool, error) {
		member, ok, err := s.store.Principal(ctx, tx, req.GetMember())
		if err != nil {
			return false, err
		}
		if !ok {
			return false, fault.NotFound("no user, service principal, managed identity or group has this uid").Field("member", "not the uid of a principal")
		}
		return s.store.AddMember(ctx, tx, g.UID, member)
	})
}

// RemoveGroupMember implements DirectoryService.
func (s *Service) RemoveGroupMember(ctx context.Context, req *identityv1.RemoveGroupMemberRequest) (*identityv1.Group, error) {
	return s.changeMember(ctx, req.GetName(), req.GetMember(), func(ctx context.Context, tx *sqldb.Tx, g store.Principal) (changed bool, err error) {
		err = s.administered(ctx, tx, func() error {
			changed, err = s.store.RemoveMember(ctx, tx, g.UID, req.GetMember())
			return err
		})
		return changed, err
	})
}

func (s *Service) changeMember(ctx context.Context, name, member string, change func(context.Context, *sqldb.Tx, store.Principal) (bool, error)) (*identityv1.Group, error) {
	call := rpc.From(ctx)
	var out *identityv1.Group
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		g, err := s.find(ctx, tx, name, resource.KindGroup)
		if err != nil {
			return err
		}
		changed, err := change(ctx, tx, g)
		if err != nil {
			return err
		}
		if changed {
			if err := s.store.Change(ctx, tx, s.cfg.Now(), nil, []string{g.UID}); err != nil {
				return err
			}
		}
		members, err := s.store.Members(ctx, tx, g.UID)
		if err != nil {
			return err
		}
		out = group(g, members)
		return call.Audit(ctx, tx, "name", g.Name(), "uid", g.UID, "member", member, "changed", strconv.FormatBool(changed))
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
