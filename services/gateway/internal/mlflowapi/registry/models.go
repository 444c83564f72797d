package registry

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/mlflow"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/call"
)

const (
	// listPage is how many models or versions are asked for at once.
	listPage = 1000
	// searchPage and mostModels are how many a page of a search has by default, and at most.
	searchPage, mostModels = 100, 10_000
	// attempts is how often a change of tags is begun again because somebody else changed the same.
	attempts = 5
)

// stages of MLflow. A stage is an alias of that name: it has one version.
func stages() []string { return []string{"Production", "Staging", "Archived"} }

// registeredModel is a model in an answer.
type registeredModel struct {
	Name        string          `json:"name"`
	Created     int64           `json:"creation_timestamp"`
	Updated     int64           `json:"last_updated_timestamp"`
	UserID      string          `json:"user_id"`
	Description string          `json:"description"`
	Latest      []modelVersion  `json:"latest_versions"`
	Tags        []call.KeyValue `json:"tags"`
	Aliases     []alias         `json:"aliases"`
}

type alias struct {
	Alias   string `json:"alias"`
	Version string `json:"version"`
}

func modelOf(m *inferencev1.Model, latest []modelVersion) registeredModel {
	out := registeredModel{
		Name: call.Last(m.GetName()), Created: call.Millis(m.GetCreateTime()), Updated: call.Millis(m.GetUpdateTime()), UserID: m.GetCreatedBy(),
		Description: m.GetDescription(), Latest: latest, Tags: call.TagsOf(m.GetTags()), Aliases: []alias{},
	}
	if out.Latest == nil {
		out.Latest = []modelVersion{}
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetAliases())) {
		out.Aliases = append(out.Aliases, alias{name, strconv.FormatInt(m.GetAliases()[name], 10)})
	}
	return out
}

// newModelName is the name of a model that is to be there.
func newModelName(id string) error {
	if resource.ValidModelID(id) != nil {
		return mlflow.BadParameter("the name of a registered model has letters of ASCII, digits, dots, hyphens and underscores, starts with a letter or digit, and has at most 255 bytes")
	}
	return nil
}

func (h *routes) modelRoutes() map[string]call.Route {
	return map[string]call.Route{
		"POST registered-models/create":              h.createModel,
		"POST registered-models/rename":              h.renameModel,
		"PATCH registered-models/update":             h.updateModel,
		"DELETE registered-models/delete":            h.deleteModel,
		"GET registered-models/get":                  h.getModel,
		"GET registered-models/search":               h.searchModels,
		"POST registered-models/get-latest-versions": h.latestVersions,
		"GET registered-models/get-latest-versions":  h.latestVersions,
		"POST registered-models/set-tag":             func(c *call.Call) (any, error) { return h.tagModel(c, false) },
		"DELETE registered-models/delete-tag":        func(c *call.Call) (any, error) { return h.tagModel(c, true) },
		"POST registered-models/alias":               h.setAlias,
		"DELETE registered-models/alias":             h.deleteAlias,
		"GET registered-models/alias":                h.getAlias,
	}
}

func (h *routes) createModel(c *call.Call) (any, error) {
	q, err := call.In[struct {
		Name        string        `json:"name"`
		Tags        []mlflow.Text `json:"tags"`
		Description string        `json:"description"`
	}](c)
	if err != nil {
		return nil, err
	}
	if err := newModelName(q.Name); err != nil {
		return nil, err
	}
	tags, err := call.TagMap(q.Tags, call.MostResourceTag)
	if err != nil {
		return nil, err
	}
	m, err := h.models.CreateModel(c.Ctx, &inferencev1.CreateModelRequest{Parent: c.Workspace, ModelId: q.Name, Description: q.Description, Tags: tags})
	return call.Answer("registered_model", modelOf(m, nil), err)
}

type byName struct {
	Name string `json:"name"`
}

// oneModel reads a request that is about one model.
func oneModel(c *call.Call) (string, error) {
	q, err := call.In[byName](c)
	if err != nil {
		return "", err
	}
	return c.ModelName(q.Name)
}

