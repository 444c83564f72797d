package conformance

import (
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// I: large streams come through whole. It prints how fast, beside the same without the gateway.
func TestLargeStreams(t *testing.T) {
	f := start(t)
	const messages, size = 256, 256 << 10
	down := func(c *grpc.ClientConn) float64 {
		req := &testgrpc.StreamingOutputCallRequest{}
		for range messages {
			req.ResponseParameters = append(req.ResponseParameters, &testgrpc.ResponseParameters{Size: size})
		}
		began := time.Now()
		s, err := testgrpc.NewTestServiceClient(c).StreamingOutputCall(t.Context(), req)
		ok(t, err)
		n := 0
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			ok(t, err)
			n += len(m.GetPayload().GetBody())
		}
		if n != messages*size {
			t.Fatalf("%d bytes came", n)
		}
		return float64(n) / 1e6 / time.Since(began).Seconds()
	}
	up := func(c *grpc.ClientConn) float64 {
		began := time.Now()
		s, err := testgrpc.NewTestServiceClient(c).StreamingInputCall(t.Context())
		ok(t, err)
		m := &testgrpc.StreamingInputCallRequest{Payload: &testgrpc.Payload{Body: make([]byte, size)}}
		for range messages {
			ok(t, s.Send(m))
		}
		r, err := s.CloseAndRecv()
		ok(t, err)
		if r.GetAggregatedPayloadSize() != messages*size {
			t.Fatalf("%d bytes came", r.GetAggregatedPayloadSize())
		}
		return float64(messages*size) / 1e6 / time.Since(began).Seconds()
	}
	for name, one := range map[string]func(*grpc.ClientConn) float64{"down": down, "up": up} {
		one(f.outside)
		var through, direct float64
		for range 3 {
			through, direct = max(through, one(f.outside)), max(direct, one(f.direct))
		}
		t.Logf("64 MiB %s: %.0f MB/s through the gateway, %.0f MB/s without (%.2f); the best of three each, all in one process", name, through, direct, through/direct)
	}
}
