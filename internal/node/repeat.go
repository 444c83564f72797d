package node

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
)

// callConfig is discovery's service config, with repeats for those methods alone that may be carried out twice: those that change
// nothing, and those that services call in their own name, which are made for it. UNAVAILABLE does not say that a call was not carried
// out: the other side may have died after it stored the change. So a caller's change is repeated by the caller alone, who knows
// whether his request has an id.
func callConfig(rules *rule.Table) (string, error) {
	var cfg map[string]any
	if err := json.Unmarshal([]byte(discovery.ServiceConfig), &cfg); err != nil {
		return "", fmt.Errorf("discovery's service config: %w", err)
	}
	methods, _ := cfg["methodConfig"].([]any)
	if len(methods) != 1 {
		return "", fmt.Errorf("discovery's service config has %d method configs, not the one for all", len(methods))
	}
	all, _ := methods[0].(map[string]any)
	repeated := make(map[string]any, len(all))
	for k, v := range all {
		repeated[k] = v
	}
	delete(all, "retryPolicy")
	var names []any
	for _, m := range rules.Methods() {
		if !repeatable(m.Rule) {
			continue
		}
		service, method, _ := strings.Cut(strings.TrimPrefix(m.FullName, "/"), "/")
		names = append(names, map[string]any{"service": service, "method": method})
	}
	repeated["name"] = names
	cfg["methodConfig"] = []any{all, repeated}
	b, err := json.Marshal(cfg)
	return string(b), err
}

// RetryPolicy is the gRPC service config for clients of the gateway, as JSON: UNAVAILABLE is repeated for methods that change nothing. With
// identified it is also for changes whose request has a request_id; that is for clients which always set one, a new one for each change.
// All else may have been carried out, and is for the caller to look at. Every call waits for a gateway that serves, up to its deadline.
func RetryPolicy(rules *rule.Table, identified bool) ([]byte, error) {
	seconds := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s" }
	var names []any
	for _, m := range rules.Methods() {
		service, method, _ := strings.Cut(strings.TrimPrefix(m.FullName, "/"), "/")
		if len(m.Rule.GetCallers()) > 0 || !strings.HasPrefix(service, "redoubt.") || !rpc.Repeatable(m.Rule) && !(identified && rpc.Identified(m)) {
			continue
		}
		names = append(names, map[string]any{"service": service, "method": method})
	}
	return json.MarshalIndent(map[string]any{
		"loadBalancingConfig": []any{map[string]any{"round_robin": map[string]any{}}},
		"healthCheckConfig":   map[string]any{"serviceName": ""},
		"methodConfig": []any{map[string]any{"name": []any{map[string]any{}}, "waitForReady": true}, map[string]any{
			"name": names, "waitForReady": true,
			"retryPolicy": map[string]any{
				"maxAttempts": rpc.RepeatTries, "initialBackoff": seconds(rpc.RepeatFirst), "maxBackoff": seconds(rpc.RepeatLongest), "backoffMultiplier": 2,
				"retryableStatusCodes": []string{"UNAVAILABLE"},
			},
		}},
	}, "", "  ")
}

// repeatable methods are reads, which are recorded when they are refused alone, and those of services.
func repeatable(r *rulev1.Rule) bool {
	return rpc.Repeatable(r) || len(r.GetCallers()) > 0
}
