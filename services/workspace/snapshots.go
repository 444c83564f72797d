package workspace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/tree"
)

// FindMissingBlobs implements SnapshotService.
func (s *Service) FindMissingBlobs(ctx context.Context, req *workspacev1.FindMissingBlobsRequest) (*workspacev1.FindMissingBlobsResponse, error) {
	ws := rpc.From(ctx).Scope.WorkspaceUID
	key, err := s.cfg.Keys.Key(ctx, ws)
	if err != nil {
		return nil, err
	}
	there, err := s.store.Blobs(ctx, ws)
	if err != nil {
		return nil, err
	}
	out := &workspacev1.FindMissingBlobsResponse{}
	seen := make(map[string]bool, len(req.GetDigests()))
	for _, digest := range req.GetDigests() {
		if seen[string(digest)] {
			continue
		}
		seen[string(digest)] = true
		if _, ok := there[fileOf(key, ws, digest).name]; !ok {
			out.Missing = append(out.Missing, digest)
		}
	}
	return out, nil
}

// UploadBlob implements SnapshotService. A file is stored once all of it has come and it has the digest that was announced.
func (s *Service) UploadBlob(stream grpc.ClientStreamingServer[workspacev1.UploadBlobRequest, workspacev1.UploadBlobResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	ctx := stream.Context()
	ws := rpc.From(ctx).Scope.WorkspaceUID
	digest, size := first.GetDigest(), first.GetSize()
	switch {
	case len(digest) != sha256.Size:
		return fault.InvalidArgument("the first message has the file's SHA-256, of 32 bytes").Field("digest", "is not a SHA-256 of 32 bytes")
	case size < 0:
		return fault.InvalidArgument("the first message has the file's size").Field("size", "is less than 0")
	case size > s.cfg.Limits.FileBytes:
		return fault.New(codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED, "a file of a snapshot has at most %d bytes", s.cfg.Limits.FileBytes)
	}
	key, err := s.cfg.Keys.Key(ctx, ws)
	if err != nil {
		return err
	}
	c := fileOf(key, ws, digest)
	// Also where it is there already: it is wanted again, and is not cleaned away.
	row := store.Blob{Name: c.name, Size: size}
	begun, err := s.store.BeginBlob(ctx, ws, row)
	if err != nil {
		return err
	}
	if begun.Stored {
		if begun.Size != size {
			return mismatch("the content with this digest has %d bytes, and not %d", begun.Size, size)
		}
		return stream.SendAndClose(&workspacev1.UploadBlobResponse{Size: size})
	}
	if err := s.put(ctx, c, func(w io.Writer) error { return receive(stream, first, w) }); err != nil {
		return err
	}
	if err := s.store.FinishBlob(ctx, ws, row); err != nil {
		return s.leftover(ctx, err, c)
	}
	return stream.SendAndClose(&workspacev1.UploadBlobResponse{Size: size})
}

// receive writes the content of the stream to w, and fails unless it has the announced size and digest.
func receive(stream grpc.ClientStreamingServer[workspacev1.UploadBlobRequest, workspacev1.UploadBlobResponse], first *workspacev1.UploadBlobRequest, w io.Writer) error {
	sum, left := sha256.New(), first.GetSize()
	for msg := first; ; {
		data := msg.GetData()
		if left -= int64(len(data)); left < 0 {
			return mismatch("the content is longer than the %d bytes that were announced", first.GetSize())
		}
		_, _ = sum.Write(data)
		if _, err := w.Write(data); err != nil {
			return err
		}
		var err error
		if msg, err = stream.Recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if len(msg.GetDigest()) > 0 && !bytes.Equal(msg.GetDigest(), first.GetDigest()) || msg.GetSize() != 0 && msg.GetSize() != first.GetSize() {
			return fault.InvalidArgument("digest and size stand in the first message only")
		}
	}
	if left > 0 {
		return mismatch("the content ended %d bytes before the announced size", left)
	}
	if !bytes.Equal(sum.Sum(nil), first.GetDigest()) {
		return mismatch("the content has another SHA-256 than was announced; has the file changed meanwhile?")
	}
	return nil
}

func mismatch(format string, args ...any) error {
	return fault.New(codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH, format, args...)
}

// CreateSnapshot implements SnapshotService.
func (s *Service) CreateSnapshot(ctx context.Context, req *workspacev1.CreateSnapshotRequest) (*workspacev1.Snapshot, error) {
	call := rpc.From(ctx)
	ws := call.Scope.WorkspaceUID
	entries := make([]tree.Entry, len(req.GetEntries()))
	for i, e := range req.GetEntries() {
		entries[i] = tree.Entry{Path: e.GetPath(), Size: e.GetSize(), Executable: e.GetExecutable()}
		copy(entries[i].Digest[:], e.GetDigest()) // 32 bytes, by the contract
	}
	entries, total, err := tree.Check(entries, tree.Limits{FileBytes: s.cfg.Limits.FileBytes, TotalBytes: s.cfg.Limits.SnapshotBytes, Entries: s.cfg.Limits.Entries})
	if err != nil {
		return nil, err
	}
	key, err := s.cfg.Keys.Key(ctx, ws)
	if err != nil {
		return nil, err
	}
	encoded := tree.Encode(entries)
	id := tree.ID(encoded)
	row, err := s.store.GetSnapshot(ctx, key, ws, id)
	if err == nil {
		call.Detail("snapshot", id)
		return snapshot(req.GetParent(), row, entries), nil
	}
	if !fault.Is(err, codes.NotFound) {
		return nil, err
	}
	if err := s.take(ctx, key, ws, entries); err != nil {
		return nil, err
	}
	c := entriesOf(key, ws, id)
	if err := s.put(ctx, c, func(w io.Writer) error {
		_, err := w.Write(encoded)
		return err
	}); err != nil {
		return nil, err
	}
	row, err = s.store.AddSnapshot(ctx, key, store.Snapshot{Workspace: ws, ID: id, TotalBytes: total, CreatedBy: call.Principal}, func(ctx context.Context, tx *sqldb.Tx) error {
		return call.Audit(ctx, tx, "snapshot", id, "files", strconv.Itoa(len(entries)), "bytes", strconv.FormatInt(total, 10))
	})
	if err != nil {
		return nil, s.leftover(ctx, err, c)
	}
	return snapshot(req.GetParent(), row, entries), nil
}

// take makes sure that every file is there with its size, and that it stays. Should the snapshot fail after this, files may stay
// that it alone would have needed; they go with the workspace.
func (s *Service) take(ctx context.Context, key *envelope.Key, ws string, entries []tree.Entry) error {
	there, err := s.store.Blobs(ctx, ws)
	if err != nil {
		return err
	}
	absent := func(i int) error {
		return fault.FailedPrecondition("the content of a file is not there; send what FindMissingBlobs names, and repeat").With("digest", hex.EncodeToString(entries[i].Digest[:]))
	}
	names, first := make([]string, 0, len(entries)), make(map[string]int, len(entries))
	for i, e := range entries {
		name := fileOf(key, ws, e.Digest[:]).name
		size, ok := there[name]
		switch {
		case !ok:
			return absent(i)
		case size != e.Size:
			return mismatch("an entry says %d bytes, and the content with its digest has %d", e.Size, size)
		}
		if _, again := first[name]; !again {
			first[name] = i
			names = append(names, name)
		}
	}
	missing, err := s.store.UseBlobs(ctx, ws, names)
	if err == nil && missing >= 0 {
		return absent(first[names[missing]]) // swept away just now
	}
	return err
}

// stored finds the snapshot of a call.
func (s *Service) stored(ctx context.Context, call *rpc.Call, name string) (*envelope.Key, store.Snapshot, []tree.Entry, error) {
	ws, id := call.Scope.WorkspaceUID, call.Scope.Name.ID()
	key, err := s.cfg.Keys.Key(ctx, ws)
	if err != nil {
		return nil, store.Snapshot{}, nil, err
	}
	row, err := s.store.GetSnapshot(ctx, key, ws, id)
	if fault.Is(err, codes.NotFound) {
		err = rpc.NotFound(name)
	}
	if err != nil {
		return nil, row, nil, err
	}
	entries, err := s.entries(ctx, key, ws, id)
	return key, row, entries, err
}

// GetSnapshot implements SnapshotService.
func (s *Service) GetSnapshot(ctx context.Context, req *workspacev1.GetSnapshotRequest) (*workspacev1.Snapshot, error) {
	call := rpc.From(ctx)
	_, row, entries, err := s.stored(ctx, call, req.GetName())
	if err != nil {
		return nil, err
	}
	return snapshot(call.Scope.Name.Parent().String(), row, entries), nil
}

// ListSnapshots implements SnapshotService.
func (s *Service) ListSnapshots(ctx context.Context, req *workspacev1.ListSnapshotsRequest) (*workspacev1.ListSnapshotsResponse, error) {
	ws := rpc.From(ctx).Scope.WorkspaceUID
	p, err := s.page(ctx, "snapshots in "+ws, req.GetPageToken(), req.GetPageSize())
	if err != nil {
		return nil, err
	}
	key, err := s.cfg.Keys.Key(ctx, ws)
	if err != nil {
		return nil, err
	}
	rows, token, err := fill(p, func(after store.Cursor, limit int) ([]store.Snapshot, error) {
		return s.store.ListSnapshots(ctx, key, ws, after, limit)
	}, func(store.Snapshot) (bool, error) { return true, nil })
	if err != nil {
		return nil, err
	}
	out := &workspacev1.ListSnapshotsResponse{NextPageToken: token}
	for _, row := range rows {
		out.Snapshots = append(out.Snapshots, snapshot(req.GetParent(), row, nil))
	}
	return out, nil
}

func entry(e tree.Entry) *workspacev1.SnapshotEntry {
	return &workspacev1.SnapshotEntry{Path: e.Path, Digest: e.Digest[:], Size: e.Size, Executable: e.Executable}
}

func snapshot(parent string, row store.Snapshot, entries []tree.Entry) *workspacev1.Snapshot {
	out := &workspacev1.Snapshot{
		Name: parent + "/snapshots/" + row.ID, Uid: row.UID, TotalBytes: row.TotalBytes, CreateTime: timestamppb.New(row.Created), CreatedBy: row.CreatedBy,
	}
	for _, e := range entries {
		out.Entries = append(out.Entries, entry(e))
	}
	return out
}
