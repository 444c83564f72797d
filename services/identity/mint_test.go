package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/services/identity/internal/clients"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

func clientForm(id, secret string) url.Values {
	return url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {secret}}
}

// endings are what ends a service principal's tokens, as another instance does it: in the database alone.
func endings(s *store.Store, now time.Time, uid, credential, kid string) map[string]func(ctx context.Context, tx *sqldb.Tx) error {
	later := timestamppb.New(now.Add(time.Hour))
	return map[string]func(ctx context.Context, tx *sqldb.Tx) error{
		"disabled": func(ctx context.Context, tx *sqldb.Tx) error {
			if err := s.SetDisabled(ctx, tx, uid, true); err != nil {
				return err
			}
			return s.Change(ctx, tx, now, []*identityv1.Revocation{subjectUntil(uid, now, now)}, nil)
		},
		"disabled and enabled": func(ctx context.Context, tx *sqldb.Tx) error {
			return s.Change(ctx, tx, now, []*identityv1.Revocation{subjectUntil(uid, now, now)}, nil)
		},
		"deleted": func(ctx context.Context, tx *sqldb.Tx) error {
			if _, err := s.DeletePrincipal(ctx, tx, uid); err != nil {
				return err
			}
			return s.Change(ctx, tx, now, []*identityv1.Revocation{subjectUntil(uid, now, now)}, nil)
		},
		"its secret removed": func(ctx context.Context, tx *sqldb.Tx) error {
			if _, err := s.DeleteClientCredential(ctx, tx, uid, credential); err != nil {
				return err
			}
			return s.Change(ctx, tx, now, []*identityv1.Revocation{{Sid: credential, ExpireTime: later}}, nil)
		},
		"the key replaced": func(ctx context.Context, tx *sqldb.Tx) error {
			return s.ChangeKeys(ctx, tx, now, []*identityv1.Revocation{{KeyId: kid, ExpireTime: later}})
		},
	}
}

// A token is minted from memory, and given only if what is remembered is so in the transaction of its record: an instance that has not heard of
// the end of a client gives it nothing.
func TestWhatIsRememberedIsDecidedAgain(t *testing.T) {
	for name := range endings(nil, time.Time{}, "", "", "") {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			id, secret := l.robot("robot")
			ask := func() reply { return l.token(clientForm(id, secret), nil) }
			first := ask()
			must(t, first.err)
			if l.s.clients.Len() != 1 {
				t.Fatalf("%d clients are remembered", l.s.clients.Len())
			}
			credential := l.claims(str(first.json(t), "access_token"), issuer).SessionID
			signer, err := l.s.keys.signer()
			must(t, err)

			l.s.feed.applying.Lock() // this instance hears of nothing
			heard := sync.OnceFunc(l.s.feed.applying.Unlock)
			defer heard()
			// What does not concern it does not harm it.
			must(t, l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
				return l.s.store.Change(ctx, tx, l.now(), []*identityv1.Revocation{{Jti: "tok_another", ExpireTime: timestamppb.New(l.now().Add(time.Hour))}}, nil)
			}))
			must(t, ask().err)
			end := endings(l.s.store, l.now(), id, credential, signer.KeyID())[name]
			must(t, l.db.Write(t.Context(), end))
			if l.s.clients.Len() != 1 {
				t.Fatal("it has heard of it: nothing is tried here")
			}
			if r := ask(); r.err == nil {
				t.Errorf("a token for a client that is %s: %v", name, r.json(t))
			}
			if _, err := l.clientToken(id, secret); err == nil {
				t.Error("IssueToken gives one")
			}
			if r := l.browser().send("/oauth2/introspect", posted(url.Values{"token": {"x"}, "client_id": {id}, "client_secret": {secret}}, nil)); name != "the key replaced" && name != "disabled and enabled" && r.err == nil {
				t.Error("introspection believes it")
			}
			heard()
		})
	}
}

