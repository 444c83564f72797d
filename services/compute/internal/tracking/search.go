package tracking

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/compute/internal/filter"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
	"github.com/redoubt-ml/redoubt/services/compute/internal/view"
)

// searchPage and searchMost are how many a page has by default, and at most.
const searchPage, searchMost = 1000, 50_000

// Bounds are what a search may take of memory.
type Bounds struct {
	// Answer ends a page before it has as many as were asked for: an answer of gRPC has 40 MiB here.
	Answer int
	// Kept is how much of what was opened on the way is kept for the page; what is beyond is read again.
	Kept int
}

// found is a run that fits. run and data are nil where there was no room to keep them.
type found struct {
	uid, id string
	started int64 // microseconds
	place   filter.Place
	run     *store.Run
	data    *telemetryv1.RunData
}

// runSearch is one call of SearchRuns.
type runSearch struct {
	s         *Service
	call      *rpc.Call
	scan      store.Scan
	rest      filter.Filter // what the clear columns do not answer
	attribute filter.Filter // of that, what needs no data
	order     filter.Order
	wanted    map[filter.Key]bool
	// natural is the order in which rows are read: the newest start first.
	natural bool
	// asks says that filter or order look at data; shows that the caller may see them.
	asks, shows bool
	limit       int
	kept        int
}

