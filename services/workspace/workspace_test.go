package workspace

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store"
)

// H1, B4: a workspace comes with its identity, its vault and its roles, and goes with all of them.
func TestWorkspaceComesAndGoes(t *testing.T) {
	l := newLab(t)
	l.grant(group1, authz.Contributor, ada)
	w, err := l.resources.CreateWorkspace(l.as(ada), &workspacev1.CreateWorkspaceRequest{
		Parent: group1, WorkspaceId: "w1", DisplayName: "First", Description: "of all", Tags: map[string]string{"k": "v"},
	})
	l.ok(err)
	if w.GetState() != workspacev1.Workspace_STATE_ACTIVE || w.GetName() != group1+"/workspaces/w1" || w.GetManagedIdentity() != l.peers.ids[w.GetUid()] || !l.peers.vaults[w.GetUid()] {
		t.Errorf("%v", w)
	}
	got, err := l.resources.GetWorkspace(l.as(ada), &workspacev1.GetWorkspaceRequest{Name: w.GetName()})
	l.ok(err)
	if got.GetDisplayName() != "First" || got.GetDescription() != "of all" || got.GetTags()["k"] != "v" || got.GetEtag() == "" || got.GetEtag() != w.GetEtag() {
		t.Errorf("%v", got)
	}
	roles, err := l.access.ListRoleAssignments(l.as(ada), &workspacev1.ListRoleAssignmentsRequest{Scope: w.GetName()})
	l.ok(err)
	have := map[string]string{}
	for _, a := range roles.GetRoleAssignments() {
		have[a.GetPrincipal()] = a.GetRole()
	}
	if len(have) != 2 || have[w.GetManagedIdentity()] != authz.Contributor || have[ada] != authz.Owner {
		t.Errorf("%v", have)
	}
	// The admin may give roles in the whole group, and needs none of his own.
	w2 := l.make(admin, "w2")
	roles, err = l.access.ListRoleAssignments(l.as(admin), &workspacev1.ListRoleAssignmentsRequest{Scope: w2.GetName()})
	l.ok(err)
	if len(roles.GetRoleAssignments()) != 1 {
		t.Errorf("%v", roles)
	}

	digest := l.upload(ada, w.GetName(), []byte("print(1)"))
	_, err = l.snapshots.CreateSnapshot(l.as(ada), &workspacev1.CreateSnapshotRequest{Parent: w.GetName(), Entries: []*workspacev1.SnapshotEntry{{Path: "a.py", Digest: digest, Size: 8}}})
	l.ok(err)
	_, err = l.resources.DeleteWorkspace(l.as(ada), &workspacev1.DeleteWorkspaceRequest{Name: w.GetName(), Etag: "old"})
	l.want(err, codes.Aborted, faultv1.Reason_ETAG_MISMATCH)
	_, err = l.resources.DeleteResourceGroup(l.as(admin), &workspacev1.DeleteResourceGroupRequest{Name: group1})
	l.want(err, codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE)
	_, err = l.resources.DeleteSubscription(l.as(admin), &workspacev1.DeleteSubscriptionRequest{Name: "subscriptions/default"})
	l.want(err, codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE)
	_, err = l.resources.DeleteWorkspace(l.as(ada), &workspacev1.DeleteWorkspaceRequest{Name: w.GetName(), Etag: w.GetEtag()})
	l.ok(err)
	_, err = l.resources.DeleteWorkspace(l.as(admin), &workspacev1.DeleteWorkspaceRequest{Name: w2.GetName()})
	l.ok(err)
	_, err = l.resources.DeleteResourceGroup(l.as(admin), &workspacev1.DeleteResourceGroupRequest{Name: group1})
	l.ok(err)
	l.nothing(w.GetUid())
	_, err = l.resources.GetWorkspace(l.as(admin), &workspacev1.GetWorkspaceRequest{Name: w.GetName()})
	l.want(err, codes.NotFound, 0)
	for method, n := range map[string]int{"CreateWorkspace": 2, "DeleteWorkspace": 3} {
		evs := l.of(method)
		if len(evs) != n {
			t.Errorf("%d records of %s: %v", len(evs), method, evs)
		}
		if last := evs[len(evs)-1]; last.GetResult() != telemetryv1.ActivityEvent_RESULT_SUCCEEDED || last.GetPrincipal() != admin {
			t.Errorf("%v", last)
		}
	}
}

