// Package forged sends forged tokens to every place of an installation that takes tokens (A3): each service through the gateway and from
// another service's side, by REST, MLflow's API, the provider's pages, and the listener of endpoints.
//
// The forger has the key that the installation signs with, taken from identity's own files: so a forged token is refused for what its name
// says is wrong with it, and for nothing else. Beside each forged token goes one that is good, made in the same way, which has to be let in.
//
// What each place let in is printed: "attack: …: tried N, accepted M".
package forged

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

var mesh *testmesh.Mesh

func TestMain(m *testing.M) {
	testmesh.Child()
	var err error
	mesh, err = testmesh.Start(func(c *node.UpConfig) {
		c.LeafLife = 24 * time.Hour
		c.Options.Limits = rpc.Limits{PerAddress: 1e6, PerPrincipal: 1e6} // how often one may guess is another test's
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	mesh.Close()
	os.Exit(code)
}

// signingKey is the key that identity signs with, read as a thief of its folder would: from a copy of the database, opened with the seal
// beside it.
func signingKey(t *testing.T) (kid string, key *ecdsa.PrivateKey) {
	t.Helper()
	dir := filepath.Join(mesh.Dir, "identity")
	s, err := seal.OpenFile(filepath.Join(dir, "seal.key"), false)
	must(t, err)
	defer func() { _ = s.Close() }()
	stolen := t.TempDir() // identity's own is open, and for it alone
	for _, name := range []string{"db.sqlite", "db.sqlite-wal"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(stolen, name), b, 0o600))
	}
	db, err := sqldb.Open(t.Context(), sqldb.Config{Driver: sqldb.SQLite, Path: filepath.Join(stolen, "db.sqlite"), Migrations: []sqldb.MigrationSet{envelope.Migrations()}, Finish: rpc.Finish})
	must(t, err)
	defer func() { _ = db.Close() }()
	ring, err := envelope.New(envelope.Config{Source: envelope.SealSource(s, "identity"), DB: db})
	must(t, err)
	var row []byte
	must(t, db.Read(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		return tx.QueryRowContext(ctx, "SELECT kid, private_key FROM signing_keys WHERE purpose = '' ORDER BY sign_from, kid LIMIT 1").Scan(&kid, &row)
	}))
	k, err := ring.Key(t.Context(), envelope.ServiceOwner)
	must(t, err)
	der, err := k.Open(envelope.AAD{Owner: envelope.ServiceOwner, Kind: "signing-key", ID: kid}, row)
	must(t, err)
	key, err = authn.ParseKey(redact.New(der))
	must(t, err)
	return kid, key
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
