package history

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"errors"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history/internal/store/db"
)

const (
	// queueLength is how many batches wait for a transaction; further ones wait outside, and with them their senders.
	queueLength = 256
	// groupBatches and groupPoints bound one transaction.
	groupBatches, groupPoints = 256, 50_000
	// commitTimeout bounds the work of one transaction before its commit.
	commitTimeout = 20 * time.Second
)

// pending is a batch on its way to the disk.
type pending struct {
	run   Run
	batch *Batch
	box   *box
	done  chan struct{} // closed when err is final
	err   error
}

// Log stores a batch and returns when it is durable. It waits while the queue is full. When ctx ends before, the batch may be stored or
// not; sent again with its ID it is stored once.
//
// Errors: METRIC_INVALID; PRECONDITION_FAILED for another value of a parameter; REQUEST_ID_REUSED for another batch of the same id;
// LIMIT_EXCEEDED; RESOURCE_NOT_FOUND for a workspace that was purged; those of the workspace's key, of the database, and of ctx.
func (s *Store) Log(ctx context.Context, run Run, batch *Batch) error {
	if err := batch.Check(); err != nil {
		return err
	}
	if batch.Empty() && batch.ID == "" {
		return nil
	}
	box, err := s.key(ctx, run)
	if err != nil {
		return err
	}
	p := &pending{run: run, batch: batch, box: box, done: make(chan struct{})}
	select {
	case <-s.stop:
		return errClosing()
	default:
	}
	select {
	case s.queue <- p:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stop:
		return errClosing()
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ended:
	}
	select {
	case <-p.done:
		return p.err
	default: // it came into the queue after the last look
		return errClosing()
	}
}

func errClosing() error {
	return fault.Unavailable("the service is being stopped; send the batch again")
}

// commitLoop is the one goroutine that writes.
func (s *Store) commitLoop() {
	defer close(s.ended)
	for {
		var group []*pending
		select {
		case <-s.stop:
		case p := <-s.queue:
			group = s.gather(p)
		}
		if group == nil {
			break
		}
		s.commit(group)
	}
	for {
		select {
		case p := <-s.queue:
			p.err = errClosing()
			close(p.done)
		default:
			return
		}
	}
}

// gather takes what waits already, and does not wait for more.
func (s *Store) gather(first *pending) []*pending {
	group, points := []*pending{first}, len(first.batch.Metrics)
	for len(group) < groupBatches && points < groupPoints {
		select {
		case p := <-s.queue:
			group = append(group, p)
			points += len(p.batch.Metrics)
		default:
			return group
		}
	}
	return group
}

// commit stores a group in one transaction. If something of the group cannot be stored, and the database itself is well, each batch
// is tried alone, so that one does not fail the others.
func (s *Store) commit(group []*pending) {
	errs, err := s.transact(group)
	if err != nil && len(group) > 1 && !everyones(err) {
		for _, p := range group {
			s.commit([]*pending{p})
		}
		return
	}
	if err != nil {
		s.cfg.Logger.Warn("batches of metrics could not be stored; their senders were told", "error", err, "batches", len(group))
	}
	for i, p := range group {
		if p.err = err; err == nil {
			p.err = errs[i]
		}
		close(p.done)
	}
}

// everyones reports whether the state of the database is the reason, which is the same for every batch.
func everyones(err error) bool {
	var own *sealError
	if errors.As(err, &own) {
		return false
	}
	switch fault.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}

// transact applies a group in one transaction. It returns each batch's own refusal, or what failed the transaction.
func (s *Store) transact(group []*pending) ([]error, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	errs := make([]error, len(group))
	var w *work
	err := s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		w = newWork(db.New(tx), s.cfg.Now())
		for i, p := range group {
			var own *refusal
			if err := w.apply(ctx, p); errors.As(err, &own) {
				errs[i] = own.error
			} else if err != nil {
				return err
			}
		}
		return w.flush(ctx)
	})
	if err != nil {
		return nil, err
	}
	for uid, run := range w.runs {
		if run.dirty {
			s.changed(uid)
		}
	}
	return errs, nil
}

