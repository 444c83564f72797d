package rule

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// services are the names that callers may list: those of DESIGN's SPIFFE IDs /service/<name>.
var services = []string{"identity", "workspace", "keyvault", "compute", "inference", "telemetry", "gateway"}

// maxRequest bounds what a rule may allow a request to have, in bytes.
const maxRequest = 64 << 20

// maxStepUp is the longest that a sign-in can be called fresh, in seconds.
const maxStepUp = 3600

// check finds all that is wrong with the method's rule, and fills the paths.
func (m *Method) check(foreign bool) []error {
	c := checker{m: m, r: m.Rule}
	c.who()
	c.records()
	c.where()
	c.stepsUp()
	c.streams()
	if !foreign {
		c.complete()
	}
	return c.wrong
}

type checker struct {
	m     *Method
	r     *rulev1.Rule
	wrong []error
}

func (c *checker) say(format string, args ...any) {
	c.wrong = append(c.wrong, fmt.Errorf(format, args...))
}

// who checks that exactly one of the four ways to be allowed is taken, and that nothing beside it goes unenforced.
func (c *checker) who() {
	r := c.r
	var ways []string
	for _, w := range []struct {
		name string
		set  bool
	}{{"action", r.GetAction() != ""}, {"callers", len(r.GetCallers()) > 0}, {"public", r.GetPublic()}, {"self", r.GetSelf()}} {
		if w.set {
			ways = append(ways, w.name)
		}
	}
	switch len(ways) {
	case 1:
	case 0:
		c.say("says nobody who may call it: set one of action, callers, public and self")
	default:
		c.say("sets %s: exactly one of action, callers, public and self", strings.Join(ways, " and "))
	}
	if r.GetAction() != "" && !ValidAction(r.GetAction()) {
		c.say("action %q: the form is <service>/<type>/<verb> in lower camel case", r.GetAction())
	}
	for i, name := range r.GetCallers() {
		switch {
		case name == "*" && len(r.GetCallers()) > 1:
			c.say("callers: \"*\" stands alone")
		case name != "*" && !slices.Contains(services, name):
			c.say("callers: %q is not a service", name)
		case slices.Contains(r.GetCallers()[:i], name):
			c.say("callers: %q stands there twice", name)
		}
	}
	if r.GetData() && r.GetAction() == "" {
		c.say("sets data without an action")
	}
	if r.GetRun() && r.GetAction() == "" && !r.GetSelf() {
		c.say("sets run without action or self: a run token would open it unchecked")
	}
	if r.GetDeliver() && (!r.GetRun() || r.GetAction() == "") {
		c.say("sets deliver without run and an action: there would be nobody who delivers, or nothing that he may")
	}
	if len(r.GetUses()) > 0 && (r.GetPublic() || len(r.GetCallers()) > 0) {
		c.say("has uses, and no principal whose permission could be asked for")
	}
}

// records checks what is kept and how much is let in.
func (c *checker) records() {
	switch a := c.r.GetAudit(); a {
	case rulev1.Audit_AUDIT_ALWAYS, rulev1.Audit_AUDIT_DENIALS:
	case rulev1.Audit_AUDIT_SUMMARY:
		if unary := !c.m.ClientStream && !c.m.ServerStream; unary && !c.r.GetData() {
			c.say("audit: AUDIT_SUMMARY is for streams, and for calls that append data")
		}
	case rulev1.Audit_AUDIT_UNSPECIFIED:
		c.say("audit: it is unspecified; say what the activity log keeps")
	default:
		c.say("audit: %d is not known", a)
	}
	if n := c.r.GetMaxRequestBytes(); n > maxRequest {
		c.say("max_request_bytes: %d is more than %d", n, maxRequest)
	}
}

// where checks scope and uses against the request.
func (c *checker) where() {
	scope := c.r.GetScope()
	switch {
	case c.r.GetAction() == "" && scope != "":
		c.say("has the scope %q, and no action that is asked for there", scope)
	case c.r.GetAction() == "":
	case scope == "":
		c.say("has an action and no scope: name the field with the resource, or \"/\" for the installation")
	case scope == resource.Root:
		c.m.ScopeKind = resource.KindRoot
	default:
		p, err := field(c.m.input, scope, false)
		if err != nil {
			c.say("scope: %w", err)
			break
		}
		c.m.scope, c.m.ScopeKind = p, p.kind
	}
	if c.r.GetDeliver() && (c.m.ScopeKind != resource.KindRun || len(c.r.GetUses()) > 0) {
		c.say("sets deliver, and its scope is no run or it has uses: what has ended delivers to itself alone")
	}
	for _, u := range c.r.GetUses() {
		if !ValidAction(u.GetAction()) {
			c.say("uses: action %q: the form is <service>/<type>/<verb> in lower camel case", u.GetAction())
		}
		if u.GetField() == scope {
			c.say("uses: field %q is the scope already", u.GetField())
			continue
		}
		p, err := field(c.m.input, u.GetField(), true)
		if err != nil {
			c.say("uses: %w", err)
			continue
		}
		c.m.uses = append(c.m.uses, use{p, u})
	}
}

// stepsUp checks that a fresh sign-in is asked of somebody, and at places that there are.
func (c *checker) stepsUp() {
	r := c.r
	switch {
	case r.GetStepUp() == 0:
		if r.GetStepUpPrograms() || len(r.GetStepUpAt()) > 0 {
			c.say("sets step_up_programs or step_up_at without step_up")
		}
		return
	case r.GetAction() == "":
		c.say("sets step_up without an action")
	case c.m.ClientStream || c.m.ServerStream:
		c.say("sets step_up on a stream, which outlives any sign-in")
	case r.GetStepUp() > maxStepUp:
		c.say("step_up: %d is more than %d seconds", r.GetStepUp(), maxStepUp)
	}
	for _, at := range r.GetStepUpAt() {
		if _, ok := resource.ParseKind(at); !ok {
			c.say("step_up_at: %q is no kind of resource", at)
		}
	}
}

// streams checks that a stream of requests is bound to what its first message names.
func (c *checker) streams() {
	points := len(c.m.scope.steps) > 0 || len(c.r.GetUses()) > 0
	switch first := c.r.GetFirstMessage(); {
	case first && !c.m.ClientStream:
		c.say("sets first_message, and the requests are not a stream")
	case first && !points:
		c.say("sets first_message, and nothing of the message is looked at")
	case !first && c.m.ClientStream && points:
		c.say("takes a stream of requests: set first_message, or each message could name another resource")
	}
}

// complete checks that every reference of the request stands in the rule.
func (c *checker) complete() {
	paths, wrong := references(c.m.input)
	c.wrong = append(c.wrong, wrong...)
	for _, p := range paths {
		if p == c.r.GetScope() || slices.ContainsFunc(c.r.GetUses(), func(u *rulev1.Use) bool { return u.GetField() == p }) {
			continue
		}
		c.say("field %q of the request is a reference, and neither the scope nor among the uses", p)
	}
}

// maxAction is the most bytes of an action.
const maxAction = 128

// ValidAction reports whether s is one permission: "<service>/<type>/<verb>", at least three segments of ASCII letters and
// digits that begin in lower case, and no wildcard.
func ValidAction(s string) bool {
	if len(s) > maxAction {
		return false
	}
	segments := 0
	for segment := range strings.SplitSeq(s, "/") {
		segments++
		if segment == "" || segment[0] < 'a' || segment[0] > 'z' {
			return false
		}
		for i := range len(segment) {
			if c := segment[i]; (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') {
				return false
			}
		}
	}
	return segments >= 3
}

var errNoMessage = errors.New("the message is not the method's request")
