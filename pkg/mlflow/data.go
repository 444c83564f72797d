package mlflow

import (
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// What one request may hold (the limits of MLflow's own server).
const (
	MostBody   = 1 << 20
	MostItems  = 1000
	MostParams = 100
	MostTags   = 100
	MostKey    = 250
	MostParam  = 6000
	MostTag    = 8000
)

// RunIDs name a run: clients fill either field, or both.
type RunIDs struct {
	RunID   string `json:"run_id"`
	RunUUID string `json:"run_uuid"`
}

// ID is the run that is meant.
func (r RunIDs) ID() (string, *Refusal) {
	switch {
	case r.RunID == "" && r.RunUUID == "":
		return "", BadParameter("run_id is missing")
	case r.RunID == "":
		return r.RunUUID, nil
	case r.RunUUID != "" && r.RunUUID != r.RunID:
		return "", BadParameter("run_id and run_uuid name two runs")
	}
	return r.RunID, nil
}

// Metric is one point of a metric.
type Metric struct {
	Key       string   `json:"key"`
	Value     *Number  `json:"value"`
	Timestamp *Integer `json:"timestamp"`
	Step      *Integer `json:"step"`
}

// Text is a parameter or a tag.
type Text struct {
	Key   string  `json:"key"`
	Value *string `json:"value"`
}

// Batch is what is logged at once.
type Batch struct {
	Metrics []Metric `json:"metrics"`
	Params  []Text   `json:"params"`
	Tags    []Text   `json:"tags"`
}

// Logged is a batch that has been checked.
type Logged struct {
	Metrics []*telemetryv1.Metric
	Params  []*telemetryv1.Param
	Tags    []*telemetryv1.Tag
}

// Check holds a batch to its limits. Points without a time get now.
func (b *Batch) Check(now time.Time) (*Logged, *Refusal) {
	switch {
	case len(b.Metrics)+len(b.Params)+len(b.Tags) > MostItems:
		return nil, BadParameter("a batch has at most 1000 metrics, params and tags together")
	case len(b.Params) > MostParams:
		return nil, BadParameter("a batch has at most 100 params")
	case len(b.Tags) > MostTags:
		return nil, BadParameter("a batch has at most 100 tags")
	}
	out := &Logged{}
	for _, m := range b.Metrics {
		point, bad := m.check(now)
		if bad != nil {
			return nil, bad
		}
		out.Metrics = append(out.Metrics, point)
	}
	for _, p := range b.Params {
		if bad := p.Check(MostParam); bad != nil {
			return nil, bad
		}
		out.Params = append(out.Params, &telemetryv1.Param{Key: p.Key, Value: *p.Value})
	}
	for _, t := range b.Tags {
		if bad := t.Check(MostTag); bad != nil {
			return nil, bad
		}
		out.Tags = append(out.Tags, &telemetryv1.Tag{Key: t.Key, Value: *t.Value})
	}
	return out, nil
}

func (m *Metric) check(now time.Time) (*telemetryv1.Metric, *Refusal) {
	if bad := CheckKey(m.Key); bad != nil {
		return nil, bad
	}
	if m.Value == nil {
		return nil, BadParameter("the metric " + strconv.Quote(m.Key) + " has no value")
	}
	out := &telemetryv1.Metric{Key: m.Key, Value: float64(*m.Value), Time: timestamppb.New(now)}
	if m.Timestamp != nil {
		if out.Time = timestamppb.New(time.UnixMilli(int64(*m.Timestamp))); !out.GetTime().IsValid() {
			return nil, BadParameter("the timestamp of the metric " + strconv.Quote(m.Key) + " is in milliseconds since 1970, up to the year 9999")
		}
	}
	if m.Step != nil {
		out.Step = int64(*m.Step)
	}
	return out, nil
}

// Check holds a text to its length.
func (t *Text) Check(most int) *Refusal {
	if bad := CheckKey(t.Key); bad != nil {
		return bad
	}
	switch {
	case t.Value == nil:
		return BadParameter(strconv.Quote(t.Key) + " has no value")
	case len(*t.Value) > most:
		return BadParameter("the value of " + strconv.Quote(t.Key) + " is longer than " + strconv.Itoa(most) + " bytes")
	}
	return nil
}

// CheckKey holds a name to its length. Which characters it may have is telemetry's to say.
func CheckKey(key string) *Refusal {
	if key == "" || len(key) > MostKey {
		return BadParameter("a key has 1 to 250 bytes")
	}
	return nil
}
