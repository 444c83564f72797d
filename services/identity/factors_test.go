package identity

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pquerna/otp/hotp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

func (l *lab) factors() identityv1.FactorServiceClient {
	return identityv1.NewFactorServiceClient(l.gateway())
}

func (l *lab) signIns() identityv1.SignInServiceClient {
	return identityv1.NewSignInServiceClient(l.gateway())
}

// elsewhere is a context of somebody at an address of his own, so that limits by address are another test's.
func (l *lab) elsewhere() context.Context {
	n := people.Add(1)
	return metadata.AppendToOutgoingContext(l.t.Context(), rpc.AddressHeader, fmt.Sprintf("10.1.%d.%d", n/250, 1+n%250))
}

// totp is what an app with the secret shows now, or some steps later.
func (l *lab) totp(secret string, later int64) string {
	l.t.Helper()
	c, err := hotp.GenerateCode(secret, uint64(l.now().Unix()/30+later))
	must(l.t, err)
	return c
}

// phone is an app that a user has enrolled and proved.
type phone struct {
	id, secret string
	recovery   []string
	session    *identityv1.Session
}

// enrols gives a user his first factor, in a session of his.
func (l *lab) enrols(token string) phone {
	l.t.Helper()
	ctx := bearer(l.t.Context(), token)
	e, err := l.factors().EnrolFactor(ctx, &identityv1.EnrolFactorRequest{DisplayName: "my phone"})
	must(l.t, err)
	p, err := l.factors().ProveFactor(ctx, &identityv1.ProveFactorRequest{FactorId: e.GetFactor().GetFactorId(), Code: l.totp(e.GetSecret(), 0)})
	must(l.t, err)
	l.advance(30 * time.Second) // the code was used
	return phone{id: e.GetFactor().GetFactorId(), secret: e.GetSecret(), recovery: p.GetRecoveryCodes(), session: p.GetSession()}
}

// asked signs in by password and gives the challenge.
func (l *lab) asked(user string) *identityv1.Challenge {
	l.t.Helper()
	r, err := l.signIns().SignIn(l.elsewhere(), &identityv1.SignInRequest{User: user, Password: "password of " + user})
	must(l.t, err)
	if r.GetChallenge() == nil || r.GetSession() != nil {
		l.t.Fatalf("no factor is asked for: %v", r)
	}
	return r.GetChallenge()
}

func (l *lab) answer(state, kind, response string) (*identityv1.SignInResponse, error) {
	return l.signIns().ContinueSignIn(l.elsewhere(), &identityv1.ContinueSignInRequest{State: state, Factor: kind, Response: response})
}

