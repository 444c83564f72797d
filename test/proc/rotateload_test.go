package proc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// tally counts what was asked, and what came of it.
type tally struct {
	mu                         sync.Mutex
	requests, repeats, streams int
	by                         map[string]int
	failed                     map[string]int // by what, code and reason
	words                      []string       // of the first failures
}

func newTally() *tally { return &tally{by: make(map[string]int), failed: make(map[string]int)} }

func (y *tally) note(what string, err error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.requests++
	y.by[what]++
	if err != nil {
		y.failed[what+" "+status.Code(err).String()+" "+fault.ReasonOf(fault.FromStatus(err)).String()]++
		if len(y.words) < 20 {
			y.words = append(y.words, time.Now().Format("15:04:05.000 ")+what+": "+err.Error())
		}
	}
}

func (y *tally) repeated() {
	y.mu.Lock()
	y.repeats++
	y.mu.Unlock()
}

// call makes one request. What docs/retries.md lets a client repeat is repeated as it says, and counted.
func (y *tally) call(ctx context.Context, what string, repeat bool, f func(context.Context) error) error {
	wait := rpc.RepeatFirst
	for try := 1; ; try++ {
		each, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		err := f(each)
		cancel()
		if err == nil || !repeat || status.Code(err) != codes.Unavailable || try == 5 {
			y.note(what, err)
			return err
		}
		y.repeated()
		time.Sleep(wait) // as the documented policy does
		wait *= 2
	}
}

func (y *tally) total() (failed int) {
	for _, n := range y.failed {
		failed += n
	}
	return failed
}

// session is a signed-in user whose token is renewed, for connections that live longer than it.
type session struct {
	access Access
	mu     sync.Mutex
	token  string
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (s *session) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return map[string]string{"authorization": "Bearer " + s.token}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (*session) RequireTransportSecurity() bool { return true }

func (s *session) signIn(ctx context.Context) error {
	token, err := s.access.SignIn(ctx)
	if err == nil {
		s.mu.Lock()
		s.token = token
		s.mu.Unlock()
	}
	return err
}

// plain is a connection that repeats nothing.
func (s *session) plain() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+strings.TrimPrefix(s.access.URL, "https://"), grpc.WithTransportCredentials(s.access.Follow.Credentials("", time.Now)),
		grpc.WithPerRPCCredentials(s), grpc.WithNoProxy(), grpc.WithDisableRetry(), grpc.WithDisableServiceConfig())
}

// commands is the client of the commands, which repeats as they do. What it asks is counted, and what it repeats.
func (s *session) commands(y *tally) (*client.Client, error) {
	return client.Dial(client.Context{Name: "proc", Server: s.access.URL, CAPEM: s.access.CA}, redact.Secret{}, grpc.WithPerRPCCredentials(s),
		grpc.WithTransportCredentials(s.access.Follow.Credentials("", time.Now)),
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, c *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, c, opts...)
			if status.Code(err) == codes.Unavailable {
				y.repeated() // or its caller fails, and says so
			} else {
				y.note("commands", nil)
			}
			return err
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, c *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			y.mu.Lock()
			y.streams++
			y.mu.Unlock()
			return open(ctx, d, c, method, opts...)
		}))
}

// rotating is load on an installation whose keys and roots change.
type rotating struct {
	*session
	lab      *Lab
	y        *tally
	run      string // one that goes all the time
	endpoint *inferencev1.Endpoint
	key      string
	hosted   string // the target that `compute serve` carries

	mu   sync.Mutex
	runs map[string]int // that have completed, by target
}

