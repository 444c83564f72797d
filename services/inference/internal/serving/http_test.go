package serving

import (
	"net/http"
	"testing"
)

func TestScore(t *testing.T) {
	l, _ := serving(t, echo)
	for name, c := range map[string]*http.Client{"HTTP/1.1": l.client, "HTTP/2": l.h2} {
		t.Run(name, func(t *testing.T) {
			got := l.call(c, "POST", "/endpoints/ep_1/score?key=hidden&version=3", `{"data":[[1]]}`, bearer, "Bearer primary", "Content-Type", "application/json",
				"X-Request-Id", "req-1", "User-Agent", "tester", "X-Ms-Client-Request-Id", "mine")
			if got.status != 200 || got.body != `{"data":[[1]]}` || got.header.Get("Content-Type") != "application/json" {
				t.Fatalf("got %d %q %v", got.status, got.body, got.header)
			}
			if got.header.Get("X-Request-Id") != "req-1" || got.header.Get("azureml-model-deployment") != "blue" {
				t.Errorf("headers %v", got.header)
			}
			r := l.log.last(t)
			if r.GetHttpMethod() != "POST" || r.GetUserAgent() != "tester" || r.GetComputeType() != "local" || r.GetStatusCode() != 200 || r.GetModelStatusCode() != 200 ||
				r.GetRequestId() != "req-1" || r.GetDuration().AsDuration() <= 0 || r.GetEndpointUid() != "ep_1" || r.GetWorkspaceUid() != workspace ||
				r.GetDeployment() != "blue" || r.GetReplicaUid() != "run_1" || r.GetAuth() != "key-primary" || r.GetAddress() != "127.0.0.1" ||
				r.GetRequestBytes() != 14 || r.GetResponseBytes() != 14 || len(r.GetTraceId()) != 32 || r.GetProtocol() != "http" || r.GetReason() != "" ||
				r.GetClientRequestId() != "mine" || r.GetRequestUrl() != "/endpoints/ep_1/score?key=-&version=3" {
				t.Errorf("record %v", r)
			}
		})
	}
}
