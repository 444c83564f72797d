package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// registry keeps one version, and may lie about it.
type registry struct {
	inferencev1.UnimplementedModelServiceServer
	inferencev1.UnimplementedEndpointServiceServer
	files  []*inferencev1.ModelFile
	data   map[string]string
	lie    func(m *inferencev1.DownloadModelVersionResponse)
	cut    bool // end before the last file
	more   bool // send a file that was not told of
	refuse error
	asked  string
	states []*inferencev1.Deployment
}

func (r *registry) UploadModelVersion(s grpc.ClientStreamingServer[inferencev1.UploadModelVersionRequest, inferencev1.ModelVersion]) error {
	r.files, r.data = nil, make(map[string]string)
	for n := 0; ; n++ {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return s.SendAndClose(&inferencev1.ModelVersion{Name: "m/versions/1", Version: 1})
		}
		if err != nil {
			return err
		}
		if (n == 0) != (m.GetParent() != "") || len(m.GetData()) > chunk {
			return status.Error(codes.InvalidArgument, "the parent stands in the first message, and data is bounded")
		}
		if r.refuse != nil && n == 1 {
			return r.refuse
		}
		if f := m.GetFile(); f != nil {
			r.files = append(r.files, f)
		}
		if n > 0 {
			r.data[r.files[len(r.files)-1].GetPath()] += string(m.GetData())
		}
	}
}

func (r *registry) GetModelVersion(_ context.Context, req *inferencev1.GetModelVersionRequest) (*inferencev1.ModelVersion, error) {
	return &inferencev1.ModelVersion{Name: req.GetName(), Version: 7, Files: r.files}, nil
}

func (r *registry) DownloadModelVersion(req *inferencev1.DownloadModelVersionRequest, s grpc.ServerStreamingServer[inferencev1.DownloadModelVersionResponse]) error {
	r.asked = req.GetName()
	for i, f := range r.files {
		if req.GetPath() != "" && req.GetPath() != f.GetPath() {
			continue
		}
		if r.cut && i == len(r.files)-1 {
			return nil
		}
		data := r.data[f.GetPath()]
		for first := true; first || data != ""; first = false {
			n := min(len(data), 5)
			m := &inferencev1.DownloadModelVersionResponse{Data: []byte(data[:n])}
			if first {
				m.File = &inferencev1.ModelFile{Path: f.GetPath(), Size: f.GetSize(), Digest: f.GetDigest()}
			}
			if r.lie != nil {
				r.lie(m)
			}
			if err := s.Send(m); err != nil {
				return err
			}
			data = data[n:]
		}
	}
	if r.more {
		return s.Send(&inferencev1.DownloadModelVersionResponse{File: &inferencev1.ModelFile{Path: "more"}})
	}
	return nil
}

func (r *registry) WatchDeployment(_ *inferencev1.WatchDeploymentRequest, s grpc.ServerStreamingServer[inferencev1.Deployment]) error {
	d := r.states[0]
	if len(r.states) > 1 {
		r.states = r.states[1:]
	}
	if err := s.Send(d); err != nil {
		return err
	}
	return status.Error(codes.Unavailable, "restart")
}

func registryOf(t *testing.T) (*registry, Context) {
	t.Helper()
	r := &registry{data: make(map[string]string)}
	ca, cert := root(t)
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})))
	inferencev1.RegisterModelServiceServer(s, r)
	inferencev1.RegisterEndpointServiceServer(s, r)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return r, Context{Server: "https://" + l.Addr().String(), CAPEM: ca}
}

func (r *registry) put(path, data string) {
	sum := sha256.Sum256([]byte(data))
	r.files = append(r.files, &inferencev1.ModelFile{Path: path, Size: int64(len(data)), Digest: sum[:]})
	r.data[path] = data
}

func TestUploadModel(t *testing.T) {
	r, to := registryOf(t)
	dir := t.TempDir()
	big := strings.Repeat("0123456789abcdef", chunk/16)
	for name, text := range map[string]string{"a": "same", "b/c": "same", "big": big + "!", "exact": big, "empty": ""} {
		write(t, dir, name, text)
	}
	c := dial(t, to, "t")
	first := &inferencev1.UploadModelVersionRequest{Parent: "m", CreateModel: true}
	var sent, total int64
	v, err := c.UploadModel(t.Context(), first, dir, func(s, n int64) { sent, total = s, n })
	if err != nil || v.GetVersion() != 1 || len(r.files) != 5 || sent != total || total != int64(2*chunk+9) {
		t.Fatal(v, err, len(r.files), sent, total)
	}
	for _, f := range r.files {
		sum := sha256.Sum256([]byte(r.data[f.GetPath()]))
		if b, err := os.ReadFile(filepath.Join(dir, f.GetPath())); err != nil || string(b) != r.data[f.GetPath()] || f.GetSize() != int64(len(b)) || string(sum[:]) != string(f.GetDigest()) {
			t.Errorf("%s is not what was sent", f.GetPath())
		}
	}
	if _, err := c.UploadModel(t.Context(), first, filepath.Join(dir, "b", "c"), nil); err != nil || len(r.files) != 1 || r.files[0].GetPath() != "c" {
		t.Errorf("a single file: %v, %v", r.files, err)
	}
	r.refuse = status.Error(codes.PermissionDenied, "not you")
	if _, err := c.UploadModel(t.Context(), first, dir, nil); status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v", err)
	}
	r.refuse = nil
	must(t, os.Symlink("a", filepath.Join(dir, "link")))
	r.files = nil
	for _, from := range []string{dir, filepath.Join(dir, "nowhere"), t.TempDir()} {
		if _, err := c.UploadModel(t.Context(), first, from, nil); err == nil || r.files != nil {
			t.Errorf("%s: %v", from, err)
		}
	}
}

