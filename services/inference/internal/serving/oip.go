package serving

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/redoubt-ml/redoubt/gen/inference"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/flow"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/tensor"
)

// oipService is the Open Inference Protocol by gRPC.
type oipService struct {
	inference.UnsafeGRPCInferenceServiceServer // so that an RPC that is added does not compile until it is decided on

	s *Server
}

var _ inference.GRPCInferenceServiceServer = (*oipService)(nil)

// of gives the call that a handler's context belongs to.
func (*oipService) of(ctx context.Context) *grpcCall {
	g, _ := ctx.Value(grpcCallKey{}).(*grpcCall)
	return g
}

// fail answers with a refusal.
func (g *grpcCall) fail(r *flow.Refusal) error {
	g.refused = r
	return fault.ToStatus(r.Error, g.server.cfg.Installation, g.ID).Err()
}

// settle admits a caller who names his endpoint by the model, and chooses the deployment.
func (g *grpcCall) settle(model, version string) *flow.Refusal {
	if g.Endpoint == nil { // or it would have been admitted by now
		if g.Endpoint, _ = g.Way.Endpoint(model); g.Endpoint == nil {
			g.Endpoint, _ = g.Way.EndpointNamed(model)
		}
		var r *flow.Refusal
		if g.Caller, r = g.Who(g.Endpoint); r != nil {
			return r
		}
	}
	g.Fit(model, version)
	return g.Choose()
}

// says who answers.
func (g *grpcCall) tell(ctx context.Context) {
	_ = grpc.SetHeader(ctx, metadata.Pairs("azureml-model-deployment", g.Deployment.ID)) // fails only after the headers have gone
}

// ServerLive implements inference.GRPCInferenceServiceServer: it needs no credential, as GET / of the listener.
func (*oipService) ServerLive(context.Context, *inference.ServerLiveRequest) (*inference.ServerLiveResponse, error) {
	return &inference.ServerLiveResponse{Live: true}, nil
}

// ServerReady implements inference.GRPCInferenceServiceServer: of the endpoint, where one is named.
func (o *oipService) ServerReady(ctx context.Context, _ *inference.ServerReadyRequest) (*inference.ServerReadyResponse, error) {
	g := o.of(ctx)
	return &inference.ServerReadyResponse{Ready: g.Endpoint == nil || g.Ready()}, nil
}

// ModelReady implements inference.GRPCInferenceServiceServer.
func (o *oipService) ModelReady(ctx context.Context, in *inference.ModelReadyRequest) (*inference.ModelReadyResponse, error) {
	g := o.of(ctx)
	if r := g.settle(in.GetName(), in.GetVersion()); r != nil {
		return nil, g.fail(r)
	}
	g.tell(ctx)
	return &inference.ModelReadyResponse{Ready: g.Way.Workers(g.Deployment.UID) > 0}, nil
}

// ServerMetadata implements inference.GRPCInferenceServiceServer. Which version it is, strangers do not read.
func (o *oipService) ServerMetadata(ctx context.Context, _ *inference.ServerMetadataRequest) (*inference.ServerMetadataResponse, error) {
	out := &inference.ServerMetadataResponse{Name: serverName}
	if o.of(ctx).Endpoint != nil {
		out.Version = o.s.cfg.Version
	}
	return out, nil
}

// ModelMetadata implements inference.GRPCInferenceServiceServer. What tensors an entry script takes is not known.
func (o *oipService) ModelMetadata(ctx context.Context, in *inference.ModelMetadataRequest) (*inference.ModelMetadataResponse, error) {
	g := o.of(ctx)
	if r := g.settle(in.GetName(), in.GetVersion()); r != nil {
		return nil, g.fail(r)
	}
	g.tell(ctx)
	return &inference.ModelMetadataResponse{Name: in.GetName(), Versions: g.Versions(), Platform: platform}, nil
}

// ModelInfer implements inference.GRPCInferenceServiceServer.
func (o *oipService) ModelInfer(ctx context.Context, in *inference.ModelInferRequest) (*inference.ModelInferResponse, error) {
	g := o.of(ctx)
	if r := g.settle(in.GetModelName(), in.GetModelVersion()); r != nil {
		return nil, g.fail(r)
	}
	g.tell(ctx)
	if limit := g.Deployment.BodyLimit(); g.Size > limit {
		return nil, g.fail(flow.TooLarge(limit))
	}
	req, err := tensor.ParseMessage(in)
	if err != nil {
		return nil, g.fail(flow.BadRequest("%s", err))
	}
	outputs, r := g.Tensors(ctx, req)
	if r != nil {
		return nil, g.fail(r)
	}
	out, err := tensor.Message(in.GetModelName(), g.Deployment.ModelVersion, req, outputs)
	if err != nil {
		return nil, g.fail(flow.ModelFailed(502, "%s", err))
	}
	return out, nil
}
