package endpoints

import (
	"net/http"
	"testing"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Requests that are under way are answered before a replica is stopped.
func TestDeleteDrains(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	d := l.ready(l.deploy(e.GetName(), "blue", spec(l.model())).GetName())
	asked, goOn := make(chan struct{}, 1), make(chan struct{})
	l.comp.set(func() {
		l.comp.answer = func(*computev1.StartReplicaRequest) (int, string) {
			asked <- struct{}{}
			<-goOn
			return 200, "late"
		}
	})
	c, key := l.client(), l.keys(e.GetName()).GetPrimaryKey()
	type answer struct {
		status int
		body   string
	}
	got := make(chan answer, 1)
	go func() {
		status, body := l.score(c, e.GetUid(), key)
		got <- answer{status, body}
	}()
	<-asked
	_, err := l.rpc().DeleteDeployment(l.as("owner"), &inferencev1.DeleteDeploymentRequest{Name: d.GetName()})
	must(t, err)
	l.until(d.GetName(), "draining", func(d *inferencev1.Deployment) bool {
		return d.GetState() == inferencev1.Deployment_STATE_DELETING && d.GetReplicas()[0].GetState() == inferencev1.Replica_STATE_DRAINING
	})
	if status, body := l.score(l.client(), e.GetUid(), key); status != http.StatusServiceUnavailable && status != http.StatusNotFound {
		t.Errorf("a new request meanwhile: %d %s", status, body)
	}
	if n := len(l.comp.running()); n != 1 {
		t.Errorf("%d replicas run while one has a request", n)
	}
	close(goOn)
	if a := <-got; a.status != http.StatusOK || a.body != "late" {
		t.Errorf("the request that was under way: %v", a)
	}
	l.eventually("it has ended", func() bool { return len(l.comp.running()) == 0 })
}

// An endpoint goes with all that is behind it, through a restart in between.
func TestDeleteEndpoint(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	model := l.model()
	for _, id := range []string{"blue", "green"} {
		l.ready(l.deploy(e.GetName(), id, spec(model)).GetName())
	}
	key := l.keys(e.GetName()).GetPrimaryKey()
	l.comp.set(func() { l.comp.stopFail = fault.Unavailable("away") })
	_, err := l.rpc().DeleteEndpoint(l.as("owner"), &inferencev1.DeleteEndpointRequest{Name: e.GetName()})
	must(t, err)
	if status, body := l.score(l.client(), e.GetUid(), key); status != http.StatusNotFound && status != http.StatusUnauthorized {
		t.Errorf("%d %s", status, body)
	}
	l.restart()
	if status, _ := l.score(l.client(), e.GetUid(), key); status == http.StatusOK {
		t.Error("it is open again")
	}
	if again := l.endpoint("e1", nil); again.GetUid() == e.GetUid() {
		t.Error("the same endpoint")
	}
	l.comp.set(func() { l.comp.stopFail = nil })
	l.eventually("nothing runs", func() bool { return len(l.comp.running()) == 0 })
	l.eventually("nothing is stored", func() bool {
		for table, most := range map[string]int{"replicas": 0, "deployments": 0, "endpoints": 1, "model_uses": 0} {
			n := 0
			must(t, l.cfg.DB.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM "+table).Scan(&n))
			if n > most {
				return false
			}
		}
		return true
	})
}

// H1: a workspace that is deleted takes its endpoints with it, at once and whenever it is repeated.
func TestPurge(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	l.ready(l.deploy(e.GetName(), "blue", spec(l.model())).GetName())
	key := l.keys(e.GetName()).GetPrimaryKey()
	purge := func(service string) error {
		_, err := l.internal(service).PurgeWorkspace(t.Context(), &inferencev1.PurgeWorkspaceRequest{WorkspaceUid: l.uids[ws1]})
		return err
	}
	want(t, "asked by telemetry", purge("telemetry"), codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)
	must(t, purge("workspace"))
	if status, _ := l.score(l.client(), e.GetUid(), key); status != http.StatusNotFound && status != http.StatusUnauthorized {
		t.Errorf("%d", status)
	}
	for _, table := range []string{"replicas", "deployments", "endpoint_tokens", "endpoints", "model_uses", "model_versions", "models"} {
		n := 0
		must(t, l.cfg.DB.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM "+table).Scan(&n))
		if n != 0 {
			t.Errorf("%d rows of %s are left", n, table)
		}
	}
	must(t, purge("workspace"))
}
