package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// Ended reports whether a run is in a state that it does not leave.
func Ended(r *computev1.Run) bool { return r.GetState() >= computev1.Run_STATE_COMPLETED }

// again runs a stream until it ends without an error, or with one that waiting does not help against. The wait starts anew when the
// stream got something.
func again(ctx context.Context, stream func() (got bool, err error)) error {
	wait := firstWait
	for {
		got, err := stream()
		if err == nil || errors.Is(err, io.EOF) {
			return nil
		}
		if ctx.Err() != nil || status.Code(err) != codes.Unavailable {
			return err
		}
		if got {
			wait = firstWait
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return err
		case <-t.C:
		}
		if wait *= 2; wait > longestWait {
			wait = longestWait
		}
	}
}

// WaitRun waits until the run has ended and returns it as it is then. changed, if not nil, is called with the run as it is, and at
// each change. It goes on over restarts of the installation, as long as ctx lasts.
func (c *Client) WaitRun(ctx context.Context, run string, changed func(*computev1.Run)) (*computev1.Run, error) {
	var last *computev1.Run
	err := again(ctx, func() (bool, error) {
		stream, err := c.Runs().WatchRun(ctx, &computev1.WatchRunRequest{Name: run})
		if err != nil {
			return false, err
		}
		for got := false; ; got = true {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) && (last == nil || !Ended(last)) {
				err = status.Error(codes.Unavailable, "the installation stopped telling of the run")
			}
			if err != nil {
				return got, err
			}
			if changed != nil && (last == nil || last.GetState() != r.GetState() || last.GetCancelRequested() != r.GetCancelRequested() || last.GetMessage() != r.GetMessage()) {
				changed(r)
			}
			last = r
		}
	})
	if err != nil {
		return nil, err
	}
	return last, nil
}

// WaitDeployment waits until a deployment of at least the generation is ready, has failed, or is being deleted, and returns it as it is
// then. changed, if not nil, is called with the deployment as it is, and at each change of its state. It goes on over restarts of the
// installation, as long as ctx lasts.
func (c *Client) WaitDeployment(ctx context.Context, name string, generation int64, changed func(*inferencev1.Deployment)) (*inferencev1.Deployment, error) {
	var last *inferencev1.Deployment
	settled := func() bool {
		switch last.GetState() {
		case inferencev1.Deployment_STATE_READY:
			// Right after a change of their number it still has the state of before.
			return last.GetGeneration() >= generation && last.GetReadyReplicas() >= last.GetSpec().GetReplicas()
		case inferencev1.Deployment_STATE_FAILED, inferencev1.Deployment_STATE_DELETING:
			return last.GetGeneration() >= generation
		}
		return false
	}
	err := again(ctx, func() (got bool, err error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.Endpoints().WatchDeployment(ctx, &inferencev1.WatchDeploymentRequest{Name: name})
		if err != nil {
			return false, err
		}
		for {
			d, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				err = status.Error(codes.Unavailable, "the installation stopped telling of the deployment")
			}
			if err != nil {
				return got, err
			}
			got = true
			if changed != nil && (last.GetState() != d.GetState() || last.GetMessage() != d.GetMessage()) {
				changed(d)
			}
			if last = d; settled() {
				return got, nil
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return last, nil
}

// FollowLogs writes the log from the offset on, and with follow goes on until the run has ended. It returns the offset up to which
// it has written, from which it can be called again. It goes on over restarts of the installation: each byte is written once.
func (c *Client) FollowLogs(ctx context.Context, run string, offset int64, follow bool, w io.Writer) (int64, error) {
	var broken error // of the writer or of the order: not to be repeated
	err := again(ctx, func() (got bool, err error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.Runs().StreamLogs(ctx, &computev1.StreamLogsRequest{Name: run, Offset: offset, Follow: follow})
		if err != nil {
			return false, err
		}
		for {
			m, err := stream.Recv()
			if err != nil {
				return got, err
			}
			data := m.GetData()
			skip := offset - m.GetOffset()
			if skip < 0 {
				broken = fmt.Errorf("a part of the log is missing, from byte %d to %d", offset, m.GetOffset())
				return got, nil
			}
			if skip >= int64(len(data)) {
				continue
			}
			n, err := w.Write(data[skip:])
			offset += int64(n)
			if err != nil {
				broken = err
				return got, nil
			}
			got = true
		}
	})
	if broken != nil {
		return offset, broken
	}
	return offset, err
}

// point tells one point of a metric from every other.
type point struct {
	key         string
	step, nanos int64
	bits        uint64
}

func pointOf(m *telemetryv1.Metric) point {
	return point{m.GetKey(), m.GetStep(), m.GetTime().AsTime().UnixNano(), math.Float64bits(m.GetValue())}
}

// FollowMetrics calls take with every point of the run once: those that are stored, then each as it is stored, until the run has
// ended and all of its points were taken, or ctx ends, or take fails. It goes on over restarts of the installation.
func (c *Client) FollowMetrics(ctx context.Context, run string, take func([]*telemetryv1.Metric) error) error {
	seen := make(map[point]bool)
	fresh := func(in []*telemetryv1.Metric) error {
		var out []*telemetryv1.Metric
		for _, m := range in {
			if p := pointOf(m); !seen[p] {
				seen[p] = true
				out = append(out, m)
			}
		}
		if len(out) == 0 {
			return nil
		}
		return take(out)
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	watched := make(chan error, 1)
	go func() {
		err := c.watchMetrics(watching, run, fresh)
		if err != nil {
			stop()
		}
		watched <- err
	}()
	_, err := c.WaitRun(watching, run, nil)
	stop()
	if early := <-watched; early != nil && status.Code(early) != codes.Canceled && !errors.Is(early, context.Canceled) {
		return early // take has failed, or the watch was refused
	}
	if err != nil {
		return err
	}
	return c.restOfMetrics(ctx, run, fresh)
}

func (c *Client) watchMetrics(ctx context.Context, run string, take func([]*telemetryv1.Metric) error) error {
	var broken error
	err := again(ctx, func() (got bool, err error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.Metrics().WatchMetrics(ctx, &telemetryv1.WatchMetricsRequest{Run: run})
		if err != nil {
			return false, err
		}
		for {
			m, err := stream.Recv()
			if err != nil {
				return got, err
			}
			got = true
			if broken = take(m.GetMetrics()); broken != nil {
				return got, nil
			}
		}
	})
	if broken != nil {
		return broken
	}
	return err
}

// restOfMetrics reads what was stored between the last look and the end of the run.
func (c *Client) restOfMetrics(ctx context.Context, run string, take func([]*telemetryv1.Metric) error) error {
	data, err := c.Metrics().GetRunData(ctx, &telemetryv1.GetRunDataRequest{Run: run})
	if err != nil {
		return err
	}
	for _, latest := range data.GetLatest() {
		for token := ""; ; {
			page, err := c.Metrics().ListMetricHistory(ctx, &telemetryv1.ListMetricHistoryRequest{Run: run, Key: latest.GetKey(), PageSize: 10_000, PageToken: token})
			if err != nil {
				return err
			}
			if err := take(page.GetMetrics()); err != nil {
				return err
			}
			if token = page.GetNextPageToken(); token == "" {
				break
			}
		}
	}
	return nil
}
