package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/retry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

const (
	// callTimeout bounds a unary call whose context has no deadline and whose rule names no time of its own.
	callTimeout = 30 * time.Second
	// slack is how much longer we wait than the server may take.
	slack = 5 * time.Second
	// maxMessage bounds one message in either direction: the gateway's limit.
	maxMessage = 40 << 20

	// firstWait and longestWait are between attempts to follow what broke off, longestConnect between tries to connect.
	firstWait      = 100 * time.Millisecond
	longestWait    = 3 * time.Second
	longestConnect = 5 * time.Second
)

// Context names an installation, and who speaks to it about what.
type Context struct {
	Name string
	// Server is the public URL: https://host:port.
	Server string
	// Address is where the server is dialled, host:port, where that is not what Server says; its certificate is still that of Server's host.
	Address string
	// CAPEM are the roots that are believed; where it is empty those in CAFile; where that is empty too, the system's.
	CAPEM  []byte
	CAFile string
	// Workspace and ResourceGroup are full resource names that stand in where a command names none.
	Workspace     string
	ResourceGroup string
	// User is whom the token was made for.
	User string
}

// Client calls one installation. It is safe for concurrent use.
type Client struct {
	ctx  Context
	conn *grpc.ClientConn
	// issuer is what a service principal's tokens come from, nil where the token is given.
	issuer *Client
	again  func(Context) (*Client, error)
}

// Dial makes a client that calls with the token; with an empty one only public methods answer. It does not connect: the first call
// does. opts come last, for tests and logging.
func Dial(c Context, token redact.Secret, opts ...grpc.DialOption) (*Client, error) {
	host, addr, err := address(c.Server)
	if err != nil {
		return nil, err
	}
	roots, err := c.Roots()
	if err != nil {
		return nil, err
	}
	if c.Address != "" {
		if _, _, err := net.SplitHostPort(c.Address); err != nil {
			return nil, fault.InvalidArgument("%q is not host:port", c.Address)
		}
		addr = c.Address
	}
	base := []grpc.DialOption{
		// gRPC offers h2 alone, by which the gateway tells its clients from those of HTTP/1.1.
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: host})),
		grpc.WithChainUnaryInterceptor(
			bounded,
			retry.UnaryClientInterceptor(retry.WithMax(0), retry.WithCodes(codes.Unavailable),
				retry.WithBackoff(retry.BackoffExponentialWithJitterBounded(rpc.RepeatFirst, 0.2, rpc.RepeatLongest))),
		),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// gRPC's own bound is two minutes, for which a host would not notice that the gateway is back.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: firstWait, Multiplier: 1.6, Jitter: 0.2, MaxDelay: longestConnect}, MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithUserAgent("redoubt-cli"),
		grpc.WithDisableServiceConfig(),
	}
	if !token.Empty() {
		base = append(base, grpc.WithPerRPCCredentials(bearer{token}))
	}
	conn, err := grpc.NewClient("dns:///"+addr, append(base, opts...)...)
	if err != nil {
		return nil, fault.InvalidArgument("%q is no address of an installation: %v", c.Server, err)
	}
	return &Client{ctx: c, conn: conn, again: func(c Context) (*Client, error) { return Dial(c, token, opts...) }}, nil
}

// Believing is a client of the same installation with the same proof and a connection of its own, which believes other roots.
func (c *Client) Believing(roots []byte) (*Client, error) {
	to := c.ctx
	to.CAPEM, to.CAFile = roots, ""
	return c.again(to)
}

// Close ends the connection.
func (c *Client) Close() error {
	if c.issuer != nil {
		_ = c.issuer.Close()
	}
	return c.conn.Close()
}

// Conn is the connection itself, for generated clients that have no method here.
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

// Context is what the client was dialled with.
func (c *Client) Context() Context { return c.ctx }

// The generated clients.

// Identity signs in and says who one is.
func (c *Client) Identity() identityv1.SignInServiceClient {
	return identityv1.NewSignInServiceClient(c.conn)
}

// Accounts shows and ends what one's own account has open.
func (c *Client) Accounts() identityv1.AccountServiceClient {
	return identityv1.NewAccountServiceClient(c.conn)
}

// Directory keeps users, groups and service principals.
func (c *Client) Directory() identityv1.DirectoryServiceClient {
	return identityv1.NewDirectoryServiceClient(c.conn)
}

// Tokens issues, exchanges and revokes tokens.
func (c *Client) Tokens() identityv1.TokenServiceClient {
	return identityv1.NewTokenServiceClient(c.conn)
}

// Operators issues certificates for people who reach services directly.
func (c *Client) Operators() identityv1.OperatorServiceClient {
	return identityv1.NewOperatorServiceClient(c.conn)
}

// Resources keeps subscriptions, resource groups and workspaces.
func (c *Client) Resources() workspacev1.ResourceServiceClient {
	return workspacev1.NewResourceServiceClient(c.conn)
}

// Access keeps role definitions and assignments.
func (c *Client) Access() workspacev1.AccessServiceClient {
	return workspacev1.NewAccessServiceClient(c.conn)
}

