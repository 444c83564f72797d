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
