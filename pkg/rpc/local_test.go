package rpc

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// A message of this process is held to the same size as one that came over a connection.
func TestLocalTakes(t *testing.T) {
	msg := &identityv1.RequestTokenRequest{Http: &identityv1.Exchange{Method: "POST", Body: make([]byte, 100)}}
	got := new(identityv1.RequestTokenRequest)
	in := &inbound{msg: got, most: proto.Size(msg)}
	if err := in.take(msg); err != nil || in.err != nil || !proto.Equal(got, msg) {
		t.Errorf("at the limit: %v %v %v", err, in.err, got)
	}
	got.Reset()
	in = &inbound{msg: got, most: proto.Size(msg) - 1}
	if err := in.take(msg); err != nil || fault.Code(in.err) != codes.ResourceExhausted || proto.Size(got) != 0 {
		t.Errorf("past the limit: %v %v %v", err, in.err, got)
	}
}

// What is not registered is not there, and streams are not.
func TestLocalUnknown(t *testing.T) {
	l := new(Local)
	if err := l.Invoke(t.Context(), "/a/b", &identityv1.Exchange{}, &identityv1.Page{}); fault.Code(err) != codes.Internal {
		t.Errorf("a method that is none: %v", err)
	}
	if _, err := l.NewStream(t.Context(), nil, "/a/b"); fault.Code(err) != codes.Internal {
		t.Errorf("a stream: %v", err)
	}
}
