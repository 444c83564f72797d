package rest

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/onward"
)

// defaultMessage is the largest request of methods whose rule says nothing (pkg/rpc's default).
const defaultMessage = 1 << 20

// route is one way by which REST reaches a method.
type route struct {
	method  string // "/redoubt.compute.v1.RunService/GetRun"
	verb    string // "GET"
	pattern string // as grpc-gateway writes it
	body    string // "", "*" or a field
	input   protoreflect.MessageDescriptor
	most    int64 // bytes of a body
}

// key is what a route is found by.
func (r *route) key() string { return r.verb + " " + r.pattern }

// routesOf reads the routes of every method of the table that strangers may reach.
func routesOf(rules *rule.Table) (map[string]*route, error) {
	all := map[string]*route{}
	for _, m := range rules.Methods() {
		md, err := descriptor(m.FullName)
		if err != nil {
			return nil, err
		}
		bindings := bindingsOf(md)
		if len(bindings) == 0 {
			continue
		}
		if !onward.Open(m) || m.ClientStream {
			return nil, fmt.Errorf("rest: %s has an HTTP path, and is not for strangers or takes a stream", m.FullName)
		}
		size := int64(m.Rule.GetMaxRequestBytes())
		if size == 0 {
			size = defaultMessage
		}
		for _, b := range bindings {
			r := &route{method: m.FullName, body: b.GetBody(), input: md.Input(), most: 2*size + 64<<10} // JSON is longer: base64, names of fields
			if r.verb, r.pattern = verbOf(b); r.verb == "" {
				return nil, fmt.Errorf("rest: %s has an HTTP path without a method", m.FullName)
			}
			if had, twice := all[r.key()]; twice {
				return nil, fmt.Errorf("rest: %s and %s have the same route %s", had.method, m.FullName, r.key())
			}
			all[r.key()] = r
		}
	}
	return all, nil
}

// descriptor finds the method that gRPC calls by this name.
func descriptor(full string) (protoreflect.MethodDescriptor, error) {
	service, method, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + method))
	if err != nil {
		return nil, fmt.Errorf("rest: %s: %w", full, err)
	}
	md, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("rest: %s is not a method", full)
	}
	return md, nil
}

func bindingsOf(md protoreflect.MethodDescriptor) []*annotations.HttpRule {
	r, ok := proto.GetExtension(md.Options(), annotations.E_Http).(*annotations.HttpRule)
	if !ok || r == nil || r.GetPattern() == nil {
		return nil
	}
	return append([]*annotations.HttpRule{r}, r.GetAdditionalBindings()...)
}

func verbOf(r *annotations.HttpRule) (verb, pattern string) {
	switch p := r.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		verb, pattern = http.MethodGet, p.Get
	case *annotations.HttpRule_Post:
		verb, pattern = http.MethodPost, p.Post
	case *annotations.HttpRule_Put:
		verb, pattern = http.MethodPut, p.Put
	case *annotations.HttpRule_Patch:
		verb, pattern = http.MethodPatch, p.Patch
	case *annotations.HttpRule_Delete:
		verb, pattern = http.MethodDelete, p.Delete
	}
	// grpc-gateway writes out what a variable matches.
	return verb, regexp.MustCompile(`\{([\w.]+)\}`).ReplaceAllString(pattern, "{$1=*}")
}

// unknown gives the first parameter of a query that is no field of the request, or that stands elsewhere, or "".
func (r *route) unknown(query map[string][]string, path map[string]string) string {
	for name := range query {
		field, _, _ := strings.Cut(name, "[")
		if !r.has(field, path) {
			return name
		}
	}
	return ""
}

func (r *route) has(name string, path map[string]string) bool {
	at := r.input
	var full []string
	for part := range strings.SplitSeq(name, ".") {
		if at == nil {
			return false
		}
		fd := at.Fields().ByJSONName(part)
		if fd == nil {
			fd = at.Fields().ByTextName(part)
		}
		if fd == nil || r.body == "*" || len(full) == 0 && r.body == fd.TextName() {
			return false
		}
		full = append(full, fd.TextName())
		at = fd.Message()
	}
	_, taken := path[strings.Join(full, ".")]
	return !taken
}