// H1: whatever fails, nothing is left, and the cause is the answer.
func TestCreateFailsWhole(t *testing.T) {
	for _, step := range []string{"CreateManagedIdentity", "CreateVault"} {
		for _, undo := range []string{"", "DeleteVault", "DeleteManagedIdentity"} {
			t.Run(step+" "+undo, func(t *testing.T) {
				l := newLab(t)
				cause := fault.Unavailable("away")
				l.peers.fail = map[string]error{step: cause}
				if undo != "" {
					l.peers.fail[undo] = cause
				}
				req := &workspacev1.CreateWorkspaceRequest{Parent: group1, WorkspaceId: "w1", RequestId: "r1"}
				_, err := l.resources.CreateWorkspace(l.as(admin), req)
				l.want(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
				if undo != "" {
					// It could not be taken back: it is out of reach, and Run goes on.
					_, err = l.resources.CreateWorkspace(l.as(admin), req)
					l.want(err, codes.Aborted, 0)
					_, err = l.resources.CreateWorkspace(l.as(admin), &workspacev1.CreateWorkspaceRequest{Parent: group1, WorkspaceId: "w1"})
					l.want(err, codes.Aborted, 0)
					_, err = l.snapshots.ListSnapshots(l.as(admin), &workspacev1.ListSnapshotsRequest{Parent: group1 + "/workspaces/w1"})
					l.want(err, codes.NotFound, 0)
					if err := l.settle(t.Context(), anybody); !fault.Is(err, codes.Unavailable) {
						t.Errorf("%v", err)
					}
					l.peers.set("", nil)
					l.ok(l.settle(t.Context(), anybody))
				}
				l.nothing("")
				l.peers.set("", nil)
				_, err = l.resources.CreateWorkspace(l.as(admin), req)
				l.ok(err)
				if evs := l.of("CreateWorkspace"); evs[0].GetResult() != telemetryv1.ActivityEvent_RESULT_FAILED || evs[len(evs)-1].GetResult() != telemetryv1.ActivityEvent_RESULT_SUCCEEDED {
					t.Errorf("%v", evs)
				}
			})
		}
	}
}

// H1: a process that ended in the middle of making one leaves nothing behind once another one runs.
func TestCreateBrokenOff(t *testing.T) {
	for _, made := range []int{0, 1, 2} {
		t.Run(fmt.Sprint(made), func(t *testing.T) {
			l := newLab(t)
			sc := store.Scope{UID: "ws_aaaaaaaaaaaaaaaaaaaaaaaaaa", Kind: store.Workspace, ID: "w1", State: store.Creating, CreatedBy: ada}
			at, ok := l.cfg.Engine.Resolve(must(parse(group1)))
			if !ok {
				t.Fatal("no group")
			}
			sc.ParentUID = at.UID
			_, err := l.begin(t.Context(), creation{scope: sc, parent: group1})
			l.ok(err)
			if made > 0 {
				l.peers.ids[sc.UID] = "mid"
			}
			if made > 1 {
				l.peers.vaults[sc.UID] = true
			}
			// As long as a call of this process is at it, it is left alone.
			release := l.claim(sc.UID)
			l.ok(l.settle(t.Context(), anybody))
			if l.count("SELECT COUNT(*) FROM scopes WHERE kind = 'workspaces'") != 1 {
				t.Error("taken away from under a call")
			}
			release()
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- l.Run(ctx) }()
			await(t, func() bool { return l.count("SELECT COUNT(*) FROM scopes WHERE kind = 'workspaces'") == 0 })
			cancel()
			l.ok(<-done)
			l.nothing(sc.UID)
			if evs := l.of("CreateWorkspace"); len(evs) != 1 || evs[0].GetResult() != telemetryv1.ActivityEvent_RESULT_FAILED || evs[0].GetPrincipal() != ada || evs[0].GetSubscriptionUid() == "" {
				t.Errorf("%v", evs)
			}
		})
	}
}

