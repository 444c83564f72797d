package openid

import (
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// stand is a session at a fake provider, kept in a folder.
type stand struct {
	t   *testing.T
	f   *fake
	cfg Config
}

func newStand(t *testing.T) *stand {
	t.Helper()
	f := newFake(t)
	at := f.context()
	s := &stand{t: t, f: f}
	s.cfg = Config{Context: settings.Context{Name: "a", Server: at.Server, CA: string(at.CAPEM)}, Folder: settings.Open(filepath.Join(t.TempDir(), "redoubt")), Now: f.now}
	s.signIn()
	return s
}

// signIn keeps a session with a new key.
func (s *stand) signIn() {
	s.t.Helper()
	p := s.f.must()
	s.f.mu.Lock()
	s.f.refresh = "first"
	s.f.mu.Unlock()
	tok, err := p.refresh(s.t.Context(), settings.Token{Refresh: "first"})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cfg.Folder.SetToken(s.t.Context(), "a", tok); err != nil {
		s.t.Fatal(err)
	}
	s.f.mu.Lock()
	clear(s.f.count)
	s.f.mu.Unlock()
}

func (s *stand) kept() settings.Token {
	s.t.Helper()
	tok, _, err := s.cfg.Folder.Session(s.t.Context(), "a", s.cfg.Context.Server, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	return tok
}

// process is the session as one more process has it.
func (s *stand) process() *Session {
	s.t.Helper()
	x, err := NewSession(s.cfg, s.kept())
	if err != nil {
		s.t.Fatal(err)
	}
	return x
}

// A3: a token is renewed before it ends, once, however many ask.
func TestRenewOnce(t *testing.T) {
	s := newStand(t)
	before := s.kept()
	all := []*Session{s.process(), s.process(), s.process(), s.process()}
	if err := all[0].Renew(t.Context()); err != nil || s.kept() != before || s.f.times("refresh_token") != 0 {
		t.Fatalf("renewed too early: %v", err)
	}
	s.f.off.Store(int64(9*time.Minute + time.Second)) // of ten
	var wg sync.WaitGroup
	for _, x := range append(all, all...) {
		wg.Go(func() {
			if err := x.Renew(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	after := s.kept()
	if n := s.f.times("refresh_token"); n != 1 || after.Refresh == before.Refresh || after.Value == before.Value || after.Key != before.Key {
		t.Errorf("asked %d times; %v", n, after.Refresh)
	}
	for _, x := range all {
		if x.token.Value != after.Value {
			t.Error("one goes on with what is used up")
		}
	}
	s.f.off.Add(int64(time.Hour))
	if err := all[3].Renew(t.Context()); err != nil || s.f.times("refresh_token") != 2 {
		t.Errorf("the session was lost: %v", err)
	}
}

func TestRenewFails(t *testing.T) {
	late := 9*time.Minute + time.Second
	for _, c := range []struct {
		name   string
		off    time.Duration
		do     func(s *stand)
		want   string
		reason faultv1.Reason
		forgot bool
	}{
		{"the session was ended", late, func(s *stand) { s.f.refresh = "" }, "over", faultv1.Reason_TOKEN_EXPIRED, true},
		{"away, and the token is good yet", late, func(s *stand) { s.f.refuse = func(string) string { return "temporarily_unavailable" } }, "", 0, false},
		{"away, and it is over", time.Hour, func(s *stand) { s.f.refuse = func(string) string { return "temporarily_unavailable" } }, "cannot answer now", 0, false},
		{"nobody there", time.Hour, func(s *stand) { s.f.server.Close() }, "cannot be asked", 0, false},
		{"a wrong clock", late, func(s *stand) { s.f.refuse = func(string) string { return errProof } }, "clock", 0, false},
		{"a token without a key", late, func(s *stand) { s.f.answer = func(m map[string]any) { m["token_type"] = "Bearer" } }, "not bound", 0, false},
		{"signed out meanwhile", late, func(s *stand) { _ = s.cfg.Folder.SetToken(s.t.Context(), "a", settings.Token{}) }, "ended meanwhile", faultv1.Reason_TOKEN_EXPIRED, true},
		{"signed in anew meanwhile", late, func(s *stand) { s.signIn() }, "anew", faultv1.Reason_TOKEN_EXPIRED, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStand(t)
			x := s.process()
			c.do(s)
			s.f.off.Store(int64(c.off))
			err := x.Renew(t.Context())
			refusal(t, err, c.want)
			if c.reason != 0 && fault.ReasonOf(fault.FromStatus(err)) != c.reason {
				t.Errorf("got %v", err)
			}
			if (s.kept() == settings.Token{}) != c.forgot {
				t.Errorf("forgotten: %v, want %v", !c.forgot, c.forgot)
			}
		})
	}
}

// A1: logout ends the session there, and forgets it here whatever happens there.
func TestEnd(t *testing.T) {
	for _, away := range []bool{false, true} {
		s := newStand(t)
		if away {
			s.f.server.Close()
		}
		ended, err := End(t.Context(), s.cfg)
		if !ended || (err != nil) != away || s.kept() != (settings.Token{}) || !away && s.f.refresh != "" {
			t.Errorf("away %v: %v %v", away, ended, err)
		}
		if ended, err := End(t.Context(), s.cfg); ended || err != nil {
			t.Errorf("again: %v %v", ended, err)
		}
	}
}

// A key that is damaged is said to be so, and not shown.
func TestDamagedKey(t *testing.T) {
	for _, key := range []string{"", "AAAA", "no base64"} {
		if _, err := NewSession(Config{Now: time.Now}, settings.Token{Key: key, Value: "v"}); err == nil || !strings.Contains(err.Error(), "redoubt login") {
			t.Errorf("%q: %v", key, err)
		}
	}
	var f *fault.Error
	if _, err := NewSession(Config{Now: time.Now}, settings.Token{}); !errors.As(err, &f) {
		t.Error("it is no fault of ours")
	}
}
