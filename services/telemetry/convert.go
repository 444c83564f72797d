package telemetry

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history"
)

// metricOf writes a point as the contract has it.
func metricOf(m history.Metric) *telemetryv1.Metric {
	return &telemetryv1.Metric{Key: m.Key, Value: m.Value, Step: m.Step, Time: timestamppb.New(time.UnixMicro(m.Time))}
}

// runDataOf writes what a run has as the contract has it.
func runDataOf(d history.Data) *telemetryv1.RunData {
	res := new(telemetryv1.RunData)
	for _, p := range d.Latest {
		res.Latest = append(res.Latest, metricOf(p))
	}
	for _, p := range d.Params {
		res.Params = append(res.Params, &telemetryv1.Param{Key: p.Key, Value: p.Value})
	}
	for _, t := range d.Tags {
		res.Tags = append(res.Tags, &telemetryv1.Tag{Key: t.Key, Value: t.Value})
	}
	return res
}
