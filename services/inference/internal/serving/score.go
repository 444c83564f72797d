package serving

import (
	"context"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/flow"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

// maxScored bounds the model's answer to ScoringService.Score, which is one message.
const maxScored = 32 << 20

// scoring is ScoringService: for callers whom a role lets score.
type scoring struct {
	inferencev1.UnsafeScoringServiceServer // so that an RPC that is added does not compile until it is decided on

	s *Server
}

var _ inferencev1.ScoringServiceServer = (*scoring)(nil)

// Register puts ScoringService on a server of the mesh, whose chain has decided who may score.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	inferencev1.RegisterScoringServiceServer(r, &scoring{s: s})
}

// Score implements inferencev1.ScoringServiceServer. The way of a request is the same; the credential is the caller's role.
func (o *scoring) Score(ctx context.Context, in *inferencev1.ScoreRequest) (*inferencev1.ScoreResponse, error) {
	from := rpc.From(ctx)
	c := o.s.NewCall("rpc", from.RequestID, "")
	defer c.End()
	if from.RequestID != "" {
		c.ID = from.RequestID
	}
	rec := c.Record
	rec.HttpMethod, rec.RequestUrl, rec.Address = http.MethodPost, inferencev1.ScoringService_Score_FullMethodName, from.Address
	if md, ok := metadata.FromIncomingContext(ctx); ok && len(md["user-agent"]) == 1 {
		rec.UserAgent = flow.Text(md["user-agent"][0], flow.MaxAgent)
	}
	c.Received = int64(len(in.GetData()))
	c.Size = c.Received
	c.Wanted = in.GetDeployment()
	c.Endpoint, _ = o.s.EndpointNamed(in.GetEndpoint())
	if c.Endpoint != nil && c.Endpoint.WorkspaceUID != from.Scope.WorkspaceUID {
		c.Endpoint = nil // of a workspace that had the name before
	}
	refused := c.Admit(func(e *flow.State) (flow.Caller, *flow.Refusal) {
		if e == nil || from.Principal == "" {
			return flow.Caller{}, flow.NotFound("there is no such endpoint")
		}
		return flow.Caller{Label: "role", Principal: from.Principal}, nil
	})
	var out *inferencev1.ScoreResponse
	if refused == nil {
		out, refused = o.ask(ctx, c, in)
	}
	if refused != nil {
		rec.GrpcCode = fault.CodeName(fault.Code(refused.Error))
		c.Log(refused.Status, 0, refused)
		if c.Endpoint == nil {
			return nil, rpc.NotFound(in.GetEndpoint())
		}
		return nil, refused.Error
	}
	return out, nil
}

func (o *scoring) ask(ctx context.Context, c *flow.Call, in *inferencev1.ScoreRequest) (*inferencev1.ScoreResponse, *flow.Refusal) {
	if refused := c.Choose(); refused != nil {
		return nil, refused
	}
	if limit := c.Deployment.BodyLimit(); c.Size > limit {
		return nil, flow.TooLarge(limit)
	}
	contentType := in.GetContentType()
	if contentType == "" {
		contentType = jsonType
	}
	if !headerValue(contentType) {
		return nil, flow.BadRequest("content_type is no value of a header: printable ASCII, at most %d bytes", maxPassed)
	}
	if !c.Reserve(c.Size) {
		return nil, flow.Busy()
	}
	c.Body = pool.NewBody(len(in.GetData()))
	c.Body.Append(in.GetData())
	c.Mirror(scorePath, contentType)
	resp, refused := c.Forward(ctx, &pool.Request{Method: http.MethodPost, Path: scorePath, ContentType: contentType})
	if refused != nil {
		return nil, refused
	}
	data, refused := c.TakeAll(resp, maxScored)
	if refused == nil {
		refused = c.MayAnswer()
	}
	if refused != nil {
		return nil, refused
	}
	out := &inferencev1.ScoreResponse{
		Status: int32(resp.Status), ContentType: flow.Text(resp.ContentType, maxPassed), Data: data, Deployment: c.Deployment.ID, RequestId: c.ID,
	}
	c.Record.GrpcCode = fault.CodeName(codes.OK)
	c.Log(http.StatusOK, int64(len(data)), modelRefusal(resp))
	return out, nil
}

// headerValue tells whether s can stand in a header as it is.
func headerValue(s string) bool {
	if len(s) > maxPassed {
		return false
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
