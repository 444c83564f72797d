package tracking

import (
	"context"
	"crypto/sha256"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/runspec"
	"github.com/redoubt-ml/redoubt/services/compute/internal/outputs"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
	"github.com/redoubt-ml/redoubt/services/compute/internal/view"
)

// artifacts finds the run whose files a call changes: any that is not deleted and no replica. Those that its agent has left are in
// place once it has ended.
func (h *Service) artifacts(ctx context.Context, name, path string) (*store.Run, error) {
	r, err := view.Find(ctx, h.cfg.Store, name)
	if err != nil {
		return nil, err
	}
	if r.Kind == computev1.Run_KIND_REPLICA {
		return nil, view.NotDeployed()
	}
	if err := runspec.Path("path", "the path of an artifact", path); err != nil {
		return nil, err
	}
	return r, view.Deleted(r)
}

// besides refuses a path that would be a file and a folder at once: a client that fetches all files writes them below one folder.
func besides(list []store.Output, path string) error {
	for _, o := range list {
		if strings.HasPrefix(o.Path, path+"/") || strings.HasPrefix(path, o.Path+"/") {
			return fault.New(codes.FailedPrecondition, faultv1.Reason_PATH_INVALID, "a path of the run would be a file and a folder at once; take another one, or delete what is there").
				Field("path", "is a folder already, or in a file")
		}
	}
	return nil
}

// UploadArtifact implements computev1.TrackingServiceServer.
func (h *Service) UploadArtifact(stream grpc.ClientStreamingServer[computev1.UploadArtifactRequest, computev1.Output]) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	r, err := h.artifacts(ctx, first.GetName(), first.GetPath())
	if err != nil {
		return err
	}
	if n := len(first.GetDigest()); n != 0 && n != sha256.Size {
		return fault.InvalidArgument("a digest is a SHA-256, or left out").Field("digest", "has 32 bytes")
	}
	list, err := h.cfg.Outputs.Room(ctx, r, first.GetPath(), first.GetSize())
	if err != nil {
		return err
	}
	if err := besides(list, first.GetPath()); err != nil {
		return err
	}
	o := store.Output{Path: first.GetPath(), Size: first.GetSize(), Artifact: true}
	if len(first.GetDigest()) > 0 {
		o.Digest = first.GetDigest()
	}
	o, err = h.cfg.Outputs.Take(ctx, r, o, first.GetData(), func() ([]byte, error) {
		m, err := stream.Recv()
		return m.GetData(), err
	}, view.Record())
	if err != nil {
		return err
	}
	return stream.SendAndClose(outputs.Message(o))
}

// DeleteArtifact implements computev1.TrackingServiceServer.
func (h *Service) DeleteArtifact(ctx context.Context, req *computev1.DeleteArtifactRequest) (*emptypb.Empty, error) {
	r, err := h.artifacts(ctx, req.GetName(), req.GetPath())
	if err != nil {
		return nil, err
	}
	all, err := h.cfg.Store.Outputs(ctx, r)
	if err != nil {
		return nil, err
	}
	var list []store.Output
	for _, o := range all {
		if o.Path == req.GetPath() || strings.HasPrefix(o.Path, req.GetPath()+"/") {
			list = append(list, o)
		}
	}
	if len(list) == 0 {
		return nil, rpc.NotFound(req.GetName() + " output " + req.GetPath())
	}
	blobs, err := h.cfg.Store.DeleteOutputs(ctx, r, list, view.Record("files", strconv.Itoa(len(list))))
	if err != nil {
		return nil, err
	}
	h.cfg.Outputs.Remove(ctx, r, blobs)
	return &emptypb.Empty{}, nil
}
