package svid

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestIDsRoundTrip(t *testing.T) {
	for _, c := range []struct {
		name string
		make func() (spiffeid.ID, error)
		uri  string
		want ID
	}{
		{"service", func() (spiffeid.ID, error) { return ServiceID(td, "compute") }, "spiffe://mesh.test/service/compute",
			ID{KindService, "mesh.test", "", "compute"}},
		{"agent", func() (spiffeid.ID, error) { return AgentID(td, "agt_1") }, "spiffe://mesh.test/agent/agt_1",
			ID{KindAgent, "mesh.test", "", "agt_1"}},
		{"operator", func() (spiffeid.ID, error) { return OperatorID(td, "usr_1") }, "spiffe://mesh.test/operator/usr_1",
			ID{KindOperator, "mesh.test", "", "usr_1"}},
		{"run", func() (spiffeid.ID, error) { return RunID(td, "ws_1", "run_2") }, "spiffe://mesh.test/workspace/ws_1/run/run_2",
			ID{KindRun, "mesh.test", "ws_1", "run_2"}},
		{"endpoint", func() (spiffeid.ID, error) { return EndpointID(td, "ws_1", "churn") }, "spiffe://mesh.test/workspace/ws_1/endpoint/churn",
			ID{KindEndpoint, "mesh.test", "ws_1", "churn"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			id, err := c.make()
			if err != nil || id.String() != c.uri {
				t.Fatalf("made %v, %v; want %s", id, err, c.uri)
			}
			got, ok := ParseID(c.uri)
			if !ok || got != c.want {
				t.Fatalf("ParseID = %+v, %v; want %+v", got, ok, c.want)
			}
			if n := testing.AllocsPerRun(100, func() { _, _ = ParseID(c.uri) }); n != 0 {
				t.Errorf("ParseID allocates %v times", n)
			}
		})
	}
}

func TestParseIDRefuses(t *testing.T) {
	for _, s := range []string{
		"", "compute", "/service/compute", "https://mesh.test/service/compute", "spiffe://mesh.test", "spiffe://mesh.test/",
		"spiffe:///service/compute", "spiffe://mesh.test/service", "spiffe://mesh.test/service/", "spiffe://mesh.test/service/a/b",
		"spiffe://mesh.test/services/a", "spiffe://mesh.test/workspace/ws/run", "spiffe://mesh.test/workspace//run/a",
		"spiffe://mesh.test/workspace/ws/job/a", "spiffe://mesh.test/workspace/ws/run/a/b", "spiffe://mesh.test/workspace/ws",
	} {
		if id, ok := ParseID(s); ok || id != (ID{}) {
			t.Errorf("ParseID(%q) = %+v, %v", s, id, ok)
		}
	}
}

func TestIDsRefuseWhatIsNoSegment(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "a b", "a%2f", "ä", strings.Repeat("a", 2100)} {
		if id, err := ServiceID(td, name); err == nil {
			t.Errorf("ServiceID(%q) = %v", name, id)
		}
	}
	if _, err := RunID(td, "ws/../x", "r"); err == nil {
		t.Error("a workspace with a slash was taken")
	}
	if _, err := ServiceID(spiffeid.TrustDomain{}, "a"); err == nil {
		t.Error("an ID without a trust domain was made")
	}
}
