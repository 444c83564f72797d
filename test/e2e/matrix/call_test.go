package matrix

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rule"
)

// method is one row.
type method struct {
	*rule.Method
	service string // "workspace"
	short   string // "ResourceService/CreateWorkspace"
	output  protoreflect.MessageType
}

// methods are all rows: every method of every contract of ours that is linked.
func methods(t *testing.T) []method {
	t.Helper()
	table, err := rule.Load(rule.Registered("redoubt")...)
	must(t, err)
	var out []method
	for _, m := range table.Methods() {
		full := strings.TrimPrefix(m.FullName, "/")
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(full, "/", ".")))
		must(t, err)
		typ, err := protoregistry.GlobalTypes.FindMessageByName(d.(protoreflect.MethodDescriptor).Output().FullName())
		must(t, err)
		service, _, _ := strings.Cut(strings.TrimPrefix(full, "redoubt."), ".")
		out = append(out, method{Method: m, service: service, short: full[strings.LastIndexByte(full[:strings.IndexByte(full, '/')], '.')+1:], output: typ})
	}
	return out
}

// send sends a request as a caller and gives the status of the call. A stream is over with its first answer where the caller only
// listens, and ended in order where he sends.
func (f *fixture) send(t *testing.T, m method, req request, c caller) (requestID string, err error) {
	t.Helper()
	conn := c.conn(t, m.service)
	for {
		requestID = fmt.Sprintf("matrix.%d", f.seq.Add(1))
		err = fault.FromStatus(once(t, m, req, conn, append(c.auth(t, m.FullName), "x-request-id", requestID)))
		if fault.ReasonOf(err).String() != "RATE_LIMITED" {
			return requestID, err
		}
		time.Sleep(max(fault.Describe(err).RetryAfter(), 20*time.Millisecond)) // the limit says for how long
	}
}

func once(t *testing.T, m method, req request, conn *grpc.ClientConn, md []string) error {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), md...), 20*time.Second)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, m.FullName)
	if err != nil {
		return err
	}
	for _, in := range req.in {
		if err := s.SendMsg(in); err != nil {
			break // RecvMsg says why
		}
	}
	if !m.ClientStream || !m.ServerStream {
		_ = s.CloseSend()
	}
	if req.stir != nil {
		stop := stirring(ctx, req.stir)
		defer stop()
	}
	for first := true; ; first = false {
		err := s.RecvMsg(m.output.New().Interface())
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case m.ServerStream && !m.ClientStream:
			return nil
		case first && m.ClientStream && m.ServerStream:
			_ = s.CloseSend()
		}
	}
}

// stirring makes things happen until it is stopped.
func stirring(ctx context.Context, f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ctx = metadata.NewOutgoingContext(ctx, nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			f(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() { cancel(); <-done }
}

// elsewhere is a name in a subscription that there is not.
func elsewhere(name string) string {
	rest, ok := strings.CutPrefix(name, "subscriptions/")
	if !ok {
		return name
	}
	_, below, found := strings.Cut(rest, "/")
	if !found {
		return "subscriptions/none"
	}
	return "subscriptions/none/" + below
}

// field finds what a dotted path of a rule names.
func field(m proto.Message, path string) (protoreflect.Message, protoreflect.FieldDescriptor) {
	at := m.ProtoReflect()
	steps := strings.Split(path, ".")
	for _, step := range steps[:len(steps)-1] {
		at = at.Mutable(at.Descriptor().Fields().ByName(protoreflect.Name(step))).Message()
	}
	return at, at.Descriptor().Fields().ByName(protoreflect.Name(steps[len(steps)-1]))
}

// renamed is the request with its scope elsewhere.
func renamed(m method, req request) request {
	out := request{stir: req.stir, from: req.from}
	for i, in := range req.in {
		in = proto.Clone(in)
		if i == 0 {
			at, fd := field(in, m.Rule.GetScope())
			at.Set(fd, protoreflect.ValueOfString(elsewhere(at.Get(fd).String())))
		}
		out.in = append(out.in, in)
	}
	return out
}