// until calls f again and again until ctx ends.
func until(ctx context.Context, pause time.Duration, f func(round int)) {
	for round := 0; ctx.Err() == nil; round++ {
		f(round)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// reads calls every service over one connection and, each tenth time, over a new one.
func (r *rotating) reads(ctx context.Context, t *testing.T) {
	kept, err := r.plain()
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = kept.Close() }()
	until(ctx, 50*time.Millisecond, func(round int) {
		conn := kept
		if round%10 == 9 {
			if conn, err = r.plain(); err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
		}
		_ = r.y.call(ctx, "read inference", true, func(ctx context.Context) error {
			_, err := inferencev1.NewEndpointServiceClient(conn).GetEndpoint(ctx, &inferencev1.GetEndpointRequest{Name: r.endpoint.GetName()})
			return err
		})
		_ = r.y.call(ctx, "read the five others", true, func(ctx context.Context) error { return r.lab.each(ctx, conn, r.run) })
		r.y.mu.Lock()
		r.y.requests += 4 // of which each is one more request
		r.y.mu.Unlock()
	})
}

// writes makes changes that nobody may repeat, and reads what must be recorded.
func (r *rotating) writes(ctx context.Context, t *testing.T) {
	conn, err := r.plain()
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = conn.Close() }()
	secrets := keyvaultv1.NewSecretServiceClient(conn)
	until(ctx, 100*time.Millisecond, func(round int) {
		var name string
		err := r.y.call(ctx, "write a secret", false, func(ctx context.Context) error {
			s, err := secrets.SetSecret(ctx, &keyvaultv1.SetSecretRequest{Parent: r.lab.Workspace, SecretId: fmt.Sprintf("s%d", round%200), Value: fmt.Appendf(nil, "value %d", round)})
			name = s.GetName()
			if i := strings.Index(name, "/versions/"); i >= 0 {
				name = name[:i]
			}
			return err
		})
		if err == nil {
			_ = r.y.call(ctx, "read a secret", false, func(ctx context.Context) error {
				s, err := secrets.AccessSecret(ctx, &keyvaultv1.AccessSecretRequest{Name: name})
				if want := fmt.Sprintf("value %d", round); err == nil && string(s.GetValue()) != want {
					err = fmt.Errorf("%s is %q, and %q was written", name, s.GetValue(), want)
				}
				return err
			})
		}
		_ = r.y.call(ctx, "log a metric", false, func(ctx context.Context) error {
			s, err := telemetryv1.NewMetricServiceClient(conn).LogRunData(ctx)
			if err != nil {
				return err
			}
			if err := s.Send(&telemetryv1.LogRunDataRequest{Run: r.run, BatchId: fmt.Sprintf("b%d", round), Metrics: []*telemetryv1.Metric{{Key: "user", Value: float64(round), Step: int64(round), Time: timestamppb.Now()}}}); err != nil {
				_, err = s.Recv()
				return err
			}
			_, err = s.Recv()
			return err
		})
	})
}

// carries submits runs to a target, one after the other, each of which must complete with all of its log.
func (r *rotating) carries(ctx context.Context, t *testing.T, target string) {
	c, err := r.commands(r.y)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = c.Close() }()
	short := target[strings.LastIndexByte(target, '/')+1:]
	until(ctx, 10*time.Millisecond, func(round int) {
		req := r.lab.count(fmt.Sprintf("%s-%d", short, round), runSteps, runPause)
		req.Compute = target
		var run *computev1.Run
		if err := r.y.call(ctx, "submit a run to "+short, true, func(ctx context.Context) (err error) {
			run, err = c.Runs().SubmitRun(ctx, req)
			return err
		}); err != nil {
			return
		}
		life, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		var log bytes.Buffer
		end, err := c.WaitRun(life, run.GetName(), nil)
		if err == nil {
			_, err = c.FollowLogs(life, run.GetName(), 0, false, &log)
		}
		if want := counted(runSteps); err == nil && (end.GetState() != computev1.Run_STATE_COMPLETED || log.String() != want) {
			err = fmt.Errorf("%s ended as %s: %s; its log: %q", run.GetName(), end.GetState(), end.GetMessage(), log.String())
		}
		r.y.note("a whole run on "+short, err)
		if err == nil {
			r.mu.Lock()
			r.runs[short]++
			r.mu.Unlock()
		}
	})
}

func counted(steps int) string {
	var want strings.Builder
	for i := range steps {
		fmt.Fprintf(&want, "stored %d\n", i+1)
	}
	return want.String()
}