// The clock ends a secret that is remembered; what is wrong is neither remembered nor told apart; a new secret works at once, and the memory of
// one client is nobody else's.
func TestWhatIsRemembered(t *testing.T) {
	l := newLab(t)
	id, secret := l.robot("robot")
	other, theirs := l.robot("other")
	for range 2 {
		for name, q := range map[string]url.Values{
			"a wrong secret": clientForm(id, secret+"x"), "an unknown client": clientForm("spn_nobody", secret), "another's secret": clientForm(id, theirs),
			"no secret": clientForm(id, ""), "a long name": clientForm("spn_"+string(make([]byte, 300)), secret),
		} {
			r := l.token(q, nil)
			if r.code != "invalid_client" && r.code != "invalid_request" {
				t.Errorf("%s: %v %v", name, r.code, r.err)
			}
		}
	}
	if n := l.s.clients.Len(); n != 0 {
		t.Fatalf("%d are remembered, and none was right", n)
	}
	for _, q := range []url.Values{clientForm(id, secret), clientForm(other, theirs)} {
		r := l.token(q, nil)
		must(t, r.err)
		if sub := l.claims(str(r.json(t), "access_token"), issuer).Subject; sub != q.Get("client_id") {
			t.Errorf("%s got a token of %s", q.Get("client_id"), sub)
		}
	}
	if r := l.token(clientForm(id, theirs), nil); r.code != "invalid_client" {
		t.Errorf("another's secret, remembered: %v %v", r.code, r.err)
	}
	ctx, directory := l.asAdmin()
	second, err := directory.AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: "servicePrincipals/robot", ExpireTime: timestamppb.New(l.now().Add(time.Minute))})
	must(t, err)
	must(t, l.token(clientForm(id, second.GetSecret()), nil).err)
	l.advance(time.Minute)
	if r := l.token(clientForm(id, second.GetSecret()), nil); r.code != "invalid_client" {
		t.Errorf("a secret that is over, remembered: %v %v", r.code, r.err)
	}
	_, err = directory.DeleteServicePrincipalCredential(ctx, &identityv1.DeleteServicePrincipalCredentialRequest{Name: "servicePrincipals/other", CredentialId: l.credentialOf(other)})
	must(t, err)
	if r := l.token(clientForm(other, theirs), nil); r.code != "invalid_client" {
		t.Errorf("a secret that was removed: %v %v", r.code, r.err)
	}
	must(t, l.token(clientForm(id, secret), nil).err)
}

// credentialOf is the id of a client's first secret.
func (l *lab) credentialOf(uid string) string {
	l.t.Helper()
	all, err := l.s.store.ClientSecrets(l.t.Context(), l.db.Reader(), uid, l.now())
	must(l.t, err)
	return all[0].ID
}

// Tokens that a client gets within a minute, for the same credential and key and from an address that is known by then, share a record, which counts
// them; what is refused has one of its own.
func TestTokensShareARecord(t *testing.T) {
	l := newLab(t)
	id, secret := l.robot("robot")
	ctx, directory := l.asAdmin()
	second, err := directory.AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: "servicePrincipals/robot"})
	must(t, err)
	key := newKey(t)
	here, elsewhere := l.browser(), l.browser()
	ids := make(map[string]bool)
	var digest [sha256.Size]byte
	ask := func(b *browser, q url.Values, key *ecdsa.PrivateKey) (id string) {
		r := b.send("/oauth2/token", posted(q, func(x *identityv1.Exchange) {
			if key != nil {
				x.Dpop = l.proof(key, "POST", "/oauth2/token", "")
			}
		}))
		must(t, r.err)
		id = l.claims(str(r.json(t), "access_token"), issuer).ID
		if ids[id] {
			t.Errorf("the token %s was given twice", id)
		}
		ids[id] = true
		return id
	}
	first := ask(here, clientForm(id, secret), nil)
	for range 3 {
		sum := sha256.Sum256([]byte(ask(here, clientForm(id, secret), nil)))
		digest = sha256.Sum256(append(digest[:], sum[:]...))
	}
	ask(elsewhere, clientForm(id, secret), nil)
	ask(here, clientForm(id, second.GetSecret()), nil)
	ask(here, clientForm(id, secret), key)
	ask(here, clientForm(id, secret), key)
	if r := here.send("/oauth2/token", posted(clientForm(id, secret+"x"), nil)); r.err == nil {
		t.Fatal("a wrong secret is right")
	}

	var own, shared []*audit.Event
	counted := int64(0)
	for _, ev := range l.events() {
		switch {
		case !strings.HasSuffix(ev.GetMethod(), "/RequestToken") || ev.GetPrincipal() != id || ev.GetResult() != telemetryv1.ActivityEvent_RESULT_SUCCEEDED:
			continue
		case ev.GetDetails()["calls"] == "joined":
			shared = append(shared, ev)
		default:
			own = append(own, ev)
		}
		counted += ev.GetCount()
	}
	if sum := sha256.Sum256([]byte(first)); len(own) != 4 || !bytes.Equal(own[0].GetDigest(), sum[:]) {
		t.Errorf("%d with a record of their own, want 4; the first %v", len(own), own)
	}
	if counted != int64(len(ids)) || len(shared) != 2 {
		t.Fatalf("%d of %d are counted, %d shared: %v", counted, len(ids), len(shared), shared)
	}
	for _, ev := range shared {
		bound := ev.GetDetails()["jkt"] != ""
		if bound && ev.GetCount() != 1 || !bound && (ev.GetCount() != 3 || !bytes.Equal(ev.GetDigest(), digest[:])) {
			t.Errorf("shared: %v", ev)
		}
	}
}

