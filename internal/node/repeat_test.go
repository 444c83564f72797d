package node

import (
	"encoding/json"
	"testing"
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