// SearchRuns implements computev1.TrackingServiceServer.
func (h *Service) SearchRuns(ctx context.Context, req *computev1.SearchRunsRequest) (*computev1.SearchRunsResponse, error) {
	call := rpc.From(ctx)
	q, err := h.newRunSearch(call, req)
	if err != nil {
		return nil, err
	}
	query, err := searchQuery("compute/search/runs/", req)
	if err != nil {
		return nil, err
	}
	from, seal, err := openPlace(ctx, h.cfg.Store, query, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	all, err := q.find(ctx, from)
	if err != nil {
		return nil, err
	}
	first := 0
	if !q.natural {
		first = from.after(len(all), func(i int) string { return all[i].uid })
	}
	out := &computev1.SearchRunsResponse{}
	last, err := q.page(ctx, all[first:], out)
	if err != nil {
		return nil, err
	}
	if last += first; last < len(all) {
		out.NextPageToken, err = seal(all, last)
	}
	return out, err
}

func (h *Service) newRunSearch(call *rpc.Call, req *computev1.SearchRunsRequest) (*runSearch, error) {
	limit, err := resource.PageSize(req.GetPageSize(), searchPage, searchMost)
	if err != nil {
		return nil, err
	}
	f, err := filter.Parse("filter", req.GetFilter(), filter.Runs())
	if err != nil {
		return nil, err
	}
	order, err := filter.ParseOrder("order_by", req.GetOrderBy(), filter.Runs())
	if err != nil {
		return nil, err
	}
	q := &runSearch{s: h, call: call, order: order, limit: limit, wanted: make(map[filter.Key]bool), scan: store.Scan{Workspace: call.Scope.WorkspaceUID}}
	started := filter.Key{Entity: filter.Attribute, Name: filter.StartTime}
	q.natural = order.Empty() || order.Only(started, true)
	for _, k := range slices.Concat(f.Keys(), order.Keys()) {
		if isData(k) {
			q.wanted[k] = true
		}
	}
	q.asks = len(q.wanted) > 0
	if q.shows, err = mayReadData(call, q.asks); err != nil {
		return nil, err
	}
	plain, rest := f.Split(isClear)
	q.rest = rest
	_, q.attribute = rest.Split(isData)
	experiments := make(map[string]bool)
	for _, e := range call.Uses {
		if e.WorkspaceUID != call.Scope.WorkspaceUID {
			return nil, fault.InvalidArgument("a search is in the experiments of one workspace").Field("experiments", "has one of another workspace")
		}
		experiments[e.Name.ID()] = true
	}
	if len(experiments) == 1 {
		q.scan.Experiment = call.Uses[0].Name.ID()
	}
	q.scan.Keep = func(c store.Clear) bool {
		return (len(experiments) == 0 || experiments[c.Experiment]) && plain.Match(clearRecord{c})
	}
	q.scan.Least, q.scan.Most = deletedIn(req.GetView())
	q.scan.Oldest, q.scan.Newest = micros(plain.Range(started))
	return q, nil
}

// deletedIn gives how runs are deleted that a view shows.
func deletedIn(v computev1.View) (least, most store.Deleted) {
	switch v {
	case computev1.View_VIEW_DELETED:
		return store.DeletedItself, store.DeletedWithExperiment
	case computev1.View_VIEW_ALL:
		return store.NotDeleted, store.DeletedWithExperiment
	}
	return store.NotDeleted, store.NotDeleted
}

// micros gives bounds in milliseconds as those of a column in microseconds, which cut off no run that fits.
func micros(least, most float64) (oldest, newest int64) {
	const far = 1 << 52 // milliseconds; beyond are no times
	if least > 0 {
		oldest = int64(min(math.Floor(least), far)) * 1000
	}
	if most < far {
		newest = max(int64(math.Ceil(most)), 0)*1000 + 999
	}
	return oldest, newest
}

// scanAtOnce is how many rows are read at once.
const scanAtOnce = 1000

// find gives the runs that fit, in order: in the natural order those after from, and no more than a page and one; otherwise all.
func (q *runSearch) find(ctx context.Context, from place) ([]found, error) {
	var all []found
	var cur store.Cursor
	if q.natural && from.uid != "" {
		cur = store.Cursor{Time: from.time} // with all that started at the same time
	}
	for more := true; more; {
		var list []*store.Run
		var err error
		// A first page of few is not to cost the opening of many.
		at := scanAtOnce
		if q.natural {
			at = min(q.limit+1, scanAtOnce)
		}
		if list, cur, more, err = q.s.cfg.Store.ScanRuns(ctx, q.scan, cur, at); err != nil {
			return nil, err
		}
		if all, err = q.sift(ctx, all, list, from); err != nil {
			return nil, err
		}
		if n := len(all); q.natural && n > q.limit && cur.Time < all[q.limit].started {
			break
		}
	}
	slices.SortFunc(all, func(a, b found) int {
		if c := q.order.Compare(a.place, b.place); c != 0 {
			return c
		}
		return cmp.Or(-cmp.Compare(a.started, b.started), strings.Compare(a.id, b.id))
	})
	if q.natural {
		all = all[:min(len(all), q.limit+1)]
	}
	return all, nil
}

// sift appends the runs of a list that fit.
func (q *runSearch) sift(ctx context.Context, all []found, list []*store.Run, from place) ([]found, error) {
	list = slices.DeleteFunc(list, func(r *store.Run) bool {
		if q.natural && from.uid != "" && startedAt(r) == from.time && r.Spec.GetRunId() <= from.id {
			return true // on an earlier page
		}
		return !q.attribute.Match(runRecordOf(r, nil, nil))
	})
	data := make(map[string]*telemetryv1.RunData)
	if q.asks && len(list) > 0 {
		var err error
		if data, err = q.s.data(ctx, q.call.Scope.Name.String(), list); err != nil {
			return nil, err
		}
	}
	for _, r := range list {
		record := runRecordOf(r, data[r.UID], q.wanted)
		if !q.rest.Match(record) {
			continue
		}
		f := found{uid: r.UID, id: r.Spec.GetRunId(), started: startedAt(r), place: q.order.Of(record)}
		if size := proto.Size(r.Spec) + proto.Size(data[r.UID]); q.kept+size <= q.s.cfg.Bounds.Kept {
			q.kept += size
			f.run, f.data = r, data[r.UID]
		}
		all = append(all, f)
	}
	return all, ctx.Err()
}

func startedAt(r *store.Run) int64 { return r.Clear().Started.UnixMicro() }

// page fills an answer from the first of the list, and gives how many of them are done: shown, or gone meanwhile.
func (q *runSearch) page(ctx context.Context, list []found, out *computev1.SearchRunsResponse) (int, error) {
	size, done := 0, 0
	for part := range slices.Chunk(list[:min(len(list), q.limit)], scanAtOnce) {
		runs, err := q.read(ctx, part)
		if err != nil {
			return 0, err
		}
		shown, err := view.Runs(ctx, q.s.cfg.Store, runs)
		if err != nil {
			return 0, err
		}
		byUID := make(map[string]*computev1.Run, len(shown))
		for _, m := range shown {
			byUID[m.GetUid()] = m
		}
		for _, f := range part {
			if m := byUID[f.uid]; m != nil {
				t := &computev1.TrackedRun{Run: m, Data: f.data}
				if size += proto.Size(t); size > q.s.cfg.Bounds.Answer && done > 0 {
					return done, nil
				}
				out.Runs = append(out.Runs, t)
			}
			done++
		}
	}
	return done, nil
}

// read fills in what was not kept of some runs, and gives those that are still there.
func (q *runSearch) read(ctx context.Context, part []found) ([]*store.Run, error) {
	var runs, ask []*store.Run
	for i := range part {
		f := &part[i]
		kept := f.run != nil
		if !kept {
			r, err := q.s.cfg.Store.RunByUID(ctx, f.uid)
			if fault.Is(err, codes.NotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			f.run = r
		}
		runs = append(runs, f.run)
		if q.shows && (!kept || !q.asks) {
			ask = append(ask, f.run)
		}
	}
	if len(ask) == 0 {
		return runs, nil
	}
	data, err := q.s.data(ctx, q.call.Scope.Name.String(), ask)
	if err != nil {
		return nil, err
	}
	for i := range part {
		if d, ok := data[part[i].uid]; ok {
			part[i].data = d
		}
	}
	return runs, nil
}

// place is where a page ends: in the natural order the start and the id of its last run, in others its number and uid.
type place struct {
	number, time int64
	uid, id      string
}

func (p place) bytes() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(p.number))
	b = binary.BigEndian.AppendUint64(b, uint64(p.time))
	return append(b, p.uid+"\n"+p.id...)
}

