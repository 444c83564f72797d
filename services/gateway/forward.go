package gateway

import (
	"context"
	"errors"
	"io"
	"net"

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
	if !ok {
		if len(full) > 128 {
			full = full[:128] + "…"
		}
		return s.refuse(in.Context(), fault.New(codes.Unimplemented, faultv1.Reason_METHOD_UNKNOWN, "there is no method %q here; `redoubt permissions` lists what there is", full))
	}
	ctx, cancel := context.WithCancel(outgoing(in.Context()))
	defer cancel()
	if s.public[full] {
		ctx, cancel = context.WithTimeout(ctx, s.cfg.PublicTimeout)
		defer cancel()
	}
	out, err := s.cfg.Peers[service].NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, full, grpc.ForceCodecV2(codec{}),
		grpc.MaxCallRecvMsgSize(s.cfg.MaxMessageBytes), grpc.MaxCallSendMsgSize(s.cfg.MaxMessageBytes))
	if err != nil {
		return s.away(in.Context(), service, err)
	}
	// When the service has said its last word the call is over, whether or not the caller has: up ends with the caller's stream,
	// which ends when this returns. To wait for it here would be to wait for a caller who waits for this answer.
	go up(in, out)
	err = down(in, out)
	in.SetTrailer(outward(out.Trailer()))
	if err != nil {
		return s.away(in.Context(), service, err)
	}
	return nil
}

// up takes the caller's messages to the service. It returns when the caller has sent all, or the stream is over: why is what
// down reads.
func up(in grpc.ServerStream, out grpc.ClientStream) {
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
func outgoing(ctx context.Context) context.Context {
	md := make(metadata.MD, 6)
	for _, k := range onward.Inward() {
		if v := metadata.ValueFromIncomingContext(ctx, k); len(v) > 0 {
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
	err = onward.Fault(ctx, err, service, s.cfg.MaxMessageBytes, s.cfg.Logger)
	if st, ok := status.FromError(err); ok && len(st.Details()) > 0 {
		return err
	}
	return s.refuse(ctx, err)
}

func (s *Service) refuse(ctx context.Context, err error) error {
	id := ""
	if v := metadata.ValueFromIncomingContext(ctx, "x-request-id"); len(v) == 1 && len(v[0]) <= 64 {
		id = v[0]
	}
	return fault.ToStatus(err, "redoubt."+s.cfg.Installation, id).Err()
}
