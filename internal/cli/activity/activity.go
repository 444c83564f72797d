package activity

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/rule"
)

func (a verbs) activity() *cobra.Command {
	var scope, request, result string
	var since time.Duration
	limit := 0
	list := &cobra.Command{Use: "list", Short: "Who did what, and who was refused, newest first", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		at, err := a.Scope(ctx, c, scope)
		if err != nil {
			return err
		}
		req := &telemetryv1.ListActivityRequest{Scope: at, RequestId: request}
		if result != "" {
			n, ok := telemetryv1.ActivityEvent_Result_value["RESULT_"+strings.ToUpper(result)]
			if !ok || n == 0 {
				return app.Usagef("--result is succeeded, denied or failed, and not %q", result)
			}
			req.Result = telemetryv1.ActivityEvent_Result(n)
		}
		if since > 0 {
			req.StartTime = timestamppb.New(a.Now().Add(-since))
		}
		out := &telemetryv1.ListActivityResponse{}
		out.NextPageToken, err = app.Pages(limit, func(token string, size int32) ([]*telemetryv1.ActivityEvent, string, error) {
			req.PageSize, req.PageToken = size, token
			r, err := c.Activity().ListActivity(ctx, req)
			return r.GetEvents(), r.GetNextPageToken(), err
		}, func(e *telemetryv1.ActivityEvent) { out.Events = append(out.Events, e) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		var rows [][]string
		for _, e := range out.GetEvents() {
			rows = append(rows, eventRow(e))
		}
		return a.Table([]string{"time", "what", "scope", "who", "result", "reason", "count"}, rows, out.GetNextPageToken())
	})}
	list.Flags().StringVar(&scope, "scope", "", "the resource; without it the workspace, else the installation")
	list.Flags().StringVar(&request, "request", "", "only those of this request id")
	list.Flags().StringVar(&result, "result", "", "only succeeded, denied or failed")
	list.Flags().DurationVar(&since, "since", 0, "only those of the time before now, as 1h")
	list.Flags().IntVar(&limit, "limit", 50, "how many at most; 0 for all")

	var watchScope string
	watch := &cobra.Command{Use: "watch", Short: "The same as it happens", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		at, err := a.Scope(ctx, c, watchScope)
		if err != nil {
			return err
		}
		stream, err := c.Activity().WatchActivity(ctx, &telemetryv1.WatchActivityRequest{Scope: at})
		if err != nil {
			return err
		}
		for {
			e, err := stream.Recv()
			if err != nil {
				return err
			}
			if a.Structured() {
				err = a.Line(e)
			} else {
				row := eventRow(e)
				for i := range row {
					row[i] = show.Text(row[i])
				}
				_, err = fmt.Fprintln(a.Out, strings.Join(row, "  "))
			}
			if err != nil {
				return err
			}
		}
	})}
	watch.Flags().StringVar(&watchScope, "scope", "", "the resource; without it the workspace, else the installation")
	return app.Noun("activity", "The activity log", list, watch)
}

func eventRow(e *telemetryv1.ActivityEvent) []string {
	who := e.GetPrincipal()
	if who == "" {
		who = "nobody"
		if e.GetPeer() != "" {
			who = path.Base(e.GetPeer())
		}
	}
	count := ""
	if e.GetCount() > 1 {
		count = strconv.FormatInt(e.GetCount(), 10)
		if least := e.GetDetails()["calls_at_least"]; least != "" { // their process was killed while it counted ahead
			count = least + " to " + count
		}
	}
	scope := e.GetScope()
	if at := strings.Index(scope, "/workspaces/"); at >= 0 {
		scope = "…" + scope[at:]
	}
	// "/redoubt.compute.v1.RunService/SubmitRun" is RunService/SubmitRun.
	method := e.GetMethod()[strings.LastIndexByte(e.GetMethod(), '.')+1:]
	return []string{show.Clock(e.GetTime()), method, scope, who, show.Enum(e.GetResult().String(), "RESULT_"), e.GetReason(), count}
}

