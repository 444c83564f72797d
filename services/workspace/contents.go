package workspace

import (
	"context"
	"encoding/hex"
	"io"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/tree"
)

// content is what is stored as one sealed blob of a workspace.
type content struct {
	key  *envelope.Key
	aad  envelope.AAD
	name string // of the blob within the workspace, keyed
	path string // of the blob in the store
}

func contentOf(key *envelope.Key, workspace, kind, id string) content {
	name := key.BlobName(kind, id)
	return content{key: key, name: name, path: workspace + "/" + name, aad: envelope.AAD{Owner: workspace, Kind: kind, ID: id}}
}

// fileOf is the content of a file with a digest.
func fileOf(key *envelope.Key, workspace string, digest []byte) content {
	return contentOf(key, workspace, "snapshot", hex.EncodeToString(digest))
}

// entriesOf is what a snapshot consists of.
func entriesOf(key *envelope.Key, workspace, id string) content {
	return contentOf(key, workspace, "snapshot_entries", id)
}

// put stores what write writes. Nothing is stored if write or the store fails; what write returns comes back as it is.
func (s *Service) put(ctx context.Context, c content, write func(io.Writer) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	stored := make(chan error, 1)
	go func() {
		_, err := s.cfg.Blobs.Put(ctx, c.path, r)
		_ = r.CloseWithError(err) // frees the writer below
		stored <- err
	}()
	sealing, err := c.key.SealStream(c.aad, w)
	if err == nil {
		if err = write(sealing); err == nil {
			err = sealing.Close()
		}
	}
	_ = w.CloseWithError(err) // nil is the end of what is stored
	if e := <-stored; e != nil {
		return e // the same, where write failed
	}
	return err
}

// get opens what put has stored.
func (s *Service) get(ctx context.Context, c content) (io.Reader, func() error, error) {
	raw, err := s.cfg.Blobs.Get(ctx, c.path)
	if err != nil {
		if fault.Is(err, codes.NotFound) {
			err = fault.Internal(err, "the content of a snapshot is missing")
		}
		return nil, nil, err
	}
	plain, err := c.key.OpenStream(c.aad, raw)
	if err != nil {
		_ = raw.Close()
		return nil, nil, err
	}
	return plain, raw.Close, nil
}

// leftover deletes content whose workspace was removed while it was being stored.
func (s *Service) leftover(ctx context.Context, cause error, stored ...content) error {
	if !fault.Is(cause, codes.FailedPrecondition) {
		return cause
	}
	for _, c := range stored {
		if err := s.cfg.Blobs.Delete(context.WithoutCancel(ctx), c.path); err != nil {
			s.cfg.Logger.WarnContext(ctx, "content of a removed workspace was not deleted; its key is gone", "error", err)
		}
	}
	return cause
}

// entries reads what a snapshot consists of.
func (s *Service) entries(ctx context.Context, key *envelope.Key, workspace, id string) ([]tree.Entry, error) {
	r, done, err := s.get(ctx, entriesOf(key, workspace, id))
	if err != nil {
		return nil, err
	}
	defer func() { _ = done() }()
	encoded, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return tree.Decode(encoded)
}

const (
	// unusedFor is how long a blob waits for a snapshot that takes it.
	unusedFor = 24 * time.Hour
	// sweepAtOnce is how many blobs are deleted before the database is asked for more.
	sweepAtOnce = 256
)

// sweep deletes blobs that no snapshot has taken within a day.
func (s *Service) sweep(ctx context.Context, write sqldb.WriteFunc) error {
	for {
		gone, err := s.store.Condemn(ctx, write, s.cfg.Now().Add(-unusedFor), sweepAtOnce)
		if err != nil {
			return err
		}
		for _, c := range gone {
			if err := s.cfg.Blobs.Delete(ctx, c.Workspace+"/"+c.Name); err != nil {
				return err
			}
			if err := s.store.Buried(ctx, write, c); err != nil {
				return err
			}
		}
		if len(gone) < sweepAtOnce {
			return nil
		}
	}
}
