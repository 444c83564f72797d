package rpc

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Local carries unary calls to a service of this very process, for a listener of its own that speaks something else than gRPC: register a service
// through a chain's Registrar, and call it by its client. The call passes the chain as one that came over a connection does. Its peer and its metadata
// are those of the context (peer.NewContext, metadata.NewIncomingContext): whoever makes that vouches for them.
//
// Register everything before the first call; after that it is safe for concurrent use. The zero Local has no service.
type Local struct{ methods map[string]localMethod }

type localMethod struct {
	impl    any
	handler grpc.MethodHandler
}

// RegisterService implements grpc.ServiceRegistrar. Streams are left out.
func (l *Local) RegisterService(desc *grpc.ServiceDesc, impl any) {
	if l.methods == nil {
		l.methods = make(map[string]localMethod, len(desc.Methods))
	}
	for _, m := range desc.Methods {
		l.methods["/"+desc.ServiceName+"/"+m.MethodName] = localMethod{impl, m.Handler}
	}
}

// Invoke implements grpc.ClientConnInterface.
func (l *Local) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	m, ok := l.methods[method]
	if !ok {
		return fault.Internal(nil, fmt.Sprintf("%s is not served inside this process", method))
	}
	resp, err := m.handler(m.impl, ctx, func(v any) error {
		in, ok := v.(*inbound)
		if !ok {
			return fault.Internal(nil, "a local call that does not pass the chain")
		}
		return in.take(args.(proto.Message))
	}, nil)
	if err != nil {
		return err
	}
	proto.Merge(reply.(proto.Message), resp.(proto.Message))
	return nil
}

// NewStream implements grpc.ClientConnInterface.
func (*Local) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, fault.Internal(nil, "streams are not served inside this process")
}

// take is what the codec does with a message that came over a connection.
func (in *inbound) take(m proto.Message) error {
	if n := proto.Size(m); n > in.most {
		in.err = tooLarge(in.most)
		return nil
	}
	proto.Merge(in.msg.(proto.Message), m)
	return nil
}