func (h *routes) renameModel(c *call.Call) (any, error) {
	q, err := call.In[struct {
		byName
		NewName string `json:"new_name"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.ModelName(q.Name)
	if err != nil {
		return nil, err
	}
	if err := newModelName(q.NewName); err != nil {
		return nil, err
	}
	m, err := h.models.RenameModel(c.Ctx, &inferencev1.RenameModelRequest{Name: name, NewModelId: q.NewName})
	return call.Answer("registered_model", modelOf(m, nil), err)
}

func (h *routes) updateModel(c *call.Call) (any, error) {
	q, err := call.In[struct {
		byName
		Description string `json:"description"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.ModelName(q.Name)
	if err != nil {
		return nil, err
	}
	m, err := h.models.UpdateModel(c.Ctx, &inferencev1.UpdateModelRequest{
		Model: &inferencev1.ModelUpdate{Name: name, Description: q.Description}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"description"}},
	})
	return call.Answer("registered_model", modelOf(m, nil), err)
}

func (h *routes) deleteModel(c *call.Call) (any, error) {
	name, err := oneModel(c)
	if err == nil {
		_, err = h.models.DeleteModel(c.Ctx, &inferencev1.DeleteModelRequest{Name: name})
	}
	return nil, err
}

func (h *routes) getModel(c *call.Call) (any, error) {
	name, err := oneModel(c)
	if err != nil {
		return nil, err
	}
	m, err := h.models.GetModel(c.Ctx, &inferencev1.GetModelRequest{Name: name})
	if err != nil {
		return nil, err
	}
	latest, err := h.latestOf(c, m, nil)
	return call.Answer("registered_model", modelOf(m, latest), err)
}

// latestOf gives the last version of each of some stages, of all where none is named.
func (h *routes) latestOf(c *call.Call, m *inferencev1.Model, of []string) ([]modelVersion, error) {
	all, err := h.versionsOf(c, m.GetName())
	if err != nil {
		return nil, err
	}
	seen, out := map[string]bool{}, []modelVersion{}
	for _, v := range all { // the last first
		one := versionOf(v)
		if seen[one.Stage] || len(of) > 0 && !slices.ContainsFunc(of, func(s string) bool { return strings.EqualFold(s, one.Stage) }) {
			continue
		}
		seen[one.Stage] = true
		out = append(out, one)
	}
	slices.Reverse(out)
	return out, nil
}

func (h *routes) versionsOf(c *call.Call, model string) ([]*inferencev1.ModelVersion, error) {
	var all []*inferencev1.ModelVersion
	for req := (&inferencev1.ListModelVersionsRequest{Parent: model, PageSize: listPage}); ; {
		res, err := h.models.ListModelVersions(c.Ctx, req)
		if err != nil {
			return nil, err
		}
		all = append(all, res.GetModelVersions()...)
		if req.PageToken = res.GetNextPageToken(); req.GetPageToken() == "" {
			return all, nil
		}
	}
}

func (h *routes) allModels(c *call.Call) ([]*inferencev1.Model, error) {
	var all []*inferencev1.Model
	for req := (&inferencev1.ListModelsRequest{Parent: c.Workspace, PageSize: listPage}); ; {
		res, err := h.models.ListModels(c.Ctx, req)
		if err != nil {
			return nil, err
		}
		all = append(all, res.GetModels()...)
		if req.PageToken = res.GetNextPageToken(); req.GetPageToken() == "" {
			return all, nil
		}
	}
}

