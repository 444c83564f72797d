package registry

import (
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/mlflow"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/call"
)

// noStage is the stage of what has none.
const noStage = "None"

// modelVersion is a version in an answer.
type modelVersion struct {
	Name          string          `json:"name"`
	Version       string          `json:"version"`
	Created       int64           `json:"creation_timestamp"`
	Updated       int64           `json:"last_updated_timestamp"`
	UserID        string          `json:"user_id"`
	Stage         string          `json:"current_stage"`
	Description   string          `json:"description"`
	Source        string          `json:"source"`
	RunID         string          `json:"run_id"`
	Status        string          `json:"status"`
	StatusMessage string          `json:"status_message"`
	Tags          []call.KeyValue `json:"tags"`
	RunLink       string          `json:"run_link"`
	Aliases       []string        `json:"aliases"`
}

func versionOf(v *inferencev1.ModelVersion) modelVersion {
	parts := strings.Split(v.GetName(), "/")
	out := modelVersion{
		Version: strconv.FormatInt(v.GetVersion(), 10), Created: call.Millis(v.GetCreateTime()), Updated: call.Millis(v.GetUpdateTime()), UserID: v.GetCreatedBy(),
		Stage: noStage, Description: v.GetDescription(), Status: "READY", Tags: call.TagsOf(v.GetTags()), Aliases: v.GetAliases(),
	}
	if len(parts) > 3 {
		out.Name = parts[len(parts)-3]
	}
	if out.Aliases == nil {
		out.Aliases = []string{}
	}
	for _, s := range stages() {
		for _, a := range out.Aliases {
			if a == s && out.Stage == noStage {
				out.Stage = s
			}
		}
	}
	out.Source = downloadURI(out.Name, out.Version)
	if v.GetSourceRun() != "" {
		out.RunID = call.Last(v.GetSourceRun())
		out.Source = "runs:/" + strings.TrimSuffix(out.RunID+"/"+v.GetSourcePath(), "/")
	}
	return out
}

// downloadURI is where a client gets the files of a version: of the registry, which keeps them when the run is gone.
func downloadURI(model, version string) string {
	return call.Scheme + "/models/" + model + "/" + version
}

// stageNamed reads a stage as people write it.
func stageNamed(s string) (string, error) {
	for _, known := range append(stages(), noStage) {
		if strings.EqualFold(s, known) {
			return known, nil
		}
	}
	return "", mlflow.BadParameter("a stage is None, Staging, Production or Archived")
}

func (h *routes) versionRoutes() map[string]call.Route {
	return map[string]call.Route{
		"POST model-versions/create":           h.createVersion,
		"PATCH model-versions/update":          h.updateVersion,
		"DELETE model-versions/delete":         h.deleteVersion,
		"GET model-versions/get":               h.getVersion,
		"GET model-versions/search":            h.searchVersions,
		"GET model-versions/get-download-uri":  h.getDownloadURI,
		"POST model-versions/transition-stage": h.transition,
		"POST model-versions/set-tag":          func(c *call.Call) (any, error) { return h.tagVersion(c, false) },
		"DELETE model-versions/delete-tag":     func(c *call.Call) (any, error) { return h.tagVersion(c, true) },
	}
}

// byVersion names a version in a request.
type byVersion struct {
	byName
	Version versionText `json:"version"`
}

func version(c *call.Call, q byVersion) (string, error) {
	return c.VersionName(q.Name, string(q.Version))
}

// oneVersionOf reads a request that is about one version.
func oneVersionOf(c *call.Call) (string, error) {
	q, err := call.In[byVersion](c)
	if err != nil {
		return "", err
	}
	return version(c, *q)
}

// source is where the files of a new version are.
type source struct {
	run, path string // names a run, and what of its files
	version   string // or a version of a model
}

