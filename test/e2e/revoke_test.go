package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

// probes ask each of several services something that a Reader of the workspace may.
func probes(conn *grpc.ClientConn, ws string) map[string]func(context.Context, ...grpc.CallOption) error {
	return map[string]func(context.Context, ...grpc.CallOption) error{
		"workspace": func(ctx context.Context, o ...grpc.CallOption) error {
			_, err := workspacev1.NewResourceServiceClient(conn).GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: ws}, o...)
			return err
		},
		"compute": func(ctx context.Context, o ...grpc.CallOption) error {
			_, err := computev1.NewRunServiceClient(conn).ListRuns(ctx, &computev1.ListRunsRequest{Parent: ws}, o...)
			return err
		},
		"inference": func(ctx context.Context, o ...grpc.CallOption) error {
			_, err := inferencev1.NewEndpointServiceClient(conn).ListEndpoints(ctx, &inferencev1.ListEndpointsRequest{Parent: ws}, o...)
			return err
		},
	}
}

// A3, B1: what was revoked is honoured by no service when the call has returned, and what was given works in each, under load and with warm
// caches. REVOKE_ROUNDS of each kind, default 3.
func TestRevokedIsRevoked(t *testing.T) {
	rounds := 3
	if n, err := strconv.Atoi(os.Getenv("REVOKE_ROUNDS")); err == nil {
		rounds = n
	}
	seed := uint64(time.Now().UnixNano())
	if n, err := strconv.ParseUint(os.Getenv("ATTACK_SEED"), 10, 64); err == nil {
		seed = n
	}
	chance := rand.New(rand.NewPCG(seed, 0))
	ws := workspaceOf(t, "revoked").GetName()
	admin := mesh.Dial(t, mesh.Admin(t))
	directory, access, tokens := identityv1.NewDirectoryServiceClient(admin), workspacev1.NewAccessServiceClient(admin), identityv1.NewTokenServiceClient(admin)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const password = "a password for the rounds"
	user, err := directory.CreateUser(t.Context(), &identityv1.CreateUserRequest{UserId: "revoked", Password: password})
	must(err)
	outer, err := directory.CreateGroup(t.Context(), &identityv1.CreateGroupRequest{GroupId: "revoked-outer"})
	must(err)
	inner, err := directory.CreateGroup(t.Context(), &identityv1.CreateGroupRequest{GroupId: "revoked-inner"})
	must(err)
	_, err = directory.AddGroupMember(t.Context(), &identityv1.AddGroupMemberRequest{Name: outer.GetName(), Member: inner.GetUid()})
	must(err)
	give(t, ws, authz.Reader, outer.GetUid())
	join := func() {
		_, err := directory.AddGroupMember(t.Context(), &identityv1.AddGroupMemberRequest{Name: inner.GetName(), Member: user.GetUid()})
		must(err)
	}
	leave := func() {
		_, err := directory.RemoveGroupMember(t.Context(), &identityv1.RemoveGroupMemberRequest{Name: inner.GetName(), Member: user.GetUid()})
		must(err)
	}
	var assigned *workspacev1.RoleAssignment
	kinds := map[string]struct{ give, revoke func(token string) }{
		"the token": {func(string) { join() }, func(token string) {
			_, err := tokens.RevokeToken(t.Context(), &identityv1.RevokeTokenRequest{Token: token})
			must(err)
			defer leave()
		}},
		"the account": {func(string) { join() }, func(string) {
			_, err := directory.SetUserDisabled(t.Context(), &identityv1.SetUserDisabledRequest{Name: user.GetName(), Disabled: true})
			must(err)
		}},
		"the nested group": {func(string) { join() }, func(string) { leave() }},
		"the role": {func(string) { assigned = give(t, ws, authz.Reader, user.GetUid()) }, func(string) {
			_, err := access.DeleteRoleAssignment(t.Context(), &workspacev1.DeleteRoleAssignmentRequest{Scope: ws, Uid: assigned.GetUid()})
			must(err)
		}},
	}
	var tried, honoured, refusedNew int64
	var took []time.Duration
	for range rounds {
		for kind, k := range kinds {
			token := mesh.SignIn(t, "revoked", password)
			calls := probes(mesh.Dial(t, ""), ws)
			with := grpc.PerRPCCredentials(testmesh.Bearer(token))
			k.give(token)
			for service, call := range calls {
				if err := call(t.Context(), with); err != nil {
					refusedNew++
					t.Errorf("%s: %s refuses what was just given: %v", kind, service, err)
				}
			}
			var back atomic.Int64 // when the call had returned
			var n, bad atomic.Int64
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for service, call := range calls {
				for range 2 {
					chance := rand.New(rand.NewPCG(chance.Uint64(), 0)) // each caller has its own
					wg.Go(func() {
						for ctx.Err() == nil {
							returned := back.Load() != 0 // before it begins
							err := call(ctx, with)
							n.Add(1)
							switch {
							case err == nil && returned:
								bad.Add(1)
								t.Errorf("%s: %s honoured it after the call had returned", kind, service)
							case status.Code(err) == codes.ResourceExhausted:
								t.Errorf("%s: %s was asked more than an address may: nothing is known of it", kind, service)
							}
							time.Sleep(time.Duration(4+chance.IntN(6)) * time.Millisecond)
						}
					})
				}
			}
			time.Sleep(100 * time.Millisecond)
			begin := time.Now()
			k.revoke(token)
			back.Store(1)
			took = append(took, time.Since(begin))
			time.Sleep(300 * time.Millisecond)
			stop()
			wg.Wait()
			tried, honoured = tried+n.Load(), honoured+bad.Load()
			if kind == "the account" {
				_, err := directory.SetUserDisabled(t.Context(), &identityv1.SetUserDisabledRequest{Name: user.GetName()})
				must(err)
				leave()
			}
		}
	}
	slices.Sort(took)
	t.Logf("revoke: rounds %d refused-although-given %d, the call: median %v longest %v", len(took), refusedNew, took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	fmt.Printf("attack: %s: tried %d, honoured %d, seed %d\n", t.Name(), tried, honoured, seed)
	if tried == 0 {
		t.Error("nothing was tried")
	}
}
