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
	c := o.s.newCall("rpc", from.RequestID, "")
	defer c.end()
	if from.RequestID != "" {
		c.id = from.RequestID
	}
	rec := c.rec
	rec.HttpMethod, rec.RequestUrl, rec.Address = http.MethodPost, inferencev1.ScoringService_Score_FullMethodName, from.Address
	if md, ok := metadata.FromIncomingContext(ctx); ok && len(md["user-agent"]) == 1 {
		rec.UserAgent = text(md["user-agent"][0], maxAgent)
	}
	c.received = int64(len(in.GetData()))
	c.size = c.received
	c.wanted = in.GetDeployment()
	c.endpoint, _ = o.s.endpointNamed(in.GetEndpoint())
	if c.endpoint != nil && c.endpoint.WorkspaceUID != from.Scope.WorkspaceUID {
		c.endpoint = nil // of a workspace that had the name before
	}
	refused := c.admit(func(e *endpoint) (caller, *refusal) {
		if e == nil || from.Principal == "" {
			return caller{}, notFound("there is no such endpoint")
		}
		return caller{label: "role", principal: from.Principal}, nil
	})
	var out *inferencev1.ScoreResponse
	if refused == nil {
		out, refused = c.score(ctx, in)
	}
	if refused != nil {
		rec.GrpcCode = fault.CodeName(fault.Code(refused.Error))
		c.log(refused.status, 0, refused)
		if c.endpoint == nil {
			return nil, rpc.NotFound(in.GetEndpoint())
		}
		return nil, refused.Error
	}
	return out, nil
}

func (c *call) score(ctx context.Context, in *inferencev1.ScoreRequest) (*inferencev1.ScoreResponse, *refusal) {
	if refused := c.choose(); refused != nil {
		return nil, refused
	}
	if limit := c.deployment.bodyLimit(); c.size > limit {
		return nil, tooLarge(limit)
	}
	contentType := in.GetContentType()
	if contentType == "" {
		contentType = jsonType
	}
	if !headerValue(contentType) {
		return nil, badRequest("content_type is no value of a header: printable ASCII, at most %d bytes", maxPassed)
	}
	if !c.reserve(c.size) {
		return nil, busy()
	}
	c.body = pool.NewBody(len(in.GetData()))
	c.body.Append(in.GetData())
	c.mirror(scorePath, contentType)
	resp, refused := c.forward(ctx, &pool.Request{Method: http.MethodPost, Path: scorePath, ContentType: contentType})
	if refused != nil {
		return nil, refused
	}
	data, refused := c.takeAll(resp, maxScored)
	if refused != nil {
		return nil, refused
	}
	out := &inferencev1.ScoreResponse{
		Status: int32(resp.Status), ContentType: text(resp.ContentType, maxPassed), Data: data, Deployment: c.deployment.ID, RequestId: c.id,
	}
	c.rec.GrpcCode = fault.CodeName(codes.OK)
	c.log(http.StatusOK, int64(len(data)), modelRefusal(resp))
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
