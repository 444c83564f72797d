package identity

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/seal"
)

func TestSignIn(t *testing.T) { // A1
	l := newLab(t)
	alice, mallory := l.addUser("alice"), l.addUser("mallory")
	ctx, directory := l.asAdmin()
	_, err := directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: mallory.GetName(), Disabled: true})
	must(t, err)

	for name, typed := range map[string]string{"as it is": "alice", "upper case": "ALICE", "space": " alice ", "full width": "ａｌｉｃｅ"} {
		session, err := l.try(typed, "password of alice", "")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if session.GetTokenType() != "Bearer" || session.GetPrincipal() != "users/alice" || session.GetUid() != alice.GetUid() {
			t.Errorf("%s: %v", name, session)
		}
		c := l.claims(session.GetAccessToken(), issuer)
		if c.Subject != alice.GetUid() || c.PrincipalType != authn.User || c.SessionID == "" || c.Actor != nil || c.Run != "" ||
			c.Expiry.Sub(c.IssuedAt) != time.Hour || !session.GetExpireTime().AsTime().Equal(c.Expiry) {
			t.Errorf("%s: claims %+v", name, c)
		}
	}
	for i, c := range []struct {
		name, user, password string
		code                 codes.Code
		reason               faultv1.Reason
	}{
		{"wrong password", "alice", "password of bob", codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED},
		{"password in another case", "alice", "Password of alice", codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED},
		{"unknown user", "nobody", "password of alice", codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED},
		{"look-alike", "аlice", "password of alice", codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED}, // Cyrillic
		{"uid for name", alice.GetUid(), "password of alice", codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED},
		{"NUL after the name", "alice\x00", "password of alice", codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED},
		{"disabled, wrong password", "mallory", "x", codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED},
		{"disabled", "mallory", "password of mallory", codes.PermissionDenied, faultv1.Reason_ACCOUNT_DISABLED},
		{"empty name", "", "x", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"empty password", "alice", "", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"long name", strings.Repeat("a", 257), "x", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"long password", "alice", strings.Repeat("a", 1025), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
	} {
		_, err := l.try(c.user, c.password, fmt.Sprint("192.0.2.", 10+i))
		want(t, c.name, err, c.code, c.reason)
	}
	_, err = identityv1.NewSignInServiceClient(l.gateway()).ContinueSignIn(t.Context(), &identityv1.ContinueSignInRequest{State: "x", Factor: "totp", Response: "000000"})
	want(t, "a factor nobody asked for", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
}

// counted counts what a hasher is asked.
type counted struct {
	hasher
	verified, dummies atomic.Int64
}

func (c *counted) Verify(ctx context.Context, stored string, pw redact.Secret) (bool, bool, error) {
	c.verified.Add(1)
	return c.hasher.Verify(ctx, stored, pw)
}

func (c *counted) Dummy(ctx context.Context, pw redact.Secret) error {
	c.dummies.Add(1)
	return c.hasher.Dummy(ctx, pw)
}

func TestEachTryCostsOneHash(t *testing.T) { // A1: an unknown user cannot be told from a wrong password by time
	l := newLab(t)
	l.addUser("alice")
	c := &counted{hasher: l.s.hasher}
	l.s.hasher = c
	for i, step := range []struct {
		user, password    string
		verified, dummies int64
	}{
		{"alice", "password of alice", 1, 0}, {"alice", "wrong", 1, 0}, {"nobody", "wrong", 0, 1}, {"", "", 0, 0}, {"\u3000", "wrong", 0, 1},
	} {
		c.verified.Store(0)
		c.dummies.Store(0)
		_, _ = l.try(step.user, step.password, fmt.Sprint("192.0.2.", 10+i))
		if c.verified.Load() != step.verified || c.dummies.Load() != step.dummies {
			t.Errorf("%q: %d verified, %d dummies", step.user, c.verified.Load(), c.dummies.Load())
		}
	}
}

// during does something while a password is being checked.
type during struct {
	hasher
	do func()
}

func (d *during) Verify(ctx context.Context, stored string, pw redact.Secret) (bool, bool, error) {
	ok, _, err := d.hasher.Verify(ctx, stored, pw)
	d.do()
	return ok, true, err // as if the cost had been raised, so that the password would be stored again
}

// A1, A3: a sign-in that began before the password was changed gives no session after it, and does not bring the old one back.
func TestPasswordChangedDuringSignIn(t *testing.T) {
	l := newLab(t)
	l.addUser("alice")
	ctx, directory := l.asAdmin()
	plain := l.s.hasher
	l.s.hasher = &during{plain, func() {
		_, err := directory.SetUserPassword(ctx, &identityv1.SetUserPasswordRequest{Name: "users/alice", NewPassword: "a new password"})
		must(t, err)
	}}
	_, err := l.try("alice", "password of alice", "192.0.2.30")
	if fault.Code(err) != codes.Aborted {
		t.Errorf("the old password: %v", err)
	}
	l.s.hasher = plain
	_, err = l.try("alice", "password of alice", "192.0.2.31")
	want(t, "the old password, later", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	l.signIn("alice", "a new password")
}

func TestSignInLocksAnAccount(t *testing.T) { // A1
	l := newLab(t)
	l.addUser("alice")
	for _, user := range []string{"alice", "nobody"} { // neither tells whether it exists
		spellings := []string{user, strings.ToUpper(user), " " + user, user + " ", strings.ToUpper(user[:1]) + user[1:]}
		for i, typed := range spellings {
			_, err := l.try(typed, "wrong", fmt.Sprint("192.0.2.", 50+i))
			want(t, typed, err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
		}
		_, err := l.try(user, "password of "+user, "192.0.2.9")
		want(t, user+" is locked, for the right password too", err, codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED)
	}
	l.advance(2 * time.Second)
	if _, err := l.try("alice", "password of alice", "192.0.2.9"); err != nil {
		t.Errorf("after the lock: %v", err)
	}
}

func TestPasswordIsHashedAnewWhenTheCostRises(t *testing.T) {
	l := newLab(t)
	l.addUser("alice")
	stored := func() string {
		p, _, err := l.s.store.Find(t.Context(), l.db.Reader(), 1, "alice")
		must(t, err)
		phc, _, err := l.s.store.Password(t.Context(), l.db.Reader(), p.UID)
		must(t, err)
		return phc
	}
	before := stored()
	dearer := l.cfg
	dearer.Password.Passes = 2
	other, err := New(dearer)
	must(t, err)
	l.s.hasher = other.hasher
	l.signIn("alice", "password of alice")
	if after := stored(); after == before || !strings.Contains(after, "t=2") {
		t.Errorf("stored is still %s", after[:30])
	}
	l.signIn("alice", "password of alice")
}

func TestBootstrapHappensOnce(t *testing.T) {
	l := newLab(t)
	for _, user := range []string{"admin", "other", "Not Valid"} {
		p, created, err := l.s.Bootstrap(t.Context(), BootstrapRequest{User: user, Password: redact.FromString("another password")})
		if err != nil || created || p.UID != l.admin || p.Name != "users/admin" {
			t.Errorf("%s: %+v, %v, %v", user, p, created, err)
		}
	}
	l.signIn("admin", adminPassword)
}

func TestBootstrapRefuses(t *testing.T) {
	l := newLabOf(t, func(c *Config) {
		s, err := New(*c) // before the lab makes its administrator
		must(t, err)
		for name, req := range map[string]BootstrapRequest{
			"no id":            {Password: redact.FromString("a good password")},
			"bad id":           {User: "Admin", Password: redact.FromString("a good password")},
			"look-alike":       {User: "аdmin", Password: redact.FromString("a good password")},
			"no password":      {User: "root"},
			"short password":   {User: "root", Password: redact.FromString("1234567")},
			"long password":    {User: "root", Password: redact.FromString(strings.Repeat("a", 1025))},
			"name as password": {User: "administrator", Password: redact.FromString("ADMINISTRATOR ")},
		} {
			_, _, err := s.Bootstrap(t.Context(), req)
			want(t, name, err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
		}
	})
	l.signIn("admin", adminPassword)
}

func TestWhoAmIAndSignOut(t *testing.T) { // A3
	l := newLab(t)
	l.addUser("alice")
	first, second := l.signIn("alice", "password of alice"), l.signIn("alice", "password of alice")
	who, err := l.whoAmI(first.GetAccessToken())
	must(t, err)
	if who.GetPrincipal() != "users/alice" || who.GetType() != identityv1.PrincipalType_PRINCIPAL_TYPE_USER || who.GetDisplayName() != "The alice" ||
		who.GetUid() != first.GetUid() || !who.GetTokenExpireTime().AsTime().Equal(first.GetExpireTime().AsTime()) || len(who.GetActors()) != 0 {
		t.Errorf("who am I: %v", who)
	}
	ctx := bearer(t.Context(), first.GetAccessToken())
	_, err = identityv1.NewSignInServiceClient(l.gateway()).SignOut(ctx, &identityv1.SignOutRequest{})
	must(t, err)
	_, err = l.whoAmI(first.GetAccessToken())
	want(t, "after signing out", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	if _, err := l.whoAmI(second.GetAccessToken()); err != nil {
		t.Errorf("another session ended too: %v", err)
	}
	l.advance(time.Hour)
	_, err = l.whoAmI(second.GetAccessToken())
	want(t, "an hour later", err, codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED)
}

func TestRevocationOutlivesARestart(t *testing.T) { // A3
	l := newLab(t)
	session := l.signIn("admin", adminPassword)
	_, err := identityv1.NewSignInServiceClient(l.gateway()).SignOut(bearer(t.Context(), session.GetAccessToken()), &identityv1.SignOutRequest{})
	must(t, err)
	again, err := New(l.cfg)
	must(t, err)
	_, err = again.Verifier().Verify(t.Context(), session.GetAccessToken(), issuer)
	want(t, "after a restart", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	if again.Pin() != l.s.Pin() || again.keys.signerID(t) != l.s.keys.signerID(t) {
		t.Error("a restart made another root or signing key")
	}
}

func (k *tokenKeys) signerID(t *testing.T) string {
	t.Helper()
	signer, err := k.signer()
	must(t, err)
	return signer.KeyID()
}

func TestSignInIsRecorded(t *testing.T) { // G2
	l := newLab(t)
	session := l.signIn("admin", adminPassword)
	_, err := l.try("admin", "wrong password", "192.0.2.1")
	want(t, "wrong", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	var good, bad int
	for _, ev := range l.events() {
		text := ev.String()
		for _, secret := range []string{adminPassword, "wrong password", session.GetAccessToken()} {
			if strings.Contains(text, secret) {
				t.Errorf("a secret stands in %s", ev.GetMethod())
			}
		}
		if ev.GetMethod() != "/redoubt.identity.v1.SignInService/SignIn" {
			continue
		}
		switch ev.GetCode() {
		case "OK":
			good++
			if ev.GetPrincipal() != l.admin || ev.GetPrincipalType() != authn.User || ev.GetDetails()["session"] == "" {
				t.Errorf("the sign-in is recorded as %v", ev)
			}
		case "UNAUTHENTICATED":
			bad += int(ev.GetCount())
			if ev.GetPrincipal() != l.admin || ev.GetDetails()["callers"] != "unknown" || ev.GetReason() != "SIGN_IN_FAILED" {
				t.Errorf("the refusal is recorded as %v", ev)
			}
		}
	}
	if good != 1 || bad != 1 {
		t.Errorf("%d sign-ins and %d refusals are recorded", good, bad)
	}
}

func TestAForeignSealStartsNothing(t *testing.T) { // E3: and what is stored stays as it is
	l := newLab(t)
	key, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	must(t, err)
	foreign := l.cfg
	foreign.Own, err = envelope.New(envelope.Config{Source: envelope.SealSource(key, Name), DB: l.db})
	must(t, err)
	_, err = New(foreign)
	want(t, "another seal", err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
	again, err := New(l.cfg)
	must(t, err)
	if again.Pin() != l.s.Pin() {
		t.Error("the root is another one afterwards")
	}
}

// G2: whose account was tried, and from where, stands in the log; what was typed as a name nowhere.
func TestFailedSignInsStandAtTheAccount(t *testing.T) {
	l := newLab(t)
	erin := l.addUser("erin")
	for i := range 3 {
		_, err := l.try("erin", "a guess at it", fmt.Sprintf("192.0.2.%d", 10+i%2))
		want(t, "a guess", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	}
	_, err := l.try("my-password-typed-as-name", "erin", "192.0.2.9")
	want(t, "nobody", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	l.signIn("erin", erinHas)
	counts := make(map[string]*audit.Event)
	for _, ev := range l.events() {
		if strings.Contains(ev.String(), "typed-as-name") {
			t.Errorf("what was typed is kept: %v", ev)
		}
		if ev.GetMethod() == identityv1.SignInService_SignIn_FullMethodName && ev.GetResult() != telemetryv1.ActivityEvent_RESULT_SUCCEEDED {
			counts[ev.GetPrincipal()] = ev
		}
	}
	at, nobody := counts[erin.GetUid()], counts[""]
	if at.GetCount() != 3 || at.GetReason() != faultv1.Reason_SIGN_IN_FAILED.String() || at.GetDetails()["addresses"] != "192.0.2.10 192.0.2.11" {
		t.Errorf("at erin's account: %v", at)
	}
	if nobody.GetCount() != 1 || nobody.GetDetails()["addresses"] != "" {
		t.Errorf("at no account: %v", nobody)
	}
}
