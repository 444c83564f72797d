package authn

import (
	"context"
	"testing"
	"time"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
)

// A4: the token of a run that has ended is good where its agent delivers, until the moment that is said of the run, and for nothing else.
func TestVerifyDelivery(t *testing.T) {
	const run = "run_1"
	until := epochStart.Add(2 * time.Minute)
	for _, tc := range []struct {
		name   string
		claims func(*Claims)
		revoke func(*stand)
		after  time.Duration
		good   bool
	}{
		{name: "in its time", good: true},
		{name: "a moment before the end", after: 2*time.Minute - 1, good: true},
		{name: "at the end", after: 2 * time.Minute},
		{name: "after it", after: 3 * time.Minute},
		{name: "without a mark", revoke: func(s *stand) { s.rev.deliver(run, time.Time{}) }},
		{name: "with a mark of the past", revoke: func(s *stand) { s.rev.deliver(run, epochStart) }},
		{name: "with the longest mark that is believed", revoke: func(s *stand) { s.rev.deliver(run, epochStart.Add(MaxDelivery+MaxLeeway)) }, good: true},
		{name: "with a longer one", revoke: func(s *stand) { s.rev.deliver(run, epochStart.Add(MaxDelivery+MaxLeeway+1)) }},
		{name: "with one without an end", revoke: func(s *stand) { s.rev.deliver(run, time.Unix(1<<40, 0)) }},
		{name: "with the mark of another run", revoke: func(s *stand) { s.rev.revoke(run); s.rev.until = map[string]time.Time{"run_2": until} }},
		{name: "of a subject that is revoked too", revoke: func(s *stand) { s.rev.deliver(run, until); s.rev.revoke("usr_abc") }},
		{name: "of a session that is revoked too", revoke: func(s *stand) { s.rev.deliver(run, until); s.rev.revoke("ses_1") }},
		{name: "that is revoked by itself too", revoke: func(s *stand) { s.rev.deliver(run, until); s.rev.revoke("tok_1") }},
		{name: "whose ancestor is revoked too", claims: func(c *Claims) { c.Ancestors = []string{"tok_0"} }, revoke: func(s *stand) { s.rev.deliver(run, until); s.rev.revoke("tok_0") }},
		{name: "whose key is revoked too", revoke: func(s *stand) { s.rev.deliver(run, until); s.rev.revoke("key " + testKid) }},
		{name: "that was exchanged", claims: func(c *Claims) { c.Actor = actors(1) }},
		{name: "that was exchanged, and has no key", claims: func(c *Claims) { c.Actor, c.Confirmation = actors(1), "" }},
		{name: "that has expired", claims: func(c *Claims) { c.Expiry = epochStart.Add(time.Minute) }, after: time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStand(t)
			token := s.mint(t, func(c *Claims) {
				c.Run, c.Workspace, c.Actions, c.Confirmation = run, "ws_1", []string{"a"}, Thumbprint(&newKey(t).PublicKey)
				if tc.claims != nil {
					tc.claims(c)
				}
			})
			for _, verify := range []func(context.Context, string, string) (*Verified, error){s.verifier.Verify, s.verifier.VerifyDelivery} {
				if _, err := verify(bg(), token, testAud); err != nil {
					t.Fatalf("while the run lives: %v", err)
				}
			}
			if tc.revoke == nil {
				tc.revoke = func(s *stand) { s.rev.deliver(run, until) }
			}
			tc.revoke(s)
			s.clock.Add(tc.after)
			for i := range 2 { // a hit, and whatever the call before has left
				if _, err := s.verifier.VerifyDelivery(bg(), token, testAud); (err == nil) != tc.good {
					t.Errorf("%d: deliver: %v", i, err)
				}
				if _, err := s.verifier.Verify(bg(), token, testAud); err == nil {
					t.Errorf("%d: it opens what does not deliver", i)
				}
			}
			if _, err := s.verifier.VerifyDelivery(bg(), token, "elsewhere"); err == nil {
				t.Error("for another audience")
			}
		})
	}
}

// A4: the clock ends the time also where nothing else changes: a verification that is remembered does not outlive it.
func TestDeliveryEndsByTheClock(t *testing.T) {
	s := newStand(t)
	token := s.mint(t, func(c *Claims) {
		c.Run, c.Workspace, c.Actions, c.Confirmation = "run_1", "ws_1", []string{"a"}, Thumbprint(&newKey(t).PublicKey)
	})
	s.rev.deliver("run_1", epochStart.Add(time.Minute))
	for range 4 {
		if _, err := s.verifier.VerifyDelivery(bg(), token, testAud); err != nil {
			t.Fatal(err)
		}
		s.clock.Add(15 * time.Second)
	}
	_, err := s.verifier.VerifyDelivery(bg(), token, testAud)
	refused(t, err, faultv1.Reason_TOKEN_REVOKED)
}
