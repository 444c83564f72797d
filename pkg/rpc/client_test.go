package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// asker is identity's exchange.
type asker struct {
	calls atomic.Int64
	life  time.Duration
	now   func() time.Time
	gate  chan struct{} // waited for, if not nil
	err   error
}

func (a *asker) ask(ctx context.Context, subject, audience string) (string, time.Time, error) {
	n := a.calls.Add(1)
	if a.gate != nil {
		select {
		case <-a.gate:
		case <-ctx.Done():
			return "", time.Time{}, ctx.Err()
		}
	}
	return fmt.Sprintf("%s>%s#%d", subject, audience, n), a.now().Add(a.life), a.err
}

func TestExchangesAreKept(t *testing.T) {
	at := time.Now()
	a := &asker{life: 10 * time.Minute, now: func() time.Time { return at }}
	x := NewExchanges(a.ask, a.now)
	get := func(subject, audience, want string) {
		t.Helper()
		got, err := x.Token(t.Context(), subject, audience)
		ok(t, err)
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	get("u1", "keyvault", "u1>keyvault#1")
	get("u1", "keyvault", "u1>keyvault#1")
	get("u1", "compute", "u1>compute#2")
	get("u2", "keyvault", "u2>keyvault#3")
	at = at.Add(10*time.Minute - exchangeMargin - time.Second)
	get("u1", "keyvault", "u1>keyvault#1")
	at = at.Add(2 * time.Second) // within the margin before its end
	get("u1", "keyvault", "u1>keyvault#4")
	// A short token is kept for three quarters of its life.
	a.life = 8 * time.Second
	get("u3", "keyvault", "u3>keyvault#5")
	at = at.Add(5 * time.Second)
	get("u3", "keyvault", "u3>keyvault#5")
	at = at.Add(2 * time.Second)
	get("u3", "keyvault", "u3>keyvault#6")
	// An error is not kept.
	a.err = errors.New("identity is away")
	if _, err := x.Token(t.Context(), "u4", "keyvault"); err == nil {
		t.Error("no error")
	}
	a.err = nil
	get("u4", "keyvault", "u4>keyvault#8")
}

func TestExchangesAskOnce(t *testing.T) {
	a := &asker{life: time.Hour, now: time.Now, gate: make(chan struct{})}
	x := NewExchanges(a.ask, nil)
	// The first to ask gives up: the others get the answer all the same.
	gone, leave := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, err := x.Token(gone, "u", "s"); first <- err }()
	for a.calls.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got, err := x.Token(t.Context(), "u", "s"); err != nil || got != "u>s#1" {
				t.Errorf("%s, %v", got, err)
			}
		})
	}
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up got %v", err)
	}
	close(a.gate)
	wg.Wait()
	if n := a.calls.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestExchangesAreBounded(t *testing.T) {
	at := time.Now()
	a := &asker{life: time.Hour, now: func() time.Time { return at }}
	x := NewExchanges(a.ask, a.now)
	for i := range exchangesKept + 10 {
		x.keep(exchangeKey{audience: fmt.Sprint(i)}, keptAs("t", at.Add(time.Hour)))
	}
	if n := len(x.kept); n > exchangesKept {
		t.Errorf("%d are kept", n)
	}
	// What has ended goes first.
	clear(x.kept)
	x.keep(exchangeKey{audience: "live"}, keptAs("t", at.Add(time.Hour)))
	for i := range exchangesKept {
		x.keep(exchangeKey{audience: fmt.Sprint(i)}, keptAs("t", at.Add(-time.Second)))
	}
	if _, there := x.kept[exchangeKey{audience: "live"}]; !there || len(x.kept) > 2 {
		t.Errorf("the live one is there: %v, of %d", there, len(x.kept))
	}
}

func keptAs(token string, until time.Time) exchanged {
	return exchanged{token: token, until: until}
}