// While tokens are minted as fast as they come, an account is disabled and enabled again: once the call has returned no token from before it is
// honoured, and none is given.
func TestMintBesideDisable(t *testing.T) {
	l := newLab(t)
	id, secret := l.robot("robot")
	admin, directory := l.asAdmin()
	set := func(disabled bool) {
		_, err := directory.SetServicePrincipalDisabled(admin, &identityv1.SetServicePrincipalDisabledRequest{Name: "servicePrincipals/robot", Disabled: disabled})
		must(t, err)
	}
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	minted := 0
	for range rounds {
		var mu sync.Mutex
		var got []string
		var off atomic.Bool
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 4 {
			b := l.browser() // each from an address of its own
			wg.Go(func() {
				for ctx.Err() == nil {
					was := off.Load()
					r := b.send("/oauth2/token", posted(clientForm(id, secret), nil))
					if r.err != nil {
						continue
					}
					token := str(r.json(t), "access_token")
					mu.Lock()
					got = append(got, token)
					mu.Unlock()
					if was {
						t.Error("a token was given after the call that disabled its account had returned")
					}
					l.advance(9 * time.Millisecond)
					time.Sleep(20 * time.Millisecond) // one address may ask for 50 a second
				}
			})
		}
		time.Sleep(50 * time.Millisecond)
		set(true)
		off.Store(true)
		time.Sleep(30 * time.Millisecond)
		stop()
		wg.Wait()
		for _, token := range got {
			if _, err := l.s.verifier.Verify(t.Context(), token, issuer); fault.ReasonOf(err) != faultv1.Reason_TOKEN_REVOKED {
				t.Errorf("a token of a disabled account: %v", err)
			}
		}
		minted += len(got)
		l.advance(time.Second)
		set(false)
	}
	if minted < rounds {
		t.Errorf("%d tokens in %d rounds: nothing was tried", minted, rounds)
	}
	t.Logf("tokens %d, rounds %d", minted, rounds)
}

// What one instance ends, another gives no token for, whether it has heard of it or not.
func TestTwoInstancesRememberOneTruth(t *testing.T) {
	c := sqldbtest.Postgres(t, Migrations(), audit.Migrations(), envelope.Migrations(), leader.Migrations())
	key, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	must(t, err)
	a, _, err := replica(t, c, key, "identity-a")
	must(t, err)
	b, _, err := replica(t, c, key, "identity-b") // neither runs: b hears of nothing
	must(t, err)
	for name := range endings(nil, time.Time{}, "", "", "") {
		now := time.Now()
		uid, credential := resource.NewUID("spn"), resource.NewUID("sec")
		secret := redact.FromString("secret of " + name)
		must(t, a.cfg.DB.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			if err := a.store.InsertPrincipal(ctx, tx, store.Principal{UID: uid, Kind: store.ServicePrincipal, ID: uid, CreateTime: now}); err != nil {
				return err
			}
			return a.store.InsertClientSecret(ctx, tx, store.ClientSecret{ID: credential, UID: uid, ExpireTime: now.Add(time.Hour)}, secret, now)
		}))
		signer, err := b.keys.signer()
		must(t, err)
		mint := func() error {
			f, ok, err := b.clientBySecret(t.Context(), uid, secret, true)
			must(t, err)
			if !ok {
				t.Fatalf("%s: not found", name)
			}
			return b.cfg.Outbox.RecordOn(t.Context(), &audit.Event{Method: "m", Principal: uid}, b.ground(f, signer.KeyID()))
		}
		// b does not follow the stream here, so what it keeps is what it has read at the start's number or later.
		must(t, b.feed.apply(t.Context()))
		must(t, mint())
		if _, ok := b.clients.Find(clients.BySecret(store.Digest(secret))); !ok {
			t.Fatalf("%s: not remembered", name)
		}
		must(t, a.cfg.DB.Write(t.Context(), endings(a.store, now, uid, credential, signer.KeyID())[name]))
		if err := mint(); err == nil {
			t.Errorf("%s: the other instance gives a token", name)
		}
	}
}
