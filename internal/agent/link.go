package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

const (
	callTimeout = 10 * time.Second // of one try of a unary call
	firstPause  = 100 * time.Millisecond
	longPause   = 5 * time.Second
	mostRefusal = 5 // how often in a row a call may be refused for what may pass, such as a service that has just started
)

// link is the connection to the gateway, and the credentials of every call on it.
type link struct {
	conn      *grpc.ClientConn
	key       *ecdsa.PrivateKey
	prover    *authn.Prover
	publicURL string
	now       func() time.Time
	log       *slog.Logger

	agents    identityv1.AgentServiceClient
	runs      computev1.AgentRunServiceClient
	snapshots workspacev1.SnapshotServiceClient
	metrics   telemetryv1.MetricServiceClient
	models    inferencev1.ModelServiceClient

	mu      sync.Mutex
	token   redact.Secret
	svid    *svid.SVID // the last one that came; nil before
	roots   *Roots
	certify bool // a new one is asked for with each new token
	csr     []byte
	expires time.Time
	life    time.Duration // of the current token, as it was given
	renewed chan struct{} // closed when the token is replaced
}

func newLink(cfg Config, key *ecdsa.PrivateKey) (*link, error) {
	prover, err := authn.NewProver(key, cfg.Now)
	if err != nil {
		return nil, err
	}
	l := &link{key: key, prover: prover, publicURL: cfg.PublicURL, now: cfg.Now, log: cfg.Logger, roots: cfg.Roots, renewed: make(chan struct{})}
	l.conn, err = grpc.NewClient("dns:///"+cfg.Gateway,
		grpc.WithTransportCredentials(l.roots.Credentials("", cfg.Now)),
		grpc.WithPerRPCCredentials(l),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
	)
	if err != nil {
		return nil, fmt.Errorf("agent: the gateway's address: %w", err)
	}
	l.agents, l.runs = identityv1.NewAgentServiceClient(l.conn), computev1.NewAgentRunServiceClient(l.conn)
	l.snapshots, l.metrics = workspacev1.NewSnapshotServiceClient(l.conn), telemetryv1.NewMetricServiceClient(l.conn)
	l.models = inferencev1.NewModelServiceClient(l.conn)
	return l, nil
}

// GetRequestMetadata implements credentials.PerRPCCredentials: the token and a fresh proof, for each try of each call.
func (l *link) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token := l.current()
	if token.Empty() {
		return nil, nil // enrolment, which is public
	}
	info, ok := credentials.RequestInfoFromContext(ctx)
	if !ok {
		return nil, errors.New("agent: a call without a method")
	}
	proof, err := l.prover.Proof("POST", l.publicURL+info.Method, token.RevealString(), "")
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "DPoP " + token.RevealString(), "dpop": proof}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (*link) RequireTransportSecurity() bool { return true }

func (l *link) current() redact.Secret {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.token
}

// fresh is the channel that is closed when the token is replaced: streams are opened again then.
func (l *link) fresh() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewed
}

func (l *link) take(res *identityv1.EnrolAgentResponse) error {
	now, expires := l.now(), res.GetExpireTime().AsTime()
	if res.GetRunToken() == "" || !expires.After(now) {
		return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, "the gateway gave a token that is over; look at this machine's clock")
	}
	own, err := svid.Held(l.key, res.GetSvid(), res.GetRoots(), now)
	if err != nil && len(res.GetSvid()) > 0 {
		l.log.Warn("identity's certificate for this run cannot be used", "error", err)
	}
	if _, err := l.roots.Take(res.GetRoots()); err != nil {
		l.log.Warn("the roots that came with the token cannot be used", "error", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.svid = own
	}
	l.token, l.expires, l.life = redact.FromString(res.GetRunToken()), expires, expires.Sub(now)
	close(l.renewed)
	l.renewed = make(chan struct{})
	return nil
}

// identity is the agent's SVID as it is now.
func (l *link) identity() (*svid.SVID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.svid == nil {
		return nil, errNoIdentity
	}
	return l.svid, nil
}

// certified asks for a certificate with each new token from now on, and says whether there is one.
func (l *link) certified() error {
	l.mu.Lock()
	l.certify = true
	l.mu.Unlock()
	_, err := l.identity()
	return err
}

// request is the certificate request for the next token, nil for none.
func (l *link) request() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.certify {
		return nil
	}
	return l.csr
}

// enrol exchanges the join token for the run's token. It may be repeated: the join token is used up by the key.
func (l *link) enrol(ctx context.Context, join redact.Secret) error {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "agent"}}, l.key)
	if err != nil {
		return fmt.Errorf("agent: certificate request: %w", err)
	}
	l.mu.Lock()
	l.csr = csr
	l.mu.Unlock()
	return l.retry(ctx, func(ctx context.Context) error {
		res, err := l.agents.EnrolAgent(ctx, &identityv1.EnrolAgentRequest{JoinToken: join.RevealString(), Csr: csr})
		if err != nil {
			return err
		}
		return l.take(res)
	})
}

