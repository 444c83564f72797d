package matrix

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
)

func init() { //nolint:gochecknoinits // the registry of requests is filled from several files
	// Who may, gets as far as the endpoint, which has no deployment.
	nowhere := refused(codes.NotFound, faultv1.Reason_DEPLOYMENT_MISSING)
	nowhere.silent = true
	score := making(func(t *testing.T, f *fixture, p *place) proto.Message {
		return &inferencev1.ScoreRequest{Endpoint: f.endpoint(t, p), Data: []byte("{}")}
	})
	score.want = map[string]want{}
	for _, cell := range []string{"allowed", "allowed in the end", "contributor", "reader", "operator"} {
		score.want[cell] = nowhere
	}
	register(map[string]spec{inferencev1.ScoringService_Score_FullMethodName: score})
}
