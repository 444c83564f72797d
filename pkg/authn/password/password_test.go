package password

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/argon2"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn/password/apart"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

func TestMain(m *testing.M) {
	apart.Maybe()
	os.Exit(m.Run())
}

// cheap is a cost for tests.
var cheap = Config{Passes: 1, MemoryKiB: 64, Lanes: 1}

func newHasher(t testing.TB, cfg Config) *Hasher {
	t.Helper()
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func bg() context.Context { return context.Background() }

// A1
func TestHashVerify(t *testing.T) {
	h := newHasher(t, cheap)
	for _, pw := range []string{"correct horse", "x", "\x00\xff", "пароль", strings.Repeat("p", MaxBytes)} {
		stored, err := h.Hash(bg(), redact.FromString(pw))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(stored, "$argon2id$v=19$m=64,t=1,p=1$") || strings.Contains(stored, pw) && len(pw) > 1 {
			t.Errorf("stored as %q", stored)
		}
		if other, _ := h.Hash(bg(), redact.FromString(pw)); other == stored {
			t.Error("two hashes of one password are the same")
		}
		for _, tc := range []struct {
			try string
			ok  bool
		}{{pw, true}, {pw + "x", false}, {pw[:len(pw)-1], false}, {"", false}, {strings.ToUpper(pw) + " ", false}} {
			ok, again, err := h.Verify(bg(), stored, redact.FromString(tc.try))
			if err != nil || ok != tc.ok || again {
				t.Errorf("%.20q against %.20q: %v %v %v", tc.try, pw, ok, again, err)
			}
		}
	}
}

func TestHashRefuses(t *testing.T) {
	h := newHasher(t, cheap)
	for _, pw := range []string{"", strings.Repeat("p", MaxBytes+1)} {
		if _, err := h.Hash(bg(), redact.FromString(pw)); fault.Code(err) != codes.InvalidArgument {
			t.Errorf("%d bytes: %v", len(pw), err)
		}
	}
	for name, cfg := range map[string]Config{
		"passes": {Passes: 17}, "memory": {MemoryKiB: 1<<20 + 1}, "little memory": {MemoryKiB: 7}, "lanes": {Lanes: 17},
		"less than 8 KiB a lane": {MemoryKiB: 64, Lanes: 9}, "concurrent": {Concurrent: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: made", name)
		}
	}
}

func TestVerifyOtherCost(t *testing.T) {
	old, now := newHasher(t, cheap), newHasher(t, Config{Passes: 2, MemoryKiB: 128})
	stored, err := old.Hash(bg(), redact.FromString("pw"))
	if err != nil {
		t.Fatal(err)
	}
	if ok, again, err := now.Verify(bg(), stored, redact.FromString("pw")); !ok || !again || err != nil {
		t.Errorf("right: %v %v %v", ok, again, err)
	}
	if ok, again, err := now.Verify(bg(), stored, redact.FromString("no")); ok || again || err != nil {
		t.Errorf("wrong: %v %v %v", ok, again, err)
	}
}

// A hash that another program made from the same parameters, and rows that are damaged.
func TestVerifyStored(t *testing.T) {
	h := newHasher(t, cheap)
	salt := []byte("0123456789abcdef")
	key := argon2.IDKey([]byte("pw"), salt, 1, 64, 1, 32)
	good := fmt.Sprintf("$argon2id$v=19$m=64,t=1,p=1$%s$%s", b64.EncodeToString(salt), b64.EncodeToString(key))
	if ok, _, err := h.Verify(bg(), good, redact.FromString("pw")); !ok || err != nil {
		t.Fatalf("%v %v", ok, err)
	}
	f := strings.Split(good, "$")
	with := func(i int, s string) string {
		g := append([]string(nil), f...)
		g[i] = s
		return strings.Join(g, "$")
	}
	for name, stored := range map[string]string{
		"empty": "", "argon2i": with(1, "argon2i"), "bcrypt": "$2a$10$abc", "version": with(2, "v=16"),
		"memory bomb": with(3, "m=4194304,t=1,p=1"), "pass bomb": with(3, "m=64,t=1000000,p=1"),
		"no passes": with(3, "m=64,t=0,p=1"), "no lanes": with(3, "m=64,t=1,p=0"), "many lanes": with(3, "m=64,t=1,p=257"),
		"sign": with(3, "m=+64,t=1,p=1"), "order": with(3, "t=1,m=64,p=1"), "more": with(3, "m=64,t=1,p=1,x=1"),
		"short salt": with(4, "AAAA"), "no key": with(5, ""), "short key": with(5, "AAAA"), "padding": good + "=",
		"plain": "pw", "long": good + strings.Repeat("A", 300),
	} {
		t.Run(name, func(t *testing.T) {
			ok, _, err := h.Verify(bg(), stored, redact.FromString("pw"))
			if ok || fault.Code(err) != codes.Internal {
				t.Fatalf("%v %v", ok, err)
			}
		})
	}
}

// An unknown user costs the same work as a wrong password: same parameters, same input length.
func TestDummyCostsTheSame(t *testing.T) {
	h := newHasher(t, Config{Passes: 2, MemoryKiB: 1024})
	stored, err := h.Hash(bg(), redact.FromString("right"))
	if err != nil {
		t.Fatal(err)
	}
	took := func(f func()) time.Duration {
		start := time.Now()
		f()
		return time.Since(start)
	}
	// Whatever else the machine does makes some of them slower, and none faster: the best of each, measured in turn, until they are alike.
	var off []string
	wrong, unknown, long := time.Hour, time.Hour, time.Hour
	much := redact.FromString(strings.Repeat("x", 1<<20))
	for range 300 {
		wrong = min(wrong, took(func() { _, _, _ = h.Verify(bg(), stored, redact.FromString("wrong")) }))
		unknown = min(unknown, took(func() { _ = h.Dummy(bg(), redact.FromString("wrong")) }))
		long = min(long, took(func() { _, _, _ = h.Verify(bg(), stored, much) }))
		off = nil
		for name, d := range map[string]time.Duration{"unknown user": unknown, "overlong password": long} {
			if r := float64(d) / float64(wrong); r < 0.5 || r > 2 {
				off = append(off, fmt.Sprintf("%s takes %v, a wrong password %v", name, d, wrong))
			}
		}
		if off == nil {
			return
		}
	}
	t.Error(off)
}

// Only so many hashes run at once, so many wait, and the rest is turned away.
func TestConcurrencyIsCapped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHasher(t, Config{Passes: 1, MemoryKiB: 64, Concurrent: 2, Waiting: 3})
		h.turn <- struct{}{} // both places are taken
		h.turn <- struct{}{}
		h.pending.Add(2)
		errs := make(chan error, 3)
		ctx, cancel := context.WithCancel(bg())
		for i := range 3 {
			go func() {
				c := bg()
				if i == 0 {
					c = ctx
				}
				errs <- h.Dummy(c, redact.FromString("x"))
			}()
		}
		synctest.Wait()
		err := h.Dummy(bg(), redact.FromString("x"))
		if fault.Code(err) != codes.ResourceExhausted || fault.ReasonOf(err) != faultv1.Reason_RATE_LIMITED {
			t.Errorf("one too many got %v", err)
		}
		cancel() // one gives up, so there is room for another
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("the one who gave up got %v", err)
		}
		go func() { errs <- h.Dummy(bg(), redact.FromString("x")) }()
		synctest.Wait()
		<-h.turn
		<-h.turn
		h.pending.Add(-2)
		for range 3 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if n := h.pending.Load(); n != 0 {
			t.Errorf("%d are still counted", n)
		}
	})
}

