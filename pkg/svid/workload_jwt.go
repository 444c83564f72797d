package svid

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const noJWTText = "this Workload API has no JWT-SVIDs: use the X.509-SVID"

// FetchJWTSVID gives a JWT-SVID of the workload for the audiences in the request. A SPIFFE ID there may only be the workload's own.
func (w *WorkloadServer) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	if w.jwts == nil {
		return nil, status.Error(codes.Unimplemented, noJWTText)
	}
	if err := CheckAudience(req.GetAudience()); err != nil {
		return nil, apiError(err)
	}
	if want := req.GetSpiffeId(); want != "" {
		id, err := spiffeid.FromString(want)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, "spiffe_id is no SPIFFE ID")
		}
		if id != w.jwts.cfg.ID {
			return nil, status.Error(codes.PermissionDenied, "no identity of this name for this caller")
		}
	}
	if _, err := w.keeper.Current(); err != nil {
		return nil, apiError(err)
	}
	token, says, err := w.jwts.Fetch(ctx, req.GetAudience())
	if err != nil {
		return nil, apiError(err)
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: says.ID.String(), Svid: token}}}, nil
}

// FetchJWTBundles sends the keys that JWT-SVIDs of the trust domain are verified by, and again with each change. While there are none it waits.
func (w *WorkloadServer) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	if w.jwts == nil {
		return status.Error(codes.Unimplemented, noJWTText)
	}
	ctx, td := stream.Context(), w.jwts.cfg.ID.TrustDomain().IDString()
	for {
		changed, keys, jwks := w.jwts.observe()
		if keys != nil {
			if err := stream.Send(&workload.JWTBundlesResponse{Bundles: map[string][]byte{td: jwks}}); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-w.stop:
			return status.Error(codes.Unavailable, stoppedText)
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// ValidateJWTSVID says what a JWT-SVID of the trust domain says, if it is for the audience in the request; what is not valid is
// INVALID_ARGUMENT, as the standard wants it.
func (w *WorkloadServer) ValidateJWTSVID(_ context.Context, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if w.jwts == nil {
		return nil, status.Error(codes.Unimplemented, noJWTText)
	}
	says, err := w.jwts.Validate(req.GetSvid(), req.GetAudience())
	if fault.Is(err, codes.Unauthenticated) {
		return nil, status.Error(codes.InvalidArgument, fault.Describe(err).Message())
	}
	if err != nil {
		return nil, apiError(err)
	}
	claims, err := structpb.NewStruct(says.Claims)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "a claim of the JWT-SVID cannot be told")
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: says.ID.String(), Claims: claims}, nil
}

// apiError is an error as the standard has it: what the caller has to change, that he gets nothing, or that he shall try again.
func apiError(err error) error {
	switch code := fault.Code(err); code {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Canceled, codes.DeadlineExceeded:
		return status.Error(code, fault.Describe(err).Message())
	default:
		return status.Error(codes.Unavailable, fault.Describe(err).Message())
	}
}
