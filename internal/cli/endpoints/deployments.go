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
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

// specFlags are what can be chosen of a deployment.
type specFlags struct {
	model, snapshot, code, entry, compute, memory, body string
	replicas, workers, queue                            int32
	env                                                 map[string]string
	request, start                                      time.Duration
	wait                                                bool
}

func (s *specFlags) add(a verbs, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.model, "model", "", "MODEL:VERSION, with a number or an alias; without a version the latest")
	f.StringVar(&s.snapshot, "snapshot", "", "the snapshot with the entry script")
	f.StringVar(&s.code, "code", "", "a folder with the entry script, to upload; instead of --snapshot")
	f.StringVar(&s.entry, "entry-script", "", "its path in the snapshot; without it score.py")
	f.StringVar(&s.compute, "compute", "", "where the replicas run")
	f.Int32Var(&s.replicas, "replicas", 0, "how many replicas, 1 to 16")
	f.Int32Var(&s.workers, "workers", 0, "how many workers each replica has, 1 to 16; each answers one request at a time")
	f.StringToStringVar(&s.env, "env", nil, "a variable for the script, NAME=VALUE, no secrets; can be repeated")
	f.Int32Var(&s.queue, "queue-length", 0, "how many requests may wait for a worker")
	f.StringVar(&s.body, "max-body", "", "the largest request, as 10MiB")
	f.DurationVar(&s.request, "request-timeout", 0, "how long an answer may take")
	f.DurationVar(&s.start, "start-timeout", 0, "how long init() may take")
	f.StringVar(&s.memory, "memory", "", "how much memory a replica may take, as 2GiB")
	f.BoolVar(&s.wait, "wait", false, "wait until all replicas answer")
	a.SuggestFlag(cmd, "model", "models")
	a.SuggestFlag(cmd, "snapshot", "snapshots")
	a.SuggestFlag(cmd, "compute", "computes")
}

// into writes what was said over a spec.
func (s *specFlags) into(ctx context.Context, a verbs, c *client.Client, deployment string, spec *inferencev1.DeploymentSpec) (err error) {
	if s.code != "" && s.snapshot != "" {
		return app.Usagef("--code and --snapshot are two ways of saying it; give one")
	}
	if s.model != "" {
		if spec.Model, err = a.ModelVersion(ctx, c, s.model); err != nil {
			return err
		}
	}
	if s.compute != "" {
		if spec.Compute, err = a.Named(ctx, c, "computes", s.compute); err != nil {
			return err
		}
	}
	if s.snapshot != "" {
		if spec.Snapshot, err = a.Named(ctx, c, "snapshots", s.snapshot); err != nil {
			return err
		}
	}
	for _, n := range []struct {
		flag int32
		to   *int32
	}{{s.replicas, &spec.Replicas}, {s.workers, &spec.Workers}, {s.queue, &spec.QueueLength}} {
		if n.flag != 0 {
			*n.to = n.flag
		}
	}
	if s.entry != "" {
		spec.EntryScript = s.entry
	}
	if s.env != nil {
		spec.Environment = s.env
	}
	if s.request != 0 {
		spec.RequestTimeout = durationpb.New(s.request)
	}
	if s.start != 0 {
		spec.StartTimeout = durationpb.New(s.start)
	}
	if s.memory != "" {
		if spec.MemoryBytes, err = app.BytesFlag("memory", s.memory); err != nil {
			return err
		}
	}
	if s.body != "" {
		if spec.MaxBodyBytes, err = app.BytesFlag("max-body", s.body); err != nil {
			return err
		}
	}
	if s.code != "" { // last: nothing is sent where something else is wrong
		workspace, _, _ := strings.Cut(deployment, "/endpoints/")
		snapshot, err := a.Upload(ctx, c, workspace, s.code)
		if err != nil {
			return err
		}
		spec.Snapshot = snapshot.GetName()
	}
	return nil
}