// refusal is an error of one batch. It leaves the transaction as if the batch had not come.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

func refuse(err error) error { return &refusal{err} }

// work is one transaction: the rows that its batches touch, read once and written once.
type work struct {
	q    *db.Queries
	now  int64
	runs map[string]*runWork
}

type runWork struct {
	Run
	box   *box
	row   db.GetRunRow
	dirty bool
	keys  map[mac]*keyWork
	texts map[textID]*textWork
	batch map[mac][]byte // ids of this transaction, with their contents' MACs
}

type keyWork struct {
	known, dirty bool
	row          db.GetLatestRow
	latest       Metric
	points       []Point // new ones, in the order of arrival
}

type textKind int64

const (
	kindParam textKind = 1
	kindTag   textKind = 2
)

type textID struct {
	kind textKind
	mac  mac
}

type textWork struct {
	known, dirty bool
	Text
}

func newWork(q *db.Queries, now time.Time) *work {
	return &work{q: q, now: now.UnixMicro(), runs: make(map[string]*runWork)}
}

// apply brings one batch into the work. Until nothing can be refused any more, it changes nothing that is written.
func (w *work) apply(ctx context.Context, p *pending) error {
	run, err := w.run(ctx, p)
	if err != nil {
		return err
	}
	var id mac
	var content []byte
	if batchID(p.batch) != "" {
		id, content = p.box.batchMAC(p.batch.ID), p.box.contentMAC(p.batch)
		stored, known, err := run.stored(ctx, w.q, id)
		switch {
		case err != nil:
			return err
		case known && subtle.ConstantTimeCompare(stored, content) == 1:
			return nil
		case known:
			return refuse(fault.New(codes.InvalidArgument, faultv1.Reason_REQUEST_ID_REUSED, "another batch of this run was stored under this batch_id; use a new one for each batch").With("batch_id", p.batch.ID))
		}
	}
	keys, err := w.keys(ctx, run, p.batch.Metrics)
	if err != nil {
		return err
	}
	texts, err := w.texts(ctx, run, p.batch)
	if err != nil {
		return err
	}
	// From here on it is taken.
	for i, m := range p.batch.Metrics {
		k := keys[i]
		if !k.known {
			k.known, run.row.Keys = true, run.row.Keys+1
			k.latest = m
		} else if m.Compare(k.latest.Point) > 0 {
			k.latest = m
		}
		k.dirty, k.points = true, append(k.points, m.Point)
	}
	for i, t := range joined(p.batch) {
		old := texts[i]
		if old.known {
			run.row.TextBytes -= old.size()
		} else {
			run.row.Texts++
		}
		run.row.TextBytes += t.size()
		old.known, old.dirty, old.Text = true, true, t
	}
	if batchID(p.batch) != "" {
		run.batch[id] = content
	}
	run.dirty = true
	return nil
}

func joined(b *Batch) []Text {
	return append(append(make([]Text, 0, len(b.Params)+len(b.Tags)), b.Params...), b.Tags...)
}

// run reads the row of the batch's run, or begins it.
func (w *work) run(ctx context.Context, p *pending) (*runWork, error) {
	if run, ok := w.runs[p.run.UID]; ok {
		return run, nil
	}
	run := &runWork{Run: p.run, box: p.box, keys: make(map[mac]*keyWork), texts: make(map[textID]*textWork), batch: make(map[mac][]byte)}
	row, err := w.q.GetRun(ctx, p.run.UID)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		purged, err := w.q.CountPurged(ctx, p.run.WorkspaceUID)
		if err != nil {
			return nil, err
		}
		if purged > 0 {
			return nil, refuse(errNoRun())
		}
		row = db.GetRunRow{WorkspaceUID: p.run.WorkspaceUID}
	case err != nil:
		return nil, err
	case row.WorkspaceUID != p.run.WorkspaceUID:
		return nil, refuse(errNoRun())
	}
	run.row = row
	w.runs[p.run.UID] = run
	return run, nil
}

