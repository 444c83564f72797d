package identity

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

func (l *lab) accounts() identityv1.AccountServiceClient {
	return identityv1.NewAccountServiceClient(l.gateway())
}

// askConsole is the console's authorization request, bound to the key.
func askConsole(key *ecdsa.PrivateKey, change ...string) url.Values {
	return with(url.Values{
		"client_id": {provider.Console}, "redirect_uri": {issuer + provider.PathConsole}, "response_type": {"code"}, "scope": {"redoubt"}, "state": {"st-1"},
		"code_challenge": {challengeOf(verify)}, "code_challenge_method": {"S256"}, "dpop_jkt": {authn.Thumbprint(&key.PublicKey)},
	}, change...)
}

// consoleIn signs the browser in to the console and gives its token, which is bound to the key.
func (b *browser) consoleIn(user string, key *ecdsa.PrivateKey) string {
	b.l.t.Helper()
	r := b.get(provider.PathAuthorize, askConsole(key))
	if r.GetStatus() == http.StatusOK {
		r = b.post(provider.PathSignIn, url.Values{"request": {r.sealed(b.l.t)}, "action": {"sign-in"}, "user": {user}, "password": {"password of " + user}})
	}
	code := r.query().Get("code")
	if code == "" {
		b.l.t.Fatalf("no code: %d %q %v", r.GetStatus(), r.text(), r.err)
	}
	out := b.l.token(url.Values{
		"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {issuer + provider.PathConsole}, "code_verifier": {verify}, "client_id": {provider.Console},
	}, key)
	if out.err != nil {
		b.l.t.Fatal(out.err)
	}
	m := out.json(b.l.t)
	if str(m, "token_type") != "DPoP" || str(m, "refresh_token") != "" || str(m, "id_token") != "" {
		b.l.t.Errorf("the console was given %v", m)
	}
	return str(m, "access_token")
}

// The console's own client: bound to a key, its answers to our origin alone, so that who is signed in is not asked again (A1).
func TestTheConsoleIsAClient(t *testing.T) {
	l := newLab(t)
	l.addUser("erin")
	key, b := newKey(t), l.browser()
	token := b.consoleIn("erin", key)
	ctx := l.bound(t.Context(), token, key, identityv1.SignInService_WhoAmI_FullMethodName)
	if who, err := l.signIns().WhoAmI(ctx, &identityv1.WhoAmIRequest{}); err != nil || who.GetPrincipal() != "users/erin" {
		t.Errorf("the console is %v %v", who, err)
	}
	_, err := l.signIns().WhoAmI(bearer(t.Context(), token), &identityv1.WhoAmIRequest{})
	want(t, "the token without its key", err, codes.Unauthenticated, faultv1.Reason_TOKEN_PROOF_INVALID)
	// A second time nobody is asked; with max_age in the past, he is.
	l.advance(time.Minute)
	if r := b.get(provider.PathAuthorize, askConsole(key)); r.GetStatus() != http.StatusSeeOther || r.query().Get("code") == "" {
		t.Errorf("who is signed in is asked again: %d", r.GetStatus())
	}
	if r := b.get(provider.PathAuthorize, askConsole(key, "max_age", "30")); r.GetStatus() != http.StatusOK {
		t.Errorf("a sign-in of a minute ago counts for max_age=30: %d", r.GetStatus())
	}
	for name, change := range map[string][]string{
		"no key":          {"dpop_jkt", ""},
		"offline access":  {"scope", "redoubt offline_access"},
		"another address": {"redirect_uri", "https://example.org" + provider.PathConsole},
		"a port beside":   {"redirect_uri", "https://redoubt.test:7444" + provider.PathConsole},
		"a path below":    {"redirect_uri", issuer + provider.PathConsole + "/x"},
	} {
		if r := b.get(provider.PathAuthorize, askConsole(key, change...)); r.query().Get("code") != "" {
			t.Errorf("%s: a code", name)
		}
	}
}

// list gives the sessions that a token sees, and which it says is its own.
func (l *lab) sessions(ctx context.Context) *identityv1.ListSessionsResponse {
	l.t.Helper()
	r, err := l.accounts().ListSessions(ctx, &identityv1.ListSessionsRequest{})
	must(l.t, err)
	return r
}

func sessionKinds(list []*identityv1.AccountSession) string {
	var out string
	for _, s := range list {
		out += fmt.Sprintf("%s/%s/%v ", s.GetKind(), s.GetClientId(), s.GetCurrent())
	}
	return out
}

