package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func publicPEM(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	must(t, err)
	return pemOf(blockPublicKey, der)
}

func (l *lab) program(t *testing.T, id string) *identityv1.ServicePrincipal {
	t.Helper()
	ctx, directory := l.asAdmin()
	sp, err := directory.CreateServicePrincipal(ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: id})
	must(t, err)
	return sp
}

func TestKeysOfServicePrincipals(t *testing.T) { // A1
	l := newLab(t)
	ctx, directory := l.asAdmin()
	sp := l.program(t, "robot")
	add := func(text string, life time.Duration) (*identityv1.ServicePrincipalCredential, error) {
		req := &identityv1.AddServicePrincipalKeyRequest{Name: sp.GetName(), Pem: text}
		if life != 0 {
			req.ExpireTime = timestamppb.New(l.now().Add(life))
		}
		return directory.AddServicePrincipalKey(ctx, req)
	}
	p256 := newKey(t)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	must(t, err)
	edPublic, edPrivate, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(edPrivate)
	must(t, err)
	certificate := func(end time.Duration) string {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: l.now().Add(-48 * time.Hour), NotAfter: l.now().Add(end)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &p256.PublicKey, p256)
		must(t, err)
		return pemOf(blockCertificate, der)
	}
	for name, text := range map[string]string{
		"not PEM": "x", "a private key": pemOf("PRIVATE KEY", private), "RSA of 1024 bits": publicPEM(t, &small.PublicKey), "P-224": publicPEM(t, &p224.PublicKey),
		"two keys": publicPEM(t, &p256.PublicKey) + publicPEM(t, edPublic), "rubbish": pemOf(blockPublicKey, []byte("x")), "a certificate that is over": certificate(-time.Hour),
	} {
		_, err := add(text, 0)
		want(t, name, err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	}
	_, err = add(publicPEM(t, edPublic), 3*366*24*time.Hour)
	want(t, "three years", err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)

	a, err := add(publicPEM(t, &p256.PublicKey), time.Hour)
	must(t, err)
	b, err := add(certificate(30*time.Minute), time.Hour) // ends with the certificate
	must(t, err)
	if b.GetExpireTime().AsTime().Sub(l.now()) > 30*time.Minute || a.GetThumbprint() == b.GetThumbprint() || len(a.GetThumbprint()) != 43 {
		t.Errorf("%v, %v", a, b)
	}
	_, err = add(publicPEM(t, &p256.PublicKey), time.Hour)
	want(t, "the same again", err, codes.AlreadyExists, faultv1.Reason_RESOURCE_ALREADY_EXISTS)
	secret, err := directory.AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: sp.GetName()})
	must(t, err)

	list := func() (ids []string) {
		t.Helper()
		r, err := directory.ListServicePrincipalCredentials(ctx, &identityv1.ListServicePrincipalCredentialsRequest{Name: sp.GetName()})
		must(t, err)
		for _, c := range r.GetCredentials() {
			ids = append(ids, c.GetCredentialId())
		}
		return ids
	}
	if ids := list(); !slices.Equal(ids, []string{secret.GetSecretId(), a.GetCredentialId(), b.GetCredentialId()}) && len(ids) != 3 {
		t.Errorf("listed %v", ids)
	}
	keys, err := l.s.store.ClientKeys(t.Context(), l.db.Reader(), sp.GetUid(), l.now())
	must(t, err)
	for _, k := range keys {
		if got, err := k.Public(); err != nil || !p256.PublicKey.Equal(got) {
			t.Errorf("%s comes back as %v, %v", k.ID, got, err)
		}
	}
	l.advance(30 * time.Minute)
	if ids := list(); len(ids) != 2 {
		t.Errorf("after the certificate's end: %v", ids)
	}
	other := l.program(t, "other")
	_, err = directory.DeleteServicePrincipalCredential(ctx, &identityv1.DeleteServicePrincipalCredentialRequest{Name: other.GetName(), CredentialId: a.GetCredentialId()})
	want(t, "another's", err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	_, err = directory.DeleteServicePrincipalCredential(ctx, &identityv1.DeleteServicePrincipalCredentialRequest{Name: sp.GetName(), CredentialId: a.GetCredentialId()})
	must(t, err)
	if ids := list(); !slices.Equal(ids, []string{secret.GetSecretId()}) {
		t.Errorf("after the removal: %v", ids)
	}
}

