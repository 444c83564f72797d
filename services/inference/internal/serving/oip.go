package serving

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/redoubt-ml/redoubt/gen/inference"
	"github.com/redoubt-ml/redoubt/pkg/fault"
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
func (g *grpcCall) fail(r *refusal) error {
	g.refused = r
	return fault.ToStatus(r.Error, g.s.cfg.Installation, g.id).Err()
}

// settle admits a caller who names his endpoint by the model, and chooses the deployment.
func (g *grpcCall) settle(model, version string) *refusal {
	if g.endpoint == nil { // or it would have been admitted by now
		if g.endpoint, _ = g.s.endpoint(model); g.endpoint == nil {
			g.endpoint, _ = g.s.endpointNamed(model)
		}
		var r *refusal
		if g.caller, r = g.who(g.endpoint); r != nil {
			return r
		}
	}
	g.fit(model, version)
	return g.choose()
}

// says who answers.
func (g *grpcCall) tell(ctx context.Context) {
	_ = grpc.SetHeader(ctx, metadata.Pairs("azureml-model-deployment", g.deployment.ID)) // fails only after the headers have gone
}

// ServerLive implements inference.GRPCInferenceServiceServer: it needs no credential, as GET / of the listener.
func (*oipService) ServerLive(context.Context, *inference.ServerLiveRequest) (*inference.ServerLiveResponse, error) {
	return &inference.ServerLiveResponse{Live: true}, nil
}

// ServerReady implements inference.GRPCInferenceServiceServer: of the endpoint, where one is named.
func (o *oipService) ServerReady(ctx context.Context, _ *inference.ServerReadyRequest) (*inference.ServerReadyResponse, error) {
	g := o.of(ctx)
	return &inference.ServerReadyResponse{Ready: g.endpoint == nil || g.ready()}, nil
}

// ModelReady implements inference.GRPCInferenceServiceServer.
func (o *oipService) ModelReady(ctx context.Context, in *inference.ModelReadyRequest) (*inference.ModelReadyResponse, error) {
	g := o.of(ctx)
	if r := g.settle(in.GetName(), in.GetVersion()); r != nil {
		return nil, g.fail(r)
	}
	g.tell(ctx)
	return &inference.ModelReadyResponse{Ready: g.s.pool.Workers(g.deployment.UID) > 0}, nil
}

// ServerMetadata implements inference.GRPCInferenceServiceServer. Which version it is, strangers do not read.
func (o *oipService) ServerMetadata(ctx context.Context, _ *inference.ServerMetadataRequest) (*inference.ServerMetadataResponse, error) {
	out := &inference.ServerMetadataResponse{Name: serverName}
	if o.of(ctx).endpoint != nil {
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
	return &inference.ModelMetadataResponse{Name: in.GetName(), Versions: g.versions(), Platform: platform}, nil
}

// ModelInfer implements inference.GRPCInferenceServiceServer.
func (o *oipService) ModelInfer(ctx context.Context, in *inference.ModelInferRequest) (*inference.ModelInferResponse, error) {
	g := o.of(ctx)
	if r := g.settle(in.GetModelName(), in.GetModelVersion()); r != nil {
		return nil, g.fail(r)
	}
	g.tell(ctx)
	if limit := g.deployment.bodyLimit(); g.size > limit {
		return nil, g.fail(tooLarge(limit))
	}
	req, err := tensor.ParseMessage(in)
	if err != nil {
		return nil, g.fail(badRequest("%s", err))
	}
	outputs, r := g.tensors(ctx, req)
	if r != nil {
		return nil, g.fail(r)
	}
	out, err := tensor.Message(in.GetModelName(), g.deployment.ModelVersion, req, outputs)
	if err != nil {
		return nil, g.fail(modelFailed(502, "%s", err))
	}
	return out, nil
}