// permissionsJSON is the table for programs.
func permissionsJSON(rows []rule.Permission) ([]byte, error) {
	type use struct {
		Field  string `json:"field"`
		Action string `json:"action"`
		Data   bool   `json:"data,omitempty"`
	}
	type row struct {
		Method    string   `json:"method"`
		Action    string   `json:"action,omitempty"`
		Data      bool     `json:"data,omitempty"`
		Scope     string   `json:"scope,omitempty"`
		ScopeKind string   `json:"scopeKind,omitempty"`
		Uses      []use    `json:"uses,omitempty"`
		Callers   []string `json:"callers,omitempty"`
		Public    bool     `json:"public,omitempty"`
		Self      bool     `json:"self,omitempty"`
		Run       bool     `json:"run,omitempty"`
		Deliver   bool     `json:"deliver,omitempty"`
		StepUp    int      `json:"stepUp,omitempty"`
		StepUpAt  []string `json:"stepUpAt,omitempty"`
		Audit     string   `json:"audit"`
	}
	out := make([]row, 0, len(rows))
	for _, p := range rows {
		r := row{Method: p.Method, Action: p.Action, Data: p.Data, Scope: p.Scope, ScopeKind: p.ScopeKind, Callers: p.Callers, Public: p.Public, Self: p.Self, Run: p.Run, Deliver: p.Deliver, StepUp: p.StepUp, StepUpAt: p.StepUpAt, Audit: p.Audit}
		for _, u := range p.Uses {
			r.Uses = append(r.Uses, use(u))
		}
		out = append(out, r)
	}
	b, err := json.MarshalIndent(out, "", "  ")
	return append(b, '\n'), err
}

func (a verbs) permissions() *cobra.Command {
	return &cobra.Command{Use: "permissions [-o table|json|yaml|markdown]", Short: "What each method takes, from the contracts themselves", Args: app.Exactly(0), RunE: func(*cobra.Command, []string) error {
		rules, err := node.Rules()
		if err != nil {
			return err
		}
		rows := rules.Permissions()
		switch {
		case a.Structured():
			text, err := permissionsJSON(rows)
			if err != nil {
				return err
			}
			return a.AnswerJSON(text)
		case a.Output == "markdown":
			_, err = io.WriteString(a.Out, permissionsHead+rule.Markdown(rows, roleColumns()...))
			return err
		}
		cells := make([][]string, 0, len(rows))
		for _, p := range rows {
			who := p.Action
			switch {
			case p.Self:
				who = "(whoever is signed in)"
			case p.Public:
				who = "(everybody)"
			case len(p.Callers) > 0:
				who = "(services " + strings.Join(p.Callers, ", ") + ")"
			}
			cells = append(cells, []string{strings.TrimPrefix(p.Method, "/"), who, p.Scope, p.Audit})
		}
		return show.Table(a.Out, []string{"method", "who may call it", "scope", "recorded"}, cells)
	}}
}

const permissionsHead = `# Permissions

Written by ` + "`redoubt permissions -o markdown`" + ` from the rules in the contracts; do not edit. A "yes" says that the built-in role alone gives all that the
method takes at the scope.

`

// roleColumns are the built-in roles as columns, judged by the engine's own matching.
func roleColumns() []rule.Role {
	var out []rule.Role
	for _, d := range authz.BuiltinRoles() {
		out = append(out, rule.Role{Name: d.GetDisplayName(), Has: func(action string, data bool) bool { return authz.RoleAllows(d, action, data) }})
	}
	return out
}

func (a verbs) retryPolicy() *cobra.Command {
	var identified bool
	c := &cobra.Command{Use: "retry-policy [--with-request-ids]", Short: "What a client may repeat by itself, as a gRPC service config in JSON", Args: app.Exactly(0), RunE: func(*cobra.Command, []string) error {
		rules, err := node.Rules()
		if err != nil {
			return err
		}
		text, err := node.RetryPolicy(rules, identified)
		if err != nil {
			return err
		}
		_, err = a.Out.Write(append(text, '\n'))
		return err
	}}
	c.Flags().BoolVar(&identified, "with-request-ids", false, "also changes that have a request_id, for a client that always sets one")
	return c
}