// openPlace opens the token of a page, and gives what seals the next one, which begins at a number of a list.
func openPlace(ctx context.Context, st *store.Store, query, token string) (from place, seal func(all []found, next int) (string, error), err error) {
	key, err := st.Key(ctx, rpc.From(ctx).Scope.WorkspaceUID)
	if err != nil {
		return place{}, nil, err
	}
	seal = func(all []found, next int) (string, error) {
		last := all[next-1]
		return key.SealPage(query, place{int64(next), last.started, last.uid, last.id}.bytes())
	}
	if token == "" {
		return place{}, seal, nil
	}
	b, err := key.OpenPage(query, token)
	if err != nil {
		return place{}, nil, err
	}
	from, err = parsePlace(b)
	return from, seal, err
}

func parsePlace(b []byte) (place, error) {
	if len(b) >= 16 {
		if uid, id, ok := strings.Cut(string(b[16:]), "\n"); ok {
			return place{int64(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint64(b[8:])), uid, id}, nil
		}
	}
	return place{}, fault.New(codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID, "the page token is not one of ours")
}

// after gives where the next page begins in a list of n: after the one that the last page ended with, or where that would be.
func (p place) after(n int, uid func(i int) string) int {
	if p.uid == "" {
		return 0
	}
	for i := range n {
		if uid(i) == p.uid {
			return i + 1
		}
	}
	return min(int(p.number), n)
}

// searchQuery names a search with all its arguments but the page.
func searchQuery(kind string, req proto.Message) (string, error) {
	m := proto.Clone(req).ProtoReflect()
	for _, field := range []string{"page_size", "page_token"} {
		m.Clear(m.Descriptor().Fields().ByTextName(field))
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Interface())
	if err != nil {
		return "", fault.Internal(err, "the search cannot be named")
	}
	sum := sha256.Sum256(b)
	return kind + hex.EncodeToString(sum[:]), nil
}
