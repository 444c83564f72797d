package identity

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

func TestABrowserJoinsASession(t *testing.T) { // A1
	l := newLab(t)
	alice := l.addUser("alice")
	session := l.signIn("alice", "password of alice")
	signIn := identityv1.NewSignInServiceClient(l.gateway())
	mine := bearer(t.Context(), session.GetAccessToken())
	code := func() string {
		c, err := signIn.CreateSignInCode(mine, &identityv1.CreateSignInCodeRequest{})
		must(t, err)
		return c.GetCode()
	}
	redeem := func(code string) (*identityv1.Session, error) {
		return signIn.RedeemSignInCode(t.Context(), &identityv1.RedeemSignInCodeRequest{Code: code})
	}

	first := code()
	joined, err := redeem(first)
	must(t, err)
	a, b := l.claims(session.GetAccessToken(), issuer), l.claims(joined.GetAccessToken(), issuer)
	if joined.GetUid() != alice.GetUid() || b.Subject != a.Subject || b.SessionID != a.SessionID || b.ID == a.ID || b.Expiry.After(a.Expiry) {
		t.Errorf("the browser's token is %+v, of the session %+v", b, a)
	}
	_, err = redeem(first)
	want(t, "a code that was used", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	_, err = redeem("rdl_" + first[5:])
	want(t, "another code", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)

	// A token that lives on does not outlive its session.
	l.advance(59*time.Minute + 50*time.Second)
	late := code()
	joined, err = redeem(late)
	must(t, err)
	if c := l.claims(joined.GetAccessToken(), issuer); c.Expiry.After(a.Expiry) {
		t.Errorf("the browser's token ends at %v, the session at %v", c.Expiry, a.Expiry)
	}

	session = l.signIn("alice", "password of alice")
	mine = bearer(t.Context(), session.GetAccessToken())
	old := code()
	l.advance(61 * time.Second)
	_, err = redeem(old)
	want(t, "a code that is over", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	gone := code()
	joined, err = redeem(code())
	must(t, err)
	_, err = signIn.SignOut(bearer(t.Context(), joined.GetAccessToken()), &identityv1.SignOutRequest{})
	must(t, err)
	_, err = redeem(gone)
	want(t, "a code of a session that was ended", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	_, err = l.whoAmI(session.GetAccessToken())
	want(t, "the session after signing out in the browser", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
}
