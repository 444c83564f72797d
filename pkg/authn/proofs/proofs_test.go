package proofs

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

const (
	address = "https://redoubt.test:7443/redoubt.compute.v1.AgentRunService/Heartbeat"
	token   = "a token"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// instance is one process's memory and the shared one behind it.
func instance(t *testing.T, db *sqldb.DB) *authn.ProofChecker {
	t.Helper()
	cfg := authn.ProofConfig{}
	if db != nil {
		cfg.Shared = New(db, nil)
	}
	c, err := authn.NewProofChecker(cfg)
	must(t, err)
	return c
}

// both runs a test with what two instances have of one database: on SQLite one process has it, and they share the handle.
func both(t *testing.T, test func(t *testing.T, one, two *sqldb.DB)) {
	t.Run("SQLite", func(t *testing.T) {
		db := sqldbtest.Open(t, Migrations())
		test(t, db, db)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		cfg := sqldbtest.Postgres(t, Migrations())
		test(t, sqldbtest.OpenConfig(t, cfg), sqldbtest.OpenConfig(t, cfg))
	})
}

// A4: a proof that was used at one instance is refused at the other; without what they share it is not.
func TestReplayAtTheOther(t *testing.T) { both(t, replayAtTheOther) }

func replayAtTheOther(t *testing.T, one, two *sqldb.DB) {
	key, err := authn.GenerateKey()
	must(t, err)
	p, err := authn.NewProver(key, nil)
	must(t, err)
	prove := func() string {
		s, err := p.Proof("POST", address, token, "")
		must(t, err)
		return s
	}
	check := func(c *authn.ProofChecker, proof string) error {
		return c.Check(proof, "POST", address, token, p.Thumbprint())
	}
	a, b := instance(t, one), instance(t, two)
	for range 3 {
		proof := prove()
		must(t, check(a, proof))
		for name, c := range map[string]*authn.ProofChecker{"the same": a, "the other": b} {
			if err := check(c, proof); fault.ReasonOf(err) != faultv1.Reason_TOKEN_PROOF_INVALID {
				t.Errorf("replayed at %s: %v", name, err)
			}
		}
		a, b = b, a
	}
	alone, other := instance(t, nil), instance(t, nil)
	proof := prove()
	must(t, check(alone, proof))
	if check(other, proof) != nil {
		t.Error("nothing is shared, and yet it is known: this test shows nothing")
	}
	// One of a wrong method is not remembered: who may not use a proof cannot use it up.
	proof = prove()
	if a.Check(proof, "GET", address, token, p.Thumbprint()) == nil {
		t.Error("for another method")
	}
	must(t, check(b, proof))

	must(t, one.Close())
	must(t, two.Close())
	a = b
	if err := check(a, prove()); fault.ReasonOf(err) != faultv1.Reason_SERVICE_UNAVAILABLE {
		t.Errorf("without the database: %v", err)
	}
}

// Of all who ask at the same time, one is told that it is new.
func TestOneIsFirst(t *testing.T) { both(t, oneIsFirst) }

func oneIsFirst(t *testing.T, one, two *sqldb.DB) {
	var wg sync.WaitGroup
	var firsts atomic.Int64
	for i := range 8 {
		s := New([]*sqldb.DB{one, two}[i%2], nil)
		wg.Go(func() {
			first, err := s.First([]byte("one"), time.Now().Add(time.Minute))
			if err != nil {
				t.Error(err)
			}
			if first {
				firsts.Add(1)
			}
		})
	}
	wg.Wait()
	if firsts.Load() != 1 {
		t.Errorf("%d are first", firsts.Load())
	}
}

// What is over is removed, and nothing before that.
func TestSweep(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := New(sqldbtest.Open(t, Migrations()), func() time.Time { return now })
	is := func(name string, want bool) {
		t.Helper()
		first, err := s.First([]byte("one"), now.Add(90*time.Second))
		must(t, err)
		if first != want {
			t.Errorf("%s: first is %v", name, first)
		}
	}
	is("at first", true)
	now = now.Add(89 * time.Second)
	is("in its time", false)
	now = now.Add(2 * time.Minute)
	is("after it", true)
}
