package identity

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// CreateManagedIdentity implements PrincipalService. It holds no credential (B4).
func (s *Service) CreateManagedIdentity(ctx context.Context, req *identityv1.CreateManagedIdentityRequest) (*identityv1.ManagedIdentity, error) {
	call := rpc.From(ctx)
	var p store.Principal
	err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		var ok bool
		if p, ok, err = s.store.ManagedIdentityOf(ctx, tx, req.GetWorkspaceUid()); err != nil {
			return err
		}
		if !ok {
			uid := resource.NewUID("mid")
			p = store.Principal{
				UID: uid, Kind: store.ManagedIdentity, ID: uid, DisplayName: req.GetDisplayName(), Workspace: req.GetWorkspaceUid(),
				CreateTime: s.cfg.Now(),
			}
			if err := s.store.InsertPrincipal(ctx, tx, p); err != nil {
				return err
			}
		}
		return call.Audit(ctx, tx, "workspace_uid", p.Workspace, "uid", p.UID)
	})
	if err != nil {
		return nil, err
	}
	return &identityv1.ManagedIdentity{Name: p.Name(), Uid: p.UID, WorkspaceUid: p.Workspace, DisplayName: p.DisplayName}, nil
}

// DeleteManagedIdentity implements PrincipalService.
func (s *Service) DeleteManagedIdentity(ctx context.Context, req *identityv1.DeleteManagedIdentityRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		p, ok, err := s.store.ManagedIdentityOf(ctx, tx, req.GetWorkspaceUid())
		if err != nil {
			return err
		}
		if ok {
			if err := s.remove(ctx, tx, p.UID); err != nil {
				return err
			}
		}
		return call.Audit(ctx, tx, "workspace_uid", req.GetWorkspaceUid(), "uid", p.UID)
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// ResolvePrincipals implements PrincipalService.
func (s *Service) ResolvePrincipals(ctx context.Context, req *identityv1.ResolvePrincipalsRequest) (*identityv1.ResolvePrincipalsResponse, error) {
	out := new(identityv1.ResolvePrincipalsResponse)
	seen := make(map[string]bool)
	add := func(p store.Principal, ok bool, err error) error {
		if ok && !seen[p.UID] {
			seen[p.UID] = true
			out.Principals = append(out.Principals, &identityv1.Principal{
				Name: p.Name(), Uid: p.UID, Type: p.Kind, DisplayName: p.DisplayName, Disabled: p.Disabled,
			})
		}
		return err
	}
	err := s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		for _, uid := range req.GetUids() {
			if err := add(s.store.Principal(ctx, tx, uid)); err != nil {
				return err
			}
		}
		for _, name := range req.GetNames() {
			n, err := resource.Parse(name)
			if err != nil { // what is no name is the name of nobody
				continue
			}
			if kind, ok := kinds[n.Kind()]; ok {
				if err := add(s.store.Find(ctx, tx, kind, n.ID())); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
