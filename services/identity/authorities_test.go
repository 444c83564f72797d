package identity

import (
	"context"
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// phases are the states of the roots, the oldest first, as the service and one that is started on its database now see them.
func (l *lab) phases() string {
	l.t.Helper()
	ctx, _ := l.asAdmin()
	r, err := l.keyService().ListAuthorities(ctx, &identityv1.ListAuthoritiesRequest{})
	must(l.t, err)
	var out []string
	for _, a := range r.GetAuthorities() {
		out = append(out, strings.TrimPrefix(a.GetState().String(), "AUTHORITY_STATE_"))
	}
	again, err := New(l.cfg)
	must(l.t, err)
	defer again.Close()
	if !slices.Equal(again.authority.Load().roots, l.s.authority.Load().roots) || again.Pin() != l.s.Pin() {
		l.t.Errorf("after a restart the roots are %+v, and were %+v", again.authority.Load().roots, l.s.authority.Load().roots)
	}
	return strings.Join(out, " ")
}

// renewed enrols an instance again, and looks at which root has signed.
func (l *lab) renewed(want string) *identityv1.IssueResponse {
	l.t.Helper()
	res, err := l.issue(l.compute, &identityv1.IssueRequest{Service: "compute", Instance: "one"})
	must(l.t, err)
	leaf, err := x509.ParseCertificate(res.GetChain()[0])
	must(l.t, err)
	for _, der := range res.GetBundle() {
		root, err := x509.ParseCertificate(der)
		must(l.t, err)
		if svid.Pin(root) == want {
			must(l.t, leaf.CheckSignatureFrom(root))
			return res
		}
	}
	l.t.Fatal("the root that should sign is not in the bundle")
	return nil
}

// own has identity's own SVID renewed.
func (l *lab) own() {
	l.t.Helper()
	old, err := l.keeper.Current()
	must(l.t, err)
	l.keeper.Refresh()
	for range 200 {
		if s, err := l.keeper.Current(); err == nil && s != old {
			for name, c := range l.conns { // whoever asks next connects anew
				_ = c.Close()
				delete(l.conns, name)
			}
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.t.Fatal("identity's own SVID was not renewed")
}

func TestAuthorityRotates(t *testing.T) { // D10
	l := newLabAt(t, time.Now().Add(-30*time.Minute), func(c *Config) { c.FollowWithin, c.ConnectionLife = time.Millisecond, 10*time.Minute })
	l.compute = newKey(t)
	_, err := l.issue(l.compute, &identityv1.IssueRequest{Service: "compute", Instance: "one", JoinToken: l.join("compute", "one")})
	must(t, err)
	ctx, _ := l.asAdmin()
	keys, first := l.keyService(), l.s.Pin()
	refused := func(name string, err error, part string) {
		t.Helper()
		want(t, name, err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
		if err != nil && !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v, and not of %q", name, err, part)
		}
	}
	expect := func(phases string) {
		t.Helper()
		if got := l.phases(); got != phases {
			t.Fatalf("the roots are %s, not %s", got, phases)
		}
	}
	activate := func(pin string, force bool) error {
		_, err := keys.ActivateAuthority(ctx, &identityv1.ActivateAuthorityRequest{Pin: pin, Force: force})
		return err
	}
	taint := func(pin string) (*identityv1.Authority, error) {
		return keys.TaintAuthority(ctx, &identityv1.TaintAuthorityRequest{Pin: pin})
	}
	untaint := func(pin string) error {
		_, err := keys.UntaintAuthority(ctx, &identityv1.UntaintAuthorityRequest{Pin: pin})
		return err
	}
	revoke := func(pin string, force bool) error {
		_, err := keys.RevokeAuthority(ctx, &identityv1.RevokeAuthorityRequest{Pin: pin, Force: force})
		return err
	}
	expect("ACTIVE")
	_, err = taint(first)
	refused("tainting the one that signs", err, "activate another")
	refused("revoking the one that signs", revoke(first, true), "activate another")

	// Prepared, and dropped again.
	l.advance(time.Second) // roots are listed by the time at which they were made
	p, err := keys.PrepareAuthority(ctx, &identityv1.PrepareAuthorityRequest{})
	must(t, err)
	if !slices.Equal(p.GetPending(), []string{"service/compute/one", "service/identity/"}) {
		t.Errorf("the root waits for %v", p.GetPending())
	}
	expect("ACTIVE PREPARED")
	_, err = keys.PrepareAuthority(ctx, &identityv1.PrepareAuthorityRequest{})
	refused("a third root", err, "stands beside")
	_, err = taint(p.GetPin())
	refused("tainting what never signed", err, "only one that has signed")
	refused("untainting what is not tainted", untaint(p.GetPin()), "only one that has signed")
	refused("signing with what nobody believes", activate(p.GetPin(), false), "service/compute/one")
	if res := l.renewed(first); len(res.GetBundle()) != 2 || len(res.GetChain()) != 1 {
		t.Errorf("a bundle of %d, a chain of %d", len(res.GetBundle()), len(res.GetChain()))
	}
	err = revoke(p.GetPin(), false)
	want(t, "while compute believes it", err, codes.DeadlineExceeded, faultv1.Reason_CHANGE_PENDING)
	l.renewed(first)
	// Whoever repeats it, since its answer was lost, is told that it is done; of what never was there is nothing to tell.
	if err := revoke(p.GetPin(), false); err != nil {
		t.Errorf("again: %v", err)
	}
	want(t, "what never was", revoke(strings.Repeat("0", len(p.GetPin())), true), codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	expect("ACTIVE")

	// Prepared, and activated when everybody believes it.
	l.advance(time.Second)
	p, err = keys.PrepareAuthority(ctx, &identityv1.PrepareAuthorityRequest{})
	must(t, err)
	second := p.GetPin()
	l.own()
	keys = l.keyService()
	refused("before compute believes it", activate(second, false), "service/compute/one")
	l.renewed(first)
	missed := l.s.authority.Load()
	must(t, activate(second, false))
	expect("OLD ACTIVE")
	// An instance that has missed it gives out nothing of the old root.
	l.s.authority.Store(missed)
	res := l.renewed(second)
	chain := parsed(t, res.GetChain())
	firstRoot := missed.Root()
	pool, beside := x509.NewCertPool(), x509.NewCertPool()
	pool.AddCert(firstRoot)
	for _, c := range chain[1:] {
		beside.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: beside, CurrentTime: l.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Errorf("who has the old root in a file: %v", err)
	}
	if _, err := svid.Verify(chain, l.s.td, x509bundle.FromX509Authorities(l.s.td, []*x509.Certificate{firstRoot}), x509.ExtKeyUsageAny, l.now()); err == nil {
		t.Error("the mesh follows the old root's word")
	}
	// Back, and forth again.
	must(t, activate(first, false))
	expect("ACTIVE OLD")
	l.renewed(first)
	must(t, activate(second, false))
	must(t, activate(second, false)) // repeated
	expect("OLD ACTIVE")

	// Tainted, untainted, tainted.
	refused("revoking before tainting", revoke(first, true), "taint it first")
	a, err := taint(first)
	must(t, err)
	if !slices.Contains(a.GetPending(), "service/compute/one") {
		t.Errorf("tainted, it waits for %v", a.GetPending())
	}
	expect("TAINTED ACTIVE")
	refused("signing with a tainted one", activate(first, true), "untaint it first")
	must(t, untaint(first))
	expect("OLD ACTIVE")
	_, err = taint(first)
	must(t, err)
	refused("while compute holds a leaf of it", revoke(first, false), "service/compute/one")
	l.renewed(second)
	refused("while identity holds a leaf of it", revoke(first, false), "service/identity/")
	l.own()
	keys = l.keyService()
	refused("while connections may stand", revoke(first, false), "may stand until")
	l.advance(21 * time.Minute) // run certificates of ten minutes, and connections of as long that were made at their end
	want(t, "while others believe it", revoke(first, false), codes.DeadlineExceeded, faultv1.Reason_CHANGE_PENDING)
	expect("ACTIVE")
	l.renewed(second)
	l.own()
	keys = l.keyService()
	must(t, revoke(first, false))
	if roots := l.s.Roots(); len(roots) != 1 || svid.Pin(roots[0]) != second {
		t.Errorf("%d roots are believed", len(roots))
	}
	if res := l.renewed(second); len(res.GetChain()) != 1 {
		t.Error("the revoked root vouches still")
	}

	// At once, since its key was stolen.
	l.advance(time.Second)
	p, err = keys.PrepareAuthority(ctx, &identityv1.PrepareAuthorityRequest{})
	must(t, err)
	must(t, activate(p.GetPin(), true))
	_, err = taint(second)
	must(t, err)
	want(t, "by force", revoke(second, true), codes.DeadlineExceeded, faultv1.Reason_CHANGE_PENDING)
	if _, err := l.issue(l.compute, &identityv1.IssueRequest{Service: "compute", Instance: "one"}); err == nil {
		t.Error("identity shows a certificate of the revoked root to who pins the new one")
	}
	l.s.authority.Load() // the root of the moment is the new one
	if l.s.Pin() != p.GetPin() {
		t.Error("another root signs")
	}
}

func parsed(t *testing.T, ders [][]byte) (out []*x509.Certificate) {
	t.Helper()
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		must(t, err)
		out = append(out, c)
	}
	return out
}

func TestAuthoritiesAreTheOwners(t *testing.T) { // A3
	l := newLabOf(t, func(c *Config) { c.FollowWithin = time.Millisecond })
	l.addUser("alice")
	alice := bearer(t.Context(), l.signIn("alice", "password of alice").GetAccessToken())
	keys := l.keyService()
	for name, call := range map[string]func() error{
		"list": func() error { _, err := keys.ListAuthorities(alice, &identityv1.ListAuthoritiesRequest{}); return err },
		"prepare": func() error {
			_, err := keys.PrepareAuthority(alice, &identityv1.PrepareAuthorityRequest{})
			return err
		},
		"activate": func() error {
			_, err := keys.ActivateAuthority(alice, &identityv1.ActivateAuthorityRequest{Pin: l.s.Pin()})
			return err
		},
		"taint": func() error {
			_, err := keys.TaintAuthority(alice, &identityv1.TaintAuthorityRequest{Pin: l.s.Pin()})
			return err
		},
		"untaint": func() error {
			_, err := keys.UntaintAuthority(alice, &identityv1.UntaintAuthorityRequest{Pin: l.s.Pin()})
			return err
		},
		"revoke": func() error {
			_, err := keys.RevokeAuthority(alice, &identityv1.RevokeAuthorityRequest{Pin: l.s.Pin()})
			return err
		},
	} {
		want(t, name, call(), codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	}
	admin, _ := l.asAdmin()
	l.events()
	p, err := keys.PrepareAuthority(admin, &identityv1.PrepareAuthorityRequest{})
	must(t, err)
	for _, ev := range l.events() {
		if ev.GetMethod() == identityv1.KeyService_PrepareAuthority_FullMethodName && ev.GetDetails()["root"] == p.GetPin() && ev.GetPrincipal() != "" {
			return
		}
	}
	t.Error("no record says who has prepared which root")
}

func TestAuthoritiesAreWatched(t *testing.T) { // D10
	l := newLabOf(t, func(c *Config) { c.FollowWithin = time.Millisecond })
	for _, peer := range []string{"gateway", "compute"} {
		stream, err := identityv1.NewKeyServiceClient(l.service(peer)).WatchAuthorities(t.Context(), &identityv1.WatchAuthoritiesRequest{})
		must(t, err)
		r, err := stream.Recv()
		must(t, err)
		before := len(r.GetPins())
		if peer == "gateway" {
			admin, _ := l.asAdmin()
			_, err = l.keyService().PrepareAuthority(admin, &identityv1.PrepareAuthorityRequest{})
			must(t, err)
			if r, err = stream.Recv(); err != nil || len(r.GetPins()) != before+1 || len(r.GetTaintedPins()) != 0 {
				t.Errorf("%v, %v", r, err)
			}
		}
	}
	stream, err := identityv1.NewKeyServiceClient(l.as("operator/"+l.admin)).WatchAuthorities(t.Context(), &identityv1.WatchAuthoritiesRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if code := fault.Code(fault.FromStatus(err)); code != codes.PermissionDenied && code != codes.Unauthenticated {
		t.Errorf("an operator: %v", err)
	}
}

// What a root signed before certificates were written down may be in use, for as long as any can.
func TestRootOfBeforeIsNotTakenForUnused(t *testing.T) { // D10
	l := newLabOf(t, func(c *Config) { c.FollowWithin = time.Millisecond })
	must(t, l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE authorities SET counted = 0")
		return err
	}))
	_ = l.phases() // starts another instance
	ctx, _ := l.asAdmin()
	r, err := l.keyService().ListAuthorities(ctx, &identityv1.ListAuthoritiesRequest{})
	must(t, err)
	if !slices.Contains(r.GetAuthorities()[0].GetHolders(), "earlier") {
		t.Errorf("held by %v", r.GetAuthorities()[0].GetHolders())
	}
	if err := l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO authorities (pin, root, private_key, phase, create_time) SELECT 'x', root, private_key, phase, create_time FROM authorities")
		return err
	}); err == nil {
		t.Error("two roots sign")
	}
}