// One is only let wait for as long as is sensible, and as he has time for.
func TestWaitIsBounded(t *testing.T) {
	h := newHasher(t, Config{Passes: 1, MemoryKiB: 64, Concurrent: 2, LongestWait: 3 * time.Second})
	h.took.Store(int64(100 * time.Millisecond)) // so 20 a second
	short, cancel := context.WithTimeout(bg(), time.Second)
	defer cancel()
	for _, c := range []struct {
		ctx     context.Context
		pending int64
		ok      bool
	}{{bg(), 1, true}, {bg(), 62, true}, {bg(), 63, false}, {short, 12, true}, {short, 23, false}} {
		err := h.admit(c.ctx, c.pending)
		if (err == nil) != c.ok {
			t.Errorf("the one with %d, himself too: %v", c.pending, err)
		}
		if err == nil {
			continue
		}
		var f *fault.Error
		if !errors.As(err, &f) || fault.ReasonOf(err) != faultv1.Reason_RATE_LIMITED || f.RetryAfter() < time.Second || f.RetryAfter() > 5*time.Second {
			t.Errorf("the one with %d: %v, again in %v", c.pending, err, f.RetryAfter())
		}
	}
	// Those who are turned away together come back one after the other, and none after more than a minute or so.
	for i, sum := 0, 3*time.Second; i < 3000; i, sum = i+1, sum+50*time.Millisecond {
		again := h.comeBack(3 * time.Second)
		low, high := min(sum-100*time.Millisecond, latest), sum+2*time.Second
		if low > latest-time.Second {
			high = latest + latest/10
		}
		if again < low || again > high {
			t.Fatalf("number %d is told %v", i, again)
		}
	}
	// What a hash takes is measured.
	h = newHasher(t, cheap)
	if err := h.Dummy(bg(), redact.FromString("x")); err != nil || h.took.Load() <= 0 {
		t.Errorf("%v, %d ns", err, h.took.Load())
	}
}

