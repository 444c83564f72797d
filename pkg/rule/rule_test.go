package rule

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

const ws = "subscriptions/s1/resourceGroups/g1/workspaces/w1"

// files are the linked contracts of ours.
var files = []protoreflect.FileDescriptor{
	computev1.File_redoubt_compute_v1_compute_proto, computev1.File_redoubt_compute_v1_agent_proto,
	faultv1.File_redoubt_fault_v1_fault_proto,
	identityv1.File_redoubt_identity_v1_identity_proto, identityv1.File_redoubt_identity_v1_mesh_proto, identityv1.File_redoubt_identity_v1_token_proto,
	inferencev1.File_redoubt_inference_v1_inference_proto,
	keyvaultv1.File_redoubt_keyvault_v1_keyvault_proto,
	maintenancev1.File_redoubt_maintenance_v1_backup_proto,
	rulev1.File_redoubt_rule_v1_rule_proto,
	telemetryv1.File_redoubt_telemetry_v1_telemetry_proto,
	workspacev1.File_redoubt_workspace_v1_workspace_proto, workspacev1.File_redoubt_workspace_v1_access_proto, workspacev1.File_redoubt_workspace_v1_snapshot_proto,
}

// foreignServices are those of the overlay.
var foreignServices = []string{
	grpc_health_v1.Health_ServiceDesc.ServiceName, grpc_reflection_v1.ServerReflection_ServiceDesc.ServiceName,
	grpc_reflection_v1alpha.ServerReflection_ServiceDesc.ServiceName, grpc_channelz_v1.Channelz_ServiceDesc.ServiceName,
	workload.SpiffeWorkloadAPI_ServiceDesc.ServiceName,
}

