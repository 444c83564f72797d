package call

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/mlflow"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// Scheme of URIs that make a client talk to its tracking server.
const Scheme = "mlflow-artifacts:"

// ExperimentName is the name of the experiment of this id.
func (c *Call) ExperimentName(id string) (string, error) {
	if id == "" {
		return "", mlflow.BadParameter("experiment_id is missing")
	}
	name := c.Workspace + "/experiments/" + id
	if n, err := resource.Parse(name); err != nil || n.Kind() != resource.KindExperiment {
		return "", mlflow.BadParameter("experiment_id is not the id of an experiment")
	}
	return name, nil
}

// RunName is the name of the run of this id.
func (c *Call) RunName(id string) (string, error) {
	if resource.ValidRunID(id) != nil {
		return "", mlflow.BadParameter("run_id is not the id of a run")
	}
	return c.Workspace + "/runs/" + id, nil
}

// Named is the name of the run that a request means.
func (c *Call) Named(ids mlflow.RunIDs) (string, error) {
	id, bad := ids.ID()
	if bad != nil {
		return "", bad
	}
	return c.RunName(id)
}

// ModelName is the name of the model of this id. One that no model can have is not there.
func (c *Call) ModelName(id string) (string, error) {
	switch {
	case id == "":
		return "", mlflow.BadParameter("name is missing")
	case resource.ValidModelID(id) != nil:
		return "", mlflow.NoResource("there is no registered model of that name")
	}
	return c.Workspace + "/models/" + id, nil
}

// VersionName is the name of a version of a model.
func (c *Call) VersionName(model, version string) (string, error) {
	name, err := c.ModelName(model)
	if err != nil {
		return "", err
	}
	if _, err := VersionNumber(version); err != nil {
		return "", err
	}
	return name + "/versions/" + version, nil
}

// VersionNumber reads the number of a version.
func VersionNumber(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 || strconv.FormatInt(n, 10) != s {
		return 0, mlflow.BadParameter("version is the number of a version")
	}
	return n, nil
}

// CleanPath holds a decoded path to one meaning: relative, no segment that is empty, "." or "..", no backslash, nothing that would be
// decoded once more, no control characters.
func CleanPath(p string) error {
	for segment := range strings.SplitSeq(p, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return mlflow.BadParameter(`the path of an artifact has no segment that is empty, "." or ".."`)
		}
	}
	control := func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\\' || r == '\uFFFD' }
	if strings.ContainsFunc(p, control) || escaped(p, func(byte) bool { return true }) {
		return mlflow.BadParameter("the path of an artifact has no backslash, no control character and nothing that is encoded twice")
	}
	return nil
}

// escaped tells whether one of some bytes stands in s percent-encoded.
func escaped(s string, one func(byte) bool) bool {
	for {
		_, rest, ok := strings.Cut(s, "%")
		if !ok {
			return false
		}
		if len(rest) >= 2 {
			if n, err := strconv.ParseUint(rest[:2], 16, 8); err == nil && one(byte(n)) {
				return true
			}
		}
		s = rest
	}
}

// SentPath decodes a path as it was sent, once. No client needs to encode dots, slashes, backslashes, percent signs or control characters.
func SentPath(raw string) (string, error) {
	if escaped(raw, func(b byte) bool { return b < 0x20 || b == 0x7f || strings.IndexByte(`./\%`, b) >= 0 }) {
		return "", mlflow.BadParameter("the path of an artifact has dots, slashes and percent signs as they are, and no backslash")
	}
	p, err := url.PathUnescape(raw)
	if err != nil {
		return "", mlflow.BadParameter("the path of an artifact cannot be decoded")
	}
	return p, CleanPath(p)
}

// Place is what an artifact's path means: a file or folder of a run, or of a version of a model.
type Place struct {
	Run     string // name, or ""
	Version string // name, or ""
	Path    string // below it, "" for all
}

// PlaceOf takes apart EXPERIMENT/RUN/artifacts[/PATH] and models/NAME/VERSION[/PATH].
func (c *Call) PlaceOf(path string) (Place, error) {
	parts := strings.SplitN(path, "/", 4)
	rest := ""
	if len(parts) == 4 {
		rest = parts[3]
	}
	switch {
	case len(parts) >= 3 && parts[0] == "models":
		name, err := c.VersionName(parts[1], parts[2])
		return Place{Version: name, Path: rest}, err
	case len(parts) >= 3 && parts[2] == "artifacts":
		if _, err := c.ExperimentName(parts[0]); err != nil {
			return Place{}, err
		}
		name, err := c.RunName(parts[1])
		return Place{Run: name, Path: rest}, err
	}
	return Place{}, mlflow.BadParameter("the path of an artifact is EXPERIMENT/RUN/artifacts/… or models/NAME/VERSION/…")
}
