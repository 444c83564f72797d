package matrix

import (
	"crypto/rand"
	"crypto/tls"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

func init() { //nolint:gochecknoinits // the registry of requests is filled from several files
	register(map[string]spec{
		maintenancev1.BackupService_Backup_FullMethodName: {build: func(*testing.T, *fixture, *place) request {
			return request{in: []proto.Message{
				&maintenancev1.BackupRequest{Step: &maintenancev1.BackupRequest_Prepare_{Prepare: &maintenancev1.BackupRequest_Prepare{BackupId: strings.ToLower(rand.Text())}}},
				&maintenancev1.BackupRequest{Step: &maintenancev1.BackupRequest_Go_{Go: &maintenancev1.BackupRequest_Go{}}},
			}}
		}},
		maintenancev1.StatusService_GetStatus_FullMethodName: {build: func(*testing.T, *fixture, *place) request {
			return request{in: []proto.Message{&maintenancev1.GetStatusRequest{}}}
		}},
	})
}

// formerOwner gives an operator who was Owner when he got his certificate, and is not any more.
func (f *fixture) formerOwner(t *testing.T) caller {
	t.Helper()
	u := f.newUser(t, f.id("former"))
	a := f.assign(t, "/", authz.Owner, u.uid)
	token := strings.TrimPrefix(u.auth(t, "")[1], "Bearer ")
	conn := dial(strings.TrimPrefix(mesh.URL, "https://"), mesh.TLS(), grpc.WithPerRPCCredentials(testmesh.Bearer(token)))
	key := newKey(t)
	r, err := identityv1.NewOperatorServiceClient(conn).IssueOperatorCertificate(t.Context(), &identityv1.IssueOperatorCertificateRequest{Csr: csr(t, key)})
	must(t, err)
	_, err = workspacev1.NewAccessServiceClient(f.admin).DeleteRoleAssignment(t.Context(), &workspacev1.DeleteRoleAssignmentRequest{Scope: "/", Uid: a.GetUid()})
	must(t, err)
	f.assign(t, "/", authz.Contributor, u.uid)
	return f.peer(t, "operator", u.uid, &tls.Certificate{Certificate: r.GetChain(), PrivateKey: key}, u.uid, bearer(token))
}

// maintenance asks a method that every service with a store has, on its own port, for operators alone.
func (r row) maintenance(t *testing.T) {
	f := r.f
	own := f.peer(t, "operator", f.owner.uid, f.operator, f.owner.uid, bearer(mesh.Admin(t)))
	former := f.formerOwner(t)
	contributors := missing(r.m.Rule.GetAction())
	if strings.HasSuffix(r.m.Rule.GetAction(), "/read") {
		contributors = ok
	}
	stores := make([]string, 0, 6)
	for name := range node.Stores() {
		stores = append(stores, name)
	}
	slices.Sort(stores)
	for _, service := range stores {
		at := r
		at.m.service = service
		req := func() request { return r.s.build(t, f, f.ours) }
		peer := "keyvault"
		if service == peer {
			peer = "inference"
		}
		for _, c := range []struct {
			name string
			c    caller
			want want
		}{
			{"operator", own, ok},
			{"operator who was an Owner and is a Contributor", former, contributors},
			{"operator with another one's token", f.peer(t, "operator", f.owner.uid, f.operator, "", f.reader.auth), refused(codes.Unauthenticated, faultv1.Reason_PEER_MAY_NOT_FORWARD)},
			{"operator without a token", f.peer(t, "operator", f.owner.uid, f.operator, "", nothing), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_MISSING)},
			{"service", f.service(t, peer, nothing), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_MISSING)},
			{"service with the owner's token", f.service(t, peer, bearer(mesh.Admin(t))), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_AUDIENCE)},
			{"service that acts for the owner", func() caller {
				c := f.service(t, peer, bearer(f.exchanged(t, peer, service)))
				c.uid = f.owner.uid
				return c
			}(), refused(codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)},
			{"operator in the end", own, ok},
		} {
			at.ask(t, service+" "+c.name, req(), c.c, c.want)
		}
	}
	for name, c := range map[string]caller{"owner through the gateway": f.owner, "run token through the gateway": f.ours.run.caller, "nobody through the gateway": outside("", nothing)} {
		r.unknown(t, name, r.s.build(t, f, f.ours), c)
	}
}
