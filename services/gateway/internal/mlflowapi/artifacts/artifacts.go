package artifacts

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/grpc"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/mlflow"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/call"
)

const (
	// chunk is how much of an upload goes on at once.
	chunk = 256 << 10
	// noMultipart is what clients look for before they send a file in one piece.
	noMultipart = "Multipart upload is not supported for the current artifact repository"
	noPresigned = "Presigned URLs are not supported for the current artifact repository"
)

// Files are those of runs and of versions of models.
type Files struct {
	tracking computev1.TrackingServiceClient
	runs     computev1.RunServiceClient
	models   inferencev1.ModelServiceClient
}

// New makes the routes.
func New(compute, inference grpc.ClientConnInterface) *Files {
	return &Files{
		tracking: computev1.NewTrackingServiceClient(compute), runs: computev1.NewRunServiceClient(compute), models: inferencev1.NewModelServiceClient(inference),
	}
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

// Routes that are about files and belong to the tracking API, by method and path.
func (h *Files) Routes() map[string]call.Route {
	refused := func(*call.Call) (any, error) { return nil, mlflow.NotImplemented(noPresigned) }
	return map[string]call.Route{
		"GET artifacts/list":                    h.listArtifacts,
		"POST artifacts/presigned-upload-url":   refused,
		"POST artifacts/presigned-download-url": refused,
	}
}

// listArtifacts lists a folder of a run, paths from the run's root.
func (h *Files) listArtifacts(c *call.Call) (any, error) {
	q, err := call.In[struct {
		mlflow.RunIDs
		Path string `json:"path"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.Named(q.RunIDs)
	if err != nil {
		return nil, err
	}
	if q.Path != "" {
		if err := call.CleanPath(q.Path); err != nil {
			return nil, err
		}
	}
	r, err := h.runs.GetRun(c.Ctx, &computev1.GetRunRequest{Name: name})
	if err != nil {
		return nil, err
	}
	all, err := h.filesOf(c, call.Place{Run: name})
	if err != nil {
		return nil, err
	}
	files := inFolder(all, q.Path, func(entry string) string {
		if q.Path == "" {
			return entry
		}
		return q.Path + "/" + entry
	})
	return map[string]any{"root_uri": call.ArtifactURI(r), "files": files}, nil
}

// filesOf gives all files of a run or of a version of a model.
func (h *Files) filesOf(c *call.Call, at call.Place) ([]sized, error) {
	var all []sized
	if at.Version != "" {
		v, err := h.models.GetModelVersion(c.Ctx, &inferencev1.GetModelVersionRequest{Name: at.Version})
		for _, f := range v.GetFiles() {
			all = append(all, sized{f.GetPath(), f.GetSize()})
		}
		return all, err
	}
	res, err := h.runs.ListOutputs(c.Ctx, &computev1.ListOutputsRequest{Name: at.Run})
	for _, o := range res.GetOutputs() {
		all = append(all, sized{o.GetPath(), o.GetSize()})
	}
	return all, err
}

// Proxy serves files through the tracking server: what stands after mlflow-artifacts/ in the path.
func (h *Files) Proxy(c *call.Call, raw string) (any, error) {
	switch kind, rest, below := strings.Cut(raw, "/"); {
	case raw == "artifacts" && c.R.Method == http.MethodGet:
		return h.listPlace(c)
	case kind == "mpu" && c.R.Method == http.MethodPost:
		return nil, mlflow.NotImplemented(noMultipart)
	case kind == "presigned" && c.R.Method == http.MethodGet:
		return nil, mlflow.NotImplemented(noPresigned)
	case kind == "artifacts" && below:
		path, err := call.SentPath(rest)
		if err != nil {
			return nil, err
		}
		at, err := c.PlaceOf(path)
		if err != nil {
			return nil, err
		}
		switch c.R.Method {
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
func (h *Files) listPlace(c *call.Call) (any, error) {
	path := c.R.URL.Query()["path"]
	if len(path) != 1 {
		return nil, mlflow.BadParameter("path says once which folder to list")
	}
	if err := call.CleanPath(path[0]); err != nil {
		return nil, err
	}
	at, err := c.PlaceOf(path[0])
	if err != nil {
		return nil, err
	}
	all, err := h.filesOf(c, at)
	if err != nil {
		return nil, err
	}
	return map[string]any{"files": inFolder(all, at.Path, func(entry string) string { return entry })}, nil
}

// download streams one file. What breaks off in the middle cuts the connection, so that it cannot be taken for the whole file.
func (h *Files) download(c *call.Call, at call.Place) (any, error) {
	if at.Path == "" {
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
	head := c.W.Header()
	head.Set("Content-Type", "application/octet-stream")
	head.Set("Content-Disposition", "attachment")
	for ; err == nil; data, err = next() {
		if _, err := c.W.Write(data); err != nil {
			panic(http.ErrAbortHandler) // the client is gone
		}
	}
	if !errors.Is(err, io.EOF) {
		panic(http.ErrAbortHandler)
	}
	return call.Written{}, nil
}

// chunks gives the content of a file piece by piece, io.EOF at its end.
func (h *Files) chunks(c *call.Call, at call.Place) (func() ([]byte, error), error) {
	if at.Version != "" {
		s, err := h.models.DownloadModelVersion(c.Ctx, &inferencev1.DownloadModelVersionRequest{Name: at.Version, Path: at.Path})
		if err != nil {
			return nil, err
		}
		return func() ([]byte, error) {
			m, err := s.Recv()
			return m.GetData(), err
		}, nil
	}
	s, err := h.runs.DownloadOutput(c.Ctx, &computev1.DownloadOutputRequest{Name: at.Run, Path: at.Path})
	if err != nil {
		return nil, err
	}
	return func() ([]byte, error) {
		m, err := s.Recv()
		return m.GetData(), err
	}, nil
}

// upload streams one file to the run.
func (h *Files) upload(c *call.Call, at call.Place) (any, error) {
	switch {
	case at.Version != "":
		return nil, mlflow.BadParameter("a version of a model does not change; register another one")
	case at.Path == "":
		return nil, mlflow.BadParameter("the path names the run, not a file of it")
	case len(c.R.Header.Values("Content-Encoding")) > 0:
		return nil, mlflow.BadRequest("a file is sent as it is, not compressed")
	}
	s, err := h.tracking.UploadArtifact(c.Ctx)
	if err != nil {
		return nil, err
	}
	if err := s.Send(&computev1.UploadArtifactRequest{Name: at.Run, Path: at.Path, Size: c.R.ContentLength}); err != nil {
		_, err := s.CloseAndRecv() // why the stream was ended stands there
		return nil, err
	}
	for {
		data := make([]byte, chunk) // a message is not changed after it was sent
		n, err := fill(c.R.Body, data)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, call.Unread(err) // the call ends with the request, without its last word
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
func (h *Files) remove(c *call.Call, at call.Place) (any, error) {
	switch {
	case at.Version != "":
		return nil, mlflow.BadParameter("files of a version of a model stay; delete the version")
	case at.Path == "":
		return nil, mlflow.BadParameter("the path names the run, not a file of it; delete the run")
	}
	_, err := h.tracking.DeleteArtifact(c.Ctx, &computev1.DeleteArtifactRequest{Name: at.Run, Path: at.Path})
	return nil, err
}
