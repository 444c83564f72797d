package endpoints

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// Config of the part. All is required.
type Config struct {
	DB     *sqldb.DB
	Outbox *audit.Outbox
	Keys   *envelope.Keyring
	Now    func() time.Time
	Logger *slog.Logger
}

// Service is endpoints and deployments. It is safe for concurrent use.
type Service struct {
	cfg Config
}

// New makes it.
func New(cfg Config) (*Service, error) {
	if cfg.DB == nil || cfg.Outbox == nil || cfg.Keys == nil || cfg.Now == nil || cfg.Logger == nil {
		return nil, errors.New("endpoints: all of Config is required")
	}
	return &Service{cfg: cfg}, nil
}

// Register puts the methods on a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	inferencev1.RegisterEndpointServiceServer(r, api{s: s})
	inferencev1.RegisterInferenceInternalServiceServer(r, internal{s: s})
}

type api struct {
	inferencev1.UnimplementedEndpointServiceServer
	s *Service
}

// ListEndpointKinds implements inferencev1.EndpointServiceServer.
func (api) ListEndpointKinds(context.Context, *inferencev1.ListEndpointKindsRequest) (*inferencev1.ListEndpointKindsResponse, error) {
	return &inferencev1.ListEndpointKindsResponse{}, nil
}

type internal struct {
	inferencev1.UnimplementedInferenceInternalServiceServer
	s *Service
}

// PurgeWorkspace implements inferencev1.InferenceInternalServiceServer.
func (h internal) PurgeWorkspace(ctx context.Context, req *inferencev1.PurgeWorkspaceRequest) (*emptypb.Empty, error) {
	err := h.s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return rpc.From(ctx).Audit(ctx, tx, "workspace_uid", req.GetWorkspaceUid())
	})
	return &emptypb.Empty{}, err
}