// deploy is `deployment create`, and `endpoint deploy`, which say the same.
func (a verbs) deploy(use string) *cobra.Command {
	var s specFlags
	cmd := a.onDeployment(use, "Put replicas of a model behind an endpoint", func(ctx context.Context, c *client.Client, name string) error {
		switch {
		case s.model == "":
			return app.Usagef("--model says what answers; `redoubt model list` shows what there is")
		case s.code == "" && s.snapshot == "":
			return app.Usagef("give the folder with the entry script with --code, or a snapshot with --snapshot")
		case s.compute == "":
			return app.Usagef("--compute says where it runs; `redoubt compute list` shows what there is")
		}
		spec := &inferencev1.DeploymentSpec{}
		if err := s.into(ctx, a, c, name, spec); err != nil {
			return err
		}
		id := show.Last(name)
		d, err := c.Endpoints().CreateDeployment(ctx, &inferencev1.CreateDeploymentRequest{Parent: strings.TrimSuffix(name, "/deployments/"+id), DeploymentId: id, Deployment: spec})
		return a.after(ctx, c, d, err, s.wait)
	})
	s.add(a, cmd)
	return cmd
}

func (a verbs) updateDeployment() *cobra.Command {
	var s specFlags
	cmd := a.onDeployment("update", "Change a deployment: new replicas answer before old ones stop; what is not said stays", func(ctx context.Context, c *client.Client, name string) error {
		d, err := c.Endpoints().GetDeployment(ctx, &inferencev1.GetDeploymentRequest{Name: name})
		if err != nil {
			return err
		}
		spec := proto.CloneOf(d.GetSpec())
		if err := s.into(ctx, a, c, name, spec); err != nil {
			return err
		}
		if proto.Equal(spec, d.GetSpec()) {
			return app.Usagef("say what is to change")
		}
		d, err = c.Endpoints().UpdateDeployment(ctx, &inferencev1.UpdateDeploymentRequest{Name: name, Deployment: spec, Etag: d.GetEtag()})
		return a.after(ctx, c, d, err, s.wait)
	})
	s.add(a, cmd)
	return cmd
}

// after shows a deployment as it is, or waits until it answers.
func (a verbs) after(ctx context.Context, c *client.Client, d *inferencev1.Deployment, err error, wait bool) error {
	if err != nil {
		return err
	}
	if !wait {
		if !a.Structured() {
			a.Say("wait for it: redoubt deployment wait %s", short(d.GetName()))
		}
		return a.oneDeployment(d)
	}
	return a.waitFor(ctx, c, d.GetName(), d.GetGeneration())
}

func (a verbs) wait() *cobra.Command {
	return a.onDeployment("wait", "Wait until all replicas of a deployment answer", func(ctx context.Context, c *client.Client, name string) error {
		return a.waitFor(ctx, c, name, 0)
	})
}

func (a verbs) waitFor(ctx context.Context, c *client.Client, name string, generation int64) error {
	d, err := c.WaitDeployment(ctx, name, generation, func(d *inferencev1.Deployment) { a.Say("%s", deploymentState(d)) })
	if err != nil {
		return err
	}
	if err := a.oneDeployment(d); err != nil {
		return err
	}
	if d.GetState() != inferencev1.Deployment_STATE_READY {
		return &app.Exit{Code: app.ExitRefused, Message: fmt.Sprintf("the deployment %s is %s\n  → the log of its host: redoubt deployment logs %s", short(name), deploymentState(d), short(name))}
	}
	return nil
}

