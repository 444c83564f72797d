package rule

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
)

// contract builds the descriptor of a service X.S with one method M, whose request is the message Request:
//
//	name: string, reference workspace           names: repeated string, reference run
//	plain: string                               number: int64
//	nested: Nested {deep: string, reference run}        many: repeated Nested
//	loop: Loop {loop: Loop}
//
// and whatever change makes of it.
func contract(t *testing.T, r *rulev1.Rule, client, server bool, change func(*descriptorpb.FileDescriptorProto)) (protoreflect.FileDescriptor, *protoregistry.Files) {
	t.Helper()
	opts := &descriptorpb.MethodOptions{}
	if r != nil {
		proto.SetExtension(opts, rulev1.E_Rule, r)
	}
	f := &descriptorpb.FileDescriptorProto{
		Name: proto.String("x.proto"), Package: proto.String("x"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{
			{Name: proto.String("Request"), Field: []*descriptorpb.FieldDescriptorProto{
				str("name", 1, "workspace"), list(str("names", 2, "run")), str("plain", 3, ""),
				{Name: proto.String("number"), Number: proto.Int32(4), Type: descriptorpb.FieldDescriptorProto_TYPE_INT64.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()},
				message("nested", 5, ".x.Nested"), list(message("many", 6, ".x.Nested")), message("loop", 7, ".x.Loop"),
			}},
			{Name: proto.String("Nested"), Field: []*descriptorpb.FieldDescriptorProto{str("deep", 1, "run")}},
			{Name: proto.String("Loop"), Field: []*descriptorpb.FieldDescriptorProto{message("loop", 1, ".x.Loop")}},
		},
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("S"), Method: []*descriptorpb.MethodDescriptorProto{
			{Name: proto.String("M"), InputType: proto.String(".x.Request"), OutputType: proto.String(".x.Nested"), Options: opts, ClientStreaming: &client, ServerStreaming: &server},
		}}},
	}
	if change != nil {
		change(f)
	}
	fd, err := protodesc.NewFile(f, protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	files := new(protoregistry.Files)
	if err := files.RegisterFile(fd); err != nil {
		t.Fatal(err)
	}
	return fd, files
}

func str(name string, number int32, ref string) *descriptorpb.FieldDescriptorProto {
	f := &descriptorpb.FieldDescriptorProto{
		Name: &name, Number: &number, Type: descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
	}
	if ref != "" {
		f.Options = &descriptorpb.FieldOptions{}
		proto.SetExtension(f.Options, rulev1.E_Reference, ref)
	}
	return f
}

func message(name string, number int32, typ string) *descriptorpb.FieldDescriptorProto {
	return &descriptorpb.FieldDescriptorProto{
		Name: &name, Number: &number, TypeName: &typ, Type: descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
	}
}

func list(f *descriptorpb.FieldDescriptorProto) *descriptorpb.FieldDescriptorProto {
	f.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
	return f
}

// good is a rule with which the contract is clean.
func good() *rulev1.Rule {
	return &rulev1.Rule{
		Action: "x/things/write", Scope: "name", Audit: rulev1.Audit_AUDIT_ALWAYS,
		Uses: []*rulev1.Use{{Field: "names", Action: "x/runs/read"}, {Field: "nested.deep", Action: "x/runs/read"}, {Field: "many.deep", Action: "x/runs/use", Data: true}},
	}
}

// bare takes all references out of the contract.
func bare(f *descriptorpb.FileDescriptorProto) {
	for _, m := range f.GetMessageType() {
		for _, fd := range m.GetField() {
			fd.Options = nil
		}
	}
}

func request(f *descriptorpb.FileDescriptorProto) *descriptorpb.DescriptorProto {
	return f.GetMessageType()[0]
}

