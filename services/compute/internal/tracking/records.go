package tracking

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/compute/internal/filter"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// RunData is what a search asks telemetry, in the name of who searches.
type RunData interface {
	BatchGetRunData(ctx context.Context, in *telemetryv1.BatchGetRunDataRequest, opts ...grpc.CallOption) (*telemetryv1.BatchGetRunDataResponse, error)
}

// mlflowStatus is a state as MLflow's clients know it.
func mlflowStatus(s computev1.Run_State) string {
	switch s {
	case computev1.Run_STATE_QUEUED, computev1.Run_STATE_STARTING:
		return "SCHEDULED"
	case computev1.Run_STATE_RUNNING, computev1.Run_STATE_FINALIZING:
		return "RUNNING"
	case computev1.Run_STATE_COMPLETED:
		return "FINISHED"
	case computev1.Run_STATE_CANCELED:
		return "KILLED"
	case computev1.Run_STATE_FAILED, computev1.Run_STATE_LOST:
		return "FAILED"
	}
	return ""
}

// millis is a time as filters compare it; a zero time is missing.
func millis(t time.Time) (float64, bool) { return float64(t.UnixMilli()), !t.IsZero() }

// isClear says of a key whether a row answers it without being opened.
func isClear(k filter.Key) bool {
	return k.Entity == filter.Attribute && (k.Name == filter.Status || k.Name == filter.StartTime || k.Name == filter.EndTime)
}

// nameTag is the tag in which MLflow's clients look for the name of a run, which is kept here.
const nameTag = "mlflow.runName"

// isData says of a key whether telemetry keeps it.
func isData(k filter.Key) bool {
	return k.Entity != filter.Attribute && k != filter.Key{Entity: filter.Tag, Name: nameTag}
}

// clearRecord is a row that was not opened, as a filter looks at it.
type clearRecord struct{ store.Clear }

// Text implements filter.Record.
func (r clearRecord) Text(k filter.Key) (string, bool) {
	return mlflowStatus(r.State), isClear(k) && k.Name == filter.Status
}

// Number implements filter.Record.
func (r clearRecord) Number(k filter.Key) (float64, bool) {
	if k == (filter.Key{Entity: filter.Attribute, Name: filter.StartTime}) {
		return millis(r.Started)
	}
	if k == (filter.Key{Entity: filter.Attribute, Name: filter.EndTime}) {
		return millis(r.Ended)
	}
	return 0, false
}

// runRecord is a run with its data, as far as a filter or an order asks for them.
type runRecord struct {
	clearRecord
	run     *store.Run
	texts   map[filter.Key]string
	numbers map[filter.Key]float64
}

// record takes of a run's data what is wanted.
func runRecordOf(r *store.Run, data *telemetryv1.RunData, wanted map[filter.Key]bool) runRecord {
	out := runRecord{clearRecord: clearRecord{r.Clear()}, run: r}
	if data == nil || len(wanted) == 0 {
		return out
	}
	out.texts, out.numbers = make(map[filter.Key]string), make(map[filter.Key]float64)
	for _, m := range data.GetLatest() {
		if k := (filter.Key{Entity: filter.Metric, Name: m.GetKey()}); wanted[k] {
			out.numbers[k] = m.GetValue()
		}
	}
	for _, p := range data.GetParams() {
		if k := (filter.Key{Entity: filter.Param, Name: p.GetKey()}); wanted[k] {
			out.texts[k] = p.GetValue()
		}
	}
	for _, t := range data.GetTags() {
		if k := (filter.Key{Entity: filter.Tag, Name: t.GetKey()}); wanted[k] {
			out.texts[k] = t.GetValue()
		}
	}
	return out
}

// Text implements filter.Record.
func (r runRecord) Text(k filter.Key) (string, bool) {
	if isData(k) {
		v, ok := r.texts[k]
		return v, ok
	}
	switch k.Name {
	case filter.RunID:
		return r.run.Spec.GetRunId(), true
	case filter.RunName, nameTag:
		if r.run.DisplayName() != "" {
			return r.run.DisplayName(), true
		}
		return r.run.Spec.GetRunId(), true
	case filter.UserID:
		if r.run.Labels.GetUser() != "" {
			return r.run.Labels.GetUser(), true
		}
		return r.run.Submitter, true
	}
	return r.clearRecord.Text(k)
}

// Number implements filter.Record.
func (r runRecord) Number(k filter.Key) (float64, bool) {
	if isData(k) {
		v, ok := r.numbers[k]
		return v, ok
	}
	return r.clearRecord.Number(k)
}

// Telemetry is asked about so many runs in one call, and so many calls are on their way for one search.
const (
	dataAtOnce = 250
	dataCalls  = 4
)

// data asks telemetry for what runs have logged, by uid.
func (h *Service) data(ctx context.Context, workspace string, list []*store.Run) (map[string]*telemetryv1.RunData, error) {
	out := make(map[string]*telemetryv1.RunData, len(list))
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(dataCalls)
	for part := range slices.Chunk(list, dataAtOnce) {
		g.Go(func() error {
			uids := make([]string, 0, len(part))
			for _, r := range part {
				uids = append(uids, r.UID)
			}
			for len(uids) > 0 {
				res, err := h.cfg.RunData.BatchGetRunData(ctx, &telemetryv1.BatchGetRunDataRequest{Parent: workspace, RunUids: uids})
				if err != nil {
					return fault.FromStatus(err)
				}
				mu.Lock()
				maps.Copy(out, res.GetData())
				mu.Unlock()
				// What was not looked at are the last ones.
				left := len(res.GetRemainingRunUids())
				if left >= len(uids) {
					return fault.Internal(nil, "telemetry looked at none of the runs that it was asked about")
				}
				uids = uids[len(uids)-left:]
			}
			return nil
		})
	}
	return out, g.Wait()
}

const readData = "telemetry/metrics/read"

// mayReadData says whether a search may show what runs logged. Where it looks at that, it has to.
func mayReadData(call *rpc.Call, needed bool) (bool, error) {
	may := call.May(readData, false, call.Scope.Name)
	if needed && !may {
		return false, fault.New(codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING,
			"the action %s is missing, and the filter or the order looks at metrics, parameters or tags; ask by attributes alone, or for the action", readData).
			With("action", readData).With("scope", call.Scope.Name.String())
	}
	return may, nil
}
