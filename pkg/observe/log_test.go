package observe

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink collects what was written, and can hang or fail.
type sink struct {
	mu     sync.Mutex
	b      bytes.Buffer
	writes int
	err    error
	hang   chan struct{}
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	hang := s.hang
	s.mu.Unlock()
	if hang != nil {
		<-hang
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	if s.err != nil {
		return 0, s.err
	}
	return s.b.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *sink) set(err error, hang chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.hang = err, hang
}

const canary = "c4n4ryZ9hunter2"

type withField struct{ Password string }

type marshals struct{ hidden string }

func (m marshals) MarshalJSON() ([]byte, error) { return json.Marshal(m.hidden) }

type stringer struct{ Hidden string }

func (stringer) String() string { return "shown" }

// Whatever way a secret takes into a line, it does not come out of it.
func TestLogHidesSecrets(t *testing.T) {
	jwt := "eyJhbGciOiJFUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(canary)) + "." + canary
	u, _ := url.Parse("https://user:" + canary + "@host/path")
	var none *url.URL
	for name, log := range map[string]func(*slog.Logger){
		"redact.Secret":              func(l *slog.Logger) { l.Info("m", "x", redact.FromString(canary)) },
		"pointer to redact.Secret":   func(l *slog.Logger) { s := redact.FromString(canary); l.Info("m", "x", &s) },
		"authorization":              func(l *slog.Logger) { l.Info("m", "authorization", canary) },
		"Authorization":              func(l *slog.Logger) { l.Info("m", "Authorization", canary) },
		"password":                   func(l *slog.Logger) { l.Info("m", "password", canary) },
		"db_password":                func(l *slog.Logger) { l.Info("m", "db_password", canary) },
		"accessToken":                func(l *slog.Logger) { l.Info("m", "accessToken", canary) },
		"client-secret":              func(l *slog.Logger) { l.Info("m", "client-secret", canary) },
		"Set-Cookie":                 func(l *slog.Logger) { l.Info("m", "Set-Cookie", canary) },
		"dpop":                       func(l *slog.Logger) { l.Info("m", "dpop", canary) },
		"DPoP":                       func(l *slog.Logger) { l.Info("m", "DPoP", canary) },
		"api_key":                    func(l *slog.Logger) { l.Info("m", "api_key", canary) },
		"privateKey":                 func(l *slog.Logger) { l.Info("m", "privateKey", canary) },
		"secret as []byte":           func(l *slog.Logger) { l.Info("m", "secret", []byte(canary)) },
		"secret as int":              func(l *slog.Logger) { l.Info("m", "pin", 123456) },
		"with":                       func(l *slog.Logger) { l.With("token", canary).Info("m") },
		"group":                      func(l *slog.Logger) { l.Info("m", slog.Group("g", "token", canary)) },
		"inside a secret group":      func(l *slog.Logger) { l.Info("m", slog.Group("authorization", "value", canary)) },
		"inside an open group":       func(l *slog.Logger) { l.WithGroup("cookies").Info("m", "a", canary) },
		"JWT in a value":             func(l *slog.Logger) { l.Info("m", "x", jwt) },
		"JWT in the message":         func(l *slog.Logger) { l.Info("got " + jwt + " from") },
		"JWT in an error":            func(l *slog.Logger) { l.Error("m", "error", fmt.Errorf("bad token %q", jwt)) },
		"JWT in a key":               func(l *slog.Logger) { l.Info("m", jwt, "x") },
		"JWT in a list":              func(l *slog.Logger) { l.Info("m", "x", []string{"a", jwt}) },
		"JWT in a URL":               func(l *slog.Logger) { l.Info("m", "url", "https://h/cb?t="+jwt+"&x=1") },
		"two in a line":              func(l *slog.Logger) { l.Info(jwt+" and "+jwt, "x", "rdt_rt_"+canary) },
		"own secret":                 func(l *slog.Logger) { l.Info("m", "x", "rdt_rt_"+canary) },
		"own secret in the message":  func(l *slog.Logger) { l.Info("used rdt_join_" + canary + ", gone") },
		"Bearer in a value":          func(l *slog.Logger) { l.Info("m", "header", "Bearer "+canary) },
		"bearer in a value":          func(l *slog.Logger) { l.Info("m", "header", "authorization: bearer "+canary) },
		"Basic in a value":           func(l *slog.Logger) { l.Info("m", "header", "Basic "+canary+"==") },
		"PEM":                        func(l *slog.Logger) { l.Info("m", "x", "-----BEGIN PRIVATE KEY-----\n"+canary+"\n-----END") },
		"DSN":                        func(l *slog.Logger) { l.Info("m", "x", "postgres://user:"+canary+"@db:5432/x?y=z") },
		"DSN in an error":            func(l *slog.Logger) { l.Info("m", "error", errors.New("dial postgres://user:"+canary+"@db failed")) },
		"a *url.URL":                 func(l *slog.Logger) { l.Info("m", "x", u) },
		"bytes":                      func(l *slog.Logger) { l.Info("m", "body", []byte(canary)) },
		"raw JSON":                   func(l *slog.Logger) { l.Info("m", "body", json.RawMessage(`"`+canary+`"`)) },
		"header map":                 func(l *slog.Logger) { l.Info("m", "h", http.Header{"Authorization": {canary}}) },
		"map":                        func(l *slog.Logger) { l.Info("m", "h", map[string]string{"password": canary}) },
		"struct":                     func(l *slog.Logger) { l.Info("m", "h", withField{canary}) },
		"pointer to struct":          func(l *slog.Logger) { l.Info("m", "h", &withField{canary}) },
		"slice of structs":           func(l *slog.Logger) { l.Info("m", "h", []withField{{canary}}) },
		"JSON marshaler":             func(l *slog.Logger) { l.Info("m", "h", marshals{canary}) },
		"stringer with hidden field": func(l *slog.Logger) { l.Info("m", "h", stringer{canary}) },
		"message of a call":          func(l *slog.Logger) { l.Info("m", "req", wrapperspb.String(canary)) },
		"buffer":                     func(l *slog.Logger) { l.Info("m", "b", bytes.NewBufferString(canary)) },
		"builder":                    func(l *slog.Logger) { var b strings.Builder; b.WriteString(canary); l.Info("m", "b", &b) },
		"a nil Stringer is no panic": func(l *slog.Logger) { l.Info("m", "x", none, "password", canary) },
	} {
		for _, asJSON := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/json=%v", name, asJSON), func(t *testing.T) {
				var s sink
				l := NewLogger(LogConfig{Writer: &s, JSON: asJSON})
				log(l.Logger)
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				got := s.String()
				if got == "" {
					t.Fatal("nothing was logged")
				}
				enc := base64.StdEncoding.EncodeToString([]byte(canary))
				for _, leak := range []string{canary, enc[:16], base64.RawURLEncoding.EncodeToString([]byte(canary))[:16], "123456"} {
					if strings.Contains(got, leak) {
						t.Errorf("leaked: %s", got)
					}
				}
				if asJSON && !json.Valid([]byte(got)) {
					t.Errorf("not JSON: %s", got)
				}
			})
		}
	}
}

