package rule

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// Method is one RPC with its rule. It must not be changed.
type Method struct {
	// FullName is the method as gRPC has it: "/redoubt.compute.v1.RunService/SubmitRun".
	FullName string
	// Rule is never nil and has passed every check of this package.
	Rule *rulev1.Rule
	// ClientStream and ServerStream say in which direction messages are streamed.
	ClientStream, ServerStream bool
	// ScopeKind is the kind of resource that the scope must name, KindUnknown where several will do.
	ScopeKind resource.Kind

	input protoreflect.MessageDescriptor
	scope path // no steps for "/" and for methods without a scope
	uses  []use
}

// HasField reports whether the request has a field of this name.
func (m *Method) HasField(name string) bool {
	return m.input.Fields().ByName(protoreflect.Name(name)) != nil
}

type use struct {
	path
	*rulev1.Use
}

// Table has the methods of some services by name. The zero value is empty.
type Table struct{ methods map[string]*Method }

// Load reads the rules of services, given by their full protobuf names ("redoubt.workspace.v1.AccessService"), from the
// descriptors that are linked into the process. If anything about a rule is wrong there is no Table, and the error names all
// that is wrong, each with its method.
func Load(services ...string) (*Table, error) {
	return load(protoregistry.GlobalFiles, foreign(), services)
}

func load(files *protoregistry.Files, overlay map[string]*rulev1.Rule, services []string) (*Table, error) {
	t := &Table{methods: map[string]*Method{}}
	var wrong []error
	for _, name := range services {
		d, err := files.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			wrong = append(wrong, fmt.Errorf("service %q is not among the linked contracts: import its generated package", name))
			continue
		}
		sd, ok := d.(protoreflect.ServiceDescriptor)
		if !ok {
			wrong = append(wrong, fmt.Errorf("%q is not a service", name))
			continue
		}
		wrong = append(wrong, t.add(sd, overlay)...)
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	return t, nil
}

// Lint checks the rules of every service of the files and returns all that is wrong.
func Lint(files ...protoreflect.FileDescriptor) []error {
	var wrong []error
	t := &Table{methods: map[string]*Method{}}
	for _, f := range files {
		for i := range f.Services().Len() {
			wrong = append(wrong, t.add(f.Services().Get(i), foreign())...)
		}
	}
	return wrong
}

// Registered lists the services of the process's linked contracts whose protobuf package is prefix or begins with prefix and a
// dot, sorted. "redoubt" gives all of ours.
func Registered(prefix string) []string {
	var names []string
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if p := string(f.Package()); p == prefix || strings.HasPrefix(p, prefix+".") {
			for i := range f.Services().Len() {
				names = append(names, string(f.Services().Get(i).FullName()))
			}
		}
		return true
	})
	slices.Sort(names)
	return names
}

// Foreign lists the services that are not ours, have rules in the overlay and are among the process's linked contracts, sorted.
func Foreign() []string {
	var names []string
	for method := range foreign() {
		name := method[1:strings.LastIndexByte(method, '/')]
		if _, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name)); err == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// add checks the methods of a service and takes those that are right.
func (t *Table) add(sd protoreflect.ServiceDescriptor, overlay map[string]*rulev1.Rule) []error {
	var wrong []error
	stale := map[string]bool{}
	for name := range overlay {
		if strings.HasPrefix(name, "/"+string(sd.FullName())+"/") {
			stale[name] = true
		}
	}
	for i := range sd.Methods().Len() {
		md := sd.Methods().Get(i)
		name := fmt.Sprintf("/%s/%s", sd.FullName(), md.Name())
		delete(stale, name)
		r, own := ruleOf(md)
		over, foreign := overlay[name]
		switch {
		case own && foreign:
			wrong = append(wrong, fmt.Errorf("%s: has a rule in its contract and another one in the overlay", name))
			continue
		case foreign:
			r = over
		case !own:
			wrong = append(wrong, fmt.Errorf("%s: has no rule; say in its contract what it takes to call it, with option (redoubt.rule.v1.rule)", name))
			continue
		}
		m := &Method{FullName: name, Rule: r, ClientStream: md.IsStreamingClient(), ServerStream: md.IsStreamingServer(), input: md.Input()}
		if bad := m.check(foreign); len(bad) > 0 {
			for _, b := range bad {
				wrong = append(wrong, fmt.Errorf("%s: %w", name, b))
			}
			continue
		}
		t.methods[name] = m
	}
	for _, name := range slices.Sorted(maps.Keys(stale)) {
		wrong = append(wrong, fmt.Errorf("%s: has a rule in the overlay, and the contract has no such method", name))
	}
	return wrong
}

// ruleOf is the rule in the method's options.
func ruleOf(md protoreflect.MethodDescriptor) (*rulev1.Rule, bool) {
	if !proto.HasExtension(md.Options(), rulev1.E_Rule) {
		return nil, false
	}
	r, ok := proto.GetExtension(md.Options(), rulev1.E_Rule).(*rulev1.Rule)
	return r, ok && r != nil
}

// Lookup finds a method by its name as gRPC has it. The name is compared byte for byte: any other spelling is unknown.
func (t *Table) Lookup(fullMethod string) (*Method, bool) {
	if t == nil {
		return nil, false
	}
	m, ok := t.methods[fullMethod]
	return m, ok
}

// Methods are all methods in the order of their names.
func (t *Table) Methods() []*Method {
	if t == nil {
		return nil
	}
	all := slices.Collect(maps.Values(t.methods))
	slices.SortFunc(all, func(a, b *Method) int { return strings.Compare(a.FullName, b.FullName) })
	return all
}
