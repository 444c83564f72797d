package telemetry_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

// BenchmarkLogBatch is one point a call from 64 callers, each with a run's metric of his own, through the whole chain to the disk.
func BenchmarkLogBatch(b *testing.B) {
	l := newLab(b)
	l.assign("ann", ws1, authz.Owner)
	client := l.metrics()
	var callers, step atomic.Int64
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		key := fmt.Sprintf("m%d", callers.Add(1))
		for pb.Next() {
			_, err := client.LogBatch(l.as("ann"), &telemetryv1.LogBatchRequest{Run: run1, Metrics: []*telemetryv1.Metric{point(key, step.Add(1), 1)}})
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "batches/s")
}