func TestFirstFactor(t *testing.T) { // A2
	l := newLab(t)
	alice := l.addUser("alice")
	here, there := l.signIn("alice", "password of alice"), l.signIn("alice", "password of alice")
	ctx := bearer(t.Context(), here.GetAccessToken())
	if c := l.claims(here.GetAccessToken(), issuer); c.ACR != authn.ACRPassword || !slices.Equal(c.AMR, []string{"pwd"}) || !c.AuthTime.Equal(l.now()) {
		t.Errorf("%+v", c)
	}
	e, err := l.factors().EnrolFactor(ctx, &identityv1.EnrolFactorRequest{DisplayName: "my phone"})
	must(t, err)
	// It counts for nothing yet.
	l.signIn("alice", "password of alice")
	_, err = l.factors().ProveFactor(ctx, &identityv1.ProveFactorRequest{FactorId: e.GetFactor().GetFactorId(), Code: "000000"})
	want(t, "wrong code", err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	_, err = l.factors().RegenerateRecoveryCodes(ctx, &identityv1.RegenerateRecoveryCodesRequest{})
	want(t, "recovery codes without a factor", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)

	p, err := l.factors().ProveFactor(ctx, &identityv1.ProveFactorRequest{FactorId: e.GetFactor().GetFactorId(), Code: l.totp(e.GetSecret(), 0)})
	must(t, err)
	if len(p.GetRecoveryCodes()) != 10 || !p.GetFactor().GetProved() || p.GetSession().GetUid() != alice.GetUid() {
		t.Errorf("%v", p)
	}
	// No token is left that a password alone gave.
	for name, token := range map[string]string{"here": here.GetAccessToken(), "there": there.GetAccessToken()} {
		_, err := l.whoAmI(token)
		want(t, name, err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	}
	if _, err := l.whoAmI(p.GetSession().GetAccessToken()); err != nil {
		t.Error(err)
	}
	if c := l.claims(p.GetSession().GetAccessToken(), issuer); c.ACR != authn.ACRMFA || !slices.Equal(c.AMR, []string{"pwd", "otp", "mfa"}) {
		t.Errorf("%+v", c)
	}
	ctx = bearer(t.Context(), p.GetSession().GetAccessToken())
	list, err := l.factors().ListFactors(ctx, &identityv1.ListFactorsRequest{})
	must(t, err)
	if f := list.GetFactors(); len(f) != 1 || f[0].GetKind() != "totp" || f[0].GetDisplayName() != "my phone" || !f[0].GetProved() || list.GetRecoveryCodes() != 10 {
		t.Errorf("%v", list)
	}
	for _, ev := range l.events() {
		for _, v := range ev.GetDetails() {
			if v == e.GetSecret() || slices.Contains(p.GetRecoveryCodes(), v) {
				t.Errorf("a secret is recorded: %v", ev)
			}
		}
	}

	// A password is not enough any more, and the code that proved the factor was its one use.
	c := l.asked("alice")
	if !slices.Equal(c.GetFactors(), []string{"totp", "recovery_code"}) || c.GetEnrol() {
		t.Errorf("%v", c)
	}
	_, err = l.answer(c.GetState(), "totp", l.totp(e.GetSecret(), 0))
	want(t, "the code of the proof", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	l.advance(30 * time.Second)
	code := l.totp(e.GetSecret(), 0)
	r, err := l.answer(c.GetState(), "totp", code)
	must(t, err)
	if got := l.claims(r.GetSession().GetAccessToken(), issuer); got.ACR != authn.ACRMFA || !slices.Equal(got.AMR, []string{"pwd", "otp", "mfa"}) || !got.AuthTime.Equal(l.now()) {
		t.Errorf("%+v", got)
	}
	_, err = l.answer(c.GetState(), "totp", l.totp(e.GetSecret(), 1))
	want(t, "a state that was used up", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	_, err = l.answer(l.asked("alice").GetState(), "totp", code)
	want(t, "a code that was used, in another sign-in", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
}

func TestFactorsNeedAFreshSessionOfOnesOwn(t *testing.T) { // A2
	l := newLab(t)
	l.addUser("alice")
	l.addUser("mallory")
	p := l.enrols(l.signIn("alice", "password of alice").GetAccessToken())
	ctx, mallory := bearer(t.Context(), p.session.GetAccessToken()), bearer(t.Context(), l.signIn("mallory", "password of mallory").GetAccessToken())
	f := l.factors()
	_, err := f.DeleteFactor(mallory, &identityv1.DeleteFactorRequest{FactorId: p.id})
	want(t, "another's factor", err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	_, err = f.ProveFactor(mallory, &identityv1.ProveFactorRequest{FactorId: p.id, Code: l.totp(p.secret, 0)})
	want(t, "prove another's factor", err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	_, err = f.ResetFactors(mallory, &identityv1.ResetFactorsRequest{Name: "users/alice"})
	want(t, "reset without the permission", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)

	l.advance(freshFor)
	_, err = f.EnrolFactor(ctx, &identityv1.EnrolFactorRequest{})
	want(t, "enrol, an old sign-in", err, codes.Unauthenticated, faultv1.Reason_STEP_UP_REQUIRED)
	_, err = f.DeleteFactor(ctx, &identityv1.DeleteFactorRequest{FactorId: p.id})
	want(t, "delete, an old sign-in", err, codes.Unauthenticated, faultv1.Reason_STEP_UP_REQUIRED)
	_, err = f.RegenerateRecoveryCodes(ctx, &identityv1.RegenerateRecoveryCodesRequest{})
	want(t, "recovery codes, an old sign-in", err, codes.Unauthenticated, faultv1.Reason_STEP_UP_REQUIRED)

	// A service that holds a token for him, and a run, are not he.
	x, err := identityv1.NewTokenServiceClient(l.service("workspace")).ExchangeToken(t.Context(), &identityv1.ExchangeTokenRequest{SubjectToken: p.session.GetAccessToken(), Audience: "identity"})
	if err == nil {
		_, err = identityv1.NewFactorServiceClient(l.service("workspace")).ListFactors(bearer(t.Context(), x.GetAccessToken()), &identityv1.ListFactorsRequest{})
		want(t, "a service in his name", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	} else {
		t.Error(err)
	}

	r, err := l.answer(l.asked("alice").GetState(), "recovery_code", p.recovery[0])
	must(t, err)
	ctx = bearer(t.Context(), r.GetSession().GetAccessToken())
	// At most three; one that was proved is not proved again, nor one that was enrolled long ago.
	e, err := f.EnrolFactor(ctx, &identityv1.EnrolFactorRequest{})
	must(t, err)
	more := &identityv1.ProveFactorRequest{FactorId: e.GetFactor().GetFactorId(), Code: l.totp(e.GetSecret(), 0)}
	if r, err := f.ProveFactor(ctx, more); err != nil || r.GetSession() != nil || len(r.GetRecoveryCodes()) != 0 {
		t.Errorf("a second factor: %v %v", r, err)
	}
	_, err = f.ProveFactor(ctx, more)
	want(t, "a factor that was proved", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	e, err = f.EnrolFactor(ctx, &identityv1.EnrolFactorRequest{})
	must(t, err)
	third := e.GetFactor().GetFactorId()
	_, err = f.ProveFactor(ctx, &identityv1.ProveFactorRequest{FactorId: third, Code: l.totp(e.GetSecret(), 0)})
	must(t, err)
	_, err = f.EnrolFactor(ctx, &identityv1.EnrolFactorRequest{})
	want(t, "a fourth", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	for _, id := range []string{more.GetFactorId(), third} {
		_, err = f.DeleteFactor(ctx, &identityv1.DeleteFactorRequest{FactorId: id})
		must(t, err)
	}
	e, err = f.EnrolFactor(ctx, &identityv1.EnrolFactorRequest{})
	must(t, err)
	l.advance(freshFor + time.Second)
	_, err = f.ProveFactor(ctx, &identityv1.ProveFactorRequest{FactorId: e.GetFactor().GetFactorId(), Code: l.totp(e.GetSecret(), 0)})
	want(t, "enrolled long ago", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	r, err = l.answer(l.asked("alice").GetState(), "totp", l.totp(p.secret, 0))
	must(t, err)
	ctx = bearer(t.Context(), r.GetSession().GetAccessToken())
	again, err := f.RegenerateRecoveryCodes(ctx, &identityv1.RegenerateRecoveryCodesRequest{})
	must(t, err)
	_, err = l.answer(l.asked("alice").GetState(), "recovery_code", p.recovery[1])
	want(t, "a recovery code of before", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	if _, err = l.answer(l.asked("alice").GetState(), "recovery_code", again.GetRecoveryCodes()[0]); err != nil {
		t.Error(err)
	}
	// The last factor takes the recovery codes with it.
	_, err = f.DeleteFactor(ctx, &identityv1.DeleteFactorRequest{FactorId: p.id})
	must(t, err)
	l.signIn("alice", "password of alice")
	list, err := f.ListFactors(ctx, &identityv1.ListFactorsRequest{})
	must(t, err)
	if len(list.GetFactors()) != 1 || list.GetFactors()[0].GetProved() || list.GetRecoveryCodes() != 0 { // the one of long ago
		t.Errorf("%v", list)
	}
}

func TestRecoveryCodeWorksOnce(t *testing.T) { // A2
	l := newLab(t)
	l.addUser("alice")
	p := l.enrols(l.signIn("alice", "password of alice").GetAccessToken())
	r, err := l.answer(l.asked("alice").GetState(), "recovery_code", p.recovery[3])
	must(t, err)
	if c := l.claims(r.GetSession().GetAccessToken(), issuer); c.ACR != authn.ACRMFA || !slices.Equal(c.AMR, []string{"pwd", "rec", "mfa"}) {
		t.Errorf("%+v", c)
	}
	for name, a := range map[string][2]string{
		"again": {"recovery_code", p.recovery[3]}, "as a code of the app": {"totp", p.recovery[4]}, "a code of the app for it": {"recovery_code", l.totp(p.secret, 0)},
		"no kind of factor": {"webauthn", p.recovery[4]}, "cut off": {"recovery_code", p.recovery[4][:22]},
	} {
		_, err := l.answer(l.asked("alice").GetState(), a[0], a[1])
		want(t, name, err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
		must(t, l.forget("alice"))
	}
}

// forget starts a user's count of tries over.
func (l *lab) forget(user string) error {
	return l.db.Write(l.t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		p, _, err := l.s.store.Find(ctx, tx, store.User, user)
		if err != nil {
			return err
		}
		return l.s.store.ForgetFactorTries(ctx, tx, p.UID)
	})
}

func TestStateEnds(t *testing.T) { // A2
	l := newLab(t)
	l.addUser("alice")
	p := l.enrols(l.signIn("alice", "password of alice").GetAccessToken())
	over := func(name, state string) {
		t.Helper()
		_, err := l.answer(state, "recovery_code", p.recovery[0])
		want(t, name, err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	}
	state := l.asked("alice").GetState()
	over("another's", state[:len(state)-1]+"_")
	over("none", "x")
	l.advance(stateLife - time.Second)
	if _, err := l.answer(state, "totp", l.totp(p.secret, 0)); err != nil {
		t.Error(err)
	}
	state = l.asked("alice").GetState()
	l.advance(stateLife)
	over("after five minutes", state)

	ctx, directory := l.asAdmin()
	state = l.asked("alice").GetState()
	_, err := directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: "users/alice", Disabled: true})
	must(t, err)
	over("disabled", state)
	_, err = directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: "users/alice"})
	must(t, err)
	over("disabled and enabled again", state)

	state = l.asked("alice").GetState()
	_, err = directory.SetUserPassword(ctx, &identityv1.SetUserPasswordRequest{Name: "users/alice", NewPassword: "password of alice"})
	must(t, err)
	over("a new password, which is the old one", state)

	state = l.asked("alice").GetState()
	_, err = l.factors().ResetFactors(ctx, &identityv1.ResetFactorsRequest{Name: "users/alice"})
	must(t, err)
	over("factors reset", state)

	// Each of these ends a state by two ways. This is the second, alone: what a sign-in finds in its transaction.
	l.addUser("carol")
	carol := l.enrols(l.signIn("carol", "password of carol").GetAccessToken())
	change := func(fn func(ctx context.Context, tx *sqldb.Tx, uid string) error) {
		t.Helper()
		must(t, l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			u, _, err := l.s.store.Find(ctx, tx, store.User, "carol")
			if err != nil {
				return err
			}
			return fn(ctx, tx, u.UID)
		}))
	}
	for name, fn := range map[string]func(ctx context.Context, tx *sqldb.Tx, uid string) error{
		"disabled": func(ctx context.Context, tx *sqldb.Tx, uid string) error {
			return l.s.store.SetDisabled(ctx, tx, uid, true)
		},
		"another hash": func(ctx context.Context, tx *sqldb.Tx, uid string) error {
			return l.s.store.SetPassword(ctx, tx, uid, "another", l.now())
		},
	} {
		var phc string
		state := l.asked("carol").GetState()
		change(func(ctx context.Context, tx *sqldb.Tx, uid string) (err error) {
			if phc, _, err = l.s.store.Password(ctx, tx, uid); err != nil {
				return err
			}
			return fn(ctx, tx, uid)
		})
		_, err := l.answer(state, "recovery_code", carol.recovery[0])
		want(t, name, err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
		change(func(ctx context.Context, tx *sqldb.Tx, uid string) error {
			if err := l.s.store.SetDisabled(ctx, tx, uid, false); err != nil {
				return err
			}
			return l.s.store.SetPassword(ctx, tx, uid, phc, l.now())
		})
	}

	l.addUser("bob")
	b := l.enrols(l.signIn("bob", "password of bob").GetAccessToken())
	state = l.asked("bob").GetState()
	_, err = directory.DeleteUser(ctx, &identityv1.DeleteUserRequest{Name: "users/bob"})
	must(t, err)
	_, err = l.answer(state, "recovery_code", b.recovery[0])
	want(t, "deleted", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
}

func TestTriesAreCounted(t *testing.T) { // A2
	l := newLab(t)
	l.addUser("alice")
	p := l.enrols(l.signIn("alice", "password of alice").GetAccessToken())
	state := l.asked("alice").GetState()
	for i := range stateTries {
		_, err := l.answer(state, "totp", "000000")
		want(t, fmt.Sprint("try ", i), err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	}
	l.advance(2 * time.Second)
	// The state is used up, for the right code too.
	_, err := l.answer(state, "recovery_code", p.recovery[0])
	want(t, "a sixth try", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	// A new sign-in gives no more tries: each wait is twice the last.
	must(t, l.forget("alice"))
	for range freeTries {
		_, _ = l.answer(l.asked("alice").GetState(), "totp", "000000")
	}
	var waits []time.Duration
	for range 12 {
		state = l.asked("alice").GetState()
		_, err := l.answer(state, "recovery_code", p.recovery[0])
		want(t, "a try that comes too early, with the right code", err, codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED)
		wait := fault.Describe(fault.FromStatus(err)).RetryAfter()
		waits = append(waits, wait)
		l.advance(wait)
		_, err = l.answer(l.asked("alice").GetState(), "totp", "000000")
		want(t, "a wrong code after the wait", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	}
	if got := fmt.Sprint(waits); got != "[1s 2s 4s 8s 16s 32s 1m4s 2m8s 4m16s 8m32s 15m0s 15m0s]" {
		t.Errorf("the waits are %v", got)
	}
	// Only the right factor starts the count over.
	l.advance(longestWait)
	if _, err := l.answer(l.asked("alice").GetState(), "recovery_code", p.recovery[0]); err != nil {
		t.Error(err)
	}
	if _, err := l.answer(l.asked("alice").GetState(), "recovery_code", p.recovery[1]); err != nil {
		t.Error(err)
	}
}

// A2: tries at the same time are counted one by one, and a code that is sent at the same time is taken once.
func TestTriesAtOnce(t *testing.T) {
	l := newLab(t)
	l.addUser("alice")
	p := l.enrols(l.signIn("alice", "password of alice").GetAccessToken())
	const n = 12
	var states []string
	for range n {
		states = append(states, l.asked("alice").GetState())
	}
	at := func(kind, response string) (in int) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for _, state := range states {
			wg.Go(func() {
				_, err := l.answer(state, kind, response)
				mu.Lock()
				defer mu.Unlock()
				if fault.Code(fault.FromStatus(err)) != codes.ResourceExhausted {
					in++
				}
			})
		}
		wg.Wait()
		return in
	}
	if got := at("totp", "000000"); got != freeTries {
		t.Errorf("%d tries at once", got)
	}
	must(t, l.forget("alice"))
	code, taken := l.totp(p.secret, 0), 0
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, state := range states[:4] {
		wg.Go(func() {
			if _, err := l.answer(state, "totp", code); err == nil {
				mu.Lock()
				taken++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if taken != 1 {
		t.Errorf("the code was taken %d times", taken)
	}
}

func TestResetFactors(t *testing.T) { // A2
	l := newLab(t)
	l.addUser("alice")
	p := l.enrols(l.signIn("alice", "password of alice").GetAccessToken())
	ctx, _ := l.asAdmin()
	r, err := l.factors().ResetFactors(ctx, &identityv1.ResetFactorsRequest{Name: "users/alice"})
	must(t, err)
	if r.GetRemoved() != 1 {
		t.Errorf("%v", r)
	}
	_, err = l.whoAmI(p.session.GetAccessToken())
	want(t, "a session of before", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	l.signIn("alice", "password of alice")
	_, err = l.factors().ResetFactors(ctx, &identityv1.ResetFactorsRequest{Name: "users/admin"})
	want(t, "one's own", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	_, err = l.factors().ResetFactors(ctx, &identityv1.ResetFactorsRequest{Name: "users/nobody"})
	want(t, "nobody's", err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
}

func TestRequireMFA(t *testing.T) { // A2
	l := newLab(t)
	l.addUser("alice")
	l.addUser("bob")
	p := l.enrols(l.signIn("alice", "password of alice").GetAccessToken())
	bob := l.signIn("bob", "password of bob")
	ctx, _ := l.asAdmin()
	_, err := l.factors().UpdateSignInPolicy(bearer(t.Context(), bob.GetAccessToken()), &identityv1.UpdateSignInPolicyRequest{})
	want(t, "without the permission", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	got, err := l.factors().GetSignInPolicy(ctx, &identityv1.GetSignInPolicyRequest{})
	must(t, err)
	if got.GetRequireMfa() {
		t.Error("a factor is required from the start")
	}
	u, err := l.factors().UpdateSignInPolicy(ctx, &identityv1.UpdateSignInPolicyRequest{RequireMfa: true})
	must(t, err)
	if u.GetSessionsEnded() < 2 || !u.GetPolicy().GetRequireMfa() {
		t.Errorf("%v", u)
	}
	_, err = l.whoAmI(bob.GetAccessToken())
	want(t, "a session by a password alone", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	if _, err := l.whoAmI(p.session.GetAccessToken()); err != nil {
		t.Error(err)
	}
	_, err = l.factors().DeleteFactor(bearer(t.Context(), p.session.GetAccessToken()), &identityv1.DeleteFactorRequest{FactorId: p.id})
	want(t, "the last factor", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	// Who has one cannot enrol with a state.
	_, err = l.signIns().EnrolSignInFactor(l.elsewhere(), &identityv1.EnrolSignInFactorRequest{State: l.asked("alice").GetState()})
	want(t, "enrol beside a factor that there is", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)

	c := l.asked("bob")
	if !c.GetEnrol() || len(c.GetFactors()) != 0 {
		t.Errorf("%v", c)
	}
	_, err = l.answer(c.GetState(), "totp", "000000")
	want(t, "before one is enrolled", err, codes.Unauthenticated, faultv1.Reason_FACTOR_REQUIRED)
	_, err = l.whoAmI(c.GetState())
	want(t, "the state is no token", err, codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID)
	first, err := l.signIns().EnrolSignInFactor(l.elsewhere(), &identityv1.EnrolSignInFactorRequest{State: c.GetState()})
	must(t, err)
	second, err := l.signIns().EnrolSignInFactor(l.elsewhere(), &identityv1.EnrolSignInFactorRequest{State: c.GetState()})
	must(t, err)
	_, err = l.answer(c.GetState(), "totp", l.totp(first.GetSecret(), 0))
	want(t, "the one that was replaced", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	other := l.asked("bob")
	_, err = l.answer(other.GetState(), "totp", l.totp(second.GetSecret(), 0))
	want(t, "a factor that another sign-in has enrolled", err, codes.Unauthenticated, faultv1.Reason_FACTOR_REQUIRED)
	r, err := l.answer(c.GetState(), "totp", l.totp(second.GetSecret(), 0))
	must(t, err)
	if c := l.claims(r.GetSession().GetAccessToken(), issuer); c.ACR != authn.ACRMFA || len(r.GetRecoveryCodes()) != 10 {
		t.Errorf("%+v", c)
	}
	_, err = l.signIns().EnrolSignInFactor(l.elsewhere(), &identityv1.EnrolSignInFactorRequest{State: other.GetState()})
	want(t, "another sign-in that wanted to enrol", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	if _, err := l.answer(l.asked("bob").GetState(), "recovery_code", r.GetRecoveryCodes()[0]); err != nil {
		t.Error(err)
	}
	// Turned off, a factor that there is is asked for still.
	admin, err := l.signIns().SignIn(l.elsewhere(), &identityv1.SignInRequest{User: "admin", Password: adminPassword})
	must(t, err)
	e, err := l.signIns().EnrolSignInFactor(l.elsewhere(), &identityv1.EnrolSignInFactorRequest{State: admin.GetChallenge().GetState()})
	must(t, err)
	a, err := l.answer(admin.GetChallenge().GetState(), "totp", l.totp(e.GetSecret(), 0))
	must(t, err)
	_, err = l.factors().UpdateSignInPolicy(bearer(t.Context(), a.GetSession().GetAccessToken()), &identityv1.UpdateSignInPolicyRequest{})
	must(t, err)
	l.asked("bob")
}

// A2: who has a factor proves it anew for what is worth more than a session; who has none is not asked.
func TestStepUp(t *testing.T) {
	l := newLab(t)
	l.addUser("alice")
	ctx, directory := l.asAdmin()
	reset := &identityv1.ResetFactorsRequest{Name: "users/alice"}
	l.advance(20 * time.Minute)
	_, err := l.factors().ResetFactors(ctx, reset)
	must(t, err)
	_, err = directory.CreateUserCode(ctx, &identityv1.CreateUserCodeRequest{Name: "users/alice"})
	must(t, err)

	p := l.enrols(l.signIn("admin", adminPassword).GetAccessToken())
	ctx = bearer(t.Context(), p.session.GetAccessToken())
	_, err = l.factors().ResetFactors(ctx, reset)
	must(t, err)
	l.advance(15 * time.Minute)
	for name, call := range map[string]func() error{
		"reset factors": func() error { _, err := l.factors().ResetFactors(ctx, reset); return err },
		"a code": func() error {
			_, err := directory.CreateUserCode(ctx, &identityv1.CreateUserCodeRequest{Name: "users/alice"})
			return err
		},
		"a password": func() error {
			_, err := directory.SetUserPassword(ctx, &identityv1.SetUserPasswordRequest{Name: "users/alice", NewPassword: "another password"})
			return err
		},
		"the policy": func() error {
			_, err := l.factors().UpdateSignInPolicy(ctx, &identityv1.UpdateSignInPolicyRequest{})
			return err
		},
		"keys": func() error {
			_, err := l.keyService().RotateSigningKeys(ctx, &identityv1.RotateSigningKeysRequest{})
			return err
		},
	} {
		want(t, name, call(), codes.Unauthenticated, faultv1.Reason_STEP_UP_REQUIRED)
	}
	if _, err := directory.ListUsers(ctx, &identityv1.ListUsersRequest{}); err != nil {
		t.Error(err)
	}
}
