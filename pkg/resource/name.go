package resource

import (
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// MaxNameBytes is the most bytes that a name may have. The longest that the grammar can make has fewer.
const MaxNameBytes = 1024

// Root is the name of the installation.
const Root = "/"

// Name is a parsed resource name. The zero value is not one. Names can be compared by == and used as map keys; they hold
// no more than the string that they were parsed from.
type Name struct {
	s    string
	kind Kind
}

// RootName is the name of the installation, parsed.
func RootName() Name { return Name{Root, KindRoot} }

// Parse reads a full resource name, "/" for the installation. It is strict: the one spelling of a resource is taken, and
// all else is refused as InvalidArgument with the field "name".
func Parse(s string) (Name, error) { return ParseField("name", s) }

// ParseField is Parse for a request whose field is called otherwise. The field stands in the refusal.
func ParseField(field, s string) (Name, error) {
	if s == Root {
		return RootName(), nil
	}
	kind, wrong := parse(s)
	if wrong != "" {
		return Name{}, invalid(field, "not the name of a resource: "+wrong)
	}
	return Name{s, kind}, nil
}

const form = `the form is subscriptions/{subscription}/resourceGroups/{group}/workspaces/{workspace}/… as a list shows it, or "/" for the installation`

func parse(s string) (Kind, string) {
	switch {
	case s == "":
		return KindUnknown, "it is empty; " + form
	case len(s) > MaxNameBytes:
		return KindUnknown, "it is longer than 1024 bytes"
	}
	kind := KindRoot
	for rest := s; ; {
		collection, after, found := strings.Cut(rest, "/")
		if !found {
			return KindUnknown, "a collection without an id; " + form
		}
		child := childOf(kind, collection)
		if child == KindUnknown {
			return KindUnknown, "a collection that is not known there; " + form
		}
		id, next, more := strings.Cut(after, "/")
		if wrong := shapes[child].valid(id); wrong != "" {
			return KindUnknown, "the id after " + shapes[child].collection + "/ " + wrong
		}
		kind, rest = child, next
		if !more {
			return kind, ""
		}
	}
}

// invalid names the field in the message too, for readers who see no details.
func invalid(field, wrong string) error {
	return fault.InvalidArgument("%s is %s", field, wrong).Field(field, wrong)
}

// String is the name as it was parsed, "" for the zero value.
func (n Name) String() string { return n.s }

// Kind is the type of the resource, KindUnknown for the zero value.
func (n Name) Kind() Kind { return n.kind }

// IsZero reports whether the name is the zero value.
func (n Name) IsZero() bool { return n.kind == KindUnknown }

// ID is the last segment: the run's id for a run. It is "" for the root and the zero value.
func (n Name) ID() string {
	if n.kind <= KindRoot {
		return ""
	}
	return n.s[strings.LastIndexByte(n.s, '/')+1:]
}

// Parent is the resource that this one stands directly in; the root for what stands at the top, and the zero value for
// the root.
func (n Name) Parent() Name {
	switch parent := shapes[n.kind].parent; parent {
	case KindUnknown:
		return Name{}
	case KindRoot:
		return RootName()
	default:
		// A name ends in /collection/id, and ids have no slash.
		end := len(n.s) - len(n.ID()) - 1 - len(shapes[n.kind].collection) - 1
		return Name{n.s[:end], parent}
	}
}

// Ancestor is the resource of that kind which this one stands in, or is.
func (n Name) Ancestor(kind Kind) (Name, bool) {
	for ; n.kind != KindUnknown; n = n.Parent() {
		if n.kind == kind {
			return n, true
		}
	}
	return Name{}, false
}

// Workspace is the workspace that the resource stands in, or is.
func (n Name) Workspace() (Name, bool) { return n.Ancestor(KindWorkspace) }

// Relative is the path below the workspace, "runs/r1" for a run. It is "" for a workspace and for what is in none.
func (n Name) Relative() string {
	ws, ok := n.Workspace()
	if !ok || ws == n {
		return ""
	}
	return n.s[len(ws.s)+1:]
}

// Within reports whether the resource is other or stands somewhere in it. Nothing is within the zero value.
func (n Name) Within(other Name) bool {
	a, ok := n.Ancestor(other.kind)
	return ok && a == other
}

// Child is the name of a resource directly in this one: Child("runs", "r1") of a workspace. It is refused when such a
// collection does not stand there or the id is malformed.
func (n Name) Child(collection, id string) (Name, error) {
	kind := KindUnknown
	if n.kind != KindUnknown {
		kind = childOf(n.kind, collection)
	}
	if kind == KindUnknown {
		return Name{}, invalid("name", "not the name of a resource: a collection that is not known there; "+form)
	}
	if wrong := shapes[kind].valid(id); wrong != "" {
		return Name{}, invalid("id", "not an id: it "+wrong)
	}
	if n.kind == KindRoot {
		return Name{collection + "/" + id, kind}, nil
	}
	return Name{n.s + "/" + collection + "/" + id, kind}, nil
}
