package rpc

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// maxMessage is the room that a request needs beside its declared limit: field tags and the like.
const maxMessage = 64 << 10

// NewServer makes the gRPC server of a service, with the limits that every listener of the mesh has. The services named are
// those that will be registered; the largest request of theirs is the server's. Stop it with GracefulStop.
func (c *Chain) NewServer(creds credentials.TransportCredentials, services ...string) *grpc.Server {
	return grpc.NewServer(
		grpc.Creds(creds),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(c.MaxRequestBytes(services...)+maxMessage),
		// One connection carries all that the gateway passes on to this process: more than it has calls open (4,000), so that no stranger's
		// calls make others wait.
		grpc.MaxConcurrentStreams(8192),
		grpc.MaxHeaderListSize(64<<10),
		grpc.ConnectionTimeout(10*time.Second),
		// A peer proves itself at the handshake: a connection must not outlive what it proved by long.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, MaxConnectionAge: c.cfg.Limits.ConnectionAge, MaxConnectionAgeGrace: c.cfg.Limits.ConnectionAge / 2}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.NumStreamWorkers(64),
		grpc.WaitForHandlers(true),
		grpc.UnknownServiceHandler(c.unknown),
	)
}

// unknown answers what no service has, in the form of all other refusals.
func (c *Chain) unknown(_ any, ss grpc.ServerStream) error {
	call := &Call{Context: ss.Context(), m: &method{chain: c}}
	_ = call.identify()
	full, _ := grpc.MethodFromServerStream(ss)
	if len(full) > 128 {
		full = full[:128] + "…"
	}
	err := fault.New(codes.Unimplemented, faultv1.Reason_METHOD_UNKNOWN, "%s has no method %q; `redoubt permissions` lists what there is", c.cfg.Service, full)
	return fault.ToStatus(err, c.domain, call.RequestID).Err()
}
