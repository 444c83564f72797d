package identity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

func (l *lab) keyService() identityv1.KeyServiceClient {
	return identityv1.NewKeyServiceClient(l.gateway())
}

// kid is the key that a token was signed with.
func kid(t testing.TB, token string) string {
	t.Helper()
	head, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(head)
	must(t, err)
	var h struct {
		KeyID string `json:"kid"`
	}
	must(t, json.Unmarshal(raw, &h))
	return h.KeyID
}

func states(r *identityv1.ListSigningKeysResponse) string {
	var out []string
	for _, k := range r.GetSigningKeys() {
		out = append(out, strings.TrimPrefix(k.GetState().String(), "KEY_STATE_"))
	}
	return strings.Join(out, " ")
}

// jwks is what strangers see, and for how long they may keep it.
func (l *lab) jwks() (ids []string, maxAge time.Duration) {
	l.t.Helper()
	var header metadata.MD
	d, err := identityv1.NewTokenServiceClient(l.gateway()).GetKeys(l.t.Context(), &identityv1.GetKeysRequest{}, grpc.Header(&header))
	must(l.t, err)
	var set struct {
		Keys []struct {
			KeyID string `json:"kid"`
		} `json:"keys"`
	}
	must(l.t, json.Unmarshal(d.GetJson(), &set))
	for _, k := range set.Keys {
		ids = append(ids, k.KeyID)
	}
	age, ok := strings.CutPrefix(strings.Join(header.Get("cache-control"), ""), "public, max-age=")
	n, err := strconv.Atoi(age)
	if !ok || err != nil {
		l.t.Fatalf("cache-control is %v", header.Get("cache-control"))
	}
	return ids, time.Duration(n) * time.Second
}

// otherService is a service of the mesh as it verifies tokens: with keys that it has fetched, and the security stream.
type otherService struct {
	verifier *authn.Verifier
	engine   *authz.Engine
}

func (l *lab) otherService() *otherService {
	t := l.t
	e := authz.New(authz.Config{Now: l.now, OwnAuthorization: true})
	tokens := identityv1.NewTokenServiceClient(l.service("compute"))
	keys, err := authn.NewRemoteKeys(authn.RemoteKeysConfig{Now: l.now, Epoch: e.Revocations().KeysEpoch, Fetch: func(ctx context.Context) ([]byte, error) {
		d, err := tokens.GetKeys(ctx, &identityv1.GetKeysRequest{})
		return d.GetJson(), err
	}})
	must(t, err)
	v, err := authn.New(authn.Config{Issuer: issuer, Keys: keys, Revocations: e.Revocations(), Now: l.now})
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { authz.Follow(ctx, e, nil, tokens, l.cfg.Logger) })
	t.Cleanup(func() { stop(); running.Wait() })
	for deadline := time.Now().Add(20 * time.Second); e.Revocations().Fresh(l.now()) != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the security stream does not come")
		}
	}
	return &otherService{v, e}
}

// accepts is the verdict of the service, once it has heard from identity by the clock of the moment.
func (o *otherService) accepts(t testing.TB, token string) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := o.verifier.Verify(t.Context(), token, issuer)
		if fault.ReasonOf(err) != faultv1.Reason_AUTHZ_STATE_STALE || time.Now().After(deadline) {
			return err
		}
	}
}

// settle waits until identity itself has heard from its database by the clock of the moment.
func (l *lab) settle() {
	l.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); l.cfg.Engine.Revocations().Fresh(l.now()) != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatal("identity's own state is stale")
		}
	}
}

// A rotation in turn: the next key is published for longer than anybody keeps the key set, signs when its time has come, and what the old
// one has signed is good until it ends (A3).
func TestSigningKeysRotateInTurn(t *testing.T) {
	l := newLab(t)
	other := l.otherService()
	ids, age := l.jwks()
	if len(ids) != 2 || age <= 0 || age > l.s.policy.Ahead {
		t.Fatalf("%d keys, kept for %v", len(ids), age)
	}
	before := l.signIn("admin", adminPassword).GetAccessToken()
	must(t, other.accepts(t, before))
	ctx := bearer(t.Context(), before)
	r, err := l.keyService().RotateSigningKeys(ctx, &identityv1.RotateSigningKeysRequest{})
	must(t, err)
	if got := states(r); got != "CURRENT NEXT" {
		t.Errorf("right after the order: %s", got)
	}
	if again := l.signIn("admin", adminPassword).GetAccessToken(); kid(t, again) != kid(t, before) {
		t.Error("a key signs that nobody can know yet")
	}
	l.advance(keyAhead - time.Minute)
	l.settle()
	still := l.signIn("admin", adminPassword).GetAccessToken()
	l.advance(time.Minute + time.Second)
	l.settle()
	after := l.signIn("admin", adminPassword).GetAccessToken()
	if kid(t, after) == kid(t, still) {
		t.Fatal("the next key does not sign")
	}
	for _, token := range []string{still, after} {
		must(t, other.accepts(t, token))
	}
	// The leader adds the one after it, by itself.
	ctx = bearer(t.Context(), after)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r, err := l.keyService().ListSigningKeys(ctx, &identityv1.ListSigningKeysRequest{})
		must(t, err)
		if states(r) == "RETIRING CURRENT NEXT" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the rotation: %s", states(r))
		}
	}
	var recorded bool
	for _, e := range l.events() {
		recorded = recorded || e.GetMethod() == identityv1.KeyService_RotateSigningKeys_FullMethodName && e.GetPrincipal() == l.admin && e.GetDetails()["rotation"] == "in turn"
	}
	if !recorded {
		t.Error("the order is not in the activity log")
	}
}

