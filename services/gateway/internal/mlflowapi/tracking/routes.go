package tracking

import (
	"maps"
	"time"

	"google.golang.org/grpc"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/call"
)

// routes are what the routes of this package call.
type routes struct {
	experiments computev1.ExperimentServiceClient
	tracking    computev1.TrackingServiceClient
	runs        computev1.RunServiceClient
	metrics     telemetryv1.MetricServiceClient
	now         func() time.Time
}

// Routes of experiments, runs and what they log, by method and path.
func Routes(compute, telemetry grpc.ClientConnInterface, now func() time.Time) map[string]call.Route {
	h := &routes{
		experiments: computev1.NewExperimentServiceClient(compute), tracking: computev1.NewTrackingServiceClient(compute), runs: computev1.NewRunServiceClient(compute),
		metrics: telemetryv1.NewMetricServiceClient(telemetry), now: now,
	}
	all := h.experimentRoutes()
	maps.Copy(all, h.runRoutes())
	maps.Copy(all, h.logRoutes())
	return all
}