// TestBadRules has each fault that a contract may have; Load and Lint name it, and no server starts with it.
func TestBadRules(t *testing.T) {
	rule := func(change func(*rulev1.Rule)) *rulev1.Rule {
		r := good()
		change(r)
		return r
	}
	// only has one way to be allowed, and a contract without references.
	only := func(change func(*rulev1.Rule)) *rulev1.Rule {
		r := &rulev1.Rule{Audit: rulev1.Audit_AUDIT_DENIALS}
		change(r)
		return r
	}
	// delivers is about a run. ofRun is a request of nothing else, and atRun one with all that other contracts have besides.
	delivers := func(change func(*rulev1.Rule)) *rulev1.Rule {
		return only(func(r *rulev1.Rule) {
			r.Action, r.Scope, r.Run, r.Deliver = "x/things/write", "name", true, true
			change(r)
		})
	}
	atRun := func(f *descriptorpb.FileDescriptorProto) { request(f).Field[0] = str("name", 1, "run") }
	ofRun := func(f *descriptorpb.FileDescriptorProto) { bare(f); atRun(f) }
	cases := []struct {
		name           string
		rule           *rulev1.Rule
		client, server bool
		change         func(*descriptorpb.FileDescriptorProto)
		want           string // empty where all is right
	}{
		{name: "all is right", rule: good()},
		{name: "all is right on a stream", rule: rule(func(r *rulev1.Rule) { r.FirstMessage = true }), client: true},
		{name: "public alone", rule: only(func(r *rulev1.Rule) { r.Public = true }), change: bare},
		{name: "self alone, for runs too", rule: only(func(r *rulev1.Rule) { r.Self, r.Run = true, true }), change: bare},
		{name: "callers alone", rule: only(func(r *rulev1.Rule) { r.Callers = []string{"compute", "workspace"} }), change: bare},
		{name: "every service", rule: only(func(r *rulev1.Rule) { r.Callers = []string{"*"} }), change: bare},
		{name: "self with uses", rule: rule(func(r *rulev1.Rule) {
			r.Action, r.Scope, r.Self = "", "", true
			r.Uses = append(r.Uses, &rulev1.Use{Field: "name", Action: "x/things/read"})
		})},
		{name: "a stream of requests about the installation", rule: only(func(r *rulev1.Rule) { r.Action, r.Scope = "x/things/write", "/" }), client: true, change: bare},
		{name: "summary of a stream", rule: rule(func(r *rulev1.Rule) { r.Audit = rulev1.Audit_AUDIT_SUMMARY }), server: true},

		{name: "summary of calls that append data", rule: rule(func(r *rulev1.Rule) { r.Audit, r.Data = rulev1.Audit_AUDIT_SUMMARY, true })},

		{name: "no rule", want: "has no rule"},
		{name: "nobody may", rule: only(func(*rulev1.Rule) {}), change: bare, want: "says nobody"},
		{name: "an empty list of callers", rule: only(func(r *rulev1.Rule) { r.Callers = []string{} }), change: bare, want: "says nobody"},
		{name: "action and public", rule: rule(func(r *rulev1.Rule) { r.Public = true }), want: "sets action and public"},
		{name: "action and callers", rule: rule(func(r *rulev1.Rule) { r.Callers = []string{"compute"} }), want: "sets action and callers"},
		{name: "action and self", rule: rule(func(r *rulev1.Rule) { r.Self = true }), want: "sets action and self"},
		{name: "public and self", rule: only(func(r *rulev1.Rule) { r.Public, r.Self = true, true }), change: bare, want: "sets public and self"},
		{name: "callers and public", rule: only(func(r *rulev1.Rule) { r.Callers, r.Public = []string{"*"}, true }), change: bare, want: "sets callers and public"},
		{name: "audit unspecified", rule: rule(func(r *rulev1.Rule) { r.Audit = 0 }), want: "audit: it is unspecified"},
		{name: "audit unknown", rule: rule(func(r *rulev1.Rule) { r.Audit = 9 }), want: "audit: 9 is not known"},
		{name: "summary of a unary call", rule: rule(func(r *rulev1.Rule) { r.Audit = rulev1.Audit_AUDIT_SUMMARY }), want: "AUDIT_SUMMARY is for streams, and for calls that append data"},
		{name: "action of two segments", rule: rule(func(r *rulev1.Rule) { r.Action = "x/write" }), want: `action "x/write"`},
		{name: "action with a wildcard", rule: rule(func(r *rulev1.Rule) { r.Action = "x/*/write" }), want: `action "x/*/write"`},
		{name: "action in upper case", rule: rule(func(r *rulev1.Rule) { r.Action = "X/things/write" }), want: `action "X/things/write"`},
		{name: "no scope", rule: rule(func(r *rulev1.Rule) { r.Scope = "" }), want: "has an action and no scope"},
		{name: "scope that is missing", rule: rule(func(r *rulev1.Rule) { r.Scope = "parent" }), want: `scope: field "parent": x.Request has no field "parent"`},
		{name: "scope of the Go name", rule: rule(func(r *rulev1.Rule) { r.Scope = "Name" }), want: `has no field "Name"`},
		{name: "scope that is a number", rule: rule(func(r *rulev1.Rule) { r.Scope = "number" }), want: `scope: field "number": it is not a string`},
		{name: "scope that is a message", rule: rule(func(r *rulev1.Rule) { r.Scope = "nested" }), want: `scope: field "nested": it is not a string`},
		{name: "scope in a list", rule: rule(func(r *rulev1.Rule) { r.Scope = "names" }), want: `scope: field "names": "names" is a list`},
		{name: "scope below a list", rule: rule(func(r *rulev1.Rule) { r.Scope = "many.deep" }), want: `"many" is a list`},
		{name: "scope below a string", rule: rule(func(r *rulev1.Rule) { r.Scope = "name.deep" }), want: `"name" is not a message`},
		{name: "scope that is not marked", rule: rule(func(r *rulev1.Rule) { r.Scope = "plain" }), want: `scope: field "plain": it is not marked`},
		{name: "scope with an empty step", rule: rule(func(r *rulev1.Rule) { r.Scope = "nested." }), want: `has no field ""`},
		{name: "scope without an action", rule: only(func(r *rulev1.Rule) { r.Self, r.Scope = true, "name" }), change: bare, want: "and no action"},
		{name: "scope of a public method", rule: only(func(r *rulev1.Rule) { r.Public, r.Scope = true, "/" }), change: bare, want: "and no action"},
		{name: "callers that do not exist", rule: only(func(r *rulev1.Rule) { r.Callers = []string{"compte"} }), change: bare, want: `"compte" is not a service`},
		{name: "callers with an empty name", rule: only(func(r *rulev1.Rule) { r.Callers = []string{""} }), change: bare, want: `"" is not a service`},
		{name: "callers twice", rule: only(func(r *rulev1.Rule) { r.Callers = []string{"compute", "compute"} }), change: bare, want: "twice"},
		{name: "callers all and one", rule: only(func(r *rulev1.Rule) { r.Callers = []string{"compute", "*"} }), change: bare, want: "stands alone"},
		{name: "uses of a public method", rule: only(func(r *rulev1.Rule) { r.Public, r.Uses = true, good().Uses }), want: "no principal"},
		{name: "uses of services", rule: only(func(r *rulev1.Rule) { r.Callers, r.Uses = []string{"*"}, good().Uses }), want: "no principal"},
		{name: "uses that are missing", rule: rule(func(r *rulev1.Rule) { r.Uses[0].Field = "gone" }), want: `uses: field "gone"`},
		{name: "uses of nothing", rule: rule(func(r *rulev1.Rule) { r.Uses[0].Field = "" }), want: `uses: field ""`},
		{name: "uses of a number", rule: rule(func(r *rulev1.Rule) { r.Uses[0].Field = "number" }), want: `uses: field "number": it is not a string`},
		{name: "uses without an action", rule: rule(func(r *rulev1.Rule) { r.Uses[1].Action = "" }), want: `uses: action ""`},
		{name: "uses of the scope", rule: rule(func(r *rulev1.Rule) { r.Uses[0].Field = "name" }), want: "is the scope already"},
		{name: "first message of a unary call", rule: rule(func(r *rulev1.Rule) { r.FirstMessage = true }), want: "sets first_message, and the requests are not a stream"},
		{name: "first message of an answer stream", rule: rule(func(r *rulev1.Rule) { r.FirstMessage = true }), server: true, want: "sets first_message, and the requests are not a stream"},
		{name: "first message with nothing in it", rule: only(func(r *rulev1.Rule) { r.Self, r.FirstMessage = true, true }), client: true, change: bare, want: "nothing of the message is looked at"},
		{name: "a stream that is not bound", rule: good(), client: true, want: "takes a stream of requests: set first_message"},
		{name: "run of a public method", rule: only(func(r *rulev1.Rule) { r.Public, r.Run = true, true }), change: bare, want: "sets run without"},
		{name: "run of services", rule: only(func(r *rulev1.Rule) { r.Callers, r.Run = []string{"*"}, true }), change: bare, want: "sets run without"},
		{name: "deliver to a run", rule: delivers(func(*rulev1.Rule) {}), change: ofRun},
		{name: "deliver without run", rule: delivers(func(r *rulev1.Rule) { r.Run = false }), change: ofRun, want: "sets deliver without run"},
		{name: "deliver of a method for oneself", rule: only(func(r *rulev1.Rule) { r.Self, r.Run, r.Deliver = true, true, true }), change: bare, want: "sets deliver without run and an action"},
		{name: "deliver at a workspace", rule: rule(func(r *rulev1.Rule) { r.Run, r.Deliver = true, true }), want: "sets deliver, and its scope is no run"},
		{name: "deliver at the installation", rule: only(func(r *rulev1.Rule) {
			r.Action, r.Scope, r.Run, r.Deliver = "x/things/write", "/", true, true
		}), change: bare, want: "sets deliver, and its scope is no run"},
		{name: "deliver with uses", rule: delivers(func(r *rulev1.Rule) { r.Uses = good().Uses }), change: atRun, want: "or it has uses"},
		{name: "data without an action", rule: only(func(r *rulev1.Rule) { r.Self, r.Data = true, true }), change: bare, want: "sets data without"},
		{name: "a fresh sign-in at two kinds of scope", rule: rule(func(r *rulev1.Rule) {
			r.StepUp, r.StepUpPrograms, r.StepUpAt = 900, true, []string{"root", "workspace"}
		})},
		{name: "a fresh sign-in of nobody", rule: only(func(r *rulev1.Rule) { r.Self, r.StepUp = true, 900 }), change: bare, want: "sets step_up without an action"},
		{name: "programs without a fresh sign-in", rule: rule(func(r *rulev1.Rule) { r.StepUpPrograms = true }), want: "without step_up"},
		{name: "places without a fresh sign-in", rule: rule(func(r *rulev1.Rule) { r.StepUpAt = []string{"root"} }), want: "without step_up"},
		{name: "a fresh sign-in nowhere", rule: rule(func(r *rulev1.Rule) { r.StepUp, r.StepUpAt = 900, []string{"installation"} }), want: "no kind of resource"},
		{name: "a sign-in that is fresh for days", rule: rule(func(r *rulev1.Rule) { r.StepUp = 1 << 20 }), want: "is more than"},
		{name: "a fresh sign-in on a stream", rule: rule(func(r *rulev1.Rule) { r.StepUp, r.FirstMessage = 900, true }), client: true, want: "sets step_up on a stream"},
		{name: "requests without bound", rule: rule(func(r *rulev1.Rule) { r.MaxRequestBytes = 1 << 31 }), want: "max_request_bytes"},
		{name: "a reference left out", rule: rule(func(r *rulev1.Rule) { r.Uses = r.Uses[1:] }), want: `field "names" of the request is a reference`},
		{name: "a nested reference left out", rule: rule(func(r *rulev1.Rule) { r.Uses = append(r.Uses[:1:1], r.Uses[2]) }), want: `field "nested.deep" of the request is a reference`},
		{name: "a reference in a list left out", rule: rule(func(r *rulev1.Rule) { r.Uses = r.Uses[:2] }), want: `field "many.deep" of the request is a reference`},
		{name: "a reference of a public method", rule: only(func(r *rulev1.Rule) { r.Public = true }), want: `field "name" of the request is a reference`},
		{name: "a reference of a self method", rule: only(func(r *rulev1.Rule) { r.Self = true }), want: `field "name" of the request is a reference`},
		{name: "a reference to no kind", rule: good(), change: func(f *descriptorpb.FileDescriptorProto) {
			request(f).Field[0] = str("name", 1, "Workspace")
		}, want: `"Workspace" is not a kind`},
		{name: "a number as reference", rule: good(), change: func(f *descriptorpb.FileDescriptorProto) {
			request(f).Field[3].Options = request(f).Field[0].GetOptions()
		}, want: `field "number" of the request is a reference`},
		{name: "a reference in a loop", rule: good(), change: func(f *descriptorpb.FileDescriptorProto) {
			f.MessageType[2].Field = append(f.MessageType[2].Field, str("again", 2, "run"))
		}, want: "inside a message that holds itself"},
		{name: "a reference in a map", rule: good(), change: func(f *descriptorpb.FileDescriptorProto) {
			request(f).NestedType = []*descriptorpb.DescriptorProto{{
				Name: proto.String("ByEntry"), Options: &descriptorpb.MessageOptions{MapEntry: proto.Bool(true)},
				Field: []*descriptorpb.FieldDescriptorProto{str("key", 1, ""), message("value", 2, ".x.Nested")},
			}}
			request(f).Field = append(request(f).Field, list(message("by", 8, ".x.Request.ByEntry")))
		}, want: "inside a map"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			fd, files := contract(t, c.rule, c.client, c.server, c.change)
			tab, err := load(files, foreign(), []string{"x.S"})
			all := Lint(fd)
			if c.want == "" {
				if err != nil || len(all) > 0 {
					t.Fatalf("Load: %v; Lint: %v", err, all)
				}
				if _, ok := tab.Lookup("/x.S/M"); !ok {
					t.Error("it is not in the table")
				}
				return
			}
			if err == nil || tab != nil {
				t.Fatal("Load takes it")
			}
			found := false
			for _, e := range all {
				found = found || strings.Contains(e.Error(), c.want)
				if !strings.HasPrefix(e.Error(), "/x.S/M: ") {
					t.Errorf("the method is not named: %v", e)
				}
			}
			if !found || !strings.Contains(err.Error(), c.want) {
				t.Errorf("wanted %q; Load: %v; Lint: %v", c.want, err, all)
			}
		})
	}
}

