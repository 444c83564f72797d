package store

import (
	"context"
	"encoding/hex"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store/db"
)

func logAAD(workspace, uid string, start int64) envelope.AAD {
	return envelope.AAD{Owner: workspace, Kind: "log", ID: uid, Version: start}
}

// AppendLog stores data that begins at start, and says where the log ends now. What is stored already is passed over, so a piece
// that is sent again is taken once; a gap is refused; what lies past the limit is dropped.
func (s *Store) AppendLog(ctx context.Context, r *Run, start int64, data []byte, limit int64, now time.Time) (stored int64, full bool, err error) {
	key, err := s.keys.Key(ctx, r.Workspace)
	if err != nil {
		return 0, false, err
	}
	err = s.w.WriteGrouped(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		row, err := q.GetRun(ctx, r.UID)
		if err != nil {
			return sqldb.Fault(err)
		}
		if closed(row, now) {
			return fault.New(codes.FailedPrecondition, faultv1.Reason_RUN_ENDED, "the run has ended; its log is closed")
		}
		at := row.LogBytes
		if start > at {
			return fault.New(codes.OutOfRange, faultv1.Reason_REQUEST_INVALID, "the log ends at %d; send from there", at)
		}
		stored, full = at, at >= limit
		skip := at - start
		if skip >= int64(len(data)) || full {
			return nil
		}
		piece := data[skip:]
		if at+int64(len(piece)) >= limit {
			piece, full = piece[:limit-at], true
		}
		sealed, err := key.Seal(logAAD(r.Workspace, r.UID, at), piece)
		if err != nil {
			return err
		}
		if err := q.InsertLog(ctx, db.InsertLogParams{RunUID: r.UID, Start: at, Length: int64(len(piece)), Data: sealed}); err != nil {
			return sqldb.Fault(err)
		}
		stored = at + int64(len(piece))
		n, err := q.SetLogBytes(ctx, db.SetLogBytesParams{UID: r.UID, LogBytes: stored, HeartbeatTime: micros(now), LogBytes_2: at, State: int64(computev1.Run_STATE_COMPLETED), DeliverTime: micros(now)})
		if err != nil {
			return sqldb.Fault(err)
		}
		if n == 0 {
			return fault.Aborted("the log was written from elsewhere; ask for the assignment again")
		}
		return signal(ctx, tx, RunTopic(r.UID))
	})
	return stored, full, err
}

// ReadLog gives the log from offset, at most n pieces. A piece that is gone from between others is DATA_DAMAGED.
func (s *Store) ReadLog(ctx context.Context, r *Run, offset int64, n int) ([]*computev1.LogChunk, error) {
	key, err := s.keys.Key(ctx, r.Workspace)
	if err != nil {
		return nil, err
	}
	rows, err := db.New(s.db.Reader()).ReadLog(ctx, db.ReadLogParams{RunUID: r.UID, Start: offset, Column3: int64(n)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]*computev1.LogChunk, 0, len(rows))
	for _, row := range rows {
		data, err := key.Open(logAAD(r.Workspace, r.UID, row.Start), row.Data)
		if err != nil {
			return nil, err
		}
		if row.Start > offset || int64(len(data)) != row.Length {
			return nil, fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "a piece of the stored log is missing")
		}
		if row.Start < offset {
			data = data[offset-row.Start:]
			row.Start = offset
		}
		out = append(out, &computev1.LogChunk{Offset: row.Start, Data: data})
		offset = row.Start + int64(len(data))
	}
	return out, nil
}

// Output is one file that a run has left.
type Output struct {
	Path    string
	Size    int64
	Digest  []byte
	Blob    string
	Created time.Time
	// Artifact says that it did not come from the run's agent, which counts its own.
	Artifact bool
}

// outputAAD binds an entry to its path and to its blob, so that two outputs of a run cannot be exchanged.
func outputAAD(r *Run, mac []byte, blob string) envelope.AAD {
	return runAAD(r.Workspace, r.UID, "output/"+hex.EncodeToString(mac)+"/"+blob)
}