// Snapshots keeps folders of code.
func (c *Client) Snapshots() workspacev1.SnapshotServiceClient {
	return workspacev1.NewSnapshotServiceClient(c.conn)
}

// Computes keeps compute targets.
func (c *Client) Computes() computev1.ComputeServiceClient {
	return computev1.NewComputeServiceClient(c.conn)
}

// Runs submits and shows runs.
func (c *Client) Runs() computev1.RunServiceClient { return computev1.NewRunServiceClient(c.conn) }

// Experiments keeps named groups of runs.
func (c *Client) Experiments() computev1.ExperimentServiceClient {
	return computev1.NewExperimentServiceClient(c.conn)
}

// Tracking searches runs, and keeps those that happen elsewhere.
func (c *Client) Tracking() computev1.TrackingServiceClient {
	return computev1.NewTrackingServiceClient(c.conn)
}

// Models keeps models and their versions.
func (c *Client) Models() inferencev1.ModelServiceClient {
	return inferencev1.NewModelServiceClient(c.conn)
}

// Endpoints keeps endpoints and their deployments.
func (c *Client) Endpoints() inferencev1.EndpointServiceClient {
	return inferencev1.NewEndpointServiceClient(c.conn)
}

// Scoring scores under roles.
func (c *Client) Scoring() inferencev1.ScoringServiceClient {
	return inferencev1.NewScoringServiceClient(c.conn)
}

// Requests shows what was asked of endpoints.
func (c *Client) Requests() telemetryv1.RequestLogServiceClient {
	return telemetryv1.NewRequestLogServiceClient(c.conn)
}

// Secrets keeps secrets.
func (c *Client) Secrets() keyvaultv1.SecretServiceClient {
	return keyvaultv1.NewSecretServiceClient(c.conn)
}

// Keys keeps keys.
func (c *Client) Keys() keyvaultv1.KeyServiceClient { return keyvaultv1.NewKeyServiceClient(c.conn) }

// Metrics shows what runs measured.
func (c *Client) Metrics() telemetryv1.MetricServiceClient {
	return telemetryv1.NewMetricServiceClient(c.conn)
}

// Activity shows who did what.
func (c *Client) Activity() telemetryv1.ActivityServiceClient {
	return telemetryv1.NewActivityServiceClient(c.conn)
}

// SignIn turns a password into a session. A further factor that is asked for is a fault FACTOR_REQUIRED.
func (c *Client) SignIn(ctx context.Context, user string, password redact.Secret) (*identityv1.Session, error) {
	r, err := c.Identity().SignIn(ctx, &identityv1.SignInRequest{User: user, Password: password.RevealString()})
	if err != nil {
		return nil, err
	}
	if s := r.GetSession(); s != nil {
		return s, nil
	}
	return nil, fault.New(codes.FailedPrecondition, faultv1.Reason_FACTOR_REQUIRED, "a second factor is asked for; sign in with `redoubt login`")
}

// RootsPEM are those that the context believes, as PEM; empty for the system's.
func (c Context) RootsPEM() ([]byte, error) {
	if len(c.CAPEM) > 0 || c.CAFile == "" {
		return c.CAPEM, nil
	}
	text, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fault.InvalidArgument("the installation's root cannot be read: %v; give its file with --ca", err)
	}
	return text, nil
}

// Roots are those that the context believes; nil for the system's.
func (c Context) Roots() (*x509.CertPool, error) {
	text, err := c.RootsPEM()
	if err != nil {
		return nil, err
	}
	if len(text) == 0 && c.CAFile == "" {
		return nil, nil //nolint:nilnil // what crypto/tls takes for "the system's"
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fault.InvalidArgument("the installation's root is no PEM certificate; `redoubt up` writes it into its data folder")
	}
	return pool, nil
}

// address takes a public URL apart.
func address(server string) (host, addr string, err error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", "", fault.InvalidArgument("%q is no address of an installation: write https://host:port", server)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return u.Hostname(), net.JoinHostPort(u.Hostname(), port), nil
}

// Bearer are the credentials of a token that is good by itself.
func Bearer(token redact.Secret) credentials.PerRPCCredentials { return bearer{token} }

// bearer puts the token on every call, over TLS alone.
type bearer struct{ token redact.Secret }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token.RevealString()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return true }

// bounded gives a call its deadline and says whether it may be repeated.
func bounded(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout(method))
		defer cancel()
	}
	// What has a request id can be repeated too: the same one gives the same answer again.
	ided, _ := req.(interface{ GetRequestId() string })
	if rpc.Repeatable(ruleOf(method)) || ided != nil && ided.GetRequestId() != "" {
		opts = append(opts, retry.WithMax(rpc.RepeatTries))
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

// timeout is a little more than the server gives itself, so that its own word comes first.
func timeout(method string) time.Duration {
	r := ruleOf(method)
	if r.GetMaxSeconds() == 0 {
		return callTimeout + slack
	}
	return time.Duration(r.GetMaxSeconds())*time.Second + slack
}

// ruleOf is what a method declares, nil where it is none of ours.
func ruleOf(method string) *rulev1.Rule {
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", "."))
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return nil
	}
	r, _ := proto.GetExtension(d.Options(), rulev1.E_Rule).(*rulev1.Rule)
	return r
}