// sourceOf reads a source: runs:/RUN/PATH, mlflow-artifacts:/EXPERIMENT/RUN/artifacts/PATH, mlflow-artifacts:/models/NAME/VERSION or
// models:/NAME/VERSION, all of them of this workspace. Whatever else a source might be is somebody else's: a file of this machine, a
// bucket, another server.
func sourceOf(c *call.Call, s string) (source, error) {
	refused := mlflow.BadParameter("source is runs:/RUN/PATH, mlflow-artifacts:/EXPERIMENT/RUN/artifacts/PATH or models:/NAME/VERSION of the same workspace")
	kind, rest, ok := strings.Cut(s, ":/")
	if !ok || rest == "" || strings.ContainsAny(s, "?#@") || strings.TrimSpace(s) != s {
		return source{}, refused
	}
	rest = strings.TrimSuffix(rest, "/")
	path, err := call.SentPath(rest)
	if err != nil {
		return source{}, refused
	}
	switch kind {
	case "runs":
		id, below, _ := strings.Cut(path, "/")
		name, err := c.RunName(id)
		if err != nil {
			return source{}, refused
		}
		return source{run: name, path: below}, nil
	case "mlflow-artifacts":
		at, err := c.PlaceOf(path)
		if err != nil || at.Version != "" && at.Path != "" {
			return source{}, refused
		}
		return source{run: at.Run, path: at.Path, version: at.Version}, nil
	case "models":
		model, version, _ := strings.Cut(path, "/")
		name, err := c.VersionName(model, version)
		if err != nil {
			return source{}, refused
		}
		return source{version: name}, nil
	}
	return source{}, refused
}

func (h *routes) createVersion(c *call.Call) (any, error) {
	q, err := call.In[struct {
		byName
		Source      string        `json:"source"`
		RunID       string        `json:"run_id"`
		Tags        []mlflow.Text `json:"tags"`
		Description string        `json:"description"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.ModelName(q.Name)
	if err != nil {
		return nil, err
	}
	tags, err := call.TagMap(q.Tags, call.MostResourceTag)
	if err != nil {
		return nil, err
	}
	from, err := sourceOf(c, q.Source)
	if err != nil {
		return nil, err
	}
	if from.version != "" {
		v, err := h.models.GetModelVersion(c.Ctx, &inferencev1.GetModelVersionRequest{Name: from.version})
		if err != nil {
			return nil, err
		}
		if from.run, from.path = v.GetSourceRun(), v.GetSourcePath(); from.run == "" {
			return nil, mlflow.BadParameter("the source was uploaded and has no run; upload its files again as a version of this model")
		}
	}
	if q.RunID != "" && q.RunID != call.Last(from.run) {
		return nil, mlflow.BadParameter("run_id is another run than that of the source")
	}
	v, err := h.models.CreateModelVersion(c.Ctx, &inferencev1.CreateModelVersionRequest{
		Parent: name, SourceRun: from.run, SourcePath: from.path, Description: q.Description, Tags: tags,
	})
	return call.Answer("model_version", versionOf(v), err)
}

func (h *routes) updateVersion(c *call.Call) (any, error) {
	q, err := call.In[struct {
		byVersion
		Description string `json:"description"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := version(c, q.byVersion)
	if err != nil {
		return nil, err
	}
	v, err := h.models.UpdateModelVersion(c.Ctx, &inferencev1.UpdateModelVersionRequest{
		ModelVersion: &inferencev1.ModelVersionUpdate{Name: name, Description: q.Description}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"description"}},
	})
	return call.Answer("model_version", versionOf(v), err)
}

func (h *routes) deleteVersion(c *call.Call) (any, error) {
	name, err := oneVersionOf(c)
	if err == nil {
		_, err = h.models.DeleteModelVersion(c.Ctx, &inferencev1.DeleteModelVersionRequest{Name: name})
	}
	return nil, err
}

func (h *routes) oneVersion(c *call.Call, name string) (any, error) {
	v, err := h.models.GetModelVersion(c.Ctx, &inferencev1.GetModelVersionRequest{Name: name})
	return call.Answer("model_version", versionOf(v), err)
}

func (h *routes) getVersion(c *call.Call) (any, error) {
	name, err := oneVersionOf(c)
	if err != nil {
		return nil, err
	}
	return h.oneVersion(c, name)
}

