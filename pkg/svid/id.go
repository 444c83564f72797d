package svid

import (
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Kind says what sort of thing a SPIFFE ID of ours names. The zero value names nothing and is never allowed anything.
type Kind uint8

// The kinds of identity in a mesh, by the path of their ID.
const (
	KindUnknown  Kind = iota
	KindService       // /service/<name>
	KindRun           // /workspace/<uid>/run/<id>
	KindEndpoint      // /workspace/<uid>/endpoint/<name>
	KindAgent         // /agent/<uid>
	KindOperator      // /operator/<user uid>
)

// String names the kind in logs and metrics.
func (k Kind) String() string {
	switch k {
	case KindService:
		return "service"
	case KindRun:
		return "run"
	case KindEndpoint:
		return "endpoint"
	case KindAgent:
		return "agent"
	case KindOperator:
		return "operator"
	default:
		return "unknown"
	}
}

// ID is a SPIFFE ID of the mesh, taken apart. Its strings are parts of the string that was parsed.
type ID struct {
	Kind        Kind
	TrustDomain string
	Workspace   string // uid; only for runs and endpoints
	Name        string // service name, run id, endpoint name, agent uid or user uid
}

const scheme = "spiffe://"

// ParseID takes s apart without allocating. It reports false for what is not an ID of one of the kinds above. It checks
// the shape, not the characters of the segments: s comes from a verified certificate (PeerFrom) or is a literal.
func ParseID(s string) (ID, bool) {
	rest, ok := strings.CutPrefix(s, scheme)
	if !ok {
		return ID{}, false
	}
	id := ID{}
	id.TrustDomain, rest, ok = strings.Cut(rest, "/")
	if !ok || id.TrustDomain == "" {
		return ID{}, false
	}
	kind, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return ID{}, false
	}
	switch kind {
	case "service":
		id.Kind = KindService
	case "agent":
		id.Kind = KindAgent
	case "operator":
		id.Kind = KindOperator
	case "workspace":
		id.Workspace, rest, ok = strings.Cut(rest, "/")
		if !ok || id.Workspace == "" {
			return ID{}, false
		}
		kind, rest, ok = strings.Cut(rest, "/")
		if !ok {
			return ID{}, false
		}
		switch kind {
		case "run":
			id.Kind = KindRun
		case "endpoint":
			id.Kind = KindEndpoint
		default:
			return ID{}, false
		}
	default:
		return ID{}, false
	}
	if rest == "" || strings.IndexByte(rest, '/') >= 0 {
		return ID{}, false
	}
	id.Name = rest
	return id, true
}

// ServiceID is the identity of every replica of a service.
func ServiceID(td spiffeid.TrustDomain, name string) (spiffeid.ID, error) {
	return makeID(td, "service", name)
}

// AgentID is the identity of the management code on a compute target.
func AgentID(td spiffeid.TrustDomain, uid string) (spiffeid.ID, error) {
	return makeID(td, "agent", uid)
}

// OperatorID is the identity in the certificate with which a person reaches a service directly.
func OperatorID(td spiffeid.TrustDomain, userUID string) (spiffeid.ID, error) {
	return makeID(td, "operator", userUID)
}

// RunID is the identity of a run.
func RunID(td spiffeid.TrustDomain, workspaceUID, runID string) (spiffeid.ID, error) {
	return makeID(td, "workspace", workspaceUID, "run", runID)
}

// EndpointID is the identity of the replicas of an endpoint.
func EndpointID(td spiffeid.TrustDomain, workspaceUID, name string) (spiffeid.ID, error) {
	return makeID(td, "workspace", workspaceUID, "endpoint", name)
}

// maxIDBytes is SPIFFE's bound on the whole ID.
const maxIDBytes = 2048

func makeID(td spiffeid.TrustDomain, segments ...string) (spiffeid.ID, error) {
	if td.IsZero() {
		return spiffeid.ID{}, fault.InvalidArgument("a SPIFFE ID needs a trust domain: set mesh.trust_domain")
	}
	id, err := spiffeid.FromSegments(td, segments...)
	if err != nil {
		return spiffeid.ID{}, fault.InvalidArgument("%q cannot be part of a SPIFFE ID: use letters, digits, '.', '-' and '_'", segments[len(segments)-1])
	}
	if len(id.String()) > maxIDBytes {
		return spiffeid.ID{}, fault.InvalidArgument("a SPIFFE ID has at most %d bytes", maxIDBytes)
	}
	return id, nil
}