// A3: a secret that is deleted, and a program that is disabled, are over at once; another secret's tokens go on.
func TestASecretEndsWithItsTokens(t *testing.T) {
	l := newLab(t)
	ctx, directory := l.asAdmin()
	sp := l.program(t, "robot")
	var ids, tokens []string
	issue := func(secret string) (string, error) {
		r, err := identityv1.NewTokenServiceClient(l.gateway()).IssueToken(t.Context(), &identityv1.IssueTokenRequest{GrantType: "client_credentials", ClientId: sp.GetUid(), ClientSecret: secret})
		return r.GetAccessToken(), err
	}
	var secrets []string
	for range 2 {
		s, err := directory.AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: sp.GetName()})
		must(t, err)
		token, err := issue(s.GetSecret())
		must(t, err)
		ids, secrets, tokens = append(ids, s.GetSecretId()), append(secrets, s.GetSecret()), append(tokens, token)
	}
	// A program that signs out ends its token, and not its secret.
	extra, err := issue(secrets[1])
	must(t, err)
	_, err = identityv1.NewSignInServiceClient(l.gateway()).SignOut(bearer(t.Context(), extra), &identityv1.SignOutRequest{})
	must(t, err)
	_, err = l.whoAmI(extra)
	want(t, "signed out", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)

	_, err = directory.DeleteServicePrincipalCredential(ctx, &identityv1.DeleteServicePrincipalCredentialRequest{Name: sp.GetName(), CredentialId: ids[0]})
	must(t, err)
	_, err = l.whoAmI(tokens[0])
	want(t, "the deleted secret's token", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	_, err = issue(secrets[0])
	want(t, "the deleted secret", err, codes.Unauthenticated, faultv1.Reason_CREDENTIAL_INVALID)
	_, err = l.whoAmI(tokens[1])
	must(t, err)

	got, err := directory.SetServicePrincipalDisabled(ctx, &identityv1.SetServicePrincipalDisabledRequest{Name: sp.GetName(), Disabled: true})
	must(t, err)
	if !got.GetDisabled() {
		t.Errorf("%v", got)
	}
	_, err = l.whoAmI(tokens[1])
	want(t, "disabled", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	_, err = issue(secrets[1])
	want(t, "a token of the disabled", err, codes.PermissionDenied, faultv1.Reason_ACCOUNT_DISABLED)
	got, err = directory.GetServicePrincipal(ctx, &identityv1.GetServicePrincipalRequest{Name: sp.GetName()})
	must(t, err)
	if !got.GetDisabled() {
		t.Errorf("%v", got)
	}
}

func TestUserCodes(t *testing.T) { // A1
	l := newLab(t)
	ctx, directory := l.asAdmin()
	u, err := directory.CreateUser(ctx, &identityv1.CreateUserRequest{UserId: "carol"})
	must(t, err)
	_, err = l.try("carol", "", "")
	want(t, "no password", err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	_, err = l.try("carol", "mauve trapeze", "")
	want(t, "not set yet", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	code := func(life time.Duration) (*identityv1.UserCode, error) {
		req := &identityv1.CreateUserCodeRequest{Name: u.GetName()}
		if life != 0 {
			req.ExpireTime = timestamppb.New(l.now().Add(life))
		}
		return directory.CreateUserCode(ctx, req)
	}
	redeem := func(code, pw string) error {
		_, err := identityv1.NewDirectoryServiceClient(l.gateway()).RedeemUserCode(t.Context(), &identityv1.RedeemUserCodeRequest{Code: code, NewPassword: pw})
		return err
	}
	_, err = code(8 * 24 * time.Hour)
	want(t, "eight days", err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	first, err := code(time.Hour)
	must(t, err)
	second, err := code(time.Hour)
	must(t, err)
	if !second.GetInvitation() {
		t.Error("no invitation")
	}
	failed := func(name string, err error) {
		t.Helper()
		want(t, name, err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	}
	failed("the earlier code", redeem(first.GetCode(), "mauve trapeze"))
	failed("nothing", redeem("rdi_x", "mauve trapeze"))
	want(t, "a common password", redeem(second.GetCode(), "password1234"), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	must(t, redeem(second.GetCode(), "mauve trapeze"))
	failed("twice", redeem(second.GetCode(), "another trapeze"))
	token := l.signIn("carol", "mauve trapeze").GetAccessToken()

	// A reset ends the sessions, and is over with its time, or when an administrator sets a password.
	third, err := code(time.Hour)
	must(t, err)
	if third.GetInvitation() {
		t.Error("an invitation of one who has a password")
	}
	must(t, redeem(third.GetCode(), "green trapeze"))
	_, err = l.whoAmI(token)
	want(t, "the old session", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	fourth, err := code(time.Hour)
	must(t, err)
	l.advance(time.Hour)
	failed("late", redeem(fourth.GetCode(), "violet trapeze"))
	ctx, _ = l.asAdmin()
	fifth, err := code(0)
	must(t, err)
	_, err = directory.SetUserPassword(ctx, &identityv1.SetUserPasswordRequest{Name: u.GetName(), NewPassword: "ochre trapeze"})
	must(t, err)
	failed("after a password was set", redeem(fifth.GetCode(), "violet trapeze"))
	sixth, err := code(0)
	must(t, err)
	_, err = directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: u.GetName(), Disabled: true})
	must(t, err)
	failed("of a disabled user", redeem(sixth.GetCode(), "violet trapeze"))
	_, err = code(0)
	want(t, "a code for a disabled user", err, codes.FailedPrecondition, faultv1.Reason_ACCOUNT_DISABLED)
	_, err = directory.DeleteUser(ctx, &identityv1.DeleteUserRequest{Name: u.GetName()})
	must(t, err)
	failed("of a deleted user", redeem(sixth.GetCode(), "violet trapeze"))
	_, err = directory.GetUser(ctx, &identityv1.GetUserRequest{Name: u.GetName()})
	want(t, "deleted", err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
}

func TestADeletedUserIsGoneAtOnce(t *testing.T) { // A3
	l := newLab(t)
	ctx, directory := l.asAdmin()
	alice := l.addUser("alice")
	token := l.signIn("alice", "password of alice").GetAccessToken()
	agent := l.enrolledAgent(alice.GetUid(), "run_1")
	_, err := directory.DeleteUser(ctx, &identityv1.DeleteUserRequest{Name: "users/alice"})
	must(t, err)
	_, err = l.whoAmI(token)
	want(t, "her token", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	if _, err := l.renew(agent); err == nil {
		t.Error("her run goes on")
	}
	_, err = directory.DeleteUser(ctx, &identityv1.DeleteUserRequest{Name: "users/admin"})
	want(t, "oneself", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	again := l.addUser("alice")
	if again.GetUid() == alice.GetUid() {
		t.Error("one made again has the old uid")
	}
}
