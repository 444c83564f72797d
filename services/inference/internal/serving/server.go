package serving

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// Config of the server. Certificate and MeshTLS are required.
type Config struct {
	// Certificate is what the scoring listener shows, asked for at each handshake.
	Certificate func() (*tls.Certificate, error)
	// CertificateFile and KeyFile are shown in its place where they are set, and read again when they change.
	CertificateFile, KeyFile string
	// MeshTLS is the server side of the mesh's mutual TLS, for the replica listener.
	MeshTLS func(svid.Authorize) *tls.Config
	// TrustDomain is that of the replicas' identities.
	TrustDomain string
	Now         func() time.Time
	Logger      *slog.Logger
}

// Endpoint is what the listener needs to know of one endpoint. It is not changed after Set.
type Endpoint struct {
	UID, WorkspaceUID, Name string
	Kind                    inferencev1.Endpoint_Kind
	Auth                    inferencev1.Endpoint_Auth
	// Credentials of the form Auth only.
	Credentials []Credential
	// Deployments by id.
	Deployments map[string]*Deployment
	// Traffic are the deployments that get a share of more than 0 percent.
	Traffic []Share
	Mirror  *Share
}

// Credential opens an endpoint. Label is "key-primary", "key-secondary" or "token"; a zero Expires is never.
type Credential struct {
	Hash             [32]byte
	Label, Principal string
	Expires          time.Time
}

// Share is a deployment's part of the requests.
type Share struct {
	Deployment string
	Percent    int
}

// Deployment is what the listener needs to know of one deployment.
type Deployment struct {
	ID, UID string
	// Model and ModelVersion are what it serves, by id and number.
	Model, ModelVersion string
	QueueLength         int
	MaxBodyBytes        int64
	Timeout             time.Duration
	// Replicas are the uids of the runs that take requests now.
	Replicas []string
}

// Server is the two listeners. It is safe for concurrent use.
type Server struct {
	cfg     Config
	changed chan struct{}

	mu        sync.Mutex
	endpoints map[string]*Endpoint
	expected  map[string]struct{}
}

// New makes the server.
func New(cfg Config) (*Server, error) {
	if cfg.Certificate == nil || cfg.MeshTLS == nil {
		return nil, errors.New("serving: Certificate and MeshTLS are required")
	}
	return &Server{cfg: cfg, changed: make(chan struct{}, 1), endpoints: make(map[string]*Endpoint), expected: make(map[string]struct{})}, nil
}

// Set makes an endpoint what e says. When it returns, no request that begins later sees the earlier state.
func (s *Server) Set(e *Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endpoints[e.UID] = e
}

// Remove makes an endpoint unknown.
func (s *Server) Remove(endpointUID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.endpoints, endpointUID)
}

// Expect takes connections of a replica from now on.
func (s *Server) Expect(runUID, workspaceUID, deploymentUID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expected[runUID+" "+workspaceUID+" "+deploymentUID] = struct{}{}
}

// Forget closes the connections of a replica, and takes no more.
func (s *Server) Forget(string) {}

// Ready is how many workers of a replica are connected.
func (s *Server) Ready(string) int { return 0 }

// Changed has a token after workers came or went.
func (s *Server) Changed() <-chan struct{} { return s.changed }

// Drain returns when no request is on the connections of a replica any more.
func (s *Server) Drain(context.Context, string) error { return nil }

// Serve takes connections until ctx ends. It closes both listeners.
func (s *Server) Serve(ctx context.Context, scoring, replicas net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "Healthy") })
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		ErrorLog:  slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, CipherSuites: aeadOnly, SessionTicketsDisabled: true, Time: s.cfg.Now, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.cfg.Certificate() }},
	}
	stop := context.AfterFunc(ctx, func() {
		_ = srv.Close()
		_ = replicas.Close()
	})
	defer stop()
	go s.refuse(tls.NewListener(replicas, s.cfg.MeshTLS(nil)))
	if err := srv.ServeTLS(scoring, "", ""); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// aeadOnly is what TLS 1.2 may use: forward secrecy and authenticated encryption. TLS 1.3 has nothing else.
var aeadOnly = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// refuse ends every handshake of the replica listener: nobody is allowed there yet.
func (s *Server) refuse(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = c.Read(make([]byte, 1))
		}()
	}
}
