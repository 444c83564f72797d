package console

import (
	"cmp"
	"slices"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
)

// pageSize is how much one page lists; next is the token of the page after it.
const pageSize = 50

func token(v *visit) string { return v.r.URL.Query().Get("page") }

// workspaces lists what the visitor may see.
func (c *Console) workspaces(v *visit) (view, error) {
	r, err := c.resources.ListWorkspaces(v.ctx, &workspacev1.ListWorkspacesRequest{PageSize: pageSize, PageToken: token(v)})
	if err != nil {
		return view{}, err
	}
	type row struct{ Name, Link, Display, Region string }
	var body struct {
		Rows []row
		Next string
	}
	for _, w := range r.GetWorkspaces() {
		if link, ok := linkTo(w.GetName()); ok {
			body.Rows = append(body.Rows, row{Name: w.GetName(), Link: link, Display: w.GetDisplayName()})
		}
	}
	body.Next = r.GetNextPageToken()
	return view{Title: "Workspaces", Body: body}, nil
}

// linkTo is the page of a workspace.
func linkTo(name string) (string, bool) {
	parts := split(name)
	if len(parts) != 6 {
		return "", false
	}
	return Prefix + "w/" + parts[1] + "/" + parts[3] + "/" + parts[5] + "/", true
}

// runList lists runs, newest first.
func (c *Console) runList(v *visit) (view, error) {
	r, err := c.runs.ListRuns(v.ctx, &computev1.ListRunsRequest{Parent: v.name, PageSize: pageSize, PageToken: token(v)})
	if err != nil {
		return view{}, err
	}
	return view{Title: "Runs", Tab: "runs", Body: r}, nil
}

// runPage is a run with what it measured.
type runPage struct {
	Run    *computev1.Run
	Params []*telemetryv1.Param
	Tags   []*telemetryv1.Tag
	Charts []*telemetryv1.Metric // the latest point of each metric that has a chart
	Others []*telemetryv1.Metric
	Live   bool
}

// mostCharts is how many metrics of a run are drawn.
const mostCharts = 12

func (c *Console) run(v *visit) (view, error) {
	name := v.name + "/runs/" + v.r.PathValue("run")
	run, err := c.runs.GetRun(v.ctx, &computev1.GetRunRequest{Name: name})
	if err != nil {
		return view{}, err
	}
	data, err := c.metrics.GetRunData(v.ctx, &telemetryv1.GetRunDataRequest{Run: name})
	if err != nil {
		return view{}, err
	}
	latest := data.GetLatest()
	slices.SortFunc(latest, func(a, b *telemetryv1.Metric) int { return cmp.Compare(a.GetKey(), b.GetKey()) })
	n := min(len(latest), mostCharts)
	return view{Title: last(name), Tab: "runs", Body: runPage{
		Run: run, Params: data.GetParams(), Tags: data.GetTags(), Charts: latest[:n], Others: latest[n:], Live: !ended(run),
	}}, nil
}

func ended(r *computev1.Run) bool { return r.GetState() >= computev1.Run_STATE_COMPLETED }

// modelList lists models with their versions.
func (c *Console) modelList(v *visit) (view, error) {
	r, err := c.models.ListModels(v.ctx, &inferencev1.ListModelsRequest{Parent: v.name, PageSize: pageSize, PageToken: token(v)})
	if err != nil {
		return view{}, err
	}
	type row struct {
		Model    *inferencev1.Model
		Versions []*inferencev1.ModelVersion
	}
	var body struct {
		Rows []row
		Next string
	}
	for _, m := range r.GetModels() {
		versions, err := c.models.ListModelVersions(v.ctx, &inferencev1.ListModelVersionsRequest{Parent: m.GetName(), PageSize: 5})
		if err != nil {
			return view{}, err
		}
		body.Rows = append(body.Rows, row{Model: m, Versions: versions.GetModelVersions()})
	}
	body.Next = r.GetNextPageToken()
	return view{Title: "Models", Tab: "models", Body: body}, nil
}

// endpointList lists endpoints.
func (c *Console) endpointList(v *visit) (view, error) {
	r, err := c.endpoints.ListEndpoints(v.ctx, &inferencev1.ListEndpointsRequest{Parent: v.name, PageSize: pageSize, PageToken: token(v)})
	if err != nil {
		return view{}, err
	}
	return view{Title: "Endpoints", Tab: "endpoints", Body: r}, nil
}

// endpoint shows one endpoint with its deployments and what was asked of it last.
func (c *Console) endpoint(v *visit) (view, error) {
	name := v.name + "/endpoints/" + v.r.PathValue("endpoint")
	e, err := c.endpoints.GetEndpoint(v.ctx, &inferencev1.GetEndpointRequest{Name: name})
	if err != nil {
		return view{}, err
	}
	deployments, err := c.endpoints.ListDeployments(v.ctx, &inferencev1.ListDeploymentsRequest{Parent: name, PageSize: pageSize})
	if err != nil {
		return view{}, err
	}
	requests, err := c.requests.ListRequests(v.ctx, &telemetryv1.ListRequestsRequest{Endpoint: name, PageSize: pageSize, PageToken: token(v)})
	if err != nil {
		return view{}, err
	}
	return view{Title: last(name), Tab: "endpoints", Body: struct {
		Endpoint    *inferencev1.Endpoint
		Deployments []*inferencev1.Deployment
		Requests    []*telemetryv1.ScoringRequest
		Next        string
	}{e, deployments.GetDeployments(), requests.GetRequests(), requests.GetNextPageToken()}}, nil
}

// activityList lists who did what in the workspace.
func (c *Console) activityList(v *visit) (view, error) {
	r, err := c.activity.ListActivity(v.ctx, &telemetryv1.ListActivityRequest{Scope: v.name, PageSize: pageSize, PageToken: token(v)})
	if err != nil {
		return view{}, err
	}
	return view{Title: "Activity", Tab: "activity", Body: r}, nil
}
