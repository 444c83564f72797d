package workspace

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"slices"
	"strconv"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store"
)

// small is a whole file of a batch.
type small struct {
	content

	data []byte
}

// UploadBlobs implements SnapshotService. Nothing is stored unless every file has the digest that was announced for it.
func (s *Service) UploadBlobs(ctx context.Context, req *workspacev1.UploadBlobsRequest) (*workspacev1.UploadBlobsResponse, error) {
	call := rpc.From(ctx)
	ws := call.Scope.WorkspaceUID
	key, err := s.cfg.Keys.Key(ctx, ws)
	if err != nil {
		return nil, err
	}
	files, err := s.batch(key, ws, req.GetBlobs())
	if err != nil {
		return nil, err
	}
	rows := make([]store.Blob, len(files))
	for i, f := range files {
		rows[i] = store.Blob{Name: f.name, Size: int64(len(f.data))}
	}
	// Also what is there already: it is wanted again, and is not cleaned away.
	begun, err := s.store.BeginBlobs(ctx, ws, rows)
	if err != nil {
		return nil, err
	}
	var put []blob.Item
	var stored []content
	var finish []store.Blob
	for i, f := range files {
		if begun[i].Stored {
			if begun[i].Size != rows[i].Size {
				return nil, mismatch("the content with one of the digests has %d bytes, and not %d", begun[i].Size, rows[i].Size)
			}
			continue
		}
		sealed, err := f.seal()
		if err != nil {
			return nil, err
		}
		put, stored, finish = append(put, blob.Item{Name: f.path, Content: sealed}), append(stored, f.content), append(finish, rows[i])
	}
	if len(put) == 0 {
		return &workspacev1.UploadBlobsResponse{}, nil
	}
	if err := s.cfg.Blobs.PutAll(ctx, put); err != nil {
		return nil, err
	}
	if err := s.store.FinishBlobs(ctx, ws, finish, func(ctx context.Context, tx *sqldb.Tx) error {
		return call.Audit(ctx, tx, "files", strconv.Itoa(len(finish)))
	}); err != nil {
		return nil, s.leftover(ctx, err, stored...)
	}
	return &workspacev1.UploadBlobsResponse{}, nil
}

// batch gives the files that were sent, each content once, in the order of their names.
func (s *Service) batch(key *envelope.Key, ws string, blobs []*workspacev1.SmallBlob) ([]small, error) {
	out := make([]small, 0, len(blobs))
	for i, b := range blobs {
		if int64(len(b.GetData())) > s.cfg.Limits.FileBytes {
			return nil, fault.New(codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED, "a file of a snapshot has at most %d bytes", s.cfg.Limits.FileBytes)
		}
		if sum := sha256.Sum256(b.GetData()); !bytes.Equal(sum[:], b.GetDigest()) {
			return nil, mismatch("the content of file %d of the call has another SHA-256 than was announced; has the file changed meanwhile?", i+1)
		}
		out = append(out, small{fileOf(key, ws, b.GetDigest()), b.GetData()})
	}
	slices.SortFunc(out, func(a, b small) int { return cmp.Compare(a.name, b.name) })
	return slices.CompactFunc(out, func(a, b small) bool { return a.name == b.name }), nil
}

// seal gives what put would have stored.
func (f small) seal() ([]byte, error) {
	var out bytes.Buffer
	w, err := f.key.SealStream(f.aad, &out)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(f.data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