// What is no secret stays readable.
func TestLogShows(t *testing.T) {
	var s sink
	now := time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)
	l := NewLogger(LogConfig{Writer: &s, JSON: true, Now: func() time.Time { return now }})
	l.With("method", "/redoubt.compute.v1.RunService/GetRun").Info("a bearer token is missing, use basic authentication",
		"token_id", "tok_1", "secret_name", "db", "key", "loss", "key_version", 3, "password_file", "/run/x", "code", "OK",
		"duration", 1500*time.Millisecond, "error", errors.New("no such run"), "names", []string{"a", "b"}, "s", stringer{},
		"url", "https://redoubt.example:8443/a@b", "mail", "a@b.example", "kept", "eyJ short", "tokenizer", "bpe")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(s.String()), &got); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]any{
		"time": "2026-11-23T01:02:03Z", "level": "INFO", "msg": "a bearer token is missing, use basic authentication",
		"method": "/redoubt.compute.v1.RunService/GetRun", "token_id": "tok_1", "secret_name": "db", "key": "loss",
		"key_version": 3.0, "password_file": "/run/x", "code": "OK", "duration": 1.5e9, "error": "no such run", "s": "shown",
		"url": "https://redoubt.example:8443/a@b", "mail": "a@b.example", "kept": "eyJ short", "tokenizer": "bpe",
	} {
		if got[k] != want {
			t.Errorf("%s is %v, want %v", k, got[k], want)
		}
	}
	if fmt.Sprint(got["names"]) != "[a b]" {
		t.Errorf("names are %v", got["names"])
	}
}

