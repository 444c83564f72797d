package conformance

import (
	"strings"
	"testing"
	"time"
)

// I: grpc_health_probe works as it is.
func TestHealthProbe(t *testing.T) {
	f := start(t)
	args := []string{"-addr=" + f.addr, "-tls", "-tls-ca-cert=" + f.ca, "-tls-server-name=localhost", "-connect-timeout=5s", "-rpc-timeout=5s"}
	if out, err := run(t, 20*time.Second, "grpc-health-probe", args...); err != nil || !strings.Contains(out, "SERVING") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := run(t, 20*time.Second, "grpc-health-probe", append(args, "-service=nobody")...); err == nil {
		t.Errorf("a service that is not there is healthy: %s", out)
	}
	if out, err := run(t, 20*time.Second, "grpc-health-probe", "-addr="+f.addr, "-tls", "-connect-timeout=5s", "-rpc-timeout=5s"); err == nil {
		t.Errorf("it was believed without the mesh's root: %s", out)
	}
}

// I: grpcurl works as it is: it lists and describes by reflection, and shows a refusal with its reason.
func TestGrpcurl(t *testing.T) {
	f := start(t)
	tls := []string{"-cacert", f.ca, "-servername", "localhost"}
	for _, c := range []struct {
		name  string
		args  []string
		fails bool
		has   []string
		not   string
	}{
		{"list", []string{f.addr, "list"}, false, []string{"redoubt.workspace.v1.ResourceService", "grpc.health.v1.Health"}, "IngestService"},
		{"describe", []string{f.addr, "describe", "redoubt.compute.v1.RunService.SubmitRun"}, false, []string{"SubmitRunRequest", "returns"}, "\x00"},
		{"health", []string{f.addr, "grpc.health.v1.Health/Check"}, false, []string{"SERVING"}, "\x00"},
		{"not ours", []string{f.addr, "redoubt.telemetry.v1.IngestService/Ingest"}, true, []string{"Unimplemented", "METHOD_UNKNOWN"}, "\x00"},
		{"v1 of reflection asked for alone", []string{"-max-time", "5", f.addr, "list", "redoubt.identity.v1.TokenService"}, false, []string{"IssueToken"}, "EnrolmentService"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := run(t, 20*time.Second, "grpcurl", append(tls, c.args...)...)
			if (err != nil) != c.fails {
				t.Errorf("%v: %s", err, out)
			}
			for _, s := range c.has {
				if !strings.Contains(out, s) {
					t.Errorf("%q is not in %s", s, out)
				}
			}
			if strings.Contains(out, c.not) {
				t.Errorf("%q is in %s", c.not, out)
			}
		})
	}
}