// Hashes are the same wherever they are computed.
func TestApart(t *testing.T) {
	if !apart.Supported {
		t.Skip("only Linux has workers")
	}
	cfg := cheap
	cfg.Apart = true
	inside, workers := newHasher(t, cheap), newHasher(t, cfg)
	defer workers.Close()
	stored, err := workers.Hash(bg(), redact.FromString("pw"))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []*Hasher{inside, workers} {
		if ok, _, err := h.Verify(bg(), stored, redact.FromString("pw")); !ok || err != nil {
			t.Errorf("right: %v %v", ok, err)
		}
		if ok, _, err := h.Verify(bg(), stored, redact.FromString("no")); ok || err != nil {
			t.Errorf("wrong: %v %v", ok, err)
		}
	}
	if err := workers.Dummy(bg(), redact.FromString("no")); err != nil {
		t.Error(err)
	}
	if s := workers.Stats(); s.Started != 1 || s.Failed != 0 || s.Pending != 0 {
		t.Errorf("%+v", s)
	}
	if s := inside.Stats(); s != (Stats{}) {
		t.Errorf("in this process: %+v", s)
	}
	workers.Close()
	if ok, _, err := workers.Verify(bg(), stored, redact.FromString("pw")); ok || fault.Code(err) != codes.Unavailable {
		t.Errorf("without workers: %v %v", ok, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("$argon2id$v=19$m=64,t=1,p=1$MDEyMzQ1Njc4OWFiY2RlZg$MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY")
	f.Add("$argon2id$v=19$m=,t=,p=$$")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parse(s)
		if err == nil && (!p.OK() || len(p.key) < 16) {
			t.Fatalf("%q was read as %+v", s, p)
		}
	})
}

func BenchmarkVerifyDefault(b *testing.B) {
	h := newHasher(b, Config{})
	stored, err := h.Hash(bg(), redact.FromString("pw"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		_, _, _ = h.Verify(bg(), stored, redact.FromString("pw"))
	}
}
