package endpoints

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

// requests is the scoring log.
func (a verbs) requests() *cobra.Command {
	var follow bool
	var status, deployment, request string
	var since time.Duration
	limit := 0
	cmd := a.onEndpoint("logs ID", "The scoring log: what was asked of an endpoint and how it was answered, newest first", app.Exactly(1), func(ctx context.Context, c *client.Client, name string, _ []string) error {
		class, err := statusFlag(status)
		if err != nil {
			return err
		}
		if follow {
			if status != "" || deployment != "" || request != "" || since != 0 {
				return app.Usagef("-f shows every request as it comes; --status, --deployment, --request and --since choose among those that were")
			}
			return a.follow(ctx, c, name)
		}
		req := &telemetryv1.ListRequestsRequest{Endpoint: name, Status: class, Deployment: deployment, RequestId: request}
		if since > 0 {
			req.StartTime = timestamppb.New(a.Now().Add(-since))
		}
		out := &telemetryv1.ListRequestsResponse{}
		out.NextPageToken, err = app.Pages(limit, func(token string, size int32) ([]*telemetryv1.ScoringRequest, string, error) {
			req.PageSize, req.PageToken = size, token
			r, err := c.Requests().ListRequests(ctx, req)
			out.Dropped = r.GetDropped()
			return r.GetRequests(), r.GetNextPageToken(), err
		}, func(r *telemetryv1.ScoringRequest) { out.Requests = append(out.Requests, r) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		rows := make([][]string, 0, len(out.GetRequests()))
		for _, r := range out.GetRequests() {
			rows = append(rows, requestRow(r))
		}
		if err := a.Table([]string{"time", "method", "url", "status", "model", "took", "deployment", "auth", "reason", "request"}, rows, out.GetNextPageToken()); err != nil {
			return err
		}
		if out.GetDropped() > 0 {
			a.Say("%d requests of this installation were not kept: a ring was full", out.GetDropped())
		}
		return nil
	})
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "every request, as it comes")
	f.StringVar(&status, "status", "", "only those of this status, as 200, or of a class, as 4xx")
	f.StringVar(&deployment, "deployment", "", "only those of this deployment")
	f.StringVar(&request, "request", "", "only the one of this request id")
	f.DurationVar(&since, "since", 0, "only those of the time before now, as 1h")
	f.IntVar(&limit, "limit", 100, "how many at most; 0 for all")
	return cmd
}

// statusFlag is 200, or 4 of 4xx, or 0 of nothing.
func statusFlag(text string) (int32, error) {
	if text == "" {
		return 0, nil
	}
	class, isClass := strings.CutSuffix(text, "xx")
	n, err := strconv.ParseInt(class, 10, 32)
	if err != nil || isClass && (n < 1 || n > 5) || !isClass && (n < 100 || n > 599) {
		return 0, app.Usagef("--status is a status as 200 or a class as 4xx, and not %q", text)
	}
	return int32(n), nil
}

func (a verbs) follow(ctx context.Context, c *client.Client, endpoint string) error {
	stream, err := c.Requests().WatchRequests(ctx, &telemetryv1.WatchRequestsRequest{Endpoint: endpoint})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, r := range m.GetRequests() {
			if a.Structured() {
				err = a.Line(r)
			} else {
				row := requestRow(r)
				for i := range row {
					if row[i] = show.Text(row[i]); row[i] == "" {
						row[i] = "–"
					}
				}
				_, err = fmt.Fprintln(a.Out, strings.Join(row, "  "))
			}
			if err != nil {
				return err
			}
		}
	}
}

func requestRow(r *telemetryv1.ScoringRequest) []string {
	model := ""
	if r.GetModelStatusCode() != 0 {
		model = strconv.Itoa(int(r.GetModelStatusCode()))
	}
	deployment := r.GetDeployment()
	if r.GetMirrored() {
		deployment += " (copy)"
	}
	took := ""
	if r.GetDuration() != nil {
		took = fmt.Sprintf("%.1f ms", float64(r.GetDuration().AsDuration().Microseconds())/1000)
	}
	return []string{show.Clock(r.GetTime()), r.GetHttpMethod(), r.GetRequestUrl(), strconv.Itoa(int(r.GetStatusCode())), model, took, deployment, r.GetAuth(), r.GetReason(), r.GetRequestId()}
}
