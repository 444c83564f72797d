package login

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestCanonicalIsOnePerAccount(t *testing.T) { // A1
	for name, in := range map[string]string{
		"as it is":          "alice",
		"upper case":        "ALICE",
		"mixed":             "aLiCe",
		"space around":      "  alice\t\n",
		"full width":        "ａｌｉｃｅ",
		"full width upper":  "ＡＬＩＣＥ",
		"ideographic space": "　alice　",
		"mathematical":      "𝐚𝐥𝐢𝐜𝐞",
	} {
		if got := Canonical(in); got != "alice" {
			t.Errorf("%s: %q", name, got)
		}
	}
	for name, in := range map[string]string{
		"cyrillic a":      "аlice",
		"combining acute": "alice\u0301",
		"nul":             "alice\x00",
		"zero width":      "ali\u200bce",
	} {
		if got := Canonical(in); got == "alice" {
			t.Errorf("%s is taken for alice", name)
		}
	}
	for name, in := range map[string]string{"not UTF-8": "alice\xff", "too long": strings.Repeat("a", 257), "blank": " "} {
		if got := Canonical(in); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestCanonicalIsStable(t *testing.T) {
	for _, in := range []string{"ﬀ", "ß", "İ", "ϓ", "K", "ſ", "Ⅷ", "㎒", "\u1E9E", "ᾳ"} {
		once := Canonical(in)
		if twice := Canonical(once); twice != once {
			t.Errorf("%q: %q, then %q", in, once, twice)
		}
	}
}

func TestSkeleton(t *testing.T) {
	for _, pair := range [][2]string{{"al1ce", "allce"}, {"bob0", "bobo"}, {"modern", "modem"}, {"vvanda", "wanda"}, {"ad-min", "admin"}} {
		if Skeleton(pair[0]) != Skeleton(pair[1]) {
			t.Errorf("%s and %s look alike", pair[0], pair[1])
		}
	}
	for _, pair := range [][2]string{{"alice", "alina"}, {"user2", "user3"}, {"anna", "hanna"}} {
		if Skeleton(pair[0]) == Skeleton(pair[1]) {
			t.Errorf("%s and %s do not look alike", pair[0], pair[1])
		}
	}
}

func TestGuardLocks(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	g := NewGuard(Limits{})
	for i := range 5 {
		if _, ok := g.Try(now, "alice", fmt.Sprint("192.0.2.", i)); !ok {
			t.Fatalf("try %d was refused", i)
		}
	}
	var waits []time.Duration
	for range 9 {
		wait, ok := g.Try(now, "alice", "192.0.2.99")
		if ok {
			t.Fatal("a locked account had a try")
		}
		waits = append(waits, wait)
		if _, ok := g.Try(now.Add(wait-1), "alice", "192.0.2.99"); ok {
			t.Fatal("a try before the end of the lock")
		}
		now = now.Add(wait)
		if _, ok := g.Try(now, "alice", "192.0.2.99"); !ok {
			t.Fatal("no try after the lock")
		}
	}
	if fmt.Sprint(waits) != "[1s 2s 4s 8s 16s 32s 1m0s 1m0s 1m0s]" {
		t.Errorf("the locks are %v", waits)
	}
	if _, ok := g.Try(now, "bob", "192.0.2.98"); !ok {
		t.Error("another account is locked as well")
	}
	now = now.Add(time.Hour)
	if _, ok := g.Try(now, "alice", ""); !ok {
		t.Error("an hour later it is still locked")
	}
}

func TestGuardForgivesSuccess(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	g := NewGuard(Limits{PerAddress: 3})
	for range 100 {
		if _, ok := g.Try(now, "alice", "192.0.2.1"); !ok {
			t.Fatal("refused after nothing but successes")
		}
		g.Succeeded("alice", "192.0.2.1")
	}
}

func TestGuardLimitsAddress(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for name, address := range map[string]func(i int) string{
		"one IPv4":           func(int) string { return "192.0.2.1" },
		"one, many ports":    func(i int) string { return fmt.Sprintf("192.0.2.1:%d", 1000+i) },
		"one, mapped or not": func(i int) string { return []string{"192.0.2.1", "::ffff:192.0.2.1"}[i%2] },
		"one IPv6 network":   func(i int) string { return fmt.Sprintf("2001:db8::%x", i) },
	} {
		g := NewGuard(Limits{PerAddress: 10})
		n := 0
		for i := range 50 {
			if _, ok := g.Try(now, fmt.Sprint("user", i), address(i)); ok {
				n++
			}
		}
		if n != 10 {
			t.Errorf("%s: %d tries", name, n)
		}
	}
}

func TestGuardIsBounded(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	g := NewGuard(Limits{Entries: 100})
	for range 6 {
		g.Try(now, "alice", "")
	}
	for i := range 10_000 {
		g.Try(now, fmt.Sprint("user", i), "")
	}
	if len(g.seen) > 100 {
		t.Errorf("%d entries", len(g.seen))
	}
	if _, ok := g.Try(now, "alice", ""); ok {
		t.Error("a flood of other names unlocked an account")
	}
}

// A try that was taken back leaves what was counted before, and no more room than there was.
func TestGuardWithdraw(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	g := NewGuard(Limits{PerAddress: 5})
	for range 50 {
		if _, ok := g.Try(now, "alice", "192.0.2.1"); !ok {
			t.Fatal("tries that found nothing out lock the account or the address")
		}
		g.Withdraw("alice", "192.0.2.1")
	}
	g.Withdraw("alice", "192.0.2.1")
	g.Withdraw("nobody", "192.0.2.2")
	made := 0
	for i := range 20 {
		if _, ok := g.Try(now, "alice", "192.0.2.1"); !ok {
			break
		}
		if made++; i%2 == 0 {
			g.Withdraw("alice", "192.0.2.1")
			made--
		}
	}
	if made != 5 {
		t.Errorf("%d tries were made, of 5", made)
	}
	if _, ok := g.Try(now, "alice", "192.0.2.3"); ok {
		t.Error("the account is open")
	}
	if _, ok := g.Try(now, "bob", "192.0.2.1"); ok {
		t.Error("the address is open")
	}
}

// Several instances, asked in turn, give an account hardly more tries than one does, at first and in the long run.
func TestGuardsShareTheTries(t *testing.T) {
	const limit, hours = 5, 6
	tries := func(n int) (first, all int) {
		guards := make([]*Guard, n)
		for i := range guards {
			guards[i] = NewGuard(Limits{Guards: func() int { return n }})
		}
		begun := time.Unix(1_000_000, 0)
		for now := begun; now.Before(begun.Add(hours * time.Hour)); now = now.Add(time.Second) {
			for i, g := range guards {
				for range 2 * limit {
					if _, ok := g.Try(now, "alice", fmt.Sprint("192.0.2.", i)); ok {
						all++
						if now.Equal(begun) {
							first++
						}
					}
				}
			}
		}
		return first, all
	}
	first, all := tries(1)
	if first != limit || all < hours*60 {
		t.Fatalf("one gives %d at once and %d in all", first, all)
	}
	for _, n := range []int{2, 3, 7} {
		f, a := tries(n)
		if f < limit || f > limit+n-1 || float64(a) > 1.15*float64(all) {
			t.Errorf("%d give %d at once and %d in all; one gives %d and %d", n, f, a, first, all)
		}
	}
}
