package requests

import (
	"context"
	"database/sql"
	"errors"

	"google.golang.org/grpc/codes"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/requests/internal/store/db"
)

// Stored says how far a source is stored.
type Stored struct{ Seq, Dropped int64 }

// place is where chunks are looked for.
type place struct {
	Endpoint
	minute int64
}

// Ingest stores a batch of a source, in the order of its numbers; those that are stored are left out. dropped is the source's own count of
// requests that it has lost. Times and uids have been checked.
//
// Errors: those of keyvault where it does not answer, and of the database. Then nothing is stored.
func (s *Store) Ingest(ctx context.Context, source string, batch []*telemetryv1.SequencedRequest, dropped int64) (Stored, error) {
	keys, err := s.keysOf(ctx, batch)
	if err != nil {
		return Stored{}, err
	}
	var out Stored
	var touched map[string]struct{}
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		row, err := q.GetSource(ctx, source)
		known := !errors.Is(err, sql.ErrNoRows)
		if err != nil && known {
			return err
		}
		w := &ingest{q: q, keys: keys, chunks: make(map[place]*growing), purged: make(map[string]bool)}
		unkept, err := w.take(ctx, batch, row.Seq)
		if err != nil {
			return err
		}
		if touched, err = w.flush(ctx); err != nil {
			return err
		}
		row.Seq, row.Dropped, row.Unkept = max(row.Seq, w.last), max(row.Dropped, dropped), row.Unkept+unkept
		out = Stored{row.Seq, row.Dropped}
		if !known && row.Seq == 0 && row.Dropped == 0 {
			return nil // it has only asked
		}
		return q.PutSource(ctx, db.PutSourceParams{Source: source, Seq: row.Seq, Dropped: row.Dropped, Unkept: row.Unkept, UpdateTime: s.cfg.Now().UnixMicro()})
	})
	if err != nil {
		return Stored{}, err
	}
	for endpoint := range touched {
		s.changed(endpoint)
	}
	return out, nil
}

// keysOf gets the keys of all workspaces in a batch. A workspace that gets none for good is not among them.
func (s *Store) keysOf(ctx context.Context, batch []*telemetryv1.SequencedRequest) (map[string]*envelope.Key, error) {
	keys := make(map[string]*envelope.Key)
	for _, b := range batch {
		uid := b.GetRequest().GetWorkspaceUid()
		if _, ok := keys[uid]; ok {
			continue
		}
		key, err := s.cfg.Keys.Key(ctx, uid)
		switch fault.Code(err) {
		case codes.OK:
		case codes.FailedPrecondition, codes.NotFound, codes.PermissionDenied, codes.InvalidArgument:
			s.cfg.Logger.WarnContext(ctx, "requests of a workspace cannot be kept, since it has no key", "error", err, "workspace_uid", uid)
			key = nil
		default:
			return nil, err
		}
		keys[uid] = key
	}
	return keys, nil
}

// ingest is one transaction: the chunks that its batch touches, read once and written once.
type ingest struct {
	q      *db.Queries
	keys   map[string]*envelope.Key
	chunks map[place]*growing
	order  []*growing
	purged map[string]bool
	rev    int64
	last   int64 // number of the last request
}

// growing is a chunk with its plaintext.
type growing struct {
	chunk
	key   *envelope.Key
	plain []byte
}

// take brings all requests into chunks whose number is above stored, and counts those that cannot be kept.
func (w *ingest) take(ctx context.Context, batch []*telemetryv1.SequencedRequest, stored int64) (unkept int64, err error) {
	for _, b := range batch {
		if w.last = b.GetSeq(); w.last <= stored {
			continue
		}
		r := b.GetRequest()
		gone, err := w.gone(ctx, r.GetWorkspaceUid())
		if err != nil {
			return 0, err
		}
		if gone {
			continue
		}
		key := w.keys[r.GetWorkspaceUid()]
		if key == nil {
			unkept++
			continue
		}
		if w.rev == 0 {
			if w.rev, err = w.q.NextRev(ctx); err != nil {
				return 0, err
			}
		}
		if err := w.add(ctx, key, r); err != nil {
			return 0, err
		}
	}
	return unkept, nil
}

// gone reports whether a workspace was purged.
func (w *ingest) gone(ctx context.Context, workspaceUID string) (bool, error) {
	gone, ok := w.purged[workspaceUID]
	if !ok {
		n, err := w.q.CountPurged(ctx, workspaceUID)
		if err != nil {
			return false, err
		}
		gone = n > 0
		w.purged[workspaceUID] = gone
	}
	return gone, nil
}

// add appends a request to the last chunk of its minute, or begins the next one.
func (w *ingest) add(ctx context.Context, key *envelope.Key, r *Request) error {
	p := place{Endpoint{r.GetEndpointUid(), r.GetWorkspaceUid()}, minuteOf(r.GetTime().AsTime().UnixMicro())}
	g := w.chunks[p]
	if g == nil {
		var err error
		if g, err = w.lastChunk(ctx, key, p); err != nil {
			return err
		}
		w.chunks[p] = g
		w.order = append(w.order, g)
	}
	if g.requests >= chunkRequests || len(g.plain) >= chunkBytes {
		g = w.begin(key, p, g.number+1)
		w.chunks[p] = g
		w.order = append(w.order, g)
	}
	var err error
	if g.plain, err = appendEntry(g.plain, w.rev, r); err != nil {
		return err
	}
	g.rev = w.rev
	g.requests++
	g.classes |= classOf(r.GetStatusCode())
	return nil
}

func (w *ingest) begin(key *envelope.Key, p place, number int64) *growing {
	return &growing{chunk: chunk{Endpoint: p.Endpoint, minute: p.minute, number: number}, key: key, plain: []byte{chunkVersion}}
}

// lastChunk gives the chunk that is to grow.
func (w *ingest) lastChunk(ctx context.Context, key *envelope.Key, p place) (*growing, error) {
	row, err := w.q.LastChunk(ctx, db.LastChunkParams{EndpointUID: p.UID, Minute: p.minute})
	if errors.Is(err, sql.ErrNoRows) {
		return w.begin(key, p, 1), nil
	}
	if err != nil {
		return nil, err
	}
	g := &growing{chunk: chunk{Endpoint: p.Endpoint, minute: p.minute, number: row.Number, rev: row.Rev, requests: row.Requests, classes: row.Classes, sealed: row.Sealed}, key: key}
	if row.WorkspaceUID == p.WorkspaceUID && row.Requests < chunkRequests && len(row.Sealed) < chunkBytes {
		if g.plain, err = g.open(key); err == nil {
			return g, nil
		}
	}
	// What is full grows no more; what is damaged is left as it is, for whoever looks into it.
	return w.begin(key, p, row.Number+1), nil
}

// flush writes the chunks, and says of which endpoints they are.
func (w *ingest) flush(ctx context.Context) (map[string]struct{}, error) {
	touched := make(map[string]struct{})
	for _, g := range w.order {
		if g.rev != w.rev {
			continue // it was full already
		}
		sealed, err := g.key.Seal(g.aad(), g.plain)
		if err != nil {
			return nil, err
		}
		if err := w.q.PutChunk(ctx, db.PutChunkParams{
			EndpointUID: g.UID, Minute: g.minute, Number: g.number, WorkspaceUID: g.WorkspaceUID, Rev: g.rev, Requests: g.requests, Classes: g.classes, Sealed: sealed,
		}); err != nil {
			return nil, err
		}
		touched[g.UID] = struct{}{}
	}
	return touched, nil
}
