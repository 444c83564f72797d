package workspace

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

// H1: what people wrote of a workspace can be changed, by whoever may, if nobody else did meanwhile.
func TestUpdateWorkspace(t *testing.T) {
	l := newLab(t)
	w := l.make(admin, "w1")
	update := func(who string, in *workspacev1.WorkspaceUpdate, paths ...string) (*workspacev1.Workspace, error) {
		in.Name = w.GetName()
		return l.resources.UpdateWorkspace(l.as(who), &workspacev1.UpdateWorkspaceRequest{Workspace: in, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
	}
	steps := []struct {
		name  string
		in    *workspacev1.WorkspaceUpdate
		paths []string
		want  [3]string
	}{
		{"all that is set", &workspacev1.WorkspaceUpdate{DisplayName: "One", Description: "of all", Tags: map[string]string{"k": "v"}}, nil, [3]string{"One", "of all", "v"}},
		{"one of them", &workspacev1.WorkspaceUpdate{DisplayName: "Two"}, nil, [3]string{"Two", "of all", "v"}},
		{"to nothing", &workspacev1.WorkspaceUpdate{DisplayName: "not named"}, []string{"description"}, [3]string{"Two", "", "v"}},
		{"tags as a whole", &workspacev1.WorkspaceUpdate{Tags: map[string]string{"other": "x"}}, []string{"tags"}, [3]string{"Two", "", ""}},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			before, err := l.resources.GetWorkspace(l.as(admin), &workspacev1.GetWorkspaceRequest{Name: w.GetName()})
			l.ok(err)
			s.in.Etag = before.GetEtag()
			got, err := update(admin, s.in, s.paths...)
			l.ok(err)
			read, err := l.resources.GetWorkspace(l.as(admin), &workspacev1.GetWorkspaceRequest{Name: w.GetName()})
			l.ok(err)
			for _, w := range []*workspacev1.Workspace{got, read} {
				if have := [3]string{w.GetDisplayName(), w.GetDescription(), w.GetTags()["k"]}; have != s.want || w.GetEtag() == before.GetEtag() || w.GetEtag() != got.GetEtag() {
					t.Errorf("got %v", w)
				}
			}
			_, err = update(admin, s.in, s.paths...) // with the etag from before
			l.want(err, codes.Aborted, faultv1.Reason_ETAG_MISMATCH)
		})
	}
	_, err := update(admin, &workspacev1.WorkspaceUpdate{DisplayName: "x"}, "display_name", "state")
	l.want(err, codes.InvalidArgument, 0)
	l.grant(w.GetName(), authz.Reader, ada)
	_, err = update(ada, &workspacev1.WorkspaceUpdate{DisplayName: "x"})
	l.want(err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	_, err = update(bob, &workspacev1.WorkspaceUpdate{DisplayName: "x"})
	l.want(err, codes.NotFound, 0)
	if evs := l.of("UpdateWorkspace"); len(evs) < len(steps) {
		t.Errorf("%d records", len(evs))
	}
}
