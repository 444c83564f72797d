package canary

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
	"github.com/redoubt-ml/redoubt/pkg/rule"
)

// whole tells whether all is tried: in `make attack`. Without it, as in `make test`, some.
func whole() bool { return os.Getenv("ATTACK_FULL") != "" }

// answers are what a client was told when he was refused, and by which method.
type answers struct {
	mu    sync.Mutex
	calls int
	all   []said
}

type said struct {
	by   string
	text []byte
}

func (a *answers) add(by string, b []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls++
	a.all = append(a.all, said{by, b})
}

// refused notes a call's error as it came: its words and its details.
func (a *answers) refused(by string, err error) {
	if err == nil {
		a.add(by, nil)
		return
	}
	st, _ := status.FromError(err)
	b, _ := proto.Marshal(st.Proto())
	a.add(by, append(b, err.Error()...))
}

// wire passes bytes as messages, so that they need not be any.
type wire struct{}

// Marshal implements encoding.Codec.
func (wire) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

// Unmarshal implements encoding.Codec.
func (wire) Unmarshal(b []byte, v any) error { *v.(*[]byte) = b; return nil }

// Name implements encoding.Codec.
func (wire) Name() string { return "proto" }

// filler puts a canary into each text of a message, changed as the variant says.
type filler struct {
	w      *walk
	method string
	change func(canary string) string
	// internal methods are called by services alone.
	internal bool
}

func (f filler) value(path string, sensitive bool) string {
	what := "field " + f.method + " " + path
	if f.w.canaries[what] == "" {
		f.w.text(what)
		if sensitive {
			f.w.sensitive[what] = true
		}
	}
	return f.change(f.w.canaries[what])
}

// fill reports whether the message has any text.
func (f filler) fill(m protoreflect.Message, path string, depth int) (any bool) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		at := path + string(fd.Name())
		sensitive, _ := proto.GetExtension(fd.Options(), rulev1.E_Sensitive).(bool)
		scalar := func(fd protoreflect.FieldDescriptor, at string) (protoreflect.Value, bool) {
			switch fd.Kind() {
			case protoreflect.StringKind:
				return protoreflect.ValueOfString(f.value(at, sensitive)), true
			case protoreflect.BytesKind:
				return protoreflect.ValueOfBytes([]byte(f.value(at, sensitive))), true
			}
			return protoreflect.Value{}, false
		}
		nested := func(m protoreflect.Message) bool {
			return depth > 0 && !strings.HasPrefix(string(m.Descriptor().FullName()), "google.") && f.fill(m, at+".", depth-1)
		}
		switch {
		case fd.IsMap():
			k, ok := scalar(fd.MapKey(), at+" key")
			if !ok {
				continue
			}
			v, ok := scalar(fd.MapValue(), at+" value")
			if !ok {
				v = m.Mutable(fd).Map().NewValue()
			}
			m.Mutable(fd).Map().Set(k.MapKey(), v)
			any = true
		case fd.IsList():
			v, ok := scalar(fd, at)
			if !ok && fd.Kind() == protoreflect.MessageKind {
				v = m.Mutable(fd).List().NewElement()
				ok = nested(v.Message())
			}
			if ok {
				m.Mutable(fd).List().Append(v)
				any = true
			}
		case fd.Kind() == protoreflect.MessageKind:
			if sub := m.NewField(fd); nested(sub.Message()) {
				m.Set(fd, sub)
				any = true
			}
		default:
			if f.internal && strings.HasSuffix(at, "_uid") { // made by a service, and clear by design (docs/data.md)
				continue
			}
			if v, ok := scalar(fd, at); ok {
				m.Set(fd, v)
				any = true
			}
		}
	}
	return any
}

// Messages in good form and in each bad one: too long, with NUL, not UTF-8, cut off, and with texts where numbers are.
var variants = []struct {
	name   string
	change func(canary string) string
	bend   func(b []byte, canary string) []byte
}{
	{"as it should be", func(c string) string { return c }, nil},
	{"too long", func(c string) string { return c + strings.Repeat("x", 70<<10) }, nil},
	{"with NUL", func(c string) string { return c + "\x00" + c }, nil},
	{"not UTF-8", func(c string) string { return c + "\x01\x02" }, func(b []byte, _ string) []byte {
		return bytes.ReplaceAll(b, []byte("\x01\x02"), []byte("\xff\xfe"))
	}},
	{"cut off", func(c string) string { return c }, func(b []byte, _ string) []byte { return b[:len(b)-2] }},
	{"of wrong types", func(c string) string { return c }, func(b []byte, c string) []byte {
		for n := protowire.Number(1); n < 16; n++ {
			b = protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), c)
		}
		return b
	}},
}