// TestNestedUses reads values through messages and lists.
func TestNestedUses(t *testing.T) {
	fd, files := contract(t, good(), false, false, nil)
	tab, err := load(files, nil, []string{"x.S"})
	if err != nil {
		t.Fatal(err)
	}
	m, _ := tab.Lookup("/x.S/M")
	md := fd.Messages().ByName("Request")
	msg := dynamicpb.NewMessage(md)
	field := func(n protoreflect.Name) protoreflect.FieldDescriptor { return md.Fields().ByName(n) }
	if got := m.Uses(msg); len(got) != 0 {
		t.Errorf("an empty request uses %+v", got)
	}
	msg.Mutable(field("names")).List().Append(protoreflect.ValueOfString("a"))
	msg.Mutable(field("names")).List().Append(protoreflect.ValueOfString(""))
	nested := fd.Messages().ByName("Nested")
	deep := nested.Fields().ByName("deep")
	msg.Mutable(field("nested")).Message().Set(deep, protoreflect.ValueOfString("b"))
	for _, s := range []string{"c", "", "d"} {
		el := msg.Mutable(field("many")).List().AppendMutable().Message()
		el.Set(deep, protoreflect.ValueOfString(s))
	}
	var got []string
	for _, u := range m.Uses(msg) {
		got = append(got, u.Field+"="+u.Name+" "+u.Action)
	}
	// An empty element of a list of names stays, to be refused; a string that is not set in one of many messages is not used.
	want := "names=a x/runs/read, names= x/runs/read, nested.deep=b x/runs/read, many.deep=c x/runs/use, many.deep=d x/runs/use"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
	if err := m.Later("", m.Uses(msg), msg); err != nil {
		t.Errorf("the same message again: %v", err)
	}
	if err := m.Later("", m.Uses(msg)[1:], msg); err == nil {
		t.Error("a further use passes in a later message")
	}
}