// stored finds the content of a batch that is known by its id.
func (r *runWork) stored(ctx context.Context, q *db.Queries, id mac) (content []byte, known bool, err error) {
	if content, known = r.batch[id]; known {
		return content, true, nil
	}
	content, err = q.GetBatch(ctx, db.GetBatchParams{RunUID: r.UID, BatchMac: id[:]})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, false, nil
	}
	return content, err == nil, err
}

// keys finds each point's metric.
func (w *work) keys(ctx context.Context, run *runWork, metrics []Metric) ([]*keyWork, error) {
	keys := make([]*keyWork, len(metrics))
	fresh := make(map[mac]struct{})
	for i, m := range metrics {
		id := run.box.keyMAC(m.Key)
		k, ok := run.keys[id]
		if !ok {
			var err error
			if k, err = w.key(ctx, run, id); err != nil {
				return nil, err
			}
			run.keys[id] = k
		}
		if !k.known {
			fresh[id] = struct{}{}
		}
		keys[i] = k
	}
	if run.row.Keys+int64(len(fresh)) > MaxRunMetrics {
		return nil, refuse(errFull("metrics", MaxRunMetrics))
	}
	return keys, nil
}

func (w *work) key(ctx context.Context, run *runWork, id mac) (*keyWork, error) {
	row, err := w.q.GetLatest(ctx, db.GetLatestParams{RunUID: run.UID, KeyMac: id[:]})
	if errors.Is(err, sql.ErrNoRows) {
		return &keyWork{}, nil
	}
	if err != nil {
		return nil, err
	}
	latest, err := run.box.openLatest(id[:], row)
	if err != nil {
		return nil, refuse(err)
	}
	return &keyWork{known: true, row: row, latest: latest}, nil
}

// texts finds the parameters and tags of a batch as they are, and refuses another value of a parameter.
func (w *work) texts(ctx context.Context, run *runWork, b *Batch) ([]*textWork, error) {
	all := joined(b)
	texts := make([]*textWork, len(all))
	count, bytes := run.row.Texts, run.row.TextBytes
	for i, t := range all {
		kind := kindParam
		if i >= len(b.Params) {
			kind = kindTag
		}
		id := textID{kind, run.box.textMAC(kind, t.Key)}
		old, ok := run.texts[id]
		if !ok {
			var err error
			if old, err = w.text(ctx, run, id); err != nil {
				return nil, err
			}
			run.texts[id] = old
		}
		texts[i] = old
		if !old.known {
			count++
			bytes += t.size()
			continue
		}
		if kind == kindParam && old.Value != t.Value {
			return nil, refuse(fault.FailedPrecondition("the parameter has another value already, and a parameter keeps its first value; log it under another name or as a tag").
				Field("params", "it has another value already").With("param", t.Key).With("batch_id", b.ID))
		}
		bytes += t.size() - old.size()
	}
	switch {
	case count > MaxRunTexts && count > run.row.Texts:
		return nil, refuse(errFull("parameters and tags", MaxRunTexts))
	case bytes > MaxRunTextBytes && bytes > run.row.TextBytes:
		return nil, refuse(errFull("bytes of parameters and tags", MaxRunTextBytes))
	}
	return texts, nil
}

func (w *work) text(ctx context.Context, run *runWork, id textID) (*textWork, error) {
	sealed, err := w.q.GetText(ctx, db.GetTextParams{RunUID: run.UID, Kind: int64(id.kind), KeyMac: id.mac[:]})
	if errors.Is(err, sql.ErrNoRows) {
		return &textWork{}, nil
	}
	if err != nil {
		return nil, err
	}
	text, err := run.box.openText(id.kind, id.mac[:], sealed)
	if err != nil {
		return nil, refuse(err)
	}
	return &textWork{known: true, Text: text}, nil
}
