// Package inference owns the place where models and endpoints will stand. Today it says which kinds of endpoint it can deploy:
// none.
//
// Trust boundary: as every service, behind the chain. It keeps no records of its own yet but those of its outbox.
//
// Invariants: it claims no ability that it does not have.
//
// Failure: none of its own.
package inference

import (
	"context"

	"google.golang.org/grpc"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
)

// Service is the inference service.
type Service struct {
	inferencev1.UnimplementedEndpointServiceServer
}

var _ inferencev1.EndpointServiceServer = (*Service)(nil)

// New makes the service.
func New() *Service { return &Service{} }

// Register puts the service's methods on a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { inferencev1.RegisterEndpointServiceServer(r, s) }

// ListEndpointKinds implements inferencev1.EndpointServiceServer: nothing can be deployed yet.
func (s *Service) ListEndpointKinds(context.Context, *inferencev1.ListEndpointKindsRequest) (*inferencev1.ListEndpointKindsResponse, error) {
	return &inferencev1.ListEndpointKindsResponse{}, nil
}
