// Package certport owns the listener at which OAuth clients prove themselves by a TLS certificate (RFC 8705): the token endpoint and nothing else.
//
// Trust boundary: the network is in front of it. Its handshake, in identity's own process, proves that the client holds the key of the certificate that
// it shows; that is all that it says of a client. Whose certificate it is the provider decides, request by request. Nothing that a request says counts as a
// certificate.
//
// Invariants: TLS 1.3 with a certificate of the client's, or no connection; no session is resumed, so each connection has proved its key itself;
// connections, handshakes, requests under way and bodies are bounded, in all and by address; every request passes the chain, with its address,
// its request id and its record.
//
// Failure: closed. Without a certificate of its own the listener ends handshakes; what is no request for a token is 404.
package certport

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/edge"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/oauthwire"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

const (
	headerTimeout = 10 * time.Second
	readTimeout   = 20 * time.Second // of a request whole
	writeTimeout  = 45 * time.Second // from the end of its head to the end of its answer: the call has 30 s
	idleTimeout   = time.Minute
	stopTimeout   = 5 * time.Second
	maxHeader     = 16 << 10
	// Requests that may be under way, in all and of one address. A client asks once an hour.
	maxOpen, maxOpenOfOne = 256, 64
)

// Config of Serve. All but Limits and Refused is required.
type Config struct {
	// Provider is asked, through identity's chain, in this process.
	Provider identityv1.ProviderServiceClient
	// Certificate is what the listener shows, asked for at each handshake.
	Certificate edge.Certificate
	Limits      edge.Limits
	// Refused is told of connections that got no further. It must not block.
	Refused func(edge.Refusal)
	Now     func() time.Time
	Logger  *slog.Logger
}

// TLS is the listener's side of handshakes. Any certificate is let through them, of any authority or none: only those that were registered count.
func TLS(certificate edge.Certificate, now func() time.Time) *tls.Config {
	c := edge.TLS(certificate, now, "http/1.1")
	c.MinVersion, c.CipherSuites, c.ClientAuth = tls.VersionTLS13, nil, tls.RequireAnyClientCert
	return c
}

// Serve takes requests from l until ctx ends; those under way then have 5 s. It closes l.
func Serve(ctx context.Context, l net.Listener, cfg Config) error {
	p := &port{cfg: cfg, open: edge.NewOpen(maxOpen, maxOpenOfOne)}
	srv := &http.Server{
		Handler: p, ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		DisableGeneralOptionsHandler: true, ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	outside := edge.Listen(l, edge.Config{TLS: TLS(cfg.Certificate, cfg.Now), Limits: cfg.Limits, Refused: cfg.Refused, Logger: cfg.Logger})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(outside) }()
	select {
	case <-ctx.Done():
	case err := <-served:
		_ = outside.Close()
		return err
	}
	stop, cut := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cut()
	if srv.Shutdown(stop) != nil {
		_ = srv.Close()
	}
	_ = outside.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// port answers requests.
type port struct {
	cfg  Config
	open *edge.Open
}

var errOpen = fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED, "too many requests are under way from this address, or in all; wait and repeat").Retry(time.Second)

// ServeHTTP implements http.Handler.
func (p *port) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	if r.URL.Path != provider.PathToken || r.Method != http.MethodPost {
		oauthwire.Say(w, http.StatusNotFound, "not_found", "there is no such route: this address takes requests for tokens, by POST")
		return
	}
	from := edge.Network(edge.Host(r.RemoteAddr))
	if !p.open.Enter(from) {
		h.Set("Connection", "close") // what is left of the body is not worth waiting for
		oauthwire.Refuse(w, errOpen, p.cfg.Logger)
		return
	}
	defer p.open.Leave(from)
	ctx, ok := calling(r)
	if !ok {
		oauthwire.Say(w, http.StatusUnauthorized, "invalid_client", "the connection has proved no certificate")
		return
	}
	x, err := oauthwire.Read(w, r, "")
	if err != nil {
		oauthwire.Say(w, http.StatusBadRequest, "invalid_request", err.Error())
		return
	}
	page, err := p.cfg.Provider.RequestToken(ctx, &identityv1.RequestTokenRequest{Http: x})
	if err != nil {
		oauthwire.Refuse(w, fault.FromStatus(err), p.cfg.Logger)
		return
	}
	h.Set("Content-Type", page.GetContentType())
	w.WriteHeader(int(page.GetStatus()))
	_, _ = w.Write(page.GetBody()) // fails when the caller is gone
}

// calling is the context of the call that a request becomes: who is at the other end, and the few headers that name the request.
func calling(r *http.Request) (context.Context, bool) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, false
	}
	md := make(metadata.MD, 3)
	for _, name := range []string{"x-request-id", "traceparent", "tracestate"} {
		if v := r.Header.Values(name); len(v) == 1 && !strings.ContainsFunc(v[0], func(c rune) bool { return c < 0x20 || c > 0x7e }) {
			md.Set(name, v[0])
		}
	}
	return metadata.NewIncomingContext(peer.NewContext(r.Context(), &peer.Peer{
		Addr: net.TCPAddrFromAddrPort(from), AuthInfo: provider.Proven{Certificate: r.TLS.PeerCertificates[0]},
	}), md), true
}
