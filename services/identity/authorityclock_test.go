package identity

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// comes waits until the roots are in these phases. Each look starts another instance on the database, as after a crash.
func (l *lab) comes(phases string) {
	l.t.Helper()
	var got string
	for range 400 {
		if got = l.stored(); got == phases {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.t.Fatalf("the roots are %s, and were to be %s", got, phases)
}

// jump lets time pass, after which identity's own certificate is a new one.
func (l *lab) jump(d time.Duration) {
	l.t.Helper()
	l.advance(d + time.Second)
	for range 400 {
		l.keeper.Refresh()
		if s, err := l.keeper.Current(); err == nil && s.Issued.Equal(l.now()) && s.Issuer() == l.s.Pin() && len(s.Bundle) == len(l.s.Roots()) {
			for name, c := range l.conns { // whoever asks next connects anew
				_ = c.Close()
				delete(l.conns, name)
			}
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.t.Fatal("identity's own certificate was not renewed")
}

// stays looks for a while whether the roots stay in these phases.
func (l *lab) stays(phases string) {
	l.t.Helper()
	for range 20 { // ten times as often as the clock looks, or so
		if got := l.stored(); got != phases {
			l.t.Fatalf("the roots are %s, and were to stay %s", got, phases)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// stored are the phases as one sees them who opens the database now.
func (l *lab) stored() string {
	l.t.Helper()
	again, err := New(l.cfg)
	must(l.t, err)
	defer again.Close()
	var out []string
	for _, r := range again.authority.Load().roots {
		out = append(out, strings.ToUpper(string(r.Phase)))
	}
	return strings.Join(out, " ")
}

func (l *lab) pin(i int) string { return l.s.authority.Load().roots[i].Pin }

// newClockLab is a lab whose roots sign for a day, with one instance of compute. A step is due whenever the test lets an hour pass too many.
func newClockLab(t *testing.T) *lab {
	t.Helper()
	l := newLabAt(t, time.Now().Add(-90*24*time.Hour), func(c *Config) {
		c.FollowWithin, c.SVIDLife, c.OperatorLife, c.ConnectionLife, c.RootPeriod = time.Millisecond, 2*time.Hour, time.Hour, 30*time.Minute, 24*time.Hour
	})
	l.compute = newKey(t)
	_, err := l.issue(l.compute, &identityv1.IssueRequest{Service: "compute", Instance: "one", JoinToken: l.join("compute", "one")})
	must(t, err)
	return l
}

// computeRenews enrols its instance again.
func (l *lab) computeRenews() {
	l.t.Helper()
	_, err := l.issue(l.compute, &identityv1.IssueRequest{Service: "compute", Instance: "one"})
	must(l.t, err)
}

// D10: roots change by the clock, each step as soon as it may be and not before.
func TestAuthorityClock(t *testing.T) {
	l := newClockLab(t)
	c := l.s.clock()
	first := l.s.Pin()
	l.jump(c.Period - c.Ahead() - time.Minute)
	l.stays("ACTIVE")
	l.jump(time.Minute)
	l.comes("ACTIVE PREPARED")
	l.computeRenews() // its leaf has ended, and it comes again with the new bundle
	l.jump(0)
	second := l.pin(1)
	l.jump(c.Ahead() - time.Minute)
	l.stays("ACTIVE PREPARED")
	ctx, _ := l.asAdmin()
	r, err := l.keyService().ListAuthorities(ctx, &identityv1.ListAuthoritiesRequest{})
	must(t, err)
	if k := r.GetClock(); k.GetNextStep() != identityv1.AuthorityStep_AUTHORITY_STEP_ACTIVATE || k.GetPin() != second || k.GetWaitsFor() != "" || k.GetLate() || k.GetManual() {
		t.Errorf("next is %v", k)
	}
	l.computeRenews()
	l.jump(0)
	l.jump(time.Minute)
	l.comes("OLD ACTIVE")
	l.computeRenews()
	l.jump(0)
	l.jump((c.Period - c.Ahead()) / 2) // longer than the quarter that it stays old
	l.comes("TAINTED ACTIVE")
	l.stays("TAINTED ACTIVE")
	l.jump(2 * time.Hour)
	l.comes("ACTIVE") // nobody had a leaf of it any more, and time enough has passed
	if l.s.Pin() != second || l.stored() != "ACTIVE" {
		t.Error("another root signs")
	}
	steps := map[string]string{}
	for _, ev := range l.events() {
		if ev.GetMethod() == "/identity/authority" {
			steps[ev.GetDetails()["step"]] = ev.GetDetails()["root"]
		}
	}
	for step, pin := range map[string]string{"prepare": second, "activate": second, "taint": first, "revoke": first} {
		if steps[step] != pin {
			t.Errorf("%s is recorded of %q", step, steps[step])
		}
	}
}

// D10: the clock waits for an instance that does not follow, says for whom, and takes no root from under a leaf that holds.
func TestAuthorityClockWaits(t *testing.T) {
	l := newClockLab(t)
	c := l.s.clock()
	l.jump(c.Period - c.Ahead())
	l.computeRenews() // with a bundle of before
	l.comes("ACTIVE PREPARED")
	first := l.pin(0)
	l.jump(c.Ahead() - time.Hour)
	missed := l.s.authority.Load()
	l.s.authority.Store(&authority{Authority: missed.Authority, roots: missed.roots[:1]})
	l.computeRenews() // this one is told of one root alone, as by an instance that has missed the other
	l.s.authority.Store(missed)
	l.jump(time.Hour)
	l.stays("ACTIVE PREPARED")
	next := func() *identityv1.AuthorityClock {
		t.Helper()
		ctx, _ := l.asAdmin()
		r, err := l.keyService().ListAuthorities(ctx, &identityv1.ListAuthoritiesRequest{})
		must(t, err)
		return r.GetClock()
	}
	if k := next(); !strings.Contains(k.GetWaitsFor(), "service/compute/one") {
		t.Errorf("it waits for %q", k.GetWaitsFor())
	}
	l.computeRenews()
	l.comes("OLD ACTIVE")
	l.jump(0)
	l.jump(c.Period / 2)
	l.comes("TAINTED ACTIVE")
	l.jump(time.Hour)
	l.comes("ACTIVE") // the leaf of compute has ended long ago
	if svid.Pin(l.s.Roots()[0]) == first {
		t.Error("the old root is believed")
	}
}

// D10: what an operator orders, the clock leaves to him, until one root stands alone; and does not make at once again what he drops.
func TestAuthorityClockAndOperator(t *testing.T) {
	l := newClockLab(t)
	c := l.s.clock()
	keys := l.keyService
	l.jump(c.Period - c.Ahead())
	l.comes("ACTIVE PREPARED")
	l.jump(0)
	ctx, _ := l.asAdmin()
	_, err := keys().RevokeAuthority(ctx, &identityv1.RevokeAuthorityRequest{Pin: l.pin(1)})
	if err != nil {
		want(t, "dropping what the clock has prepared", err, codes.DeadlineExceeded, faultv1.Reason_CHANGE_PENDING)
	}
	l.stays("ACTIVE")
	l.jump(c.Period - c.Ahead())
	l.comes("ACTIVE PREPARED")
	l.computeRenews()
	l.jump(0)
	l.jump(c.Ahead())
	l.computeRenews()
	l.comes("OLD ACTIVE")
	old := l.pin(0)
	ctx, _ = l.asAdmin()
	_, err = keys().ActivateAuthority(ctx, &identityv1.ActivateAuthorityRequest{Pin: old, Force: true}) // and back
	must(t, err)
	l.comes("ACTIVE OLD")
	l.jump(c.Period) // longer than any step takes
	l.jump(0)
	l.stays("ACTIVE OLD")
	ctx, _ = l.asAdmin()
	r, err := keys().ListAuthorities(ctx, &identityv1.ListAuthoritiesRequest{})
	must(t, err)
	if !r.GetClock().GetManual() {
		t.Errorf("the clock says %v", r.GetClock())
	}
	dropped := l.pin(1)
	_, err = keys().TaintAuthority(ctx, &identityv1.TaintAuthorityRequest{Pin: dropped})
	must(t, err)
	l.stays("ACTIVE TAINTED")
	_, err = keys().RevokeAuthority(ctx, &identityv1.RevokeAuthorityRequest{Pin: dropped, Force: true})
	if code := fault.Code(fault.FromStatus(err)); err != nil && code != codes.DeadlineExceeded {
		t.Fatal(err)
	}
	l.stays("ACTIVE")
	l.jump(0)
	l.jump(c.Period - c.Ahead())
	l.comes("ACTIVE PREPARED") // one root stood alone, and the clock goes on
}

func TestAuthorityClockThatCannotBe(t *testing.T) {
	l := newLab(t)
	for name, change := range map[string]func(*Config){
		"shorter than certificates live": func(c *Config) { c.SVIDLife, c.RootPeriod = time.Hour, time.Hour },
		"negative":                       func(c *Config) { c.RootPeriod = -time.Hour },
		"longer than roots live":         func(c *Config) { c.RootPeriod = tenYears },
	} {
		cfg := l.cfg
		change(&cfg)
		if _, err := New(cfg); !fault.Is(err, codes.InvalidArgument) || !strings.Contains(err.Error(), "root_period") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// D10: whoever asks is given every root that is believed, signed in or not, and says how soon to ask again.
func TestTrustBundle(t *testing.T) {
	l := newClockLab(t)
	l.jump(l.s.clock().Period - l.s.clock().Ahead())
	l.comes("ACTIVE PREPARED")
	b, err := identityv1.NewKeyServiceClient(l.service("gateway")).GetTrustBundle(t.Context(), &identityv1.GetTrustBundleRequest{})
	must(t, err)
	if len(b.GetRoots()) != 2 || b.GetRefresh().AsDuration() != rarestBundle {
		t.Errorf("%d roots, again in %v", len(b.GetRoots()), b.GetRefresh().AsDuration())
	}
	for i, der := range b.GetRoots() {
		root, err := x509.ParseCertificate(der)
		must(t, err)
		if svid.Pin(root) != l.pin(i) {
			t.Errorf("root %d is another one", i)
		}
	}
}
