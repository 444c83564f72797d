package node

import (
	"encoding/json"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// A caller's change is never repeated inside the mesh: it may have been carried out (H3, G2).
func TestChangesAreNotRepeated(t *testing.T) {
	rules, err := Rules()
	if err != nil {
		t.Fatal(err)
	}
	text, err := callConfig(rules)
	if err != nil {
		t.Fatal(err)
	}
	var cfg struct {
		MethodConfig []struct {
			Name         []struct{ Service, Method string }
			WaitForReady bool
			RetryPolicy  *struct{ MaxAttempts int }
		}
	}
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		t.Fatal(err)
	}
	repeated := make(map[string]bool)
	for _, m := range cfg.MethodConfig {
		if !m.WaitForReady {
			t.Errorf("no wait for %v", m.Name)
		}
		for _, n := range m.Name {
			repeated["/"+n.Service+"/"+n.Method] = m.RetryPolicy != nil && m.RetryPolicy.MaxAttempts > 1
		}
	}
	if all, ok := repeated["//"]; !ok || all {
		t.Errorf("what is not named: said %t, repeated %t", ok, all)
	}
	for method, want := range map[string]bool{
		"/redoubt.compute.v1.RunService/GetRun":              true,
		"/redoubt.identity.v1.TokenService/ExchangeToken":    true,
		"/redoubt.identity.v1.AgentService/CreateAgentJoin":  true,
		"/redoubt.telemetry.v1.IngestService/Ingest":         true,
		"/redoubt.compute.v1.RunService/SubmitRun":           false,
		"/redoubt.keyvault.v1.SecretService/SetSecret":       false,
		"/redoubt.identity.v1.DirectoryService/CreateUser":   false,
		"/redoubt.identity.v1.SignInService/SignIn":          false,
		"/redoubt.telemetry.v1.MetricService/LogRunData":     false,
		"/redoubt.workspace.v1.AccessService/DeleteNotThere": false,
	} {
		if repeated[method] != want {
			t.Errorf("%s is repeated: %t", method, repeated[method])
		}
	}
}

// What clients may repeat by themselves: what changes nothing; and what has a request id, for those who always set one.
func TestRetryPolicyOfClients(t *testing.T) {
	rules, err := Rules()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method            string
		always, withAnIDs bool
	}{
		{"/redoubt.compute.v1.RunService/GetRun", true, true},
		{"/redoubt.telemetry.v1.ActivityService/ListActivity", true, true},
		{"/redoubt.compute.v1.RunService/SubmitRun", false, true},
		{"/redoubt.workspace.v1.ResourceService/CreateWorkspace", false, true},
		{"/redoubt.keyvault.v1.SecretService/SetSecret", false, false},
		{"/redoubt.identity.v1.SignInService/SignIn", false, false},
		{"/redoubt.telemetry.v1.MetricService/LogRunData", false, false},
		{"/redoubt.telemetry.v1.IngestService/Ingest", false, false}, // the mesh's own
	} {
		for identified, want := range map[bool]bool{false: c.always, true: c.withAnIDs} {
			text, err := RetryPolicy(rules, identified)
			if err != nil {
				t.Fatal(err)
			}
			var cfg struct {
				MethodConfig []struct {
					Name []struct{ Service, Method string }
				}
			}
			if err := json.Unmarshal(text, &cfg); err != nil || len(cfg.MethodConfig) != 2 {
				t.Fatalf("%v: %s", err, text)
			}
			got := false
			for _, n := range cfg.MethodConfig[1].Name {
				got = got || "/"+n.Service+"/"+n.Method == c.method
			}
			if got != want {
				t.Errorf("%s, with request ids %t: repeated %t", c.method, identified, got)
			}
			conn, err := grpc.NewClient("passthrough:///127.0.0.1:1", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(string(text)))
			if err != nil {
				t.Fatalf("gRPC does not take it: %v", err)
			}
			_ = conn.Close()
		}
	}
}