// PutOutput notes an output whose blob is stored. The same path again takes the place of the earlier one, whose blob is given back
// if it is another. A run has at most most outputs, of at most mostBytes in all. record may be nil where the call has a record of its
// own.
func (s *Store) PutOutput(ctx context.Context, r *Run, o Output, most, mostBytes int64, record Record) (replaced string, err error) {
	key, err := s.keys.Key(ctx, r.Workspace)
	if err != nil {
		return "", err
	}
	mac := key.MAC("output", r.UID, o.Path)
	b, err := proto.Marshal(&computev1.Output{Path: o.Path, Digest: o.Digest, Size: o.Size})
	if err != nil {
		return "", fault.Internal(err, "the output cannot be stored")
	}
	entry, err := key.Seal(outputAAD(r, mac, o.Blob), b)
	if err != nil {
		return "", err
	}
	err = s.w.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		replaced = ""
		row, err := q.GetRun(ctx, r.UID)
		if err != nil {
			return sqldb.Fault(err)
		}
		if !o.Artifact && closed(row, o.Created) {
			return fault.New(codes.FailedPrecondition, faultv1.Reason_RUN_ENDED, "the run has ended; it takes no more outputs")
		}
		if o.Artifact && row.Deleted != int64(NotDeleted) {
			return runDeleted()
		}
		total, err := q.SumOtherOutputs(ctx, db.SumOtherOutputsParams{RunUID: r.UID, PathMac: mac})
		if err != nil {
			return sqldb.Fault(err)
		}
		if o.Size > mostBytes-total {
			return fault.ResourceExhausted("the outputs of a run have at most %d bytes in all", mostBytes)
		}
		old, err := q.GetOutput(ctx, db.GetOutputParams{RunUID: r.UID, PathMac: mac})
		switch err = sqldb.Fault(err); {
		case err == nil && o.Artifact && agents(row, old):
			return agentsFile()
		case err == nil && old.Blob != o.Blob:
			replaced = old.Blob
		case fault.Is(err, codes.NotFound):
			n, err := q.CountOutputs(ctx, r.UID)
			if err != nil {
				return sqldb.Fault(err)
			}
			if n >= most {
				return fault.ResourceExhausted("the run has %d outputs, which is the most; pack them into fewer files", most)
			}
		case err != nil:
			return err
		}
		err = q.PutOutput(ctx, db.PutOutputParams{RunUID: r.UID, PathMac: mac, Entry: entry, Size: o.Size, Blob: o.Blob, CreateTime: micros(o.Created), Artifact: flag(o.Artifact)})
		if err != nil || record == nil {
			return sqldb.Fault(err)
		}
		return record(ctx, tx)
	})
	return replaced, err
}

// agents reports whether an output is one that the agent of a run has left and will count when it reports, as it also may after the run was lost,
// until its token is dead.
func agents(r db.Run, o db.Output) bool {
	return o.Artifact == 0 && (r.State < int64(computev1.Run_STATE_COMPLETED) || r.DeliverTime > 0 && r.Revoked == 0)
}

func agentsFile() error {
	return fault.FailedPrecondition("the run's own agent has left that file; it can be changed when the run has ended")
}

func runDeleted() error {
	return fault.FailedPrecondition("the run is deleted; restore it first")
}

// DeleteOutputs removes files of a run from its list, all or none, and gives their blobs. A file that was replaced meanwhile is CONFLICT.
func (s *Store) DeleteOutputs(ctx context.Context, r *Run, list []Output, record Record) (blobs []string, err error) {
	key, err := s.keys.Key(ctx, r.Workspace)
	if err != nil {
		return nil, err
	}
	err = s.w.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		blobs = nil
		row, err := q.GetRun(ctx, r.UID)
		if err != nil {
			return sqldb.Fault(err)
		}
		if row.Deleted != int64(NotDeleted) {
			return runDeleted()
		}
		for _, o := range list {
			if agents(row, db.Output{Artifact: flag(o.Artifact)}) {
				return agentsFile()
			}
			n, err := q.DeleteOutput(ctx, db.DeleteOutputParams{RunUID: r.UID, PathMac: key.MAC("output", r.UID, o.Path), Blob: o.Blob})
			if err != nil {
				return sqldb.Fault(err)
			}
			if n == 0 {
				return fault.Aborted("a file was changed in between; repeat the call")
			}
			blobs = append(blobs, o.Blob)
		}
		return record(ctx, tx)
	})
	return blobs, err
}

// Outputs lists what a run has left.
func (s *Store) Outputs(ctx context.Context, r *Run) ([]Output, error) {
	rows, err := db.New(s.db.Reader()).ListOutputs(ctx, r.UID)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Output, 0, len(rows))
	for _, row := range rows {
		o, err := s.output(ctx, r, row)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

// Output finds one by its path.
func (s *Store) Output(ctx context.Context, r *Run, path string) (Output, error) {
	key, err := s.keys.Key(ctx, r.Workspace)
	if err != nil {
		return Output{}, err
	}
	row, err := db.New(s.db.Reader()).GetOutput(ctx, db.GetOutputParams{RunUID: r.UID, PathMac: key.MAC("output", r.UID, path)})
	if err != nil {
		return Output{}, sqldb.Fault(err)
	}
	return s.output(ctx, r, row)
}

func (s *Store) output(ctx context.Context, r *Run, row db.Output) (Output, error) {
	key, err := s.keys.Key(ctx, r.Workspace)
	if err != nil {
		return Output{}, err
	}
	b, err := key.Open(outputAAD(r, row.PathMac, row.Blob), row.Entry)
	if err != nil {
		return Output{}, err
	}
	var e computev1.Output
	if err := proto.Unmarshal(b, &e); err != nil {
		return Output{}, fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "the stored output cannot be read")
	}
	return Output{Path: e.GetPath(), Size: e.GetSize(), Digest: e.GetDigest(), Blob: row.Blob, Created: instant(row.CreateTime), Artifact: row.Artifact != 0}, nil
}

// CountAgentOutputs counts what a run's agent has left, in the transaction that ends the run.
func CountAgentOutputs(ctx context.Context, tx *sqldb.Tx, uid string) (int64, error) {
	n, err := db.New(tx).CountAgentOutputs(ctx, uid)
	return n, sqldb.Fault(err)
}
