package rotation

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"
)

var usual = Policy{Period: 30 * 24 * time.Hour, Ahead: time.Hour, Life: time.Hour}

// store is rows as the service keeps them.
type store struct {
	keys []Key
	made int
}

// take makes the rows what the plan says, and gives the ids that are gone.
func (s *store) take(p Plan) (gone []string) {
	for i := range p {
		if p[i].ID == "" {
			s.made++
			p[i].ID = "k" + strconv.Itoa(s.made)
		}
	}
	for _, k := range s.keys {
		if !slices.ContainsFunc(p, func(x Key) bool { return x.ID == k.ID }) {
			gone = append(gone, k.ID)
		}
	}
	s.keys = slices.Clone(p)
	Sort(s.keys)
	return gone
}

func (s *store) states(now time.Time) string {
	out := ""
	for i, k := range s.keys {
		out += fmt.Sprintf("%s %s, ", k.ID, [...]string{"later", "next", "current", "retiring", "gone"}[StateOf(now, s.keys, i)])
	}
	return out
}

func TestARotationInTurn(t *testing.T) {
	start := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	s := &store{}
	step := func(name string, now time.Time, p Plan, want string) {
		t.Helper()
		s.take(p)
		if got := s.states(now); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	step("first start", start, Scheduled(start, nil, usual), "k1 current, k2 next, ")
	step("again", start, Scheduled(start, s.keys, usual), "k1 current, k2 next, ")
	soon := start.Add(usual.Period)
	if got := s.states(soon); got != "k1 retiring, k2 current, " {
		t.Errorf("by the clock alone: %s", got)
	}
	step("the period is over", soon, Scheduled(soon, s.keys, usual), "k1 retiring, k2 current, k3 next, ")
	step("its last tokens are over", soon.Add(2*time.Hour), Scheduled(soon.Add(2*time.Hour), s.keys, usual), "k2 current, k3 next, ")
	order := soon.Add(3 * time.Hour)
	step("on demand, published for long", order, Rotated(order, s.keys, usual), "k2 retiring, k3 current, k4 next, ")
	step("on demand again", order, Rotated(order, s.keys, usual), "k2 retiring, k3 current, k4 next, ")
	if from := s.keys[2].SignFrom; !from.Equal(order.Add(usual.Ahead)) {
		t.Errorf("a key that was just published signs from %v", from)
	}
	step("and once more", order.Add(time.Minute), Rotated(order.Add(time.Minute), s.keys, usual), "k2 retiring, k3 current, k4 next, ")
	if from := s.keys[2].SignFrom; !from.Equal(order.Add(usual.Ahead)) {
		t.Errorf("repeating the order has put it off to %v", from)
	}
	if gone := s.take(Replaced(order, usual)); len(gone) != 3 {
		t.Errorf("an emergency has left something: %v are gone", gone)
	}
	if got := s.states(order); got != "k5 current, k6 next, " {
		t.Errorf("after an emergency: %s", got)
	}
}

func TestClocksThatStep(t *testing.T) {
	start := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	s := &store{}
	s.take(Scheduled(start, nil, usual))
	year := start.Add(365 * 24 * time.Hour)
	s.take(Scheduled(year, s.keys, usual))
	if got := s.states(year); got != "k2 current, k3 next, " {
		t.Errorf("a year ahead: %s", got)
	}
	s.take(Scheduled(start, s.keys, usual))
	if got := s.states(start); s.keys[Signer(start, s.keys)].ID == "k3" || s.keys[Signer(start, s.keys)].SignFrom.After(start) {
		t.Errorf("and back: %s", got)
	}
	// Ten minutes are less than a period: nothing that tokens were signed with goes.
	for _, d := range []time.Duration{10 * time.Minute, -10 * time.Minute} {
		s := &store{}
		s.take(Scheduled(start, nil, usual))
		now := start.Add(usual.Period + time.Minute)
		s.take(Scheduled(now, s.keys, usual))
		if gone := s.take(Scheduled(now.Add(d), s.keys, usual)); len(gone) > 0 {
			t.Errorf("%v: %v are gone", d, gone)
		}
	}
	// Whoever is a little behind signs with the key of the one who is not.
	s = &store{}
	s.take(Scheduled(start, nil, usual))
	if i := Signer(start.Add(-20*time.Second), s.keys); i != 0 {
		t.Errorf("20 s behind: %d", i)
	}
	if i := Signer(start.Add(-time.Minute), s.keys); i != -1 {
		t.Errorf("a minute behind: %d", i)
	}
}

// Whatever happens in whatever order, something signs, nothing that signed is forgotten while its tokens live, and no key signs that was
// not published for long enough, but for those that a start, an emergency or a clock has made necessary.
func TestThereIsAlwaysAKey(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	p := Policy{Period: 100 * time.Second, Ahead: 40 * time.Second, Life: 300 * time.Second}
	for round := range 200 {
		now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
		s := &store{}
		s.take(Scheduled(now, nil, p))
		signed := map[string]time.Time{} // until when tokens of a key live
		urgent := map[string]bool{s.keys[0].ID: true}
		for range 300 {
			now = now.Add(time.Duration(rnd.IntN(30)) * time.Second)
			switch rnd.IntN(20) {
			case 0:
				for _, id := range s.take(Rotated(now, s.keys, p)) {
					if now.Before(signed[id]) {
						t.Fatalf("round %d: %s is forgotten, and its tokens live", round, id)
					}
				}
			case 1:
				s.take(Replaced(now, p))
				clear(signed)
				urgent[s.keys[0].ID] = true
			case 2, 3, 4: // nobody leads for a while
			default:
				for _, id := range s.take(Scheduled(now, s.keys, p)) {
					if now.Before(signed[id]) {
						t.Fatalf("round %d: %s is forgotten, and its tokens live", round, id)
					}
				}
			}
			i := Signer(now, s.keys)
			if i < 0 {
				t.Fatalf("round %d: nothing signs: %s", round, s.states(now))
			}
			k := s.keys[i]
			if !urgent[k.ID] && now.Sub(k.Publish) < p.Ahead {
				t.Fatalf("round %d: %s signs, published for %v", round, k.ID, now.Sub(k.Publish))
			}
			signed[k.ID] = now.Add(p.Life)
			for id, until := range signed {
				j := slices.IndexFunc(s.keys, func(k Key) bool { return k.ID == id })
				if now.Before(until) && (j < 0 || !s.keys[j].Published(now)) {
					t.Fatalf("round %d: a token of %s lives, and the key is not published", round, id)
				}
			}
			if len(s.keys) > maxKeys {
				t.Fatalf("%d keys", len(s.keys))
			}
		}
	}
}

func TestPoliciesThatCannotBe(t *testing.T) {
	for name, p := range map[string]Policy{
		"zero": {}, "not published": {Period: time.Hour, Life: time.Hour}, "shorter than it is published": {Period: time.Minute, Ahead: time.Hour, Life: time.Hour},
		"no token": {Period: time.Hour, Ahead: time.Hour}, "too many": {Period: 10 * time.Second, Ahead: 10 * time.Second, Life: time.Hour},
	} {
		if p.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := usual.Check(); err != nil {
		t.Error(err)
	}
}
