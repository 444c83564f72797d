package compute

import (
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
)

// artifact uploads content in pieces, without saying how long it is.
func (l *lab) artifact(user, run, path, content string, change func(*computev1.UploadArtifactRequest)) (*computev1.Output, error) {
	l.t.Helper()
	s, err := l.tracking().UploadArtifact(l.as(user))
	must(l.t, err)
	first := &computev1.UploadArtifactRequest{Name: run, Path: path, Size: -1}
	if change != nil {
		change(first)
	}
	_ = s.Send(first)
	for part := range slices.Chunk([]byte(content), 100) {
		_ = s.Send(&computev1.UploadArtifactRequest{Data: part})
	}
	return s.CloseAndRecv()
}

// outputs are the paths of what a run has, each with its content.
func (l *lab) outputs(run string) string {
	l.t.Helper()
	list, err := l.runs().ListOutputs(l.as("reader"), &computev1.ListOutputsRequest{Name: run})
	must(l.t, err)
	var out []string
	for _, o := range list.GetOutputs() {
		s, err := l.runs().DownloadOutput(l.as("reader"), &computev1.DownloadOutputRequest{Name: run, Path: o.GetPath()})
		must(l.t, err)
		content := ""
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			must(l.t, err)
			content += string(m.GetData())
		}
		if sum := sha256.Sum256([]byte(content)); string(o.GetDigest()) != string(sum[:]) || o.GetSize() != int64(len(content)) {
			l.t.Errorf("%s: %d bytes of %d, or another digest", o.GetPath(), len(content), o.GetSize())
		}
		out = append(out, o.GetPath()+"="+content)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (l *lab) remove(user, run, path string) error {
	_, err := l.tracking().DeleteArtifact(l.as(user), &computev1.DeleteArtifactRequest{Name: run, Path: path})
	return err
}

func TestArtifacts(t *testing.T) {
	l := newLab(t)
	r := l.track("r", "").GetName()
	sum := sha256.Sum256([]byte("x"))
	for _, tc := range []struct {
		name, path, content string
		change              func(*computev1.UploadArtifactRequest)
		code                codes.Code
	}{
		{"of unknown length", "model/MLmodel", strings.Repeat("m", 250), nil, codes.OK},
		{"empty", "empty", "", nil, codes.OK},
		{"in its place", "model/MLmodel", "again", nil, codes.OK},
		{"with size and digest", "model/x", "x", func(r *computev1.UploadArtifactRequest) { r.Size, r.Digest = 1, sum[:] }, codes.OK},
		{"with a size that is too small", "y", "yy", func(r *computev1.UploadArtifactRequest) { r.Size = 1 }, codes.InvalidArgument},
		{"with a size that is too big", "y", "yy", func(r *computev1.UploadArtifactRequest) { r.Size = 3 }, codes.InvalidArgument},
		{"with another digest", "y", "yy", func(r *computev1.UploadArtifactRequest) { r.Digest = sum[:] }, codes.InvalidArgument},
		{"with half a digest", "y", "yy", func(r *computev1.UploadArtifactRequest) { r.Digest = sum[:16] }, codes.InvalidArgument},
		{"up", "../y", "y", nil, codes.InvalidArgument},
		{"backslash", `a\y`, "y", nil, codes.InvalidArgument},
		{"no path", "", "y", nil, codes.InvalidArgument},
		{"a file where a folder is", "model", "y", nil, codes.FailedPrecondition},
		{"in a file", "empty/y", "y", nil, codes.FailedPrecondition},
		{"more than one may have, unannounced", "y", strings.Repeat("y", 1001), nil, codes.ResourceExhausted},
		{"more than one may have", "y", "y", func(r *computev1.UploadArtifactRequest) { r.Size = 1001 }, codes.ResourceExhausted},
		{"more than all may have", "y", "y", func(r *computev1.UploadArtifactRequest) { r.Size = 999 }, codes.ResourceExhausted},
		{"more than all may have, unannounced", "empty", strings.Repeat("y", 999), nil, codes.ResourceExhausted},
		{"more files than one may have", "y", "y", nil, codes.ResourceExhausted},
	} {
		_, err := l.artifact("owner", r, tc.path, tc.content, tc.change)
		want(t, tc.name, err, tc.code, 0)
	}
	if got := l.outputs(r); got != "empty= model/MLmodel=again model/x=x" {
		t.Error(got)
	}
	_, err := l.artifact("reader", r, "y", "y", nil)
	want(t, "by a reader", err, codes.PermissionDenied, 0)
	want(t, "removed by a reader", l.remove("reader", r, "empty"), codes.PermissionDenied, 0)
	want(t, "a beginning of a name", l.remove("owner", r, "mod"), codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	want(t, "up", l.remove("owner", r, "../r"), codes.InvalidArgument, faultv1.Reason_PATH_INVALID)
	must(t, l.remove("owner", r, "model"))
	if got := l.outputs(r); got != "empty=" {
		t.Error(got)
	}
	must(t, l.remove("owner", r, "empty"))
	if n := l.blobs(); n != 0 {
		t.Errorf("%d blobs are left of nothing", n)
	}

	_, err = l.tracking().DeleteRun(l.as("owner"), &computev1.DeleteRunRequest{Name: r})
	must(t, err)
	_, err = l.artifact("owner", r, "y", "y", nil)
	want(t, "of a deleted run", err, codes.FailedPrecondition, 0)
	want(t, "removed from a deleted run", l.remove("owner", r, "y"), codes.FailedPrecondition, 0)
}

// blobs counts what is stored of the workspace.
func (l *lab) blobs() int {
	l.t.Helper()
	n := 0
	for _, err := range l.cfg.Blobs.List(l.t.Context(), l.uids[ws1]) {
		must(l.t, err)
		n++
	}
	return n
}

// Files that others add to a job neither stand in the way of its agent's report nor pass for the agent's.
func TestArtifactsOfAJob(t *testing.T) {
	l := newLab(t)
	a, uid := l.running(l.target(computev1.Compute_KIND_LOCAL, 1), "job")
	_, err := a.upload("own", "own", nil)
	must(t, err)
	for _, path := range []string{"notes", "both"} {
		_, err = l.artifact("owner", a.name, path, "mine", nil)
		must(t, err)
	}
	_, err = l.artifact("owner", a.name, "own", "forged", nil)
	want(t, "what the agent has left", err, codes.FailedPrecondition, 0)
	want(t, "removing what the agent has left", l.remove("owner", a.name, "own"), codes.FailedPrecondition, 0)
	if _, err = a.upload("both", "agent's", nil); err != nil {
		t.Errorf("the agent's file in place of another's: %v", err)
	}
	want(t, "a report of one", a.report(computev1.Run_STATE_COMPLETED, 0, 1), codes.FailedPrecondition, 0)
	want(t, "a report of three", a.report(computev1.Run_STATE_COMPLETED, 0, 3), codes.FailedPrecondition, 0)
	must(t, a.report(computev1.Run_STATE_COMPLETED, 0, 2))
	l.is("the job", uid, computev1.Run_STATE_COMPLETED, 0)
	if got := l.outputs(a.name); got != "both=agent's notes=mine own=own" {
		t.Error(got)
	}
	_, err = l.artifact("owner", a.name, "own", "later", nil)
	must(t, err)
	must(t, l.remove("owner", a.name, "both"))
	if got := l.outputs(a.name); got != "notes=mine own=later" {
		t.Error(got)
	}
}
