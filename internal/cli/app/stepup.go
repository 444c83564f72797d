package app

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/openid"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	// codeTries is how often a code is asked for before the command gives up.
	codeTries = 3
	// stepUpLimit bounds each call around a step up; nobody waits at a terminal meanwhile.
	stepUpLimit = 30 * time.Second
)

// proof is what the calls of one command prove themselves with, and what a step up puts in its place. It is safe for concurrent use.
type proof struct {
	mu   sync.Mutex
	by   credentials.PerRPCCredentials
	made int // how often it was replaced
}

func (p *proof) current() (credentials.PerRPCCredentials, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.by, p.made
}

func (p *proof) replace(by credentials.PerRPCCredentials) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.by, p.made = by, p.made+1
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (p *proof) GetRequestMetadata(ctx context.Context, uri ...string) (map[string]string, error) {
	by, _ := p.current()
	return by.GetRequestMetadata(ctx, uri...)
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (*proof) RequireTransportSecurity() bool { return true }

// stepper answers the refusal that asks for a fresh proof (RFC 9470) and repeats the call, once: nothing was done by the refused one. It stands outside the
// deadline of a call, since a person is slow.
type stepper struct {
	a      *App
	to     settings.Context
	proof  *proof
	asking sync.Mutex // one question at a time, whose answer does for all who wait
}

func (s *stepper) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	_, before := s.proof.current()
	err := invoke(ctx, method, req, reply, cc, opts...)
	if fault.ReasonOf(fault.FromStatus(err)) != faultv1.Reason_STEP_UP_REQUIRED || fault.Describe(fault.FromStatus(err)).Metadata()["max_age"] == "" || own(method) {
		return err
	}
	f, ok := s.a.In.(*os.File)
	if !ok || !IsTerminal(f) || s.a.Env("REDOUBT_TOKEN") != "" {
		return &needsTerminal{err}
	}
	s.asking.Lock()
	defer s.asking.Unlock()
	if _, now := s.proof.current(); now == before {
		if ok, asked := s.ask(ctx, cc); asked != nil || !ok {
			if asked == nil {
				asked = err
			}
			return asked
		}
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

// own reports the methods that the step up itself calls.
func own(method string) bool {
	return method == identityv1.FactorService_StepUp_FullMethodName || method == identityv1.FactorService_ListFactors_FullMethodName
}

// needsTerminal is the refusal where nobody can be asked, with what to do instead.
type needsTerminal struct{ error }

// Unwrap gives the refusal.
func (n *needsTerminal) Unwrap() error { return n.error }

// ask proves the user anew. ok is false for somebody who has no factor: the refusal says what he does.
func (s *stepper) ask(ctx context.Context, cc *grpc.ClientConn) (ok bool, err error) {
	c := identityv1.NewFactorServiceClient(cc)
	timed, cancel := context.WithTimeout(ctx, stepUpLimit)
	has, err := c.ListFactors(timed, &identityv1.ListFactorsRequest{})
	cancel()
	if err != nil {
		return false, nil //nolint:nilerr // what was refused says more
	}
	kind := func(kind string) bool {
		return slices.ContainsFunc(has.GetFactors(), func(f *identityv1.Factor) bool { return f.GetProved() && f.GetKind() == kind })
	}
	switch {
	case kind("totp"):
		s.a.Say("this needs a fresh proof that it is you")
		return true, s.byCode(ctx, c)
	case kind("webauthn") && s.a.Anew != nil:
		s.a.Say("this needs a fresh proof that it is you, by your security key")
		by, err := s.a.Anew(ctx, s.to)
		if err != nil {
			return false, err
		}
		s.proof.replace(by)
		return true, nil
	}
	return false, nil
}

// byCode asks for a code until one is right.
func (s *stepper) byCode(ctx context.Context, c identityv1.FactorServiceClient) error {
	for try := 1; ; try++ {
		code, err := s.a.Code(ctx, "code of the authenticator app, or a recovery code: ", false)
		if err != nil {
			return err
		}
		req := &identityv1.StepUpRequest{Factor: KindOfCode(code.RevealString()), Response: code.RevealString()}
		code.Wipe()
		timed, cancel := context.WithTimeout(ctx, stepUpLimit)
		r, err := c.StepUp(timed, req)
		cancel()
		if err == nil {
			return s.take(ctx, r)
		}
		if try == codeTries || fault.ReasonOf(fault.FromStatus(err)) != faultv1.Reason_SIGN_IN_FAILED {
			return err
		}
		s.a.Say("%s", client.Describe(err).Message)
	}
}

// take puts the token in the place of the one before, for this command and those that follow.
func (s *stepper) take(ctx context.Context, r *identityv1.StepUpResponse) error {
	by, _ := s.proof.current()
	if session, ok := by.(*openid.Session); ok {
		err := session.Raise(ctx, r.GetAccessToken())
		s.proof.replace(session)
		return err
	}
	s.proof.replace(client.Bearer(redact.FromString(r.GetAccessToken())))
	if s.to.Name == "" {
		return nil
	}
	d, err := s.a.Folder()
	if err != nil {
		return err
	}
	return d.SetToken(ctx, s.to.Name, settings.Token{Server: s.to.Server, Value: r.GetAccessToken(), Expires: r.GetExpireTime().AsTime()})
}

// KindOfCode tells a code of an app, which has six digits, from a recovery code, which has twenty letters.
func KindOfCode(code string) string {
	if len(strings.ReplaceAll(code, " ", "")) <= 8 {
		return "totp"
	}
	return "recovery_code"
}