// In an emergency nothing that the old keys have signed is good when the call returns, here and in a service with warm caches; forged or
// not. What is signed afterwards works there at once (A3).
func TestAnEmergencyDropsKeysAtOnce(t *testing.T) {
	l := newLab(t)
	other := l.otherService()
	l.addUser("ada")
	ada := l.signIn("ada", "password of ada").GetAccessToken()
	admin := l.signIn("admin", adminPassword).GetAccessToken()
	// Who has stolen the key writes what he likes, after the rotation too.
	thief, err := l.s.keys.signer()
	must(t, err)
	stolen := l.claims(admin, issuer)
	forge := func() string {
		c := stolen
		c.ID, c.IssuedAt, c.Expiry = "tok_forged"+strconv.FormatInt(l.now().UnixNano(), 36), l.now(), l.now().Add(20*time.Minute)
		token, err := thief.Mint(c)
		must(t, err)
		return token
	}
	forged := forge()
	for _, token := range []string{ada, admin, forged} {
		must(t, other.accepts(t, token))
	}
	r, err := l.keyService().RotateSigningKeys(bearer(t.Context(), admin), &identityv1.RotateSigningKeysRequest{Emergency: true})
	must(t, err)
	if got := states(r); got != "CURRENT NEXT" {
		t.Errorf("after the emergency: %s", got)
	}
	// The stream has the change by now or within a moment: that the call waits for every service is the fence's.
	seq := l.s.feed.at()
	for deadline := time.Now().Add(20 * time.Second); !other.engine.Revocations().KeyRevoked(thief.KeyID()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the change %d does not come", seq)
		}
	}
	l.advance(2 * time.Second)
	l.settle()
	for name, token := range map[string]string{"a user's": ada, "the caller's own": admin, "a forged one, known": forged, "a forged one, new": forge()} {
		want(t, name+" elsewhere", other.accepts(t, token), codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
		_, err := l.s.verifier.Verify(t.Context(), token, issuer)
		want(t, name+" at identity", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	}
	fresh := l.signIn("ada", "password of ada").GetAccessToken()
	if kid(t, fresh) == kid(t, ada) {
		t.Error("the old key still signs")
	}
	must(t, other.accepts(t, fresh))
	// Whoever starts afterwards knows too, and after a year.
	l.advance(365 * 24 * time.Hour)
	l.settle()
	want(t, "a year later", l.otherService().accepts(t, forge()), codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
}

// Whoever may not is refused, and nothing has changed.
func TestRotationNeedsItsAction(t *testing.T) {
	l := newLab(t)
	l.addUser("ada")
	before := l.s.signingKeys()
	ctx := bearer(t.Context(), l.signIn("ada", "password of ada").GetAccessToken())
	_, err := l.keyService().RotateSigningKeys(ctx, &identityv1.RotateSigningKeysRequest{Emergency: true})
	want(t, "a user without a role", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	_, err = l.keyService().RotateSigningKeys(t.Context(), &identityv1.RotateSigningKeysRequest{Emergency: true})
	want(t, "nobody", err, codes.Unauthenticated, faultv1.Reason_TOKEN_MISSING)
	if !proto.Equal(before, l.s.signingKeys()) {
		t.Error("a refused order was followed")
	}
}

// A restart in each state of a rotation finds the keys as they were, and goes on.
func TestRestartsWhileKeysRotate(t *testing.T) {
	l := newLab(t)
	restarted := func() *Service {
		t.Helper()
		cfg := l.cfg
		cfg.Engine = authz.New(authz.Config{Now: l.now, OwnSecurity: true, OwnAuthorization: true})
		s, err := New(cfg)
		must(t, err)
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	rotate := func(emergency bool) {
		t.Helper()
		_, err := l.keyService().RotateSigningKeys(bearer(t.Context(), l.signIn("admin", adminPassword).GetAccessToken()), &identityv1.RotateSigningKeysRequest{Emergency: emergency})
		must(t, err)
	}
	var tokens []string
	check := func(name string) {
		t.Helper()
		s := restarted()
		if a, b := states(s.signingKeys()), states(l.s.signingKeys()); a != b {
			t.Errorf("%s: %s after the restart, %s before", name, a, b)
		}
		one, err := s.keys.signer()
		must(t, err)
		other, err := l.s.keys.signer()
		must(t, err)
		if one.KeyID() != other.KeyID() {
			t.Errorf("%s: another key signs after a restart", name)
		}
		tokens = append(tokens, l.signIn("admin", adminPassword).GetAccessToken())
		for i, token := range tokens {
			if _, err := s.verifier.Verify(t.Context(), token, issuer); err != nil {
				t.Errorf("%s: token %d: %v", name, i, err)
			}
		}
	}
	check("first")
	rotate(false)
	check("ordered")
	l.advance(keyAhead / 2)
	l.settle()
	check("on its way")
	l.advance(keyAhead/2 + time.Second)
	l.settle()
	tokens = nil // of an hour ago
	check("the next one signs")
	rotate(true)
	tokens = nil
	check("after an emergency")
}

// Clocks that step: tokens go on to be made and accepted by the clock of the moment, and nothing that was signed with is lost (A3).
func TestSigningKeysAndClocksThatStep(t *testing.T) {
	l := newLab(t)
	for _, step := range []time.Duration{10 * time.Minute, -10 * time.Minute, l.s.policy.Period + time.Hour, -10 * time.Minute, -l.s.policy.Period - time.Hour, 0} {
		l.advance(step)
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			signer, err := l.s.keys.signer()
			if err == nil && signer != nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("after a step of %v: %v", step, err)
			}
		}
		c := authn.Claims{Audience: []string{issuer}, Subject: l.admin, PrincipalType: authn.User, ClientID: firstParty}
		var token string
		var err error
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if token, _, err = l.s.mint(t.Context(), l.db.Reader(), c, time.Hour); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("after a step of %v: %v", step, err)
			}
		}
		l.claims(token, issuer)
	}
}