// keepFresh replaces the token at half of its life, until ctx ends or no other token can be had any more. The error is why.
func (l *link) keepFresh(ctx context.Context) error {
	for {
		l.mu.Lock()
		wait, expires := l.expires.Sub(l.now())-l.life/2, l.expires
		l.mu.Unlock()
		if err := pause(ctx, wait); err != nil {
			return err
		}
		// As long as the old one is good, and not longer.
		rest, cancel := context.WithTimeout(ctx, expires.Sub(l.now()))
		err := l.retry(rest, func(ctx context.Context) error {
			res, err := l.agents.RenewRunToken(ctx, &identityv1.RenewRunTokenRequest{Csr: l.request()})
			if err != nil {
				return err
			}
			return l.take(res)
		})
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && kindOf(err) == over:
			// The run is over, or is to end and may only deliver: a heartbeat hears which. The token that there is has to do for that.
			if err := pause(ctx, expires.Sub(l.now())); err != nil {
				return err
			}
			fallthrough
		case err != nil:
			return fault.Wrap(err, codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, "the run's token could not be renewed in time")
		}
	}
}

func (l *link) close() error {
	err := l.conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.token.Wipe()
	l.token = redact.Secret{}
	return err
}

// retry calls f, each time with a deadline, until it succeeds, is refused for good, or ctx ends. The error is f's last one.
func (l *link) retry(ctx context.Context, f func(context.Context) error) error {
	return l.retryEach(ctx, callTimeout, f)
}

func (l *link) retryEach(ctx context.Context, each time.Duration, f func(context.Context) error) error {
	var b pauses
	for refused := 0; ; {
		try, cancel := context.WithCancel(ctx)
		if each > 0 {
			cancel()
			try, cancel = context.WithTimeout(ctx, each)
		}
		err := f(try)
		cancel()
		if err == nil {
			return nil
		}
		switch kindOf(err) {
		case over:
			return err
		case refusal:
			if refused++; refused >= mostRefusal {
				return err
			}
		case final:
			return err
		case transient:
			refused = 0
		}
		l.log.Debug("a call is repeated", "error", reasonText(err))
		if wait := b.next(err); pause(ctx, wait) != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// pauses grow, with some chance in them so that agents do not come all at once.
type pauses struct{ last time.Duration }

func (b *pauses) reset() { b.last = 0 }

func (b *pauses) next(err error) time.Duration {
	b.last = min(max(2*b.last, firstPause), longPause)
	wait := b.last/2 + mathrand.N(b.last/2+1)
	var f *fault.Error
	if errors.As(fault.FromStatus(err), &f) && f.RetryAfter() > wait {
		wait = min(f.RetryAfter(), 6*longPause)
	}
	return wait
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// kind of an error: what is to be done about it.
type kind int

const (
	transient kind = iota // repeat
	refusal               // may pass: repeat a few times
	final                 // repeating changes nothing
	over                  // the run has ended for the platform
)

func kindOf(err error) kind {
	switch fault.ReasonOf(fault.FromStatus(err)) {
	case faultv1.Reason_RUN_ENDED, faultv1.Reason_TOKEN_REVOKED, faultv1.Reason_TOKEN_EXPIRED:
		return over
	case faultv1.Reason_JOIN_TOKEN_INVALID, faultv1.Reason_AUTHZ_OUTSIDE_RUN:
		return final
	case faultv1.Reason_RATE_LIMITED, faultv1.Reason_AUTHZ_STATE_STALE, faultv1.Reason_SERVICE_UNAVAILABLE, faultv1.Reason_AUDIT_UNAVAILABLE,
		faultv1.Reason_STORAGE_FULL:
		return transient
	}
	switch fault.Code(fault.FromStatus(err)) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted, codes.Canceled:
		return transient
	case codes.InvalidArgument, codes.AlreadyExists, codes.ResourceExhausted, codes.OutOfRange, codes.Unimplemented, codes.FailedPrecondition, codes.DataLoss:
		return final
	}
	return refusal
}

// reasonText is what may stand in the operator's log of an error: nothing that a tenant wrote.
func reasonText(err error) string {
	f := fault.FromStatus(err)
	return fault.Code(f).String() + " " + fault.ReasonOf(f).String()
}

// settle ends a stream in good order, so that its record says so: nothing more is sent, and the other side ends it when it has
// answered what was. A peer that does not is left after a while.
func settle(s interface{ CloseSend() error }, heard *sync.WaitGroup, cancel context.CancelFunc) {
	defer cancel()
	late := time.AfterFunc(2*time.Second, cancel)
	defer late.Stop()
	_ = s.CloseSend()
	heard.Wait()
}
