package compute

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
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// artifacts finds the run whose files a call changes: any that is not deleted and no replica. Those that its agent has left are in
// place once it has ended.
func (h tracking) artifacts(ctx context.Context, name, path string) (*store.Run, error) {
	r, err := h.s.run(ctx, name)
	if err != nil {
		return nil, err
	}
	if r.Kind == computev1.Run_KIND_REPLICA {
		return nil, errNotDeployed()
	}
	if err := runspec.Path("path", "the path of an artifact", path); err != nil {
		return nil, err
	}
	return r, runDeleted(r)
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
func (h tracking) UploadArtifact(stream grpc.ClientStreamingServer[computev1.UploadArtifactRequest, computev1.Output]) error {
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
	list, err := h.s.room(ctx, r, first.GetPath(), first.GetSize())
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
	o, err = h.s.take(ctx, r, o, first.GetData(), func() ([]byte, error) {
		m, err := stream.Recv()
		return m.GetData(), err
	}, record())
	if err != nil {
		return err
	}
	return stream.SendAndClose(outputMessage(o))
}

// DeleteArtifact implements computev1.TrackingServiceServer.
func (h tracking) DeleteArtifact(ctx context.Context, req *computev1.DeleteArtifactRequest) (*emptypb.Empty, error) {
	r, err := h.artifacts(ctx, req.GetName(), req.GetPath())
	if err != nil {
		return nil, err
	}
	all, err := h.s.store.Outputs(ctx, r)
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
	blobs, err := h.s.store.DeleteOutputs(ctx, r, list, record("files", strconv.Itoa(len(list))))
	if err != nil {
		return nil, err
	}
	for _, b := range blobs {
		if err := h.s.cfg.Blobs.Delete(context.WithoutCancel(ctx), b); err != nil {
			h.s.cfg.Logger.Warn("the content of a deleted file could not be removed", "run_uid", r.UID, "error", err)
		}
	}
	return &emptypb.Empty{}, nil
}
