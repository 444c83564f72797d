// Package sqldbtest runs a store's suite on every engine: on SQLite in a folder of the test always, and on PostgreSQL, in a schema of
// the test's own that is dropped after it, when REDOUBT_TEST_POSTGRES holds a connection string. Imported by tests only.
package sqldbtest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver of what an administrator does

	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// Env names the variable with the connection string of a PostgreSQL on which the role may make schemas.
const Env = "REDOUBT_TEST_POSTGRES"

// PassThrough is the Finish of a database without a fence.
func PassThrough(_ context.Context, commit func() error) error { return commit() }

// Run runs fn as the subtests "sqlite" and "postgres", each with a fresh database that has the migrations of sets. The second is
// skipped where there is no PostgreSQL.
func Run(t *testing.T, sets []sqldb.MigrationSet, fn func(t *testing.T, db *sqldb.DB)) {
	t.Helper()
	RunConfig(t, sets, func(t *testing.T, c sqldb.Config) { fn(t, OpenConfig(t, c)) })
}

// RunConfig is Run for tests that change the configuration, or open the database more than once.
func RunConfig(t *testing.T, sets []sqldb.MigrationSet, fn func(t *testing.T, c sqldb.Config)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { fn(t, SQLite(t, sets...)) })
	t.Run("postgres", func(t *testing.T) { fn(t, Postgres(t, sets...)) })
}

// Open opens a fresh SQLite database with the migrations of sets, for tests of what lies above the store.
func Open(t testing.TB, sets ...sqldb.MigrationSet) *sqldb.DB {
	t.Helper()
	return OpenConfig(t, SQLite(t, sets...))
}

// OpenConfig opens what c says and closes it after the test.
func OpenConfig(t testing.TB, c sqldb.Config) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), c)
	if err != nil {
		t.Fatalf("open the database: %v", err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close the database: %v", err)
		}
	})
	return db
}

// SQLite is the configuration of a fresh SQLite database in a folder of the test.
func SQLite(t testing.TB, sets ...sqldb.MigrationSet) sqldb.Config {
	t.Helper()
	return sqldb.Config{
		Driver:     sqldb.SQLite,
		Path:       filepath.Join(t.TempDir(), "db.sqlite"),
		Migrations: sets,
		Finish:     PassThrough,
	}
}

// Postgres is the configuration of a fresh schema that is dropped after the test. It skips the test where there is no PostgreSQL.
func Postgres(t testing.TB, sets ...sqldb.MigrationSet) sqldb.Config {
	t.Helper()
	dsn := os.Getenv(Env)
	if dsn == "" {
		t.Skip(Env + " is not set")
	}
	schema := "test_" + strings.ToLower(rand.Text())
	t.Cleanup(func() {
		admin, err := sql.Open("pgx", dsn)
		if err != nil {
			t.Fatalf("reach PostgreSQL to clean up: %v", err)
		}
		defer func() { _ = admin.Close() }()
		if _, err := admin.ExecContext(context.Background(), "DROP SCHEMA IF EXISTS "+schema+" CASCADE"); err != nil {
			t.Errorf("drop the schema of the test: %v", err)
		}
	})
	return sqldb.Config{
		Driver:     sqldb.Postgres,
		DSN:        redact.FromString(dsn),
		Schema:     schema,
		Migrations: sets,
		Finish:     PassThrough,
	}
}

// Lives has the administrator of PostgreSQL make what class sqlfence needs, for the role of the connection string and for others.
func Lives(t testing.TB, roles ...string) {
	t.Helper()
	admin, err := sql.Open("pgx", os.Getenv(Env))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	tx, err := admin.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing after a commit
	var own string
	if err := tx.QueryRowContext(t.Context(), "SELECT current_user FROM pg_advisory_xact_lock(25)").Scan(&own); err != nil { // tests make it beside each other
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), sqldb.LivesSQL(append(roles, own)...), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}
