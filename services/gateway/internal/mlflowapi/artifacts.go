package mlflowapi

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/mlflow"
)

const (
	// scheme of URIs that make a client talk to its tracking server.
	scheme = "mlflow-artifacts:"
	// chunk is how much of an upload goes on at once.
	chunk = 256 << 10
	// noMultipart is what clients look for before they send a file in one piece.
	noMultipart = "Multipart upload is not supported for the current artifact repository"
	noPresigned = "Presigned URLs are not supported for the current artifact repository"
)

// artifactURI is where the files of a run are.
func artifactURI(r *computev1.Run) string {
	return scheme + "/" + experimentIDOf(r) + "/" + last(r.GetName()) + "/artifacts"
}

// file is one file, or folder, in a list.
type file struct {
	Path  string `json:"path"`
	IsDir bool   `json:"is_dir"`
	Size  *int64 `json:"file_size,omitempty"`
}

// sized is a file of those that a list is made from.
type sized struct {
	path string
	size int64
}

// inFolder lists what stands directly in a folder, "" for the top. name says how an entry is called.
func inFolder(all []sized, folder string, name func(entry string) string) []file {
	if folder != "" {
		folder += "/"
	}
	out := []file{}
	seen := map[string]bool{}
	for _, f := range all {
		rest, ok := strings.CutPrefix(f.path, folder)
		if !ok || rest == "" {
			continue
		}
		entry, _, isDir := strings.Cut(rest, "/")
		if seen[entry] {
			continue
		}
		seen[entry] = true
		one := file{Path: name(entry), IsDir: isDir}
		if !isDir {
			one.Size = &f.size
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b file) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// cleanPath holds a decoded path to one meaning: relative, no segment that is empty, "." or "..", no backslash, nothing that would be
// decoded once more, no control characters.
func cleanPath(p string) error {
	for segment := range strings.SplitSeq(p, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return mlflow.BadParameter(`the path of an artifact has no segment that is empty, "." or ".."`)
		}
	}
	if strings.ContainsFunc(p, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\\' || r == '\uFFFD' }) || regexp.MustCompile(`%[0-9A-Fa-f]{2}`).MatchString(p) {
		return mlflow.BadParameter("the path of an artifact has no backslash, no control character and nothing that is encoded twice")
	}
	return nil
}

// encodedBadly are escapes that no client needs: of dots, slashes, backslashes, percent signs and control characters.
var encodedBadly = regexp.MustCompile(`(?i)%(2e|2f|5c|25|7f|[01][0-9a-f])`)

// sentPath decodes a path as it was sent, once.
func sentPath(raw string) (string, error) {
	if encodedBadly.MatchString(raw) {
		return "", mlflow.BadParameter("the path of an artifact has dots, slashes and percent signs as they are, and no backslash")
	}
	p, err := url.PathUnescape(raw)
	if err != nil {
		return "", mlflow.BadParameter("the path of an artifact cannot be decoded")
	}
	return p, cleanPath(p)
}

// place is what an artifact's path means: a file or folder of a run, or of a version of a model.
type place struct {
	run     string // name, or ""
	version string // name, or ""
	path    string // below it, "" for all
}

// placeOf takes apart EXPERIMENT/RUN/artifacts[/PATH] and models/NAME/VERSION[/PATH].
func (c *call) placeOf(path string) (place, error) {
	parts := strings.SplitN(path, "/", 4)
	rest := ""
	if len(parts) == 4 {
		rest = parts[3]
	}
	switch {
	case len(parts) >= 3 && parts[0] == "models":
		name, err := c.versionName(parts[1], parts[2])
		return place{version: name, path: rest}, err
	case len(parts) >= 3 && parts[2] == "artifacts":
		if _, err := c.experimentName(parts[0]); err != nil {
			return place{}, err
		}
		name, err := c.runName(parts[1])
		return place{run: name, path: rest}, err
	}
	return place{}, mlflow.BadParameter("the path of an artifact is EXPERIMENT/RUN/artifacts/… or models/NAME/VERSION/…")
}

func (h *Handler) artifactRoutes() map[string]route {
	refused := func(*call) (any, error) { return nil, mlflow.NotImplemented(noPresigned) }
	return map[string]route{
		"GET artifacts/list":                    h.listArtifacts,
		"POST artifacts/presigned-upload-url":   refused,
		"POST artifacts/presigned-download-url": refused,
	}
}

// listArtifacts lists a folder of a run, paths from the run's root.
func (h *Handler) listArtifacts(c *call) (any, error) {
	q, err := in[struct {
		mlflow.RunIDs
		Path string `json:"path"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.named(q.RunIDs)
	if err != nil {
		return nil, err
	}
	if q.Path != "" {
		if err := cleanPath(q.Path); err != nil {
			return nil, err
		}
	}
	r, err := h.runs.GetRun(c.ctx, &computev1.GetRunRequest{Name: name})
	if err != nil {
		return nil, err
	}
	all, err := h.filesOf(c, place{run: name})
	if err != nil {
		return nil, err
	}
	files := inFolder(all, q.Path, func(entry string) string {
		if q.Path == "" {
			return entry
		}
		return q.Path + "/" + entry
	})
	return map[string]any{"root_uri": artifactURI(r), "files": files}, nil
}

// filesOf gives all files of a run or of a version of a model.
func (h *Handler) filesOf(c *call, at place) ([]sized, error) {
	var all []sized
	if at.version != "" {
		v, err := h.models.GetModelVersion(c.ctx, &inferencev1.GetModelVersionRequest{Name: at.version})
		for _, f := range v.GetFiles() {
			all = append(all, sized{f.GetPath(), f.GetSize()})
		}
		return all, err
	}
	res, err := h.runs.ListOutputs(c.ctx, &computev1.ListOutputsRequest{Name: at.run})
	for _, o := range res.GetOutputs() {
		all = append(all, sized{o.GetPath(), o.GetSize()})
	}
	return all, err
}

// proxy serves files through the tracking server: what stands after mlflow-artifacts/ in the path.
func (h *Handler) proxy(c *call, raw string) (any, error) {
	switch kind, rest, below := strings.Cut(raw, "/"); {
	case raw == "artifacts" && c.r.Method == http.MethodGet:
		return h.listPlace(c)
	case kind == "mpu" && c.r.Method == http.MethodPost:
		return nil, mlflow.NotImplemented(noMultipart)
	case kind == "presigned" && c.r.Method == http.MethodGet:
		return nil, mlflow.NotImplemented(noPresigned)
	case kind == "artifacts" && below:
		path, err := sentPath(rest)
		if err != nil {
			return nil, err
		}
		at, err := c.placeOf(path)
		if err != nil {
			return nil, err
		}
		switch c.r.Method {
		case http.MethodGet:
			return h.download(c, at)
		case http.MethodPut:
			return h.upload(c, at)
		case http.MethodDelete:
			return h.remove(c, at)
		}
	}
	return nil, mlflow.NoEndpoint("there is no such route")
}

// listPlace lists a folder, entries by their last segment.
func (h *Handler) listPlace(c *call) (any, error) {
	path := c.r.URL.Query()["path"]
	if len(path) != 1 {
		return nil, mlflow.BadParameter("path says once which folder to list")
	}
	if err := cleanPath(path[0]); err != nil {
		return nil, err
	}
	at, err := c.placeOf(path[0])
	if err != nil {
		return nil, err
	}
	all, err := h.filesOf(c, at)
	if err != nil {
		return nil, err
	}
	return map[string]any{"files": inFolder(all, at.path, func(entry string) string { return entry })}, nil
}

// download streams one file. What breaks off in the middle cuts the connection, so that it cannot be taken for the whole file.
func (h *Handler) download(c *call, at place) (any, error) {
	if at.path == "" {
		return nil, mlflow.BadParameter("this is a folder; list it, and ask for one file")
	}
	next, err := h.chunks(c, at)
	if err != nil {
		return nil, err
	}
	data, err := next()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	head := c.w.Header()
	head.Set("Content-Type", "application/octet-stream")
	head.Set("Content-Disposition", "attachment")
	for ; err == nil; data, err = next() {
		if _, err := c.w.Write(data); err != nil {
			panic(http.ErrAbortHandler) // the client is gone
		}
	}
	if !errors.Is(err, io.EOF) {
		panic(http.ErrAbortHandler)
	}
	return written{}, nil
}

// chunks gives the content of a file piece by piece, io.EOF at its end.
func (h *Handler) chunks(c *call, at place) (func() ([]byte, error), error) {
	if at.version != "" {
		s, err := h.models.DownloadModelVersion(c.ctx, &inferencev1.DownloadModelVersionRequest{Name: at.version, Path: at.path})
		if err != nil {
			return nil, err
		}
		return func() ([]byte, error) {
			m, err := s.Recv()
			return m.GetData(), err
		}, nil
	}
	s, err := h.runs.DownloadOutput(c.ctx, &computev1.DownloadOutputRequest{Name: at.run, Path: at.path})
	if err != nil {
		return nil, err
	}
	return func() ([]byte, error) {
		m, err := s.Recv()
		return m.GetData(), err
	}, nil
}

// upload streams one file to the run.
func (h *Handler) upload(c *call, at place) (any, error) {
	switch {
	case at.version != "":
		return nil, mlflow.BadParameter("a version of a model does not change; register another one")
	case at.path == "":
		return nil, mlflow.BadParameter("the path names the run, not a file of it")
	case len(c.r.Header.Values("Content-Encoding")) > 0:
		return nil, mlflow.BadRequest("a file is sent as it is, not compressed")
	}
	s, err := h.tracking.UploadArtifact(c.ctx)
	if err != nil {
		return nil, err
	}
	if err := s.Send(&computev1.UploadArtifactRequest{Name: at.run, Path: at.path, Size: c.r.ContentLength}); err != nil {
		_, err := s.CloseAndRecv() // why the stream was ended stands there
		return nil, err
	}
	for {
		data := make([]byte, chunk) // a message is not changed after it was sent
		n, err := fill(c.r.Body, data)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, unread(err) // the call ends with the request, without its last word
		}
		if n > 0 && s.Send(&computev1.UploadArtifactRequest{Data: data[:n]}) != nil || err != nil {
			_, err := s.CloseAndRecv()
			return nil, err
		}
	}
}

// fill reads until b is full or the body ends. io.EOF is the end of a whole body only: io.ReadFull would say the same of one that broke off.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = r.Read(b[n:])
		n += k
	}
	return n, err
}

// remove deletes a file or a folder of the run.
func (h *Handler) remove(c *call, at place) (any, error) {
	switch {
	case at.version != "":
		return nil, mlflow.BadParameter("files of a version of a model stay; delete the version")
	case at.path == "":
		return nil, mlflow.BadParameter("the path names the run, not a file of it; delete the run")
	}
	_, err := h.tracking.DeleteArtifact(c.ctx, &computev1.DeleteArtifactRequest{Name: at.run, Path: at.path})
	return nil, err
}