// TestClientsSpeakForTheCaller holds what a call onward carries: the exchanged token where the method needs a caller, and nowhere
// else.
func TestClientsSpeakForTheCaller(t *testing.T) {
	l := newLab(t)
	own := l.token(owner)
	a := &asker{life: time.Hour, now: time.Now}
	o := outgoing{DialConfig{Service: "keyvault", Rules: l.cfg.Rules, Exchanges: NewExchanges(a.ask, nil)}}
	call := &Call{Context: t.Context(), RequestID: "req-1", token: own}
	for name, tc := range map[string]struct {
		ctx    context.Context
		method string
		want   string // authorization
		fails  bool
		o      *outgoing
	}{
		"for a caller":                    {ctx: call, method: telemetryv1.MetricService_GetRunData_FullMethodName, want: "Bearer " + own + ">keyvault#1"},
		"among services":                  {ctx: call, method: telemetryv1.IngestService_Ingest_FullMethodName},
		"public":                          {ctx: call, method: identityv1.TokenService_GetKeys_FullMethodName},
		"unknown":                         {ctx: call, method: "/redoubt.x.v1.X/Y"},
		"without a caller":                {ctx: t.Context(), method: telemetryv1.MetricService_GetRunData_FullMethodName},
		"with a token of its own":         {ctx: WithToken(t.Context(), "made"), method: telemetryv1.MetricService_GetRunData_FullMethodName, want: "Bearer made"},
		"own before the caller's":         {ctx: WithToken(call, "made"), method: telemetryv1.MetricService_GetRunData_FullMethodName, want: "Bearer made"},
		"own, among services":             {ctx: WithToken(call, "made"), method: telemetryv1.IngestService_Ingest_FullMethodName},
		"a client that exchanges nothing": {ctx: call, method: telemetryv1.MetricService_GetRunData_FullMethodName, fails: true, o: &outgoing{DialConfig{Service: "keyvault", Rules: l.cfg.Rules}}},
	} {
		t.Run(name, func(t *testing.T) {
			use := o
			if tc.o != nil {
				use = *tc.o
			}
			ctx, err := use.annotate(tc.ctx, tc.method)
			if tc.fails {
				if err == nil {
					t.Error("it went on without the caller")
				}
				return
			}
			ok(t, err)
			md, _ := metadata.FromOutgoingContext(ctx)
			if got := fmt.Sprint(md.Get("authorization")); got != fmt.Sprint(list(tc.want)) {
				t.Errorf("it carries %s", got)
			}
			if _, of := tc.ctx.Value(callKey{}).(*Call); of && fmt.Sprint(md.Get("x-request-id")) != "[req-1]" {
				t.Errorf("the request id is %v", md.Get("x-request-id"))
			}
		})
	}
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// TestDial calls from one service to another, with the caller's token exchanged on the way.
func TestDial(t *testing.T) {
	l := newLab(t)
	ex := NewExchanges(func(context.Context, string, string) (string, time.Time, error) {
		return l.token(reader, exchangedBy("compute")), time.Now().Add(time.Hour), nil
	}, nil)
	c, err := Dial(DialConfig{Service: "telemetry", Target: "passthrough:///" + l.addr, Creds: mesh.creds(t, "service/compute"), Rules: l.cfg.Rules, Exchanges: ex, Logger: slog.New(slog.DiscardHandler)})
	ok(t, err)
	defer c.Close()
	var seen *Call
	l.h.unary = func(ctx context.Context) error {
		seen = From(ctx)
		if _, has := ctx.Deadline(); !has {
			t.Error("no deadline")
		}
		return nil
	}
	_, err = telemetryv1.NewMetricServiceClient(c).GetRunData(&Call{Context: t.Context(), RequestID: "req-2", token: "the user's"}, &telemetryv1.GetRunDataRequest{Run: run})
	ok(t, err)
	if seen.Principal != reader || seen.PeerService != "compute" || seen.RequestID != "req-2" || seen.Claims.Actor.Subject != "spiffe://"+domain+"/service/compute" {
		t.Errorf("it came as %+v", seen)
	}
	for name, change := range map[string]func(*DialConfig){
		"service": func(c *DialConfig) { c.Service = "" }, "target": func(c *DialConfig) { c.Target = "" }, "creds": func(c *DialConfig) { c.Creds = nil },
		"rules": func(c *DialConfig) { c.Rules = nil }, "logger": func(c *DialConfig) { c.Logger = nil },
	} {
		cfg := DialConfig{Service: "x", Target: "y", Creds: introduced{}, Rules: l.cfg.Rules, Logger: slog.New(slog.DiscardHandler)}
		change(&cfg)
		if _, err := Dial(cfg); err == nil {
			t.Errorf("dialled without %s", name)
		}
	}
}