// fields sends a canary in each field of each request of each method, by gRPC and by REST.
func (w *walk) fields() {
	table, err := rule.Load(rule.Registered("redoubt")...)
	w.must(err)
	outside := mesh.Dial(w.t, "")
	client := w.browser()
	w.text("name in a path of REST")
	type job struct {
		method string
		conn   *grpc.ClientConn
		token  bool
		bodies [][]byte
	}
	var jobs []job
	methods, fields := 0, len(w.canaries)
	var rest []func()
	for _, m := range table.Methods() {
		full := strings.TrimPrefix(m.FullName, "/")
		service, _, _ := strings.Cut(strings.TrimPrefix(full, "redoubt."), ".")
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(full, "/", ".")))
		w.must(err)
		md := d.(protoreflect.MethodDescriptor)
		// Those would stop what is searched, and who follows a feed without hearing it holds all changes up.
		if strings.Contains(full, "Maintenance") || len(m.Rule.GetCallers()) > 0 && m.ServerStream {
			continue
		}
		conn := outside
		if callers := m.Rule.GetCallers(); len(callers) > 0 {
			from := callers[0]
			if from == "*" {
				from = "compute"
			}
			if mesh.Nodes[service] == nil || mesh.Nodes[from] == nil {
				continue
			}
			conn = mesh.Peer(w.t, from, service)
		}
		j := job{method: m.FullName, conn: conn, token: len(m.Rule.GetCallers()) == 0 && !m.Rule.GetPublic()}
		for _, v := range variants {
			if v.name == "of wrong types" && len(m.Rule.GetCallers()) > 0 { // its texts would stand for uids
				continue
			}
			if !whole() && v.name != "as it should be" && v.name != "cut off" && v.name != "of wrong types" {
				continue
			}
			msg := dynamicpb.NewMessage(md.Input())
			if !(filler{w, full, v.change, len(m.Rule.GetCallers()) > 0}).fill(msg, "", 3) {
				break
			}
			b, err := proto.Marshal(msg)
			w.must(err)
			if v.bend != nil {
				b = v.bend(b, w.any(full))
			}
			j.bodies = append(j.bodies, b)
			if h, _ := proto.GetExtension(md.Options(), annotations.E_Http).(*annotations.HttpRule); h.GetPattern() != nil && v.bend == nil {
				rest = append(rest, func() { w.rest(client, full, h, msg) })
			}
		}
		if len(j.bodies) > 0 {
			methods++
			jobs = append(jobs, j)
		}
	}
	auth := "Bearer " + mesh.Admin(w.t)
	w.parallel(len(jobs), func(i int) {
		begun := time.Now()
		defer func() {
			if d := time.Since(begun); d > 5*time.Second {
				w.t.Logf("%s took %v", jobs[i].method, d.Round(time.Second))
			}
		}()
		for _, b := range jobs[i].bodies {
			ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
			if jobs[i].token {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", auth)
			}
			w.said.refused(jobs[i].method, once(ctx, jobs[i].conn, jobs[i].method, b))
			cancel()
		}
	})
	calls := w.said.calls
	w.parallel(len(rest), func(i int) {
		if whole() || i%8 == 0 {
			rest[i]()
		}
	})
	w.t.Logf("%d calls by gRPC, %d by REST", calls, w.said.calls-calls)
	w.t.Logf("%d methods, %d fields, %d calls", methods, len(w.canaries)-fields, w.said.calls)
	if methods < 100 || len(w.canaries)-fields < 300 {
		w.t.Errorf("only %d methods with %d fields", methods, len(w.canaries)-fields)
	}
}

// any is a canary of the method, a sensitive one if it has any.
func (w *walk) any(method string) string {
	found := ""
	for what, c := range w.canaries {
		if strings.HasPrefix(what, "field "+method+" ") && (found == "" || w.sensitive[what]) {
			found = c
		}
	}
	return found
}