func TestSecretKey(t *testing.T) {
	for key, want := range map[string]bool{
		"password": true, "PASSWORD": true, "Password": true, "userPassword": true, "user.password": true, "password2": false,
		"token": true, "refresh_token": true, "tokens": true, "token_id": false, "token_file": false, "tokenID": false,
		"secret": true, "secrets": true, "secret_name": false, "secretary": false, "x-api-key": true, "apiKey": true,
		"apikey": true, "key": false, "key_id": false, "private_key": true, "private_keys": true, "signing_key_id": false,
		"access_key": true, "primaryKey": true, "monkey": false, "": false, "_": false, "cookie": true, "dsn": true, "otp": true,
		strings.Repeat("x", 100) + "_token": true,
	} {
		if got := secretKey(key); got != want {
			t.Errorf("%q: %v", key, got)
		}
	}
	if n := testing.AllocsPerRun(100, func() { secretKey("some_request_id") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestLogLevel(t *testing.T) {
	var s sink
	level := new(slog.LevelVar)
	l := NewLogger(LogConfig{Writer: &s, Level: level})
	l.Debug("one")
	level.Set(slog.LevelDebug)
	l.Debug("two")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := s.String(); strings.Contains(got, "one") || !strings.Contains(got, "two") {
		t.Errorf("got %q", got)
	}
}

// A line waits 100 ms for company, an error and a full buffer do not wait.
func TestLogBuffering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sink
		l := NewLogger(LogConfig{Writer: &s})
		l.Info("first")
		time.Sleep(99 * time.Millisecond)
		synctest.Wait()
		if got := s.String(); got != "" {
			t.Errorf("written after 99 ms: %q", got)
		}
		l.Info("second")
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if got := s.String(); strings.Count(got, "\n") != 2 || s.writes != 1 {
			t.Errorf("after 100 ms: %d writes, %q", s.writes, got)
		}
		l.Info("third")
		l.Error("fourth")
		synctest.Wait()
		if got := s.String(); strings.Count(got, "\n") != 4 {
			t.Errorf("an error waited: %q", got)
		}
		for range flushBytes/64 + 1 {
			l.Info("a line of more than 64 bytes, with its time and level in front of it")
		}
		synctest.Wait()
		if strings.Count(s.String(), "\n") < 100 {
			t.Error("a full buffer waited")
		}
		l.Info("fifth")
		if err := l.Flush(); err != nil || !strings.Contains(s.String(), "fifth") {
			t.Errorf("after Flush: %v", err)
		}
		l.Info("sixth")
		if err := l.Close(); err != nil || !strings.Contains(s.String(), "sixth") {
			t.Errorf("after Close: %v", err)
		}
		l.Info("seventh")
		if !strings.Contains(s.String(), "seventh") {
			t.Error("a line after Close is lost")
		}
		if err := l.Close(); err != nil {
			t.Errorf("a second Close: %v", err)
		}
		if l.Dropped() != 0 {
			t.Errorf("%d lines were dropped", l.Dropped())
		}
	})
}

