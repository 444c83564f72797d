package rule

import (
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// Use is one further resource that a request refers to.
type Use struct {
	// Name is as the request has it: not parsed, perhaps not a name at all.
	Name string
	// Action is what the caller needs on it, matched against dataActions if Data.
	Action string
	Data   bool
	// Field is where it stands in the request.
	Field string
	// Kind is what the name must be of, KindUnknown where several will do.
	Kind resource.Kind
}

// Parse reads the name and checks its kind. It refuses as InvalidArgument and names the field.
func (u Use) Parse() (resource.Name, error) { return parse(u.Field, u.Name, u.Kind) }

// Scope is the name of the resource that a request acts on, as it stands there: "/" for methods of the installation, "" for
// methods that need no scope. A request without one is refused as InvalidArgument.
func (m *Method) Scope(msg proto.Message) (string, error) {
	if m.Rule.GetScope() == "" || len(m.scope.steps) == 0 {
		return m.Rule.GetScope(), nil
	}
	pm, err := m.message(msg)
	if err != nil {
		return "", err
	}
	name := m.scope.one(pm)
	if name == "" {
		return "", fault.InvalidArgument("%s is empty: it names the %s that this is about", m.scope.text, m.wants()).
			Field(m.scope.text, "is empty")
	}
	return name, nil
}

// ScopeText is what stands in the scope field, also if that is nothing: in the later messages of a stream.
func (m *Method) ScopeText(msg proto.Message) (string, error) {
	if m.Rule.GetScope() == "" || len(m.scope.steps) == 0 {
		return m.Rule.GetScope(), nil
	}
	pm, err := m.message(msg)
	if err != nil {
		return "", err
	}
	return m.scope.one(pm), nil
}

// ScopeName is Scope, parsed, and of the kind that the method takes. It is the zero Name for methods that need no scope.
func (m *Method) ScopeName(msg proto.Message) (resource.Name, error) {
	s, err := m.Scope(msg)
	if err != nil || s == "" {
		return resource.Name{}, err
	}
	return parse(m.scopeField(), s, m.ScopeKind)
}

func (m *Method) scopeField() string {
	if m.scope.text == "" {
		return "scope"
	}
	return m.scope.text
}

func (m *Method) wants() string {
	if m.ScopeKind == resource.KindUnknown {
		return "resource"
	}
	return m.ScopeKind.String()
}

func parse(field, s string, kind resource.Kind) (resource.Name, error) {
	n, err := resource.ParseField(field, s)
	if err != nil {
		return resource.Name{}, err
	}
	if kind != resource.KindUnknown && n.Kind() != kind {
		return resource.Name{}, fault.InvalidArgument("%s is the name of a %s; a %s is needed", field, n.Kind(), kind).
			Field(field, "is the name of a "+n.Kind().String()+"; a "+kind.String()+" is needed")
	}
	return n, nil
}

// Uses lists the further resources that a request refers to. A string that is empty is left out, an empty element of a list
// is not. A message of another type than the method's gives one that no name and no action fits.
func (m *Method) Uses(msg proto.Message) []Use {
	if len(m.uses) == 0 {
		return nil
	}
	pm, err := m.message(msg)
	if err != nil {
		return []Use{{Field: "request"}}
	}
	var all []Use
	for i := range m.uses {
		u := &m.uses[i]
		list := u.steps[len(u.steps)-1].IsList()
		u.each(pm, func(name string) {
			if name != "" || list {
				all = append(all, Use{Name: name, Action: u.GetAction(), Data: u.GetData(), Field: u.text, Kind: u.kind})
			}
		})
	}
	return all
}

// Check refuses a message that is not the method's request, as a fault of ours.
func (m *Method) Check(msg proto.Message) error {
	_, err := m.message(msg)
	return err
}

func (m *Method) message(msg proto.Message) (protoreflect.Message, error) {
	if msg != nil {
		if pm := msg.ProtoReflect(); pm.IsValid() && pm.Descriptor() == m.input {
			return pm, nil
		}
	}
	return nil, fault.Internal(errNoMessage, "a fault of ours; the request id finds it in the log")
}

// Later checks a message of a request stream after the first: its scope and what it uses must be empty or what the first
// one had. It refuses as InvalidArgument.
func (m *Method) Later(scope string, uses []Use, msg proto.Message) error {
	if len(m.scope.steps) == 0 && len(m.uses) == 0 {
		return nil
	}
	pm, err := m.message(msg)
	if err != nil {
		return err
	}
	if len(m.scope.steps) > 0 {
		if s := m.scope.one(pm); s != "" && s != scope {
			return changed(m.scope.text)
		}
	}
	for _, u := range m.Uses(msg) {
		if !slices.Contains(uses, u) {
			return changed(u.Field)
		}
	}
	return nil
}

func changed(field string) error {
	return fault.InvalidArgument("%s is another than in the first message of the stream; leave it out, or begin a new stream", field).
		Field(field, "is another than in the first message")
}

// CallableBy reports whether the rule lets the service call the method in its own name. "" is no service.
func (m *Method) CallableBy(service string) bool {
	if service == "" {
		return false
	}
	for _, c := range m.Rule.GetCallers() {
		if c == "*" || c == service {
			return true
		}
	}
	return false
}
