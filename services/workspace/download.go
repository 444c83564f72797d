package workspace

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/tree"
)

const (
	// chunk is how much of a file a message of a download carries.
	chunk = 128 << 10
	// wholeBytes is the largest file that a message holds beside others, in bytes.
	wholeBytes = 64 << 10
	// togetherBytes and together bound the files of one message, their entries aside.
	togetherBytes = 128 << 10
	together      = 500
)

type downloadStream = grpc.ServerStreamingServer[workspacev1.DownloadSnapshotResponse]

// DownloadSnapshot implements SnapshotService.
func (s *Service) DownloadSnapshot(req *workspacev1.DownloadSnapshotRequest, stream downloadStream) error {
	ctx := stream.Context()
	call := rpc.From(ctx)
	key, _, entries, err := s.stored(ctx, call, req.GetName())
	if err != nil {
		return err
	}
	ws := call.Scope.WorkspaceUID
	for len(entries) > 0 {
		n, sum := 0, int64(0)
		for n < min(len(entries), together) && entries[n].Size <= wholeBytes && sum+entries[n].Size <= togetherBytes {
			sum += entries[n].Size
			n++
		}
		if n == 0 {
			n, err = 1, s.sendFile(ctx, key, ws, entries[0], stream)
		} else {
			err = s.sendFiles(ctx, key, ws, entries[:n], stream)
		}
		if err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

// sendFiles sends small files in one message.
func (s *Service) sendFiles(ctx context.Context, key *envelope.Key, ws string, entries []tree.Entry, stream downloadStream) error {
	msg := &workspacev1.DownloadSnapshotResponse{Files: make([]*workspacev1.SnapshotFile, 0, len(entries))}
	for _, e := range entries {
		data, err := s.whole(ctx, key, ws, e)
		if err != nil {
			return err
		}
		msg.Files = append(msg.Files, &workspacev1.SnapshotFile{Entry: entry(e), Data: data})
	}
	return stream.Send(msg)
}

// whole reads a small file.
func (s *Service) whole(ctx context.Context, key *envelope.Key, ws string, e tree.Entry) ([]byte, error) {
	r, done, err := s.get(ctx, fileOf(key, ws, e.Digest[:]))
	if err != nil {
		return nil, err
	}
	defer func() { _ = done() }()
	data := make([]byte, e.Size+1) // a byte more, to see the end
	n, err := io.ReadFull(r, data)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	if int64(n) != e.Size {
		return nil, otherSize()
	}
	return data[:n], nil
}

func otherSize() error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "a file of the snapshot has another size than its entry says")
}

// sendFile sends one file in pieces: its entry with the beginning, then the rest.
func (s *Service) sendFile(ctx context.Context, key *envelope.Key, ws string, e tree.Entry, stream downloadStream) error {
	r, done, err := s.get(ctx, fileOf(key, ws, e.Digest[:]))
	if err != nil {
		return err
	}
	defer func() { _ = done() }()
	msg, sent := &workspacev1.DownloadSnapshotResponse{Entry: entry(e)}, int64(0)
	for {
		buf := make([]byte, min(chunk, max(e.Size-sent, 0)+1)) // a byte more, to see the end
		n, err := io.ReadFull(r, buf)
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !ended {
			return err
		}
		if sent += int64(n); sent > e.Size || ended && sent < e.Size {
			return otherSize()
		}
		if msg.Data = buf[:n]; n > 0 || msg.GetEntry() != nil {
			if err := stream.Send(msg); err != nil {
				return err
			}
		}
		if ended {
			return nil
		}
		msg = &workspacev1.DownloadSnapshotResponse{}
	}
}
