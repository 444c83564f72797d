package keyvault

import (
	"bytes"
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

type vaults struct {
	keyvaultv1.UnsafeVaultServiceServer
	s *Service
}

var _ keyvaultv1.VaultServiceServer = vaults{}

// CreateVault implements keyvaultv1.VaultServiceServer.
func (h vaults) CreateVault(ctx context.Context, req *keyvaultv1.CreateVaultRequest) (*emptypb.Empty, error) {
	if err := workspaceUID("workspace_uid", req.GetWorkspaceUid()); err != nil {
		return nil, err
	}
	if err := h.s.store.CreateVault(ctx, req.GetWorkspaceUid(), record("workspace_uid", req.GetWorkspaceUid())); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// DeleteVault implements keyvaultv1.VaultServiceServer.
func (h vaults) DeleteVault(ctx context.Context, req *keyvaultv1.DeleteVaultRequest) (*emptypb.Empty, error) {
	if err := workspaceUID("workspace_uid", req.GetWorkspaceUid()); err != nil {
		return nil, err
	}
	if err := h.s.store.DestroyVault(ctx, req.GetWorkspaceUid(), record("workspace_uid", req.GetWorkspaceUid())); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// GenerateDataKey implements keyvaultv1.VaultServiceServer.
func (h vaults) GenerateDataKey(ctx context.Context, req *keyvaultv1.GenerateDataKeyRequest) (*keyvaultv1.DataKey, error) {
	service, owner, err := asker(ctx, req.GetOwnerUid())
	if err != nil {
		return nil, err
	}
	key, err := h.s.store.VaultKey(ctx, owner)
	if err != nil {
		return nil, err
	}
	plain := newKey().Reveal()
	sealed, err := key.Seal(dataKeyAAD(owner, service), plain)
	if err != nil {
		return nil, err
	}
	rpc.From(ctx).Detail("owner_uid", owner)
	return &keyvaultv1.DataKey{Plaintext: plain, Wrapped: append([]byte(service+"\n"), sealed...)}, nil
}

// UnwrapDataKey implements keyvaultv1.VaultServiceServer.
func (h vaults) UnwrapDataKey(ctx context.Context, req *keyvaultv1.UnwrapDataKeyRequest) (*keyvaultv1.DataKey, error) {
	service, owner, err := asker(ctx, req.GetOwnerUid())
	if err != nil {
		return nil, err
	}
	// The name in front only chooses the error; what binds the key to the service is the AAD.
	made, sealed, ok := bytes.Cut(req.GetWrapped(), []byte("\n"))
	if !ok || string(made) != service {
		return nil, notYours()
	}
	key, err := h.s.store.VaultKey(ctx, owner)
	if err != nil {
		return nil, err
	}
	plain, err := key.Open(dataKeyAAD(owner, service), sealed)
	if fault.Is(err, codes.DataLoss) {
		return nil, notYours()
	}
	if err != nil {
		return nil, err
	}
	return &keyvaultv1.DataKey{Plaintext: plain, Wrapped: req.GetWrapped()}, nil
}

// asker is the service at the other end of the connection, and the workspace that it asks for.
func asker(ctx context.Context, owner string) (service, uid string, err error) {
	if service = rpc.From(ctx).PeerService; service == "" {
		return "", "", notYours()
	}
	return service, owner, workspaceUID("owner_uid", owner)
}

func workspaceUID(field, uid string) error {
	if !resource.IsUID(uid) {
		return fault.InvalidArgument("%s is not a uid", field).Field(field, "is not a uid")
	}
	return nil
}

func dataKeyAAD(owner, service string) envelope.AAD {
	return envelope.AAD{Owner: owner, Kind: "data_key", ID: service}
}