func await(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

// H1: a removal goes on from wherever it was broken off, by the next call or by itself.
func TestDeleteBrokenOff(t *testing.T) {
	for _, step := range []string{"PurgeRuns", "PurgeEndpoints", "PurgeMetrics", "DeleteVault", "DeleteManagedIdentity"} {
		for _, by := range []string{"call", "itself"} {
			t.Run(step+" "+by, func(t *testing.T) {
				l := newLab(t)
				w := l.make(admin, "w1")
				l.upload(admin, w.GetName(), []byte("x"))
				l.peers.set(step, fault.Unavailable("away"))
				_, err := l.resources.DeleteWorkspace(l.as(admin), &workspacev1.DeleteWorkspaceRequest{Name: w.GetName()})
				l.want(err, codes.Unavailable, 0)
				got, err := l.resources.GetWorkspace(l.as(admin), &workspacev1.GetWorkspaceRequest{Name: w.GetName()})
				l.ok(err)
				if got.GetState() != workspacev1.Workspace_STATE_DELETING {
					t.Errorf("%v", got)
				}
				_, err = l.snapshots.ListSnapshots(l.as(admin), &workspacev1.ListSnapshotsRequest{Parent: w.GetName()})
				l.want(err, codes.NotFound, 0)
				l.peers.set("", nil)
				if by == "call" {
					_, err = l.resources.DeleteWorkspace(l.as(admin), &workspacev1.DeleteWorkspaceRequest{Name: w.GetName()})
					l.ok(err)
				} else {
					l.ok(l.settle(t.Context(), anybody))
				}
				l.nothing(w.GetUid())
				evs := l.of("DeleteWorkspace")
				if len(evs) != 2 || evs[0].GetResult() != telemetryv1.ActivityEvent_RESULT_FAILED || evs[1].GetResult() != telemetryv1.ActivityEvent_RESULT_SUCCEEDED || evs[1].GetPrincipal() != admin {
					t.Errorf("%v", evs)
				}
				l.make(admin, "w1")
			})
		}
	}
}

// H1, D10: what finishes removals that were left half done lets a call that is still at one finish it: whoever asked gets his answer, and the
// record is his.
func TestDeleteIsNotTakenOver(t *testing.T) {
	for _, step := range []string{"PurgeRuns", "PurgeEndpoints", "PurgeMetrics", "DeleteVault", "DeleteManagedIdentity"} {
		t.Run(step, func(t *testing.T) {
			l := newLab(t)
			w := l.make(admin, "w1")
			inside := false
			l.peers.mu.Lock()
			l.peers.before = func(method string) {
				if method == step && !inside {
					inside = true // not from within itself
					l.ok(l.settle(t.Context(), anybody))
					inside = false
				}
			}
			l.peers.mu.Unlock()
			_, err := l.resources.DeleteWorkspace(l.as(admin), &workspacev1.DeleteWorkspaceRequest{Name: w.GetName()})
			l.ok(err)
			l.nothing(w.GetUid())
			if evs := l.of("DeleteWorkspace"); len(evs) != 1 || evs[0].GetResult() != telemetryv1.ActivityEvent_RESULT_SUCCEEDED || evs[0].GetRequestId() == "" {
				t.Errorf("%v", evs)
			}
		})
	}
}

// H1, D10: where another instance may be at it, what was begun is left to it for as long as a call may take.
func TestWhatAnotherInstanceHasBegunIsLeft(t *testing.T) {
	now := time.Now()
	s := &Service{cfg: Config{DB: sqldbtest.OpenConfig(t, sqldbtest.Postgres(t, Migrations())), Now: func() time.Time { return now }}, claims: make(map[string]int)}
	sc := store.Scope{UID: "ws_aaaaaaaaaaaaaaaaaaaaaaaaaa"}
	if !s.busy(sc, now.Add(time.Second-orphanAfter)) {
		t.Error("taken over while its call may be going")
	}
	if s.busy(sc, now.Add(-orphanAfter)) {
		t.Error("nobody finishes it")
	}
	release := s.claim(sc.UID)
	if !s.busy(sc, now.Add(-orphanAfter)) {
		t.Error("taken over from under a call of this process")
	}
	release()
}

// Runs that are going keep their workspace, which then is as it was.
func TestDeleteRefusedByRuns(t *testing.T) {
	l := newLab(t)
	w := l.make(admin, "w1")
	l.peers.set("PurgeRuns", fault.New(codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE, "runs are going"))
	_, err := l.resources.DeleteWorkspace(l.as(admin), &workspacev1.DeleteWorkspaceRequest{Name: w.GetName()})
	l.want(err, codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE)
	got, err := l.resources.GetWorkspace(l.as(admin), &workspacev1.GetWorkspaceRequest{Name: w.GetName()})
	l.ok(err)
	if got.GetState() != workspacev1.Workspace_STATE_ACTIVE || !l.peers.vaults[w.GetUid()] {
		t.Errorf("%v", got)
	}
	_, err = l.snapshots.ListSnapshots(l.as(admin), &workspacev1.ListSnapshotsRequest{Parent: w.GetName()})
	l.ok(err)
}

func TestRequestID(t *testing.T) {
	l := newLab(t)
	req := func(id, display, request string) *workspacev1.CreateWorkspaceRequest {
		return &workspacev1.CreateWorkspaceRequest{Parent: group1, WorkspaceId: id, DisplayName: display, RequestId: request}
	}
	w, err := l.resources.CreateWorkspace(l.as(admin), req("w1", "a", "r1"))
	l.ok(err)
	again, err := l.resources.CreateWorkspace(l.as(admin), req("w1", "a", "r1"))
	l.ok(err)
	if again.GetUid() != w.GetUid() || again.GetName() != w.GetName() {
		t.Errorf("%v", again)
	}
	_, err = l.resources.CreateWorkspace(l.as(admin), req("w1", "b", "r1"))
	l.want(err, codes.InvalidArgument, faultv1.Reason_REQUEST_ID_REUSED)
	_, err = l.resources.CreateWorkspace(l.as(admin), req("w1", "a", "r2"))
	l.want(err, codes.AlreadyExists, 0)
	_, err = l.resources.CreateWorkspace(l.as(admin), req("w1", "a", ""))
	l.want(err, codes.AlreadyExists, 0)
	// Another principal's is another one.
	l.grant(group1, authz.Contributor, ada)
	_, err = l.resources.CreateWorkspace(l.as(ada), req("w2", "a", "r1"))
	l.ok(err)
	_, err = l.resources.DeleteWorkspace(l.as(admin), &workspacev1.DeleteWorkspaceRequest{Name: w.GetName()})
	l.ok(err)
	_, err = l.resources.CreateWorkspace(l.as(admin), req("w1", "a", "r1"))
	l.want(err, codes.FailedPrecondition, 0)
	if n := l.count("SELECT COUNT(*) FROM data_keys WHERE destroyed = 0 AND owner LIKE 'own.%'"); n != 1 {
		t.Errorf("%d keys for one workspace", n)
	}
}

// Of many who want a name at once, one gets it.
func TestOneWinner(t *testing.T) {
	l := newLab(t)
	const n = 12
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() {
			_, errs[i] = l.resources.CreateWorkspace(l.as(admin), &workspacev1.CreateWorkspaceRequest{Parent: group1, WorkspaceId: "w1"})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		l.want(err, codes.AlreadyExists, faultv1.Reason_RESOURCE_ALREADY_EXISTS)
	}
	if won != 1 || len(l.peers.ids) != 1 || len(l.peers.vaults) != 1 {
		t.Errorf("%d won, %v %v", won, l.peers.ids, l.peers.vaults)
	}
	if n := l.count("SELECT COUNT(*) FROM data_keys WHERE destroyed = 0 AND owner LIKE 'own.%'"); n != 1 {
		t.Errorf("%d keys for one workspace", n)
	}
}

// A commit whose answer was lost is found out.
func TestLostCommit(t *testing.T) {
	l := newLab(t)
	w := l.make(admin, "w1")
	sc, err := l.scope(t.Context(), w.GetUid(), w.GetName())
	l.ok(err)
	got, err := l.giveUp(t.Context(), sc, errors.New("the answer was lost"))
	if err != nil || got.UID != w.GetUid() {
		t.Errorf("%v %v", got, err)
	}
	if !l.peers.vaults[w.GetUid()] {
		t.Error("a whole workspace was taken apart")
	}
}

func TestNamesThatAreRefused(t *testing.T) {
	l := newLab(t)
	for _, id := range []string{"W1", "1w", "-w", "w-", "w_1", "w.1", "w/1", "..", "w\x00", "wörk", "\u0455", string(make([]byte, 63))} {
		_, err := l.resources.CreateWorkspace(l.as(admin), &workspacev1.CreateWorkspaceRequest{Parent: group1, WorkspaceId: id})
		l.want(err, codes.InvalidArgument, 0)
		_, err = l.resources.CreateResourceGroup(l.as(admin), &workspacev1.CreateResourceGroupRequest{Parent: "subscriptions/default", ResourceGroupId: id})
		l.want(err, codes.InvalidArgument, 0)
		_, err = l.resources.CreateSubscription(l.as(admin), &workspacev1.CreateSubscriptionRequest{SubscriptionId: id})
		l.want(err, codes.InvalidArgument, 0)
	}
	_, err := l.resources.CreateSubscription(l.as(admin), &workspacev1.CreateSubscriptionRequest{SubscriptionId: "default"})
	l.want(err, codes.AlreadyExists, 0)
	l.nothing("")
}

// D10: a workspace that is removed between the reading of its row and the opening of what stands in it is one that is not there: not an
// error about a key.
func TestRemovedWhileRead(t *testing.T) {
	l := newLab(t)
	w := l.make(admin, "passing")
	before, err := l.scope(t.Context(), w.GetUid(), w.GetName())
	l.ok(err)
	_, err = l.resources.DeleteWorkspace(l.as(admin), &workspacev1.DeleteWorkspaceRequest{Name: w.GetName()})
	l.ok(err)
	_, err = l.workspace(t.Context(), w.GetName(), before)
	l.want(err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			w := l.make(admin, fmt.Sprint("w", i))
			if _, err := l.resources.DeleteWorkspace(l.as(admin), &workspacev1.DeleteWorkspaceRequest{Name: w.GetName()}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 200 {
		if _, err := l.resources.ListWorkspaces(l.as(admin), &workspacev1.ListWorkspacesRequest{Parent: group1}); err != nil {
			t.Errorf("listed: %v", err)
		}
	}
	close(stop)
	wg.Wait()
}