// scores asks the endpoint, over a kept connection and over new ones: each answer is what was asked.
func (r *rotating) scores(ctx context.Context) {
	var tr *http.Transport
	until(ctx, 100*time.Millisecond, func(round int) {
		if round%10 == 0 {
			if tr != nil {
				tr.CloseIdleConnections()
			}
			tr = &http.Transport{TLSClientConfig: r.access.TLS(), ForceAttemptHTTP2: true}
		}
		_ = r.y.call(ctx, "score", false, func(ctx context.Context) error {
			body := fmt.Sprint("round ", round)
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.endpoint.GetScoringUri(), strings.NewReader(body))
			if err != nil {
				return err
			}
			req.Header.Set("Authorization", "Bearer "+r.key)
			req.Header.Set("Content-Type", "text/plain")
			res, err := tr.RoundTrip(req)
			if err != nil {
				return err
			}
			defer func() { _ = res.Body.Close() }()
			got, err := io.ReadAll(res.Body)
			if err == nil && (res.StatusCode != http.StatusOK || string(got) != body) {
				err = fmt.Errorf("scoring answers %d: %q", res.StatusCode, got)
			}
			return err
		})
	})
}

// streams follows a run's log and metrics from begin to end, and wants all of them once.
func (r *rotating) streams(ctx context.Context, wg *sync.WaitGroup, run string, steps int) {
	c, err := r.commands(r.y)
	if err != nil {
		r.y.note("stream", err)
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		var log bytes.Buffer
		_, err := c.FollowLogs(ctx, run, 0, true, &log)
		if err == nil && log.String() != counted(steps) {
			err = fmt.Errorf("the log of %s is %d bytes, and %d were printed: … %q", run, log.Len(), len(counted(steps)), log.String()[max(0, log.Len()-100):])
		}
		r.y.note("follow a log", err)
	})
	both.Go(func() {
		var got []int64
		err := c.FollowMetrics(ctx, run, func(ms []*telemetryv1.Metric) error {
			for _, m := range ms {
				if m.GetKey() == "i" {
					got = append(got, m.GetStep())
				}
			}
			return nil
		})
		slices.Sort(got)
		if err == nil && (len(got) != steps || len(slices.Compact(slices.Clone(got))) != steps) {
			err = fmt.Errorf("%d of %d metrics of %s were followed", len(got), steps, run)
		}
		r.y.note("follow metrics", err)
	})
	wg.Go(func() { both.Wait(); _ = c.Close() })
}

// seen is what has rotated.
type seen struct {
	mu                         sync.Mutex
	leaves, active, keys, gone map[string]bool
	phases                     []string
}

// watches looks at what stands when, until ctx ends.
func (r *rotating) watches(ctx context.Context, t *testing.T, out *seen) {
	conn, err := r.plain()
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = conn.Close() }()
	keys := identityv1.NewKeyServiceClient(conn)
	known := map[string]bool{}
	until(ctx, 250*time.Millisecond, func(int) {
		_ = r.y.call(ctx, "list roots", true, func(ctx context.Context) error {
			all, err := keys.ListAuthorities(ctx, &identityv1.ListAuthoritiesRequest{})
			if err == nil {
				out.take(all, known)
			}
			return err
		})
		_ = r.y.call(ctx, "list keys", true, func(ctx context.Context) error {
			all, err := keys.ListSigningKeys(ctx, &identityv1.ListSigningKeysRequest{})
			for _, k := range all.GetSigningKeys() {
				if k.GetState() == identityv1.KeyState_KEY_STATE_CURRENT {
					out.keys[k.GetKeyId()] = true
				}
			}
			return err
		})
	})
}

func (s *seen) revoked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.gone)
}

func (s *seen) take(all *identityv1.ListAuthoritiesResponse, known map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := map[string]bool{}
	var phases []string
	for _, a := range all.GetAuthorities() {
		now[a.GetPin()], known[a.GetPin()] = true, true
		phases = append(phases, strings.TrimPrefix(a.GetState().String(), "AUTHORITY_STATE_"))
		if a.GetState() == identityv1.AuthorityState_AUTHORITY_STATE_ACTIVE {
			s.active[a.GetPin()] = true
		}
	}
	for pin := range known {
		if !now[pin] {
			s.gone[pin] = true
		}
	}
	if p := strings.Join(phases, " "); len(s.phases) == 0 || s.phases[len(s.phases)-1] != p {
		s.phases = append(s.phases, p)
	}
}