func (h *routes) latestVersions(c *call.Call) (any, error) {
	q, err := call.In[struct {
		byName
		Stages call.Texts `json:"stages"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.ModelName(q.Name)
	if err != nil {
		return nil, err
	}
	for _, s := range q.Stages {
		if _, err := stageNamed(s); err != nil {
			return nil, err
		}
	}
	m, err := h.models.GetModel(c.Ctx, &inferencev1.GetModelRequest{Name: name})
	if err != nil {
		return nil, err
	}
	latest, err := h.latestOf(c, m, q.Stages)
	return call.Answer("model_versions", latest, err)
}

// search is a request that searches models or versions.
type search struct {
	Filter     string          `json:"filter"`
	MaxResults *mlflow.Integer `json:"max_results"`
	OrderBy    call.Texts      `json:"order_by"`
	PageToken  string          `json:"page_token"`
}

func (h *routes) searchModels(c *call.Call) (any, error) {
	q, err := call.In[search](c)
	if err != nil {
		return nil, err
	}
	f, err := q.parse(modelFields())
	if err != nil {
		return nil, err
	}
	all, err := h.allModels(c)
	if err != nil {
		return nil, err
	}
	found, next := pick(f, all, func(m *inferencev1.Model) record {
		return record{"name": call.Last(m.GetName()), "creation_timestamp": call.Millis(m.GetCreateTime()), "last_updated_timestamp": call.Millis(m.GetUpdateTime()), "tags": m.GetTags()}
	})
	out := call.Page{Key: "registered_models", Items: []any{}, Next: next}
	for _, m := range found {
		latest, err := h.latestOf(c, m, nil)
		if fault.Is(err, codes.NotFound) {
			continue // gone since
		}
		if err != nil {
			return nil, err
		}
		out.Items = append(out.Items, modelOf(m, latest))
	}
	return out.Answer(), nil
}

func (h *routes) tagModel(c *call.Call, remove bool) (any, error) {
	q, err := call.In[struct {
		byName
		mlflow.Text
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.ModelName(q.Name)
	if err != nil {
		return nil, err
	}
	return nil, changeTag(q.Text, remove, func() (map[string]string, string, error) {
		m, err := h.models.GetModel(c.Ctx, &inferencev1.GetModelRequest{Name: name})
		return m.GetTags(), m.GetEtag(), err
	}, func(tags map[string]string, etag string) error {
		_, err := h.models.UpdateModel(c.Ctx, &inferencev1.UpdateModelRequest{
			Model: &inferencev1.ModelUpdate{Name: name, Tags: tags, Etag: etag}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"tags"}},
		})
		return err
	})
}

// changeTag sets or removes one tag of what has all its tags changed at once, and begins again if somebody else was quicker.
func changeTag(t mlflow.Text, remove bool, get func() (map[string]string, string, error), put func(map[string]string, string) error) error {
	if remove {
		t.Value = new(string)
	}
	if bad := t.Check(call.MostResourceTag); bad != nil {
		return bad
	}
	for n := 1; ; n++ {
		had, etag, err := get()
		if err != nil {
			return err
		}
		tags := maps.Clone(had)
		if tags == nil {
			tags = map[string]string{}
		}
		if remove {
			delete(tags, t.Key)
		} else {
			tags[t.Key] = *t.Value
		}
		if err = put(tags, etag); fault.ReasonOf(err) != faultv1.Reason_ETAG_MISMATCH || n == attempts {
			return err
		}
	}
}

// versionText is a version in a request: a string that holds a number, or a number.
type versionText string

// UnmarshalJSON implements json.Unmarshaler.
func (v *versionText) UnmarshalJSON(b []byte) error {
	*v = versionText(strings.Trim(string(b), `"`))
	return nil
}

type aliasRequest struct {
	byName
	Alias   string      `json:"alias"`
	Version versionText `json:"version"`
}

func (h *routes) setAlias(c *call.Call) (any, error) {
	q, err := call.In[aliasRequest](c)
	if err != nil {
		return nil, err
	}
	name, err := c.ModelName(q.Name)
	if err != nil {
		return nil, err
	}
	n, err := call.VersionNumber(string(q.Version))
	if err != nil {
		return nil, err
	}
	_, err = h.models.SetModelAlias(c.Ctx, &inferencev1.SetModelAliasRequest{Name: name, Alias: q.Alias, Version: n})
	return nil, err
}

// deleteAlias removes an alias; one that is not there is no error, as MLflow has it.
func (h *routes) deleteAlias(c *call.Call) (any, error) {
	q, err := call.In[aliasRequest](c)
	if err != nil {
		return nil, err
	}
	name, err := c.ModelName(q.Name)
	if err != nil {
		return nil, err
	}
	m, err := h.models.GetModel(c.Ctx, &inferencev1.GetModelRequest{Name: name})
	if err != nil {
		return nil, err
	}
	if _, there := m.GetAliases()[q.Alias]; !there {
		return nil, nil
	}
	_, err = h.models.DeleteModelAlias(c.Ctx, &inferencev1.DeleteModelAliasRequest{Name: name, Alias: q.Alias})
	return nil, err
}

func (h *routes) getAlias(c *call.Call) (any, error) {
	q, err := call.In[aliasRequest](c)
	if err != nil {
		return nil, err
	}
	name, err := c.ModelName(q.Name)
	if err != nil {
		return nil, err
	}
	m, err := h.models.GetModel(c.Ctx, &inferencev1.GetModelRequest{Name: name})
	if err != nil {
		return nil, err
	}
	n, there := m.GetAliases()[q.Alias]
	if !there {
		return nil, mlflow.Refuse(http.StatusBadRequest, "INVALID_PARAMETER_VALUE", fmt.Sprintf("the registered model has no alias %q", q.Alias))
	}
	return h.oneVersion(c, name+"/versions/"+strconv.FormatInt(n, 10))
}