func TestOnesOwnSessions(t *testing.T) { // A3
	l := newLab(t)
	l.addUser("erin")
	key, b := newKey(t), l.browser()
	token := b.consoleIn("erin", key)
	call := func(method string) context.Context { return l.bound(t.Context(), token, key, method) }
	l.advance(time.Second)
	direct := l.signIn("erin", "password of erin").GetAccessToken()
	l.advance(time.Second)
	other := newKey(t)
	elsewhere := l.browser()
	second := elsewhere.consoleIn("erin", other)
	list := l.sessions(call(identityv1.AccountService_ListSessions_FullMethodName))
	if got, want := len(list.GetSessions()), 5; got != want {
		t.Fatalf("%d sessions, want %d: %s", got, want, sessionKinds(list.GetSessions()))
	}
	var own, browsers int
	for _, s := range list.GetSessions() {
		switch {
		case s.GetKind() == identityv1.AccountSession_KIND_BROWSER:
			browsers++
		case s.GetKind() == identityv1.AccountSession_KIND_GRANT:
			if s.GetClientName() != "the Redoubt console" || !s.GetKeyBound() || s.GetBrowserSessionId() == "" || s.GetScope() != "redoubt" {
				t.Errorf("the console's is %v", s)
			}
		case s.GetKind() != identityv1.AccountSession_KIND_DIRECT:
			t.Errorf("of no kind: %v", s)
		}
		if s.GetCurrent() {
			own++
		}
	}
	if own != 2 || browsers != 2 { // the console's and its browser's
		t.Errorf("%d are said to be this one's, and %d browsers: %s", own, browsers, sessionKinds(list.GetSessions()))
	}
	// By pages it is the same list.
	var paged []*identityv1.AccountSession
	for next, n := "", 0; n < 10; n++ {
		r, err := l.accounts().ListSessions(call(identityv1.AccountService_ListSessions_FullMethodName), &identityv1.ListSessionsRequest{PageSize: 2, PageToken: next})
		must(t, err)
		paged = append(paged, r.GetSessions()...)
		if next = r.GetNextPageToken(); next == "" {
			break
		}
	}
	if sessionKinds(paged) != sessionKinds(list.GetSessions()) {
		t.Errorf("by pages: %s\nat once: %s", sessionKinds(paged), sessionKinds(list.GetSessions()))
	}

	// The other browser is ended from here, and the console that was opened in it.
	theirs := l.claims(second, issuer).SessionID
	for _, s := range list.GetSessions() {
		if s.GetSessionId() == theirs {
			_, err := l.accounts().RevokeSession(call(identityv1.AccountService_RevokeSession_FullMethodName), &identityv1.RevokeSessionRequest{SessionId: s.GetBrowserSessionId()})
			must(t, err)
		}
	}
	_, err := l.signIns().WhoAmI(l.bound(t.Context(), second, other, identityv1.SignInService_WhoAmI_FullMethodName), &identityv1.WhoAmIRequest{})
	want(t, "a console whose browser was ended", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	if r := elsewhere.get(provider.PathAuthorize, askConsole(other)); r.GetStatus() != http.StatusOK {
		t.Errorf("the browser that was ended is signed in: %d", r.GetStatus())
	}

	// Nobody ends another's, and what is over is not there.
	l.addUser("mallory")
	stranger := bearer(t.Context(), l.signIn("mallory", "password of mallory").GetAccessToken())
	for name, sid := range map[string]string{"another's": l.claims(direct, issuer).SessionID, "one that is over": theirs, "none": "ses_none"} {
		_, err := l.accounts().RevokeSession(stranger, &identityv1.RevokeSessionRequest{SessionId: sid})
		want(t, name, err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	}
	_, err = l.accounts().RevokeOtherSessions(call(identityv1.AccountService_RevokeOtherSessions_FullMethodName), &identityv1.RevokeOtherSessionsRequest{SessionId: theirs})
	want(t, "ending others from a session that it is not", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	if _, err := l.whoAmI(direct); err != nil {
		t.Fatalf("a session that nobody ended: %v", err)
	}
	ended, err := l.accounts().RevokeOtherSessions(call(identityv1.AccountService_RevokeOtherSessions_FullMethodName), &identityv1.RevokeOtherSessionsRequest{SessionId: list.GetSessionId()})
	must(t, err)
	if ended.GetEnded() != 1 {
		t.Errorf("%d were ended", ended.GetEnded())
	}
	_, err = l.whoAmI(direct)
	want(t, "another session", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	if left := l.sessions(call(identityv1.AccountService_ListSessions_FullMethodName)).GetSessions(); len(left) != 2 || !left[0].GetCurrent() || !left[1].GetCurrent() {
		t.Errorf("left: %s", sessionKinds(left))
	}

	// Signing out of the console with its browser ends both.
	_, err = l.signIns().SignOut(call(identityv1.SignInService_SignOut_FullMethodName), &identityv1.SignOutRequest{Browser: true})
	must(t, err)
	_, err = l.signIns().WhoAmI(call(identityv1.SignInService_WhoAmI_FullMethodName), &identityv1.WhoAmIRequest{})
	want(t, "after signing out", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	if r := b.get(provider.PathAuthorize, askConsole(key)); r.GetStatus() != http.StatusOK {
		t.Errorf("the browser is signed in after signing out: %d", r.GetStatus())
	}
}

// An application that may use the API sees and ends none of its user's sessions.
func TestSessionsAreNotForApplications(t *testing.T) {
	l := newLab(t)
	l.addUser("erin")
	a := l.apiApp()
	b := l.browser()
	r := b.get(provider.PathAuthorize, a.ask("scope", "redoubt"))
	r = b.post(provider.PathSignIn, url.Values{"request": {r.sealed(t)}, "action": {"sign-in"}, "user": {"erin"}, "password": {"password of erin"}})
	got := l.token(a.redeem(r.query().Get("code")), nil)
	must(t, got.err)
	ctx := bearer(t.Context(), str(got.json(t), "access_token"))
	sid := l.claims(str(got.json(t), "access_token"), issuer).SessionID
	_, err := l.accounts().ListSessions(ctx, &identityv1.ListSessionsRequest{})
	want(t, "listing", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	_, err = l.accounts().RevokeSession(ctx, &identityv1.RevokeSessionRequest{SessionId: sid})
	want(t, "ending", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	_, err = l.accounts().RevokeOtherSessions(ctx, &identityv1.RevokeOtherSessionsRequest{SessionId: sid})
	want(t, "ending others", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	_, err = l.signIns().SignOut(ctx, &identityv1.SignOutRequest{Browser: true})
	want(t, "signing the browser out", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	if _, err := l.signIns().SignOut(ctx, &identityv1.SignOutRequest{}); err != nil {
		t.Errorf("signing itself out: %v", err)
	}
}

func TestHowAccountsAndGroupsStand(t *testing.T) {
	l := newLab(t)
	erin := l.addUser("erin")
	ctx, directory := l.asAdmin()
	outer, err := directory.CreateGroup(ctx, &identityv1.CreateGroupRequest{GroupId: "outer", DisplayName: "the outer"})
	must(t, err)
	inner, err := directory.CreateGroup(ctx, &identityv1.CreateGroupRequest{GroupId: "inner"})
	must(t, err)
	for _, m := range []string{erin.GetUid(), inner.GetUid()} {
		_, err := directory.AddGroupMember(ctx, &identityv1.AddGroupMemberRequest{Name: outer.GetName(), Member: m})
		must(t, err)
	}
	names := make(map[string]identityv1.PrincipalType)
	for next, n := "", 0; n < 5; n++ {
		r, err := l.accounts().ListGroupMembers(ctx, &identityv1.ListGroupMembersRequest{Name: outer.GetName(), PageSize: 1, PageToken: next})
		must(t, err)
		for _, m := range r.GetMembers() {
			names[m.GetName()] = m.GetType()
		}
		if next = r.GetNextPageToken(); next == "" {
			break
		}
	}
	if len(names) != 2 || names["users/erin"] != identityv1.PrincipalType_PRINCIPAL_TYPE_USER || names["groups/inner"] != identityv1.PrincipalType_PRINCIPAL_TYPE_GROUP {
		t.Errorf("the members are %v", names)
	}
	_ = l.enrols(l.signIn("erin", "password of erin").GetAccessToken())
	about, err := l.accounts().DescribeUser(ctx, &identityv1.DescribeUserRequest{Name: "users/erin"})
	must(t, err)
	if about.GetUser().GetUid() != erin.GetUid() || len(about.GetGroups()) != 1 || about.GetGroups()[0].GetName() != "groups/outer" || len(about.GetFactors()) != 1 ||
		about.GetRecoveryCodes() != 10 || !about.GetHasPassword() || about.GetSessions() != 1 {
		t.Errorf("erin is %v", about)
	}
	_, err = directory.CreateUser(ctx, &identityv1.CreateUserRequest{UserId: "invited"})
	must(t, err)
	if about, err := l.accounts().DescribeUser(ctx, &identityv1.DescribeUserRequest{Name: "users/invited"}); err != nil || about.GetHasPassword() || about.GetSessions() != 0 {
		t.Errorf("who was invited is %v %v", about, err)
	}
}