// Two instances rotate as one: the leader alone by itself, either one by order, and each takes up at once what the other has done (A3).
func TestTwoInstancesRotateAsOne(t *testing.T) {
	c := sqldbtest.Postgres(t, Migrations(), audit.Migrations(), envelope.Migrations(), leader.Migrations())
	key, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	must(t, err)
	a, ea, err := replica(t, c, key, "identity-a")
	must(t, err)
	b, eb, err := replica(t, c, key, "identity-b")
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	for _, s := range []*Service{a, b} {
		running.Go(func() { _ = s.Run(ctx) })
	}
	claims := authn.Claims{Audience: []string{issuer}, Subject: "usr_1", PrincipalType: authn.User, ClientID: firstParty}
	token := func(s *Service) string {
		t.Helper()
		signer, err := s.keys.signer()
		must(t, err)
		c := claims // of nobody's account: no call of mint's
		c.Issuer, c.ID, c.IssuedAt = issuer, resource.NewUID("tok"), s.cfg.Now().Truncate(time.Second)
		c.Expiry = c.IssuedAt.Add(time.Hour)
		token, err := signer.Mint(c)
		must(t, err)
		return token
	}
	if kid(t, token(a)) != kid(t, token(b)) {
		t.Fatal("two keys sign at first")
	}
	old := token(b)
	must(t, a.secure(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		done, err := a.rotate(ctx, tx, true)
		if len(done.dropped) != 4 || len(done.made) != 4 { // of tokens and of JWT-SVIDs: one that signs, one to come
			t.Errorf("%+v", done)
		}
		return err
	}))
	for deadline := time.Now().Add(20 * time.Second); !eb.Revocations().KeyRevoked(kid(t, old)) || kid(t, token(b)) == kid(t, old); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the other instance does not hear of it")
		}
	}
	if !ea.Revocations().KeyRevoked(kid(t, old)) || kid(t, token(a)) != kid(t, token(b)) {
		t.Error("the instances do not sign as one")
	}
	for _, s := range []*Service{a, b} {
		if _, err := s.verifier.Verify(t.Context(), old, issuer); err == nil {
			t.Error("a dropped key is believed")
		}
		if _, err := s.verifier.Verify(t.Context(), token(b), issuer); err != nil {
			t.Error(err)
		}
	}

	// A term that is over writes nothing.
	before, err := a.store.SigningKeys(t.Context(), a.cfg.DB.Reader())
	must(t, err)
	a.cfg.Now = func() time.Time { return time.Now().Add(a.policy.Period + time.Hour) }
	if err := a.keepKeysOnce(t.Context(), &leader.Term{}); err == nil {
		t.Error("who does not lead has rotated")
	}
	rows, err := a.store.SigningKeys(t.Context(), a.cfg.DB.Reader())
	must(t, err)
	if len(rows) != len(before) {
		t.Errorf("%d keys, want %d", len(rows), len(before))
	}
}
