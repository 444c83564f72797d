package call

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/pkg/mlflow"
)

// mostResults is how many a page of a search has at most.
const mostResults = 50_000

// MostResourceTag bounds the value of a tag of an experiment, a model or a version.
const MostResourceTag = 5000

// KeyValue is a tag in an answer.
type KeyValue struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// TagsOf are tags in the order of their keys.
func TagsOf(tags map[string]string) []KeyValue {
	out := make([]KeyValue, 0, len(tags))
	for k, v := range tags {
		out = append(out, KeyValue{k, v})
	}
	slices.SortFunc(out, func(a, b KeyValue) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// TagMap reads the tags of a request.
func TagMap(tags []mlflow.Text, most int) (map[string]string, error) {
	out := make(map[string]string, len(tags))
	for _, t := range tags {
		if bad := t.Check(most); bad != nil {
			return nil, bad
		}
		if had, twice := out[t.Key]; twice && had != *t.Value {
			return nil, mlflow.BadParameter("the same tag stands there twice, with two values")
		}
		out[t.Key] = *t.Value
	}
	return out, nil
}

// Millis is a time as MLflow has it; 0 for none.
func Millis(t *timestamppb.Timestamp) int64 {
	if t == nil {
		return 0
	}
	return t.AsTime().UnixMilli()
}

// Last is the last segment of a name.
func Last(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// ExperimentIDOf is the id of the experiment that a run belongs to.
func ExperimentIDOf(r *computev1.Run) string {
	if r.GetExperimentName() == "" {
		return "0"
	}
	return Last(r.GetExperimentName())
}

// ArtifactURI is where the files of a run are.
func ArtifactURI(r *computev1.Run) string {
	return Scheme + "/" + ExperimentIDOf(r) + "/" + Last(r.GetName()) + "/artifacts"
}

// PageSize reads how many results a page has.
func PageSize(n *mlflow.Integer) (int32, error) {
	switch {
	case n == nil:
		return 0, nil
	case *n < 1 || *n > mostResults:
		return 0, mlflow.BadParameter("max_results is 1 to 50000")
	}
	return int32(*n), nil
}

// Answer wraps what a route answers with, or gives the error.
func Answer(key string, value any, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return map[string]any{key: value}, nil
}

// Page is a list with a way on. MLflow's clients take no token for the end.
type Page struct {
	Key   string
	Items []any
	Next  string
}

// Answer is the list as an object.
func (p Page) Answer() map[string]any {
	out := map[string]any{p.Key: p.Items}
	if p.Next != "" {
		out["next_page_token"] = p.Next
	}
	return out
}
