package identity

import (
	"context"
	"net"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/edge"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/identity/internal/certport"
)

// CertificatePort is what the listener for clients with certificates needs.
type CertificatePort struct {
	// Chain is identity's, for peers that have no SPIFFE ID (rpc.Config.Enrolment).
	Chain *rpc.Chain
	// Certificate is what is shown to clients, asked for at each handshake.
	Certificate edge.Certificate
	Limits      edge.Limits
	// Refused is told of connections that got no further; nil tells nobody.
	Refused func(edge.Refusal)
}

// ServeCertificates serves the token endpoint at Config.CertificateURL, where a service principal proves itself by a certificate that was
// registered for it (RFC 8705), until ctx ends. The gateway cannot do that for it: it would have to vouch for who has connected there. It closes l.
func (s *Service) ServeCertificates(ctx context.Context, l net.Listener, p CertificatePort) error {
	if s.cfg.CertificateURL == "" {
		return fault.Internal(nil, "identity: a listener for certificates needs CertificateURL")
	}
	inside := new(rpc.Local)
	identityv1.RegisterProviderServiceServer(p.Chain.Registrar(inside), s.provider)
	return certport.Serve(ctx, l, certport.Config{
		Provider: identityv1.NewProviderServiceClient(inside), Certificate: p.Certificate, Limits: p.Limits, Refused: p.Refused, Now: s.cfg.Now, Logger: s.cfg.Logger,
	})
}
