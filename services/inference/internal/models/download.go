package models

import (
	"google.golang.org/grpc"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// DownloadModelVersion implements inferencev1.ModelServiceServer. All that is asked for is read and compared with the signed digests
// before the first byte is sent, and compared again while it is.
func (s *Service) DownloadModelVersion(req *inferencev1.DownloadModelVersionRequest, stream grpc.ServerStreamingServer[inferencev1.DownloadModelVersionResponse]) error {
	ctx := stream.Context()
	call := rpc.From(ctx)
	m, v, err := s.find(ctx, call.Scope.WorkspaceUID, call.Scope.Name)
	if err != nil {
		return err
	}
	mf, _, err := s.verified(ctx, m, v)
	if err != nil {
		return err
	}
	files := mf.Files
	if req.GetPath() != "" {
		files = nil
		for _, f := range mf.Files {
			if f.Path == req.GetPath() {
				files = []file{f}
			}
		}
		if len(files) == 0 {
			return fault.NotFound("the version has no such file; its entry in the list has them").Field("path", "is not one of the version's files")
		}
	}
	key, err := s.store.Key(ctx, v.Workspace)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := s.read(ctx, key, v.UID, f, func([]byte) error { return ctx.Err() }); err != nil {
			return err
		}
	}
	for _, f := range files {
		entry := fileMessage(f)
		err := s.read(ctx, key, v.UID, f, func(data []byte) error {
			msg := &inferencev1.DownloadModelVersionResponse{File: entry, Data: data}
			entry = nil
			return stream.Send(msg)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
