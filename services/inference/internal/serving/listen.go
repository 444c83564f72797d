package serving

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/edge"
)

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 32 << 10
	// maxStreams is how many requests one HTTP/2 connection may have under way. net/http ends a connection that resets them faster than
	// they end.
	maxStreams = 128
	// stopTimeout is how long requests may go on when the server stops.
	stopTimeout = 5 * time.Second
)

// Serve takes requests from scoring and workers' connections from replicas until ctx ends. Requests that are under way then have 5 s, and
// their workers as long. It closes both listeners.
func (s *Server) Serve(ctx context.Context, scoring, replicas net.Listener) error {
	both, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	pooled := make(chan error, 1)
	go func() { pooled <- s.pool.Serve(both, replicas) }()
	conf := edge.TLS(edge.Mesh(s.cfg.Certificate), s.cfg.Now, "h2", "http/1.1")
	srv := &http.Server{
		Handler: s, TLSConfig: conf, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		DisableGeneralOptionsHandler: true, ErrorLog: slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReadFrameSize: 64 << 10, MaxReceiveBufferPerConnection: 4 << 20, MaxReceiveBufferPerStream: 1 << 20,
			SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second, WriteByteTimeout: s.cfg.Edge.WriteTimeout,
		},
	}
	outside := edge.Listen(scoring, edge.Config{TLS: conf, Limits: s.cfg.Edge, Refused: s.cfg.OnRefused, Logger: s.cfg.Logger})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(outside) }()
	select {
	case <-ctx.Done():
	case err := <-served:
		served <- err
	case err := <-pooled:
		pooled <- err
	}
	stop, cut := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cut()
	if srv.Shutdown(stop) != nil {
		_ = srv.Close()
	}
	err := <-served
	s.grpc.stop()
	cancel()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	err = errors.Join(err, <-pooled)
	s.Wait()
	return err
}
