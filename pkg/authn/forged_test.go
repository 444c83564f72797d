package authn

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn/forge"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// forgeries are the tokens of package forge, made of the stand's good one.
func forgeries(t testing.TB, s *stand) []forge.Token {
	t.Helper()
	list, err := forge.Tokens(forge.Good{Key: s.key, Header: s.header(), Payload: s.payload()})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestForgedTokens(t *testing.T) {
	s := newStand(t)
	if _, err := s.verifier.Verify(bg(), sign(s.key, s.header(), s.payload()), testAud); err != nil {
		t.Fatalf("the token that the forgeries start from is not good: %v", err)
	}
	list := forgeries(t, s)
	seen, accepted := map[string]bool{}, 0
	for _, f := range list {
		if seen[f.Name] {
			t.Errorf("two cases are called %q", f.Name)
		}
		seen[f.Name] = true
		t.Run(f.Name, func(t *testing.T) {
			for range 2 {
				_, err := s.verifier.Verify(bg(), f.Token, testAud)
				if err == nil {
					accepted++
				}
				want := f.Reason
				if want == 0 {
					want = faultv1.Reason_TOKEN_INVALID
				}
				refused(t, err, want)
			}
		})
	}
	fmt.Printf("attack: %s: tried %d, accepted %d\n", t.Name(), len(list), accepted)
	if len(list) < 60 {
		t.Errorf("only %d forgeries", len(list))
	}
}

// What cannot be a token is refused before it costs anything.
func TestDotsAreCheap(t *testing.T) {
	s := newStand(t)
	for _, n := range []int{8 << 10, 1 << 20} {
		dots := strings.Repeat(".", n)
		var before, after runtime.MemStats
		const rounds = 50
		best := time.Hour
		runtime.ReadMemStats(&before)
		for range rounds {
			start := time.Now()
			if _, err := s.verifier.Verify(bg(), dots, testAud); err == nil {
				t.Fatal("accepted")
			}
			best = min(best, time.Since(start))
		}
		runtime.ReadMemStats(&after)
		if per := (after.TotalAlloc - before.TotalAlloc) / rounds; per > 64<<10 {
			t.Errorf("%d dots cost %d bytes", n, per)
		}
		if best > time.Millisecond {
			t.Errorf("%d dots cost %v", n, best)
		}
	}
}

// The answer to a stranger repeats nothing of what he sent and tells no more than the reason.
func TestRefusalTellsNothing(t *testing.T) {
	s := newStand(t)
	answers := map[string]bool{}
	for _, f := range forgeries(t, s) {
		if f.Reason != 0 {
			continue
		}
		_, err := s.verifier.Verify(bg(), f.Token, testAud)
		var e *fault.Error
		if !asFault(err, &e) {
			t.Fatalf("%s: %v is not a fault", f.Name, err)
		}
		answers[e.Message()] = true
	}
	if len(answers) != 1 {
		t.Errorf("%d different answers, want one: %v", len(answers), answers)
	}
}

func FuzzVerify(f *testing.F) {
	s := newStand(f)
	good := sign(s.key, s.header(), s.payload())
	f.Add(good)
	for _, x := range forgeries(f, s) {
		if len(x.Token) < 16<<10 {
			f.Add(x.Token)
		}
	}
	f.Fuzz(func(t *testing.T, token string) {
		v, err := s.verifier.Verify(bg(), token, testAud)
		if err == nil && token != good {
			// ECDSA signatures come in pairs, (r, s) and (r, -s): the same token, not a forged one.
			if token[:strings.LastIndexByte(token, '.')] != good[:strings.LastIndexByte(good, '.')] {
				t.Fatalf("accepted %q as %+v", token, v)
			}
		}
		if err != nil && v != nil {
			t.Fatal("an answer with an error")
		}
	})
}

// FuzzDecode gets past the signature, which a fuzzer cannot.
func FuzzDecode(f *testing.F) {
	s := newStand(f)
	f.Add(asJSON(s.payload()))
	for _, x := range forgeries(f, s) {
		if p := strings.Split(x.Token, "."); len(p) == 3 {
			if b, err := rawURL.DecodeString(p[1]); err == nil && len(b) < 8<<10 {
				f.Add(b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, _, err := decode(payload)
		if err != nil {
			return
		}
		again, err := c.encode()
		if err != nil {
			t.Fatalf("decoded %q, which cannot be encoded: %v", payload, err)
		}
		c2, _, err := decode(again)
		if err != nil || len(c2.Audience) != 1 || c2.Audience[0] != c.Audience[0] || c2.Subject != c.Subject {
			t.Fatalf("%q came back as %+v, %v", payload, c2, err)
		}
	})
}
