package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec of the services that the gateway serves itself
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/onward"
)

// frame is one message on its way through, never decoded.
type frame struct{ data mem.BufferSlice }

// codec passes frames as they are, and encodes what the gateway answers itself.
type codec struct{}

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		return f.data, nil
	}
	return encoding.GetCodecV2("proto").Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		data.Ref()
		f.data = data
		return nil
	}
	return encoding.GetCodecV2("proto").Unmarshal(data, v)
}

// Name implements encoding.CodecV2.
func (codec) Name() string { return "proto" }

// forward passes a call on to the service that the method belongs to, message by message in both directions.
func (s *Service) forward(_ any, in grpc.ServerStream) error {
	full, _ := grpc.MethodFromServerStream(in)
	service, ok := s.routes[full]
	var more []string
	if !ok {
		service, more, ok = s.foreign(full)
	}
	if !ok {
		if len(full) > 128 {
			full = full[:128] + "…"
		}
		return s.refuse(in.Context(), fault.New(codes.Unimplemented, faultv1.Reason_METHOD_UNKNOWN, "there is no method %q here; `redoubt permissions` lists what there is", full))
	}
	ctx, cancel := context.WithCancel(outgoing(in.Context(), more))
	defer cancel()
	if s.watch[full] {
		defer context.AfterFunc(s.drained, cancel)()
	}
	// Nobody answers for the caller of a public method: until his message is here whole, the service does not hear of him, and he has some
	// time for it. His first message is all that such a method takes.
	var first []*frame
	if s.public[full] {
		ctx, cancel = context.WithTimeout(ctx, s.cfg.PublicTimeout)
		defer cancel()
		var err error
		if first, err = s.message(ctx, in); err != nil {
			return s.away(in.Context(), service, err)
		}
	}
	out, err := s.cfg.Peers[service].NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, full, grpc.ForceCodecV2(codec{}),
		grpc.MaxCallRecvMsgSize(s.cfg.MaxMessageBytes), grpc.MaxCallSendMsgSize(s.cfg.MaxMessageBytes))
	if err != nil {
		return s.away(in.Context(), service, err)
	}
	// When the service has said its last word the call is over, whether or not the caller has: up ends with the caller's stream,
	// which ends when this returns. To wait for it here would be to wait for a caller who waits for this answer.
	go up(in, out, first)
	err = down(in, out)
	in.SetTrailer(outward(out.Trailer()))
	if err != nil && s.watch[full] && s.drained.Err() != nil && in.Context().Err() == nil {
		return s.refuse(in.Context(), fault.Unavailable("this gateway is being stopped; watch again").Retry(watchAgain))
	}
	if err != nil && more != nil { // no service of ours: its words are its own
		return err
	}
	if err != nil {
		return s.away(in.Context(), service, err)
	}
	return nil
}

// watchAgain is after how long who watched is asked to come back.
const watchAgain = 100 * time.Millisecond

// foreign finds the service of others that a method belongs to.
func (s *Service) foreign(full string) (peer string, metadata []string, ok bool) {
	for _, f := range s.cfg.Foreign {
		if m, ok := strings.CutPrefix(full, "/"+f.Service+"/"); ok && m != "" && !strings.Contains(m, "/") {
			return f.Peer, f.Metadata, true
		}
	}
	return "", nil, false
}

// message takes the first message of a call, as long as ctx goes on and not too many others are waited for. A call without one gives none:
// the service says what is missing.
func (s *Service) message(ctx context.Context, in grpc.ServerStream) ([]*frame, error) {
	crowded := make(chan struct{})
	defer s.unsent.Enter(connectionOf(ctx).from, func() { close(crowded) })()
	type message struct {
		f   *frame
		err error
	}
	came := make(chan message, 1)
	go func() { // ends with the caller's stream
		f := &frame{}
		err := in.RecvMsg(f)
		came <- message{f, err}
	}()
	select {
	case m := <-came:
		if errors.Is(m.err, io.EOF) {
			return []*frame{}, nil
		}
		return []*frame{m.f}, m.err
	case <-crowded:
		return nil, errOpen
	case <-ctx.Done():
		return nil, fault.New(codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED, "the message of this call did not come in time")
	}
}

// up takes the caller's messages to the service, after the first where that has been read. It returns when the caller has sent all, or the
// stream is over: why is what down reads.
func up(in grpc.ServerStream, out grpc.ClientStream, first []*frame) {
	for _, f := range first {
		if err := out.SendMsg(f); err != nil {
			return
		}
	}
	for {
		f := &frame{}
		err := in.RecvMsg(f)
		if errors.Is(err, io.EOF) {
			_ = out.CloseSend()
			return
		}
		if err != nil {
			return
		}
		if err := out.SendMsg(f); err != nil {
			return
		}
	}
}

// down takes the service's answers to the caller.
func down(in grpc.ServerStream, out grpc.ClientStream) error {
	// Headers go on as soon as they come, also before the first message: a watch says with them that it has begun.
	if h, err := out.Header(); err == nil && h != nil {
		if err := in.SendHeader(outward(h)); err != nil {
			return err
		}
	}
	for {
		f := &frame{}
		err := out.RecvMsg(f)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := in.SendMsg(f); err != nil {
			return err
		}
	}
}

// outgoing is the caller's context with the metadata that may pass, and his address.
func outgoing(ctx context.Context, more []string) context.Context {
	md := make(metadata.MD, 6)
	for _, k := range append(onward.Inward(), more...) {
		v := metadata.ValueFromIncomingContext(ctx, k)
		if !strings.HasSuffix(k, "-bin") { // those are any bytes, and gRPC encodes them
			v = onward.Readable(v)
		}
		if len(v) > 0 {
			md[k] = v
		}
	}
	if a := address(ctx); a != "" {
		md[rpc.AddressHeader] = []string{a}
	}
	return metadata.NewOutgoingContext(ctx, md)
}

func address(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return ""
	}
	return host
}

// outward drops what belongs to the connection behind.
func outward(md metadata.MD) metadata.MD {
	out := metadata.MD{}
	for k, v := range md {
		switch k {
		case "content-type", "date", "server", "via", rpc.AddressHeader:
		default:
			out[k] = v
		}
	}
	return out
}

// away passes a service's own status on as it is. A status without a reason is the transport's: the caller reads ours instead.
func (s *Service) away(ctx context.Context, service string, err error) error {
	if ours := (*fault.Error)(nil); errors.As(err, &ours) {
		return s.refuse(ctx, err)
	}
	err = onward.Fault(ctx, err, service, s.cfg.MaxMessageBytes, s.cfg.Logger)
	if st, ok := status.FromError(err); ok && len(st.Details()) > 0 {
		return err
	}
	return s.refuse(ctx, err)
}

func (s *Service) refuse(ctx context.Context, err error) error {
	return s.refuseWith(err, metadata.ValueFromIncomingContext(ctx, "x-request-id"))
}

// refuseWith names the id that the caller gave, if it is one.
func (s *Service) refuseWith(err error, ids []string) error {
	id := ""
	if len(ids) == 1 && len(ids[0]) <= 64 {
		id = ids[0]
	}
	return fault.ToStatus(err, "redoubt."+s.cfg.Installation, id).Err()
}