func TestDownloadModel(t *testing.T) {
	cases := []struct {
		name  string
		only  string
		wrong func(r *registry)
		want  faultv1.Reason // unspecified: it comes
		files []string
	}{
		{"all", "", nil, 0, []string{"a", "b/c", "empty"}},
		{"one", "b/c", nil, 0, []string{"b/c"}},
		{"one that is not there", "d", nil, faultv1.Reason_RESOURCE_NOT_FOUND, nil},
		{"other content", "", func(r *registry) { r.data["b/c"] = "12345678x" }, faultv1.Reason_DIGEST_MISMATCH, []string{"a"}},
		{"too much", "", func(r *registry) { r.data["a"] += "more" }, faultv1.Reason_DIGEST_MISMATCH, nil},
		{"too little", "", func(r *registry) { r.data["a"] = "one" }, faultv1.Reason_DIGEST_MISMATCH, nil},
		{"broken off", "", func(r *registry) { r.cut = true }, faultv1.Reason_SERVICE_UNAVAILABLE, []string{"a", "b/c"}},
		{"a file that was not told of", "", func(r *registry) { r.more = true }, faultv1.Reason_DIGEST_MISMATCH, []string{"a", "b/c", "empty"}},
		{"another path than was told", "", func(r *registry) {
			r.lie = func(m *inferencev1.DownloadModelVersionResponse) {
				if m.GetFile().GetPath() == "a" {
					m.File.Path = "../a"
				}
			}
		}, faultv1.Reason_DIGEST_MISMATCH, nil},
		{"a path outside", "", func(r *registry) { r.put("../../x", "evil") }, faultv1.Reason_PATH_INVALID, nil},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			r, to := registryOf(t)
			r.put("a", "one two three")
			r.put("b/c", "123456789")
			r.put("empty", "")
			if tc.wrong != nil {
				tc.wrong(r)
			}
			dir := filepath.Join(t.TempDir(), "new")
			var last Received
			whole := 0
			err := dial(t, to, "t").DownloadModel(t.Context(), "w/models/m/versions/champion", dir, tc.only, func(p Received) {
				if last = p; p.Path != "" {
					whole++
				}
			})
			if fault.ReasonOf(err) != tc.want || tc.want == 0 && err != nil {
				t.Fatalf("got %v", err)
			}
			if tc.want == 0 && (last.Bytes != last.Total || whole != len(tc.files) || r.asked != "w/models/m/versions/7") {
				t.Errorf("%+v, %d files, of %s", last, whole, r.asked)
			}
			var got []string
			_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					rel, _ := filepath.Rel(dir, p)
					got = append(got, rel)
				}
				return nil
			})
			if strings.Join(got, " ") != strings.Join(tc.files, " ") {
				t.Errorf("there are %q", got)
			}
		})
	}
}

func TestWaitDeployment(t *testing.T) {
	d := func(state inferencev1.Deployment_State, generation int64, ready int32) *inferencev1.Deployment {
		return &inferencev1.Deployment{State: state, Generation: generation, ReadyReplicas: ready, Spec: &inferencev1.DeploymentSpec{Replicas: 2}}
	}
	const creating, ready, updating, failed = inferencev1.Deployment_STATE_CREATING, inferencev1.Deployment_STATE_READY, inferencev1.Deployment_STATE_UPDATING, inferencev1.Deployment_STATE_FAILED
	cases := []struct {
		name   string
		states []*inferencev1.Deployment
		want   *inferencev1.Deployment
	}{
		{"made", []*inferencev1.Deployment{d(creating, 2, 0), d(ready, 2, 2)}, d(ready, 2, 2)},
		{"ready before the update", []*inferencev1.Deployment{d(ready, 1, 2), d(updating, 2, 1), d(ready, 2, 2)}, d(ready, 2, 2)},
		{"ready with fewer than were asked for", []*inferencev1.Deployment{d(ready, 2, 1), d(ready, 2, 2)}, d(ready, 2, 2)},
		{"failed", []*inferencev1.Deployment{d(creating, 2, 0), d(failed, 2, 0)}, d(failed, 2, 0)},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			r, to := registryOf(t)
			r.states = tc.states
			got, err := dial(t, to, "t").WaitDeployment(t.Context(), "d", 2, nil)
			if err != nil || got.GetState() != tc.want.GetState() || got.GetGeneration() != tc.want.GetGeneration() || got.GetReadyReplicas() != tc.want.GetReadyReplicas() {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}
