package rule

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// anyScope is the reference of a field that may name the installation or any node of the tree of resources.
const anyScope = "scope"

// path is a field of a request, through nested messages.
type path struct {
	text  string
	steps []protoreflect.FieldDescriptor
	kind  resource.Kind // KindUnknown for anyScope and for fields that are not marked
}

// field finds a dotted path from a message. Lists may be crossed only where many says so, maps never.
func field(md protoreflect.MessageDescriptor, text string, many bool) (path, error) {
	p := path{text: text}
	names := strings.Split(text, ".")
	for i, name := range names {
		fd := md.Fields().ByName(protoreflect.Name(name))
		if fd == nil {
			return path{}, fmt.Errorf("field %q: %s has no field %q", text, md.FullName(), name)
		}
		if fd.IsMap() || fd.IsList() && !many {
			return path{}, fmt.Errorf("field %q: %q is a list or map", text, name)
		}
		p.steps = append(p.steps, fd)
		if i < len(names)-1 {
			if md = fd.Message(); md == nil {
				return path{}, fmt.Errorf("field %q: %q is not a message", text, name)
			}
			continue
		}
		if fd.Kind() != protoreflect.StringKind {
			return path{}, fmt.Errorf("field %q: it is not a string", text)
		}
		ref, ok := reference(fd)
		if !ok {
			return path{}, fmt.Errorf("field %q: it is not marked with (redoubt.rule.v1.reference)", text)
		}
		kind, err := kindOf(ref)
		if err != nil {
			return path{}, fmt.Errorf("field %q: %w", text, err)
		}
		p.kind = kind
	}
	return p, nil
}

// reference is what the field's option says that it names.
func reference(fd protoreflect.FieldDescriptor) (string, bool) {
	if !proto.HasExtension(fd.Options(), rulev1.E_Reference) {
		return "", false
	}
	s, ok := proto.GetExtension(fd.Options(), rulev1.E_Reference).(string)
	return s, ok
}

func kindOf(ref string) (resource.Kind, error) {
	if ref == anyScope {
		return resource.KindUnknown, nil
	}
	k, ok := resource.ParseKind(ref)
	if !ok {
		return 0, fmt.Errorf("the reference %q is not a kind of resource", ref)
	}
	return k, nil
}

// references lists the fields of a request that are marked as references, as dotted paths. What cannot be reached by a path,
// inside a map or a message that holds itself, is an error.
func references(md protoreflect.MessageDescriptor) (paths []string, wrong []error) {
	var walk func(md protoreflect.MessageDescriptor, prefix string, above []protoreflect.FullName)
	walk = func(md protoreflect.MessageDescriptor, prefix string, above []protoreflect.FullName) {
		above = append(above, md.FullName())
		for i := range md.Fields().Len() {
			fd := md.Fields().Get(i)
			name := prefix + string(fd.Name())
			if ref, ok := reference(fd); ok {
				if _, err := kindOf(ref); err != nil {
					wrong = append(wrong, fmt.Errorf("field %q: %w", name, err))
				}
				paths = append(paths, name)
			}
			sub := fd.Message()
			switch {
			case sub == nil:
			case fd.IsMap():
				if holds(sub, nil) {
					wrong = append(wrong, fmt.Errorf("field %q: a reference inside a map cannot be ruled", name))
				}
			case slices.Contains(above, sub.FullName()):
				if holds(sub, nil) {
					wrong = append(wrong, fmt.Errorf("field %q: a reference inside a message that holds itself cannot be ruled", name))
				}
			default:
				walk(sub, name+".", above)
			}
		}
	}
	walk(md, "", nil)
	return paths, wrong
}

// holds reports whether a reference stands anywhere in the message.
func holds(md protoreflect.MessageDescriptor, above []protoreflect.FullName) bool {
	if slices.Contains(above, md.FullName()) {
		return false
	}
	above = append(above, md.FullName())
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		if _, ok := reference(fd); ok {
			return true
		}
		if sub := fd.Message(); sub != nil && holds(sub, above) {
			return true
		}
	}
	return false
}

// each calls yield for every value at the path. An absent message on the way has none; a string that is not set is "".
func (p *path) each(m protoreflect.Message, yield func(string)) { each(m, p.steps, yield) }

func each(m protoreflect.Message, steps []protoreflect.FieldDescriptor, yield func(string)) {
	fd, last := steps[0], len(steps) == 1
	switch v := m.Get(fd); {
	case fd.IsList():
		for i := range v.List().Len() {
			if last {
				yield(v.List().Get(i).String())
			} else {
				each(v.List().Get(i).Message(), steps[1:], yield)
			}
		}
	case last:
		yield(v.String())
	default:
		each(v.Message(), steps[1:], yield)
	}
}

// one is the value at a path without lists.
func (p *path) one(m protoreflect.Message) string {
	for _, fd := range p.steps[:len(p.steps)-1] {
		m = m.Get(fd).Message()
	}
	return m.Get(p.steps[len(p.steps)-1]).String()
}
