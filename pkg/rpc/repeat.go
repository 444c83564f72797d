package rpc

import (
	"time"

	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
	"github.com/redoubt-ml/redoubt/pkg/rule"
)

// How a client repeats a call that was answered UNAVAILABLE: so many times in all, with waits that double from the first to the longest.
const (
	RepeatTries   = 5
	RepeatFirst   = 200 * time.Millisecond
	RepeatLongest = 3 * time.Second
)

// Repeatable reports whether whoever called a method may call it again without knowing whether it was carried out: it changes nothing, and is
// recorded when it is refused alone.
func Repeatable(r *rulev1.Rule) bool { return r.GetAudit() == rulev1.Audit_AUDIT_DENIALS }

// Identified reports whether a method's request has an id of its caller's, by which a repeated call has the answer of the first: then it may be
// repeated too, where the id is set.
func Identified(m *rule.Method) bool {
	return !m.ClientStream && !m.ServerStream && m.HasField("request_id")
}
