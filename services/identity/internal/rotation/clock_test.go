package rotation

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

func TestClockStepByStep(t *testing.T) { // D10
	start := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	c := Clock{Period: 40 * day, Leaf: 8 * time.Hour, Waits: Waits{Run: 10 * time.Minute, Connection: 32 * time.Minute}}
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	q, ahead := c.quarter(), c.Ahead()
	aware := func(pins ...string) []Leaf {
		return []Leaf{{Holder: "service/compute/a", Pin: "b", Bundle: pins, Expire: start.Add(100 * day)}}
	}
	one := []Root{{Pin: "a", Phase: Active, Made: start}}
	beside := func(p Phase, manual bool) []Root {
		return []Root{{Pin: "a", Phase: p, Made: start, Signed: start.Add(40 * day), Quiet: start.Add(40*day + q), Manual: manual}, {Pin: "b", Phase: Active, Made: start.Add(30 * day), Since: start.Add(40 * day)}}
	}
	prepared := []Root{{Pin: "a", Phase: Active, Made: start}, {Pin: "b", Phase: Prepared, Made: start.Add(40*day - ahead)}}
	hurried := []Root{{Pin: "a", Phase: Active, Made: start}, {Pin: "b", Phase: Prepared, Made: start.Add(50 * day)}}
	again := []Root{{Pin: "a", Phase: Active, Made: start, Since: start.Add(5 * day)}}
	for _, tc := range []struct {
		name   string
		now    time.Time
		roots  []Root
		leaves []Leaf
		do     Do
		at     time.Time
		due    bool
		waits  string
	}{
		{"prepare in time", start, one, nil, Prepare, start.Add(40*day - ahead), false, ""},
		{"prepare", start.Add(40*day - ahead), one, nil, Prepare, start.Add(40*day - ahead), true, ""},
		{"counted from when an operator dropped one", start.Add(40*day - ahead), again, nil, Prepare, start.Add(45*day - ahead), false, ""},
		{"activate in time", start.Add(39 * day), prepared, aware("a", "b"), Activate, start.Add(40 * day), false, ""},
		{"activate", start.Add(40 * day), prepared, aware("a", "b"), Activate, start.Add(40 * day), true, ""},
		{"not before all know", start.Add(40 * day), prepared, aware("a"), Activate, start.Add(40 * day), false, "service/compute/a"},
		{"nor at once, however late", start.Add(50 * day), hurried, aware("a", "b"), Activate, start.Add(50*day + ahead), false, ""},
		{"taint in time", start.Add(40*day + q - 1), beside(Old, false), aware("a", "b"), Taint, start.Add(40*day + q), false, ""},
		{"taint", start.Add(40*day + q), beside(Old, false), aware("a", "b"), Taint, start.Add(40*day + q), true, ""},
		{"not one of an operator's", start.Add(40*day + q), beside(Old, true), aware("a", "b"), Taint, start.Add(40*day + q), false, ""},
		{"revoke in time", start.Add(40*day + 2*q - 1), beside(Tainted, false), aware("a", "b"), Revoke, start.Add(40*day + 2*q), false, ""},
		{"revoke", start.Add(40*day + 2*q), beside(Tainted, false), aware("a", "b"), Revoke, start.Add(40*day + 2*q), true, ""},
		{"not while one is held", start.Add(40*day + 2*q), beside(Tainted, false), []Leaf{{Holder: "operator/x", Pin: "a", Expire: start.Add(41*day + 2*q)}}, Revoke, start.Add(40*day + 2*q), false, "operator/x"},
		{"nor an operator's", start.Add(60 * day), beside(Tainted, true), nil, Revoke, start.Add(40*day + 2*q), false, ""},
		{"two beside", start.Add(60 * day), append(beside(Old, false), Root{Pin: "c", Phase: Prepared}), nil, "", time.Time{}, false, ""},
		{"without a phase", start.Add(60 * day), beside("", false), nil, "", time.Time{}, false, ""},
		{"none signs", start, []Root{{Pin: "a", Phase: Old}}, nil, "", time.Time{}, false, ""},
	} {
		got := c.Next(tc.now, tc.roots, tc.leaves)
		if got.Do != tc.do || !got.At.Equal(tc.at) || got.Due(tc.now) != tc.due || (got.Waits == "") != (tc.waits == "") || !strings.Contains(got.Waits, tc.waits) {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
	if got := (Clock{}).Next(start, one, nil); got.Due(start.Add(1000 * day)) {
		t.Errorf("without a period: %+v", got)
	}
	late := c.Next(start.Add(40*day).Add(c.least()+time.Second), prepared, aware("a"))
	if !late.Late || c.Next(start.Add(40*day+time.Hour), prepared, aware("a")).Late {
		t.Errorf("late: %+v", late)
	}
}

// A clock, instances that are slow, away and restarted, and operators' certificates: whatever happens, no root goes while somebody presents a leaf of
// it that holds, none signs that a service does not believe, and where nothing is away for long every root goes in time.
func TestClockOverInstances(t *testing.T) { // D10
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for _, c := range []Clock{
		{Period: 60 * time.Second, Leaf: 10 * time.Second, Waits: Waits{Run: 13 * time.Second, Connection: 6400 * time.Millisecond}},
		{Period: 24 * time.Hour, Leaf: 3 * time.Hour, Waits: Waits{Run: 10 * time.Minute, Connection: 32 * time.Minute}},
	} {
		if err := c.Check(); err != nil {
			t.Fatal(err)
		}
		for _, troubled := range []bool{false, true} {
			now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
			begin := now
			roots := []Root{{Pin: "r0", Phase: Active, Made: now}}
			made, revoked := 1, 0
			held := map[string]Leaf{}
			away := map[string]time.Time{}
			pins := func() (out []string) {
				for _, r := range roots {
					out = append(out, r.Pin)
				}
				return out
			}
			names := []string{"service/a/a", "service/b/a", "service/c/a"}
			for now.Sub(begin) < 40*c.Period {
				now = now.Add(c.Period / 240)
				active := slices.IndexFunc(roots, func(r Root) bool { return r.Phase == Active })
				for _, n := range names {
					if troubled && rnd.IntN(400) == 0 {
						away[n] = now.Add(time.Duration(rnd.Int64N(int64(c.Period))))
					}
					l, ok := held[n]
					tainted := slices.ContainsFunc(roots, func(r Root) bool { return r.Pin == l.Pin && r.Phase == Tainted })
					if now.Before(away[n]) || ok && !tainted && slices.Equal(l.Bundle, pins()) && now.Before(l.Expire.Add(-c.Leaf/2)) {
						continue
					}
					held[n] = Leaf{Holder: n, Pin: roots[active].Pin, Bundle: pins(), Expire: now.Add(c.Leaf)}
					for i := range roots {
						if ok && roots[i].Pin == l.Pin && l.Pin != roots[active].Pin {
							roots[i].Quiet = now
						}
					}
				}
				var leaves []Leaf
				for _, l := range held {
					leaves = append(leaves, l)
				}
				s := c.Next(now, roots, leaves)
				if s.Late && !troubled {
					t.Fatalf("%v: late: %+v", c.Period, s)
				}
				if !s.Due(now) {
					continue
				}
				var err error
				switch s.Do {
				case Prepare:
					roots = append(roots, Root{Pin: "r" + strconv.Itoa(made), Phase: Prepared, Made: now})
					made++
				case Activate:
					for _, l := range leaves {
						if now.Before(l.Expire) && !slices.Contains(l.Bundle, s.Pin) {
							t.Fatalf("%s signs, and %s does not believe it", s.Pin, l.Holder)
						}
					}
					roots, err = Activated(now, roots, leaves, s.Pin, false)
				case Taint:
					roots, err = WithTaint(now, roots, s.Pin, true)
				case Revoke:
					for _, l := range leaves {
						if now.Before(l.Expire) && l.Pin == s.Pin {
							t.Fatalf("%s goes, and %s has a leaf of it", s.Pin, l.Holder)
						}
					}
					roots = slices.DeleteFunc(slices.Clone(roots), func(r Root) bool { return r.Pin == s.Pin })
					revoked++
				}
				if err != nil {
					t.Fatalf("%s was due: %v", s.Do, err)
				}
			}
			if least := 36; !troubled && revoked < least || troubled && revoked < 5 {
				t.Errorf("%v: %d roots were revoked in 40 periods", c.Period, revoked)
			}
		}
	}
}

func TestPeriodsThatDoNotFit(t *testing.T) {
	w := Waits{Run: 10 * time.Minute, Connection: 32 * time.Minute}
	for name, c := range map[string]Clock{"shorter than a leaf": {Period: time.Hour, Leaf: time.Hour, Waits: w}, "no room for connections": {Period: 91 * time.Minute, Leaf: time.Hour, Waits: w}} {
		if c.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := (Clock{Period: 3 * time.Hour, Leaf: time.Hour, Waits: w}).Check(); err != nil {
		t.Error(err)
	}
	if err := (Clock{Leaf: time.Hour, Waits: w}).Check(); err != nil {
		t.Error(err)
	}
}

// D10, A3: one tolerance for clocks that differ, everywhere: who waits for it waits as long as who makes and who checks allows.
func TestOneTolerance(t *testing.T) {
	if Leeway != 30*time.Second || authn.MaxLeeway != Leeway || svid.Backdate != Leeway {
		t.Errorf("%v, %v and %v", Leeway, authn.MaxLeeway, svid.Backdate)
	}
}