func (a verbs) deployments() *cobra.Command {
	return a.onEndpoint("list ENDPOINT", "The deployments behind an endpoint", app.Exactly(1), func(ctx context.Context, c *client.Client, endpoint string, _ []string) error {
		out := &inferencev1.ListDeploymentsResponse{}
		_, err := app.Pages(0, func(token string, size int32) ([]*inferencev1.Deployment, string, error) {
			r, err := c.Endpoints().ListDeployments(ctx, &inferencev1.ListDeploymentsRequest{Parent: endpoint, PageSize: size, PageToken: token})
			return r.GetDeployments(), r.GetNextPageToken(), err
		}, func(d *inferencev1.Deployment) { out.Deployments = append(out.Deployments, d) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		rows := make([][]string, 0, len(out.GetDeployments()))
		for _, d := range out.GetDeployments() {
			rows = append(rows, []string{show.Last(d.GetName()), deploymentState(d), ready(d), modelText(d.GetSpec().GetModel()), show.Ago(a.Now(), d.GetCreateTime())})
		}
		return a.Table([]string{"deployment", "state", "ready", "model", "created"}, rows, "")
	})
}

func (a verbs) deployment() *cobra.Command {
	return a.onDeployment("show", "One deployment and its replicas", func(ctx context.Context, c *client.Client, name string) error {
		d, err := c.Endpoints().GetDeployment(ctx, &inferencev1.GetDeploymentRequest{Name: name})
		if err != nil || a.Structured() {
			return a.Answer(d, err)
		}
		if err := a.oneDeployment(d); err != nil {
			return err
		}
		rows := make([][]string, 0, len(d.GetReplicas()))
		for _, r := range d.GetReplicas() {
			rows = append(rows, []string{r.GetUid(), show.Enum(r.GetState().String(), "STATE_"), strconv.Itoa(int(r.GetReadyWorkers())), strconv.FormatInt(r.GetGeneration(), 10), show.Ago(a.Now(), r.GetCreateTime()), r.GetMessage()})
		}
		_, _ = fmt.Fprintln(a.Out)
		return a.Table([]string{"replica", "state", "workers", "generation", "started", "message"}, rows, "")
	})
}

func (a verbs) removeDeployment() *cobra.Command {
	return a.onDeployment("delete", "Stop the replicas and remove the deployment; not while traffic goes to it", func(ctx context.Context, c *client.Client, name string) error {
		if err := a.Sure("deleting the deployment " + short(name)); err != nil {
			return err
		}
		r, err := c.Endpoints().DeleteDeployment(ctx, &inferencev1.DeleteDeploymentRequest{Name: name})
		return a.Done(r, err, "deleted %s", name)
	})
}

// hostLogs is what the scoring host of one replica printed.
func (a verbs) hostLogs() *cobra.Command {
	var follow bool
	var replica string
	cmd := a.onDeployment("logs", "What the scoring host of a replica printed, as it printed it", func(ctx context.Context, c *client.Client, name string) error {
		stream, err := c.Endpoints().StreamDeploymentLogs(ctx, &inferencev1.StreamDeploymentLogsRequest{Name: name, Replica: replica, Follow: follow})
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
			if _, err := a.Out.Write(m.GetData()); err != nil {
				return err
			}
		}
	})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the replica has ended")
	cmd.Flags().StringVar(&replica, "replica", "", "which; without it the one that was started last; see redoubt deployment show")
	return cmd
}

func (a verbs) oneDeployment(d *inferencev1.Deployment) error {
	if a.Structured() {
		return a.Answer(d, nil)
	}
	s := d.GetSpec()
	pairs := []string{
		"name", d.GetName(), "uid", d.GetUid(), "state", deploymentState(d), "ready", ready(d), "model", modelText(s.GetModel()), "snapshot", show.Last(s.GetSnapshot()),
		"entry script", s.GetEntryScript(), "compute", show.Last(s.GetCompute()), "workers", strconv.Itoa(int(s.GetWorkers())), "queue", strconv.Itoa(int(s.GetQueueLength())),
		"largest request", show.Bytes(s.GetMaxBodyBytes()),
	}
	if s.GetRequestTimeout() != nil {
		pairs = append(pairs, "answers within", s.GetRequestTimeout().AsDuration().String())
	}
	if len(s.GetEnvironment()) > 0 {
		pairs = append(pairs, "environment", show.Map(s.GetEnvironment()))
	}
	pairs = append(pairs, "generation", strconv.FormatInt(d.GetGeneration(), 10), "created", show.Clock(d.GetCreateTime()), "by", d.GetCreatedBy())
	return show.Pairs(a.Out, pairs...)
}

func deploymentState(d *inferencev1.Deployment) string {
	s := show.Enum(d.GetState().String(), "STATE_")
	if d.GetMessage() != "" {
		s += ": " + show.Text(d.GetMessage())
	}
	return s
}

func ready(d *inferencev1.Deployment) string {
	return fmt.Sprintf("%d of %d", d.GetReadyReplicas(), max(1, d.GetSpec().GetReplicas()))
}

// short is a deployment as people write it.
func short(name string) string {
	if _, tail, ok := strings.Cut(name, "/endpoints/"); ok {
		return strings.Replace(tail, "/deployments/", "/", 1)
	}
	return name
}

// modelText is a version as people write it.
func modelText(name string) string {
	if _, tail, ok := strings.Cut(name, "/models/"); ok {
		return strings.Replace(tail, "/versions/", ":", 1)
	}
	return name
}
