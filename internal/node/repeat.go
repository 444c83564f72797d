package node

import (
	"encoding/json"
	"fmt"
	"strings"

	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
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

// repeatable methods are reads, which are recorded when they are refused alone, and those of services.
func repeatable(r *rulev1.Rule) bool {
	return r.GetAudit() == rulev1.Audit_AUDIT_DENIALS || len(r.GetCallers()) > 0
}