func (h *routes) getDownloadURI(c *call.Call) (any, error) {
	q, err := call.In[byVersion](c)
	if err != nil {
		return nil, err
	}
	name, err := version(c, *q)
	if err != nil {
		return nil, err
	}
	_, err = h.models.GetModelVersion(c.Ctx, &inferencev1.GetModelVersionRequest{Name: name})
	return call.Answer("artifact_uri", downloadURI(q.Name, string(q.Version)), err)
}

// transition puts a version into a stage: the alias of that name. What stood there before has no stage then.
func (h *routes) transition(c *call.Call) (any, error) {
	q, err := call.In[struct {
		byVersion
		Stage string `json:"stage"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := version(c, q.byVersion)
	if err != nil {
		return nil, err
	}
	stage, err := stageNamed(q.Stage)
	if err != nil {
		return nil, err
	}
	n, err := call.VersionNumber(string(q.Version))
	if err != nil {
		return nil, err
	}
	v, err := h.models.GetModelVersion(c.Ctx, &inferencev1.GetModelVersionRequest{Name: name})
	if err != nil {
		return nil, err
	}
	model := strings.TrimSuffix(name, "/versions/"+string(q.Version))
	if stage != noStage {
		if _, err := h.models.SetModelAlias(c.Ctx, &inferencev1.SetModelAliasRequest{Name: model, Alias: stage, Version: n}); err != nil {
			return nil, err
		}
	}
	for _, a := range v.GetAliases() {
		if s, err := stageNamed(a); err != nil || s != a || s == stage {
			continue // no stage
		}
		_, err := h.models.DeleteModelAlias(c.Ctx, &inferencev1.DeleteModelAliasRequest{Name: model, Alias: a})
		if err != nil && !fault.Is(err, codes.NotFound) {
			return nil, err
		}
	}
	return h.oneVersion(c, name)
}

func (h *routes) tagVersion(c *call.Call, remove bool) (any, error) {
	q, err := call.In[struct {
		byVersion
		mlflow.Text
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := version(c, q.byVersion)
	if err != nil {
		return nil, err
	}
	return nil, changeTag(q.Text, remove, func() (map[string]string, string, error) {
		v, err := h.models.GetModelVersion(c.Ctx, &inferencev1.GetModelVersionRequest{Name: name})
		return v.GetTags(), v.GetEtag(), err
	}, func(tags map[string]string, etag string) error {
		_, err := h.models.UpdateModelVersion(c.Ctx, &inferencev1.UpdateModelVersionRequest{
			ModelVersion: &inferencev1.ModelVersionUpdate{Name: name, Tags: tags, Etag: etag}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"tags"}},
		})
		return err
	})
}

func (h *routes) searchVersions(c *call.Call) (any, error) {
	q, err := call.In[search](c)
	if err != nil {
		return nil, err
	}
	f, err := q.parse(versionFields())
	if err != nil {
		return nil, err
	}
	var models []string
	if name, ok := f.exactly("name"); ok {
		full, err := c.ModelName(name)
		if err != nil {
			return call.Page{Key: "model_versions", Items: []any{}}.Answer(), nil //nolint:nilerr // no model has that name
		}
		models = []string{full}
	} else {
		all, err := h.allModels(c)
		if err != nil {
			return nil, err
		}
		for _, m := range all {
			models = append(models, m.GetName())
		}
	}
	var all []*inferencev1.ModelVersion
	for _, m := range models {
		versions, err := h.versionsOf(c, m)
		if fault.Is(err, codes.NotFound) {
			continue // gone since, or never there: a search finds nothing
		}
		if err != nil {
			return nil, err
		}
		all = append(all, versions...)
	}
	found, next := pick(f, all, func(v *inferencev1.ModelVersion) record {
		one := versionOf(v)
		return record{
			"name": one.Name, "version_number": v.GetVersion(), "run_id": one.RunID, "source_path": one.Source, "tags": v.GetTags(),
			"creation_timestamp": one.Created, "last_updated_timestamp": one.Updated,
		}
	})
	out := call.Page{Key: "model_versions", Items: []any{}, Next: next}
	for _, v := range found {
		out.Items = append(out.Items, versionOf(v))
	}
	return out.Answer(), nil
}