func table(t *testing.T) *Table {
	t.Helper()
	tab, err := Load(append(Registered("redoubt"), foreignServices...)...)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func method(t *testing.T, name string) *Method {
	t.Helper()
	m, ok := table(t).Lookup(name)
	if !ok {
		t.Fatalf("%s is not in the table", name)
	}
	return m
}

func TestOurContractsAreClean(t *testing.T) {
	for _, err := range Lint(files...) {
		t.Error(err)
	}
}

// TestNoContractIsLeftOut compares what this test links with what stands in proto/, so that a new file cannot pass unread.
func TestNoContractIsLeftOut(t *testing.T) {
	declared := regexp.MustCompile(`(?m)^(service|  rpc) (\w+)`)
	pkg := regexp.MustCompile(`(?m)^package ([\w.]+);`)
	var want, got []string
	err := filepath.WalkDir("../../proto/redoubt", func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".proto" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		service := ""
		for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
			if m[1] == "service" {
				service = pkg.FindStringSubmatch(string(text))[1] + "." + m[2]
			} else {
				want = append(want, "/"+service+"/"+m[2])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range table(t).Methods() {
		if strings.HasPrefix(m.FullName, "/redoubt.") {
			got = append(got, m.FullName)
		}
	}
	slices.Sort(want)
	if !slices.Equal(got, want) || len(want) < 60 {
		t.Errorf("the table has\n%s\nproto/ has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestForeignContracts(t *testing.T) {
	want := slices.Sorted(slices.Values(foreignServices))
	if got := Foreign(); !slices.Equal(got, want) {
		t.Errorf("the overlay has %v, want %v", got, want)
	}
	tab := table(t)
	for name, r := range foreign() {
		m, ok := tab.Lookup(name)
		if !ok || !proto.Equal(m.Rule, r) {
			t.Errorf("%s: %v", name, m)
		}
	}
	// A contract of which nothing is said is refused, whole.
	if tab, err := Load("grpc.health.v1.Health", "google.longrunning.Operations"); err == nil || tab != nil {
		t.Errorf("a service that nobody knows is loaded: %v", err)
	}
}

func TestRuleForAndBesideTheOverlay(t *testing.T) {
	const name, own = "/grpc.health.v1.Health/Check", "/redoubt.inference.v1.EndpointService/ListEndpointKinds"
	cases := []struct {
		name    string
		service string
		change  func(map[string]*rulev1.Rule)
		want    string
	}{
		{"a method without a row", "grpc.health.v1.Health", func(m map[string]*rulev1.Rule) { delete(m, name) }, name + ": has no rule"},
		{"a row without a method", "grpc.health.v1.Health", func(m map[string]*rulev1.Rule) { m["/grpc.health.v1.Health/Gone"] = m[name] }, "/grpc.health.v1.Health/Gone: has a rule in the overlay, and the contract has no such method"},
		{"a wrong row", "grpc.health.v1.Health", func(m map[string]*rulev1.Rule) { m[name] = &rulev1.Rule{Public: true} }, name + ": audit"},
		{"a row over one of ours", "redoubt.inference.v1.EndpointService", func(m map[string]*rulev1.Rule) {
			m[own] = &rulev1.Rule{Public: true, Audit: rulev1.Audit_AUDIT_DENIALS}
		}, own + ": has a rule in its contract and another one"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			overlay := foreign()
			c.change(overlay)
			tab, err := load(protoregistry.GlobalFiles, overlay, []string{c.service})
			if err == nil || tab != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestLoadRefusesWhatIsNoService(t *testing.T) {
	for _, name := range []string{"", "redoubt.workspace.v1.Workspace", "redoubt.workspace.v1.Gone", "redoubt.workspace.v1.accessService"} {
		if tab, err := Load(name); err == nil || tab != nil {
			t.Errorf("%q is loaded", name)
		}
	}
}

func TestLookupIsExact(t *testing.T) {
	tab := table(t)
	const good = "/redoubt.compute.v1.RunService/SubmitRun"
	if _, ok := tab.Lookup(good); !ok {
		t.Fatal("not found")
	}
	// The path forms of goal 23 and of gRPC's CVE-2026-33186.
	for _, s := range []string{"", good[1:], "/" + good, good + "/", strings.ToLower(good), strings.ReplaceAll(good, "/", "//"), strings.ReplaceAll(good, "/Sub", "%2fSub"), good + "\x00", " " + good, good + "?", "/redoubt.compute.v1.RunService/", "/redoubt.compute.v1.RunService", "https://x" + good} {
		if _, ok := tab.Lookup(s); ok {
			t.Errorf("%q is found", s)
		}
	}
	var none *Table
	if _, ok := none.Lookup(good); ok || none.Methods() != nil {
		t.Error("no table has methods")
	}
	if _, ok := new(Table).Lookup(good); ok {
		t.Error("an empty table has methods")
	}
}

func TestScope(t *testing.T) {
	cases := []struct {
		name   string
		method string
		msg    proto.Message
		want   string
		kind   resource.Kind
		code   codes.Code // of Scope
		parsed codes.Code // of ScopeName
	}{
		{"field", "/redoubt.compute.v1.RunService/GetRun", &computev1.GetRunRequest{Name: ws + "/runs/r1"}, ws + "/runs/r1", resource.KindRun, codes.OK, codes.OK},
		{"other kind", "/redoubt.compute.v1.RunService/GetRun", &computev1.GetRunRequest{Name: ws}, ws, resource.KindRun, codes.OK, codes.InvalidArgument},
		{"malformed", "/redoubt.compute.v1.RunService/GetRun", &computev1.GetRunRequest{Name: "x"}, "x", resource.KindRun, codes.OK, codes.InvalidArgument},
		{"empty", "/redoubt.compute.v1.RunService/GetRun", &computev1.GetRunRequest{}, "", resource.KindRun, codes.InvalidArgument, codes.InvalidArgument},
		{"installation", "/redoubt.workspace.v1.ResourceService/CreateSubscription", &workspacev1.CreateSubscriptionRequest{}, "/", resource.KindRoot, codes.OK, codes.OK},
		{"any kind", "/redoubt.workspace.v1.AccessService/CreateRoleAssignment", &workspacev1.CreateRoleAssignmentRequest{Scope: "/"}, "/", resource.KindUnknown, codes.OK, codes.OK},
		{"none", "/redoubt.workspace.v1.ResourceService/ListWorkspaces", &workspacev1.ListWorkspacesRequest{Parent: "x"}, "", resource.KindUnknown, codes.OK, codes.OK},
		{"another message", "/redoubt.compute.v1.RunService/GetRun", &computev1.WatchRunRequest{Name: ws}, "", resource.KindRun, codes.Internal, codes.Internal},
		{"no message", "/redoubt.compute.v1.RunService/GetRun", nil, "", resource.KindRun, codes.Internal, codes.Internal},
		{"nil message", "/redoubt.compute.v1.RunService/GetRun", (*computev1.GetRunRequest)(nil), "", resource.KindRun, codes.Internal, codes.Internal},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := method(t, c.method)
			got, err := m.Scope(c.msg)
			if got != c.want || fault.Code(err) != c.code || m.ScopeKind != c.kind {
				t.Errorf("Scope: %q, %v; kind %v", got, err, m.ScopeKind)
			}
			n, err := m.ScopeName(c.msg)
			if fault.Code(err) != c.parsed || (err == nil && n.String() != c.want) || (err != nil && !n.IsZero()) {
				t.Errorf("ScopeName: %q, %v", n, err)
			}
		})
	}
}

func TestUses(t *testing.T) {
	m := method(t, "/redoubt.compute.v1.RunService/SubmitRun")
	msg := &computev1.SubmitRunRequest{Parent: ws, Compute: ws + "/computes/c", Snapshot: "nonsense"}
	want := []Use{
		{Name: ws + "/computes/c", Action: "compute/computes/use", Field: "compute", Kind: resource.KindCompute},
		{Name: "nonsense", Action: "workspace/snapshots/read", Field: "snapshot", Kind: resource.KindSnapshot},
	}
	got := m.Uses(msg)
	if !slices.Equal(got, want) {
		t.Fatalf("got %+v", got)
	}
	if n, err := got[0].Parse(); err != nil || n.ID() != "c" {
		t.Errorf("%q, %v", n, err)
	}
	if _, err := got[1].Parse(); !fault.Is(err, codes.InvalidArgument) {
		t.Errorf("%v", err)
	}
	msg.Compute = ""
	if got := m.Uses(msg); !slices.Equal(got, want[1:]) {
		t.Errorf("an empty field is used: %+v", got)
	}
	for _, u := range m.Uses(&computev1.GetRunRequest{}) {
		if _, err := u.Parse(); err == nil || u.Action != "" {
			t.Errorf("another message passes with %+v", u)
		}
	}
	if len(m.Uses(nil)) == 0 || m.Check(nil) == nil || m.Check(msg) != nil {
		t.Error("no message passes")
	}
}

func TestLater(t *testing.T) {
	m := method(t, "/redoubt.compute.v1.AgentRunService/AppendLogs")
	const run = ws + "/runs/r1"
	for name, c := range map[string]struct {
		msg  proto.Message
		code codes.Code
	}{
		"empty":   {&computev1.AppendLogsRequest{Data: []byte("x")}, codes.OK},
		"equal":   {&computev1.AppendLogsRequest{Name: run}, codes.OK},
		"other":   {&computev1.AppendLogsRequest{Name: ws + "/runs/r2"}, codes.InvalidArgument},
		"twin":    {&computev1.AppendLogsRequest{Name: ws + "/runs/R1"}, codes.InvalidArgument},
		"foreign": {&computev1.GetRunRequest{Name: run}, codes.Internal},
	} {
		if err := m.Later(run, nil, c.msg); fault.Code(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCallableBy(t *testing.T) {
	one := method(t, "/redoubt.identity.v1.TokenService/ActAs")
	all := method(t, "/redoubt.workspace.v1.AuthorizationStateService/WatchAuthorization")
	none := method(t, "/redoubt.compute.v1.RunService/GetRun")
	for _, c := range []struct {
		m       *Method
		service string
		want    bool
	}{{one, "compute", true}, {one, "workspace", false}, {one, "", false}, {one, "*", false}, {one, "Compute", false}, {all, "telemetry", true}, {all, "", false}, {none, "compute", false}, {none, "", false}} {
		if got := c.m.CallableBy(c.service); got != c.want {
			t.Errorf("%s by %q: %v", c.m.FullName, c.service, got)
		}
	}
}

func TestValidAction(t *testing.T) {
	for _, s := range []string{"compute/runs/submit", "identity/servicePrincipals/secrets/write", "a/b/c1"} {
		if !ValidAction(s) {
			t.Errorf("%q is refused", s)
		}
	}
	for _, s := range []string{"", "a", "a/b", "/a/b", "a/b/", "a//b", "A/b/c", "a/b/C", "a/1/c", "a/*/c", "a/b/*", "a/b/c ", "a/b/\u0441", "a/b/c\x00", "a/b-c/d", "a/b_c/d", "a/b/c." + "d", "a/b/" + strings.Repeat("c", 200)} {
		if ValidAction(s) {
			t.Errorf("%q is taken", s)
		}
	}
}

func TestScopeCostsNothing(t *testing.T) {
	m := method(t, "/redoubt.compute.v1.RunService/GetRun")
	msg := &computev1.GetRunRequest{Name: ws + "/runs/r1"}
	if n := testing.AllocsPerRun(100, func() {
		_, _ = m.ScopeName(msg)
		_ = m.Uses(msg)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPermissions(t *testing.T) {
	rows := table(t).Permissions()
	if len(rows) != len(table(t).Methods()) {
		t.Fatalf("%d rows for %d methods", len(rows), len(table(t).Methods()))
	}
	i := slices.IndexFunc(rows, func(p Permission) bool { return strings.HasSuffix(p.Method, "/SubmitRun") })
	p := rows[i]
	if p.Action != "compute/runs/submit" || p.Scope != "parent" || p.ScopeKind != "workspace" || p.Audit != "always" || !slices.Equal(p.Uses, []PermissionUse{{"compute", "compute/computes/use", false}, {"snapshot", "workspace/snapshots/read", false}}) {
		t.Errorf("%+v", p)
	}
	has := func(actions ...string) func(string, bool) bool {
		return func(a string, data bool) bool { return slices.Contains(actions, a) && !data }
	}
	md := Markdown(rows, Role{"All", has("compute/runs/submit", "compute/computes/use", "workspace/snapshots/read")}, Role{"Half", has("compute/runs/submit")})
	if md != Markdown(table(t).Permissions(), Role{"All", has("compute/runs/submit", "compute/computes/use", "workspace/snapshots/read")}, Role{"Half", has("compute/runs/submit")}) {
		t.Error("the table is another one each time")
	}
	want := "| `redoubt.compute.v1.RunService/SubmitRun` | `compute/runs/submit`<br>and `compute/computes/use` on `compute`<br>and `workspace/snapshots/read` on `snapshot` | workspace in `parent` | always | yes |  |\n"
	if !strings.Contains(md, want) {
		t.Errorf("no line\n%sin\n%s", want, md)
	}
	for _, want := range []string{"whoever is signed in", "everybody", "every service", "the services workspace, compute, keyvault, inference, telemetry", "also a run, for itself", "`telemetry/metrics/write` (data)", "the installation"} {
		if !strings.Contains(md, want) {
			t.Errorf("nothing says %q", want)
		}
	}
	if n := strings.Count(md, "\n"); n != len(rows)+2 {
		t.Errorf("%d lines for %d rows", n, len(rows))
	}
}

func TestRegistered(t *testing.T) {
	if got := Registered("redoubt"); !slices.IsSorted(got) || !slices.Contains(got, "redoubt.compute.v1.RunService") || slices.ContainsFunc(got, func(s string) bool { return !strings.HasPrefix(s, "redoubt.") }) {
		t.Errorf("%v", got)
	}
	if got := Registered("redou"); got != nil {
		t.Errorf("%v", got)
	}
}
