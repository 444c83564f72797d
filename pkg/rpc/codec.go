package rpc

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec below
	"google.golang.org/grpc/mem"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// inbound is a request on its way into a message. grpc answers a message that it cannot decode by itself, before any link could map,
// log and record that; so the codec of our servers keeps the fault here instead of returning it.
type inbound struct {
	msg  any
	most int
	err  error
}

// codec is grpc's own for protobuf, but for inbound requests. A message above its method's size is not decoded at all.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*inbound)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	if data.Len() > in.most {
		in.err = tooLarge(in.most)
		return nil
	}
	if err := c.CodecV2.Unmarshal(data, in.msg); err != nil {
		in.err = fault.Wrap(err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, "the request message cannot be decoded; is the client's contract of the same version?")
	}
	return nil
}

func tooLarge(most int) error {
	return fault.New(codes.ResourceExhausted, faultv1.Reason_MESSAGE_TOO_LARGE, "the message is larger than the %d bytes that this method takes; send less at once", most)
}
