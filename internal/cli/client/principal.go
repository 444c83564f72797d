package client

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// ServicePrincipal says as whom a program that runs for months calls.
type ServicePrincipal struct {
	// ID is the OAuth client id: the principal's uid.
	ID string
	// Secret is asked for each token anew, so that a secret can be replaced while the program runs. The client wipes what it gets.
	Secret func() (redact.Secret, error)
	// Now is the clock that tokens age by; nil means time.Now.
	Now func() time.Time
}

// DialAs makes a client that calls as a service principal: it gets a token at the first call, another one when three quarters of its
// life are over, and a new one at once when the installation takes the old one no more.
func DialAs(c Context, p ServicePrincipal, opts ...grpc.DialOption) (*Client, error) {
	anyone, err := Dial(c, redact.Secret{}, opts...)
	if err != nil {
		return nil, err
	}
	if p.Now == nil {
		p.Now = time.Now
	}
	t := &tokens{principal: p, issuer: anyone}
	own := append([]grpc.DialOption{grpc.WithPerRPCCredentials(t), grpc.WithChainUnaryInterceptor(t.again)}, opts...)
	out, err := Dial(c, redact.Secret{}, own...)
	if err != nil {
		_ = anyone.Close()
		return nil, err
	}
	out.issuer = anyone
	return out, nil
}

// tokens are a service principal's, one at a time. It implements credentials.PerRPCCredentials.
type tokens struct {
	principal ServicePrincipal
	issuer    *Client

	mu         sync.Mutex // held while a token is fetched: one is enough for all who wait
	token      redact.Secret
	renew, end time.Time
}

// current is a token that is taken for a while yet.
func (t *tokens) current(ctx context.Context) (redact.Secret, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.principal.Now()
	if !t.token.Empty() && now.Before(t.renew) {
		return t.token, nil
	}
	secret, err := t.principal.Secret()
	if err != nil {
		return redact.Secret{}, err
	}
	defer secret.Wipe()
	r, err := t.issuer.Tokens().IssueToken(ctx, &identityv1.IssueTokenRequest{
		GrantType: "client_credentials", ClientId: t.principal.ID, ClientSecret: secret.RevealString(),
	})
	switch {
	case err == nil:
	case !t.token.Empty() && now.Before(t.end) && status.Code(err) == codes.Unavailable:
		return t.token, nil // the present one is good yet; the next call asks again
	default:
		return redact.Secret{}, err
	}
	// Its age counts from here, by this machine's clock alone.
	life := r.GetExpiresIn().AsDuration()
	t.token, t.renew, t.end = redact.FromString(r.GetAccessToken()), now.Add(life/4*3), now.Add(life)
	return t.token, nil
}

// forget drops a token that was refused, unless another has taken its place.
func (t *tokens) forget(refused redact.Secret) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.token.Equal(refused) {
		t.token = redact.Secret{}
	}
}

// again repeats a unary call once whose token was refused: nothing was done for it.
func (t *tokens) again(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	t.mu.Lock()
	before := t.token
	t.mu.Unlock()
	err := invoke(ctx, method, req, reply, cc, opts...)
	if status.Code(err) != codes.Unauthenticated || before.Empty() {
		return err
	}
	t.forget(before)
	return invoke(ctx, method, req, reply, cc, opts...)
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t *tokens) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := t.current(ctx)
	if err != nil {
		if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
			return nil, status.Error(s.Code(), s.Message())
		}
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return bearer{token}.GetRequestMetadata(ctx)
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (*tokens) RequireTransportSecurity() bool { return true }