func TestLogUnbuffered(t *testing.T) {
	var s sink
	l := NewLogger(LogConfig{Writer: &s, Unbuffered: true})
	l.Info("one")
	if !strings.Contains(s.String(), "one") {
		t.Error("it waited")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// A writer that hangs holds up no caller: lines are dropped, counted and told about, and memory stays bounded.
func TestLogWriterHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		s := &sink{hang: hang}
		l := NewLogger(LogConfig{Writer: s, JSON: true})
		const lines = 3 * maxPending / 1000
		start := time.Now()
		for range lines {
			l.Info(strings.Repeat("x", 1000))
		}
		synctest.Wait()
		if d := time.Since(start); d != 0 {
			t.Errorf("callers waited %v", d)
		}
		if n := len(l.buffer.pending); n > maxPending {
			t.Errorf("%d bytes wait", n)
		}
		if err := l.Close(); err == nil { // does not wait for ever
			t.Error("Close of a log that hangs said nothing")
		}
		dropped := l.Dropped()
		s.set(nil, nil)
		close(hang)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		got := s.String()
		if n := uint64(strings.Count(got, "xxx\"}\n")); n+dropped != lines || dropped == 0 {
			t.Errorf("%d lines written, %d dropped, of %d", n, dropped, lines)
		}
		if !strings.Contains(got, fmt.Sprintf(`"log lines were dropped","lines":%d}`, dropped)) {
			t.Error("the log does not tell that lines were dropped")
		}
	})
}

func TestLogWriterFails(t *testing.T) {
	s := &sink{err: errors.New("disk full")}
	l := NewLogger(LogConfig{Writer: s})
	l.Info("one")
	l.Info("two")
	if err := l.Flush(); err == nil {
		t.Error("Flush said nothing")
	}
	if l.Dropped() != 2 {
		t.Errorf("%d lines dropped, want 2", l.Dropped())
	}
	s.set(nil, nil)
	l.Info("three")
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if got := s.String(); !strings.Contains(got, "three") || !strings.Contains(got, "lines=2") {
		t.Errorf("got %q", got)
	}
}

// Lines of many callers come out whole, each once.
func TestLogConcurrent(t *testing.T) {
	var s sink
	l := NewLogger(LogConfig{Writer: &s, JSON: true})
	const callers, each = 8, 200
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				l.Info("line", "id", fmt.Sprintf("%d-%d", c, i))
				if i%50 == 0 {
					_ = l.Flush()
				}
			}
		})
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(s.String()) {
		var m struct{ ID string }
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		seen[m.ID] = true
	}
	if len(seen) != callers*each {
		t.Errorf("%d lines, want %d", len(seen), callers*each)
	}
}

func FuzzMaskLine(f *testing.F) {
	for _, s := range []string{"eyJhbGciOiJFUzI1NiJ9.e30.x", "rdt_rdt_rdt_12345678", "a://b:c@d://e:f@g", "Bearer eyJhbGciOiJFUzI1NiJ9", "PRIVATE KEY-----x\"y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		in := []byte(s)
		out := maskLine(in)
		if string(in) != s {
			t.Fatal("the line was changed in place")
		}
		if again := maskLine(out); !bytes.Equal(again, out) && !strings.Contains(s, redact.Mask[:3]) {
			t.Fatalf("%q: %q, then %q", s, out, again)
		}
		for _, l := range lures[:2] {
			for i := 0; ; {
				j := bytes.Index(out[i:], []byte(l.text))
				if j < 0 {
					break
				}
				i += j + l.skip
				n := 0
				for i+n < len(out) && tokenByte(out[i+n]) {
					n++
				}
				if n >= l.min {
					t.Fatalf("%q: left %q", s, out)
				}
				i += n
			}
		}
	})
}

func BenchmarkLog(b *testing.B) {
	l := NewLogger(LogConfig{Writer: discard{}, JSON: true})
	defer func() { _ = l.Close() }()
	m := l.With("service", "compute", "method", "/redoubt.compute.v1.RunService/GetRun")
	b.ReportAllocs()
	for b.Loop() {
		m.LogAttrs(context.Background(), slog.LevelInfo, "call", slog.String("request_id", "0af7651916cd43dd8448eb211c80319c"),
			slog.String("principal", "usr_abc"), slog.String("code", "OK"), slog.Duration("duration", time.Millisecond))
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
