package keyvault

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/keyvault/internal/store"
)

type secrets struct {
	keyvaultv1.UnsafeSecretServiceServer
	s *Service
}

var _ keyvaultv1.SecretServiceServer = secrets{}

// SetSecret implements keyvaultv1.SecretServiceServer.
func (h secrets) SetSecret(ctx context.Context, req *keyvaultv1.SetSecretRequest) (*keyvaultv1.SecretVersion, error) {
	if err := resource.ValidIDField("secret_id", req.GetSecretId()); err != nil {
		return nil, err
	}
	call := rpc.From(ctx)
	item, err := h.s.store.Add(ctx, call.Scope.WorkspaceUID, store.Secret, req.GetSecretId(), false, redact.New(req.GetValue()), req.GetContentType(),
		record("secret", req.GetSecretId()))
	if err != nil {
		return nil, err
	}
	return secretVersion(req.GetParent()+"/secrets/"+item.Name, item), nil
}

// AccessSecret implements keyvaultv1.SecretServiceServer. The chain has its record stored before the answer leaves.
func (h secrets) AccessSecret(ctx context.Context, req *keyvaultv1.AccessSecretRequest) (*keyvaultv1.AccessSecretResponse, error) {
	call := rpc.From(ctx)
	item, value, err := h.s.store.Open(ctx, call.Scope.WorkspaceUID, store.Secret, call.Scope.Name.ID(), req.GetVersion(), faultv1.Reason_SECRET_DISABLED)
	if err != nil {
		return nil, absent(err, req.GetName())
	}
	return &keyvaultv1.AccessSecretResponse{Value: value.Reveal(), Version: secretVersion(req.GetName(), item)}, nil
}

// ListSecrets implements keyvaultv1.SecretServiceServer.
func (h secrets) ListSecrets(ctx context.Context, req *keyvaultv1.ListSecretsRequest) (*keyvaultv1.ListSecretsResponse, error) {
	ws := rpc.From(ctx).Scope.WorkspaceUID
	cur, n, pages, err := h.s.page(ctx, ws, store.Secret, req.GetPageToken(), req.GetPageSize())
	if err != nil {
		return nil, err
	}
	items, cur, err := h.s.store.List(ctx, ws, store.Secret, cur, n)
	if err != nil {
		return nil, err
	}
	out := &keyvaultv1.ListSecretsResponse{}
	for _, it := range items {
		out.Secrets = append(out.Secrets, secretVersion(req.GetParent()+"/secrets/"+it.Name, it))
	}
	out.NextPageToken, err = pages.next(cur, len(items), n)
	return out, err
}

// SetSecretDisabled implements keyvaultv1.SecretServiceServer.
func (h secrets) SetSecretDisabled(ctx context.Context, req *keyvaultv1.SetSecretDisabledRequest) (*keyvaultv1.SecretVersion, error) {
	call := rpc.From(ctx)
	item, err := h.s.store.SetDisabled(ctx, call.Scope.WorkspaceUID, store.Secret, call.Scope.Name.ID(), req.GetVersion(), req.GetDisabled(), record(disabledDetail(req.GetDisabled(), req.GetVersion())...))
	if err != nil {
		return nil, absent(err, req.GetName())
	}
	return secretVersion(req.GetName(), item), nil
}

// DeleteSecret implements keyvaultv1.SecretServiceServer.
func (h secrets) DeleteSecret(ctx context.Context, req *keyvaultv1.DeleteSecretRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	if err := h.s.store.Delete(ctx, call.Scope.WorkspaceUID, store.Secret, call.Scope.Name.ID(), record()); err != nil {
		return nil, absent(err, req.GetName())
	}
	return &emptypb.Empty{}, nil
}

func secretVersion(name string, it store.Item) *keyvaultv1.SecretVersion {
	return &keyvaultv1.SecretVersion{Name: name, Version: it.Version, Disabled: it.Disabled, ContentType: it.ContentType, CreateTime: timestamppb.New(it.Created)}
}
