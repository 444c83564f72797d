package identity

import (
	"bytes"
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// nobody is an election without an end: its instances lead in nothing.
type nobody struct{}

func (nobody) Campaign(ctx context.Context, _ string) (leader.Seat, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// replica is an instance of identity on a database that others have open too, with its own authorization engine.
func replica(t *testing.T, c sqldb.Config, key *seal.Seal, name string) (*Service, *authz.Engine, error) {
	t.Helper()
	return replicaOf(t, c, key, name, nobody{}, func(*Config) {})
}

func replicaOf(t *testing.T, c sqldb.Config, key *seal.Seal, name string, election leader.Election, change func(*Config)) (*Service, *authz.Engine, error) {
	t.Helper()
	db := sqldbtest.OpenConfig(t, c)
	ring, err := envelope.New(envelope.Config{Source: envelope.SealSource(key, Name), DB: db})
	if err != nil {
		return nil, nil, err
	}
	l, err := leader.New(leader.Config{DB: db, Election: election, Holder: name})
	if err != nil {
		return nil, nil, err
	}
	outbox, err := audit.New(audit.Config{Service: Name, DB: db, Keys: ring, Leader: l})
	if err != nil {
		return nil, nil, err
	}
	engine := authz.New(authz.Config{OwnSecurity: true, OwnAuthorization: true})
	cfg := Config{
		DB: db, Outbox: outbox, Own: ring, Engine: engine, Leader: l, TrustDomain: "redoubt.test", Issuer: issuer, EnrolAddress: "127.0.0.1:1", Password: cheap,
		Heartbeat: 2 * time.Second,
	}
	change(&cfg)
	s, err := New(cfg)
	return s, engine, err
}

// Two instances that start at once on an empty schema have one CA and one signing key; and what one revokes the other honours when the call
// returns, without waiting for its heartbeat.
func TestTwoInstancesAreOneIdentity(t *testing.T) {
	c := sqldbtest.Postgres(t, Migrations(), audit.Migrations(), envelope.Migrations(), leader.Migrations())
	key, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	must(t, err)
	var services [2]*Service
	var engines [2]*authz.Engine
	var errs [2]error
	var starting sync.WaitGroup
	for i, name := range []string{"identity-a", "identity-b"} {
		starting.Go(func() { services[i], engines[i], errs[i] = replica(t, c, key, name) })
	}
	starting.Wait()
	must(t, errs[0])
	must(t, errs[1])
	a, b := services[0], services[1]
	if a.Pin() != b.Pin() || !bytes.Equal(a.Roots()[0].Raw, b.Roots()[0].Raw) {
		t.Error("two CAs")
	}
	ka, kb := a.keys.published(), b.keys.published()
	if len(ka) != 2 || len(kb) != 2 { // the one that signs, and the next
		t.Fatalf("%d and %d signing keys", len(ka), len(kb))
	}
	for id := range ka {
		if kb[id] == nil {
			t.Error("each has signing keys of its own")
		}
	}

	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	for _, s := range services {
		running.Go(func() { _ = s.Run(ctx) })
	}
	revoke := func(s *Service, jti string) {
		t.Helper()
		must(t, s.secure(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			return s.store.Change(ctx, tx, time.Now(), []*identityv1.Revocation{{Jti: jti, ExpireTime: timestamppb.New(time.Now().Add(time.Hour))}}, nil)
		}))
	}
	revoked := func(i int, jti string) bool {
		return engines[i].Revocations().Revoked("usr_1", "", jti, "", nil, time.Now())
	}
	// Both are known to each other once each has come to a change.
	revoke(a, "tok_first")
	for deadline := time.Now().Add(20 * time.Second); ; {
		var n int
		must(t, a.cfg.DB.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM progress WHERE seq > 0").Scan(&n))
		if n == 2 && revoked(1, "tok_first") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d instances tell how far they are", n)
		}
	}
	for n := range 20 {
		from, to := n%2, 1-n%2
		jti := "tok_" + string(rune('a'+n))
		begin := time.Now()
		revoke(services[from], jti)
		if !revoked(from, jti) || !revoked(to, jti) {
			t.Errorf("revocation %d: honoured here %t, there %t", n, revoked(from, jti), revoked(to, jti))
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("revocation %d took %v: it waited for a heartbeat", n, took)
		}
	}
}
