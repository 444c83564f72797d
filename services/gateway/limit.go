package gateway

import (
	"context"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/edge"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// connection is what is known of the connection that a call came on.
type connection struct {
	credentials.TLSInfo
	from string // its network
	cut  func() error
}

// punished is who is told of an address whose connection had to be ended.
type punished struct{ tell func(from string) }

func (s *Service) punishing(from string) {
	if p := s.punish.Load(); p != nil {
		p.tell(from)
	}
}

// leastFrames that carry nothing are any client's, a second.
const leastFrames = 100

// leastStreams that may be begun from an address, a second: more than any call's rate that is set for a test or a small installation.
const leastStreams = 400

// guard looks after a connection's frames. Who makes calls sends few that carry nothing: half as many as calls are more than enough.
func (s *Service) guard(c net.Conn) net.Conn {
	from := edge.Network(edge.Host(c.RemoteAddr().String()))
	return edge.Guard(c, max(s.cfg.Calls.PerSecond/2, leastFrames), func(n int) bool { return s.begun.Take(from, n, s.cfg.Now()) }, s.cfg.Now, func() { s.punishing(from) })
}

func connectionOf(ctx context.Context) connection {
	if p, ok := peer.FromContext(ctx); ok {
		if c, ok := p.AuthInfo.(connection); ok {
			return c
		}
	}
	return connection{}
}

// tap holds an address to its rate before a call has cost anything. Who goes on asking for far more, on however many connections, is cut: a flood
// of streams that are reset at once costs a server that answers each with a refusal too. It must not block: the transport waits for it.
func (s *Service) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	c, now := connectionOf(ctx), s.cfg.Now()
	wait := s.rates.Allow(c.from, now)
	if wait == 0 {
		return ctx, nil
	}
	if c.cut != nil && s.refused.Allow(c.from, now) > 0 {
		_ = c.cut()
		s.punishing(c.from)
	}
	return nil, s.refuseWith(tooMany(wait), info.Header.Get("x-request-id"))
}

func tooMany(wait time.Duration) error {
	return fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED, "too many calls from this address; wait and repeat").Retry(wait)
}

var errOpen = fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED, "too many calls are under way from this address, or in all; end some, or wait and repeat").Retry(time.Second)

// counted counts the calls that are under way.
func (s *Service) counted(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	from := connectionOf(ss.Context()).from
	if !s.open.Enter(from) {
		return s.refuse(ss.Context(), errOpen)
	}
	defer s.open.Leave(from)
	return next(srv, ss)
}

func (s *Service) countedUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	from := connectionOf(ctx).from
	if !s.open.Enter(from) {
		return nil, s.refuse(ctx, errOpen)
	}
	defer s.open.Leave(from)
	return next(ctx, req)
}

// limited holds HTTP requests to the same: each is a call.
func (s *Service) limited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from := edge.Network(edge.Host(r.RemoteAddr))
		if wait := s.rates.Allow(from, s.cfg.Now()); wait > 0 {
			s.refuseHTTP(w, r, tooMany(wait))
			return
		}
		if !s.open.Enter(from) {
			s.refuseHTTP(w, r, errOpen)
			return
		}
		defer s.open.Leave(from)
		next.ServeHTTP(w, r)
	})
}

// refuseHTTP answers 429 in the words of REST: whose words the client understands is not known yet.
func (s *Service) refuseHTTP(w http.ResponseWriter, r *http.Request, err error) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Connection", "close") // what is left of the body is not worth waiting for
	s.rest.Refuse(w, r, err)
}