func (w *walk) parallel(n int, do func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range 4 {
		wg.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// once makes a call of any kind, as far as its first answer.
func once(ctx context.Context, conn *grpc.ClientConn, method string, body []byte) error {
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method, grpc.ForceCodec(wire{}))
	if err != nil {
		return err
	}
	if err := s.SendMsg(&body); err == nil {
		_ = s.CloseSend()
	}
	var out []byte
	return s.RecvMsg(&out)
}

var variable = regexp.MustCompile(`\{([a-z_.]+)(?:=([^}]*))?\}`)

// rest sends the message as JSON to the method's route, well and badly, and its texts in the query.
func (w *walk) rest(client *http.Client, method string, h *annotations.HttpRule, msg proto.Message) {
	verb, path := http.MethodPost, h.GetPost()
	for v, p := range map[string]string{http.MethodGet: h.GetGet(), http.MethodPut: h.GetPut(), http.MethodPatch: h.GetPatch(), http.MethodDelete: h.GetDelete()} {
		if p != "" {
			verb, path = v, p
		}
	}
	canary := w.any(method)
	name := w.canaries["name in a path of REST"] // which a refusal may repeat
	path = variable.ReplaceAllStringFunc(path, func(s string) string {
		if pattern := variable.FindStringSubmatch(s)[2]; pattern != "" {
			return strings.ReplaceAll(strings.ReplaceAll(pattern, "**", "*"), "*", name)
		}
		return name
	})
	b, err := protojson.Marshal(msg)
	w.must(err)
	var in map[string]any
	w.must(json.Unmarshal(b, &in))
	marshal := func(v any) string {
		b, err := json.Marshal(v)
		w.must(err)
		return string(b)
	}
	text := string(b)
	bodies := []string{text}
	if len(text) < 64<<10 {
		bodies = append(bodies, text[:len(text)-2], text+text, "["+text+"]", marshal(bent(in, func(s string) any { return []any{s} })), marshal(bent(in, func(s string) any { return map[string]any{"x": s} })),
			marshal(bent(in, func(s string) any { return map[string]any{s: 1} })), `{"`+canary+`":1}`, `"`+canary+`"`, strings.ReplaceAll(text, `"`, `'`))
	}
	query := url.Values{}
	for k, v := range in {
		if s, ok := v.(string); ok && len(s) < 1000 {
			query.Set(k, s)
		}
	}
	for _, body := range bodies {
		w.ask(client, "REST "+method, verb, path, body, http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + mesh.Admin(w.t)}})
	}
	w.ask(client, "REST "+method, verb, path+"?"+query.Encode(), "", http.Header{"Authorization": {"Bearer " + mesh.Admin(w.t)}})
}

// bent is the value with each text as something else.
func bent(v any, as func(string) any) any {
	switch v := v.(type) {
	case string:
		return as(v)
	case []any:
		out := slices.Clone(v)
		for i := range out {
			out[i] = bent(out[i], as)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k := range v {
			out[k] = bent(v[k], as)
		}
		return out
	}
	return v
}

// browser is an HTTP client that goes nowhere by itself.
func (w *walk) browser() *http.Client {
	cfg := mesh.TLS()
	cfg.NextProtos = nil
	tr := &http.Transport{TLSClientConfig: cfg, MaxIdleConnsPerHost: 8}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// ask notes the answer of a request that is refused, and gives it.
func (w *walk) ask(client *http.Client, by, verb, path, body string, header http.Header) (*http.Response, string) {
	req, err := http.NewRequestWithContext(w.ctx, verb, mesh.URL+path, strings.NewReader(body))
	if err != nil {
		w.t.Errorf("%s: %v", by, err)
		return nil, ""
	}
	req.Header = header
	res, err := client.Do(req)
	if err != nil {
		w.said.add(by, []byte(strings.ReplaceAll(err.Error(), req.URL.String(), ""))) // the client's own words name what it asked for
		return nil, ""
	}
	defer func() { _ = res.Body.Close() }()
	b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if res.StatusCode >= 400 {
		w.said.add(by, fmt.Appendf(nil, "%v\n%s", res.Header, b))
	} else {
		w.said.add(by, nil)
	}
	return res, string(b)
}
