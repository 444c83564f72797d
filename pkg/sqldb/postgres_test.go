package sqldb

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// D10: what leaves the machine is verified.
func TestPlainConnectionsStayOnTheMachine(t *testing.T) {
	t.Setenv("PGSSLROOTCERT", "")
	for dsn, allowed := range map[string]bool{
		"host=/run/postgresql dbname=x":                        true,
		"postgres://u:p@127.0.0.1/x?sslmode=disable":           true,
		"postgres://u:p@[::1]/x":                               true,
		"postgres://u:p@localhost/x?sslmode=prefer":            true,
		"postgres://u:p@db.example/x?sslmode=verify-full":      true,
		"postgres://u:p@db.example/x?sslmode=disable":          false,
		"postgres://u:p@db.example/x":                          false,
		"postgres://u:p@db.example/x?sslmode=require":          false,
		"postgres://u:p@10.0.0.1/x?sslmode=prefer":             false,
		"postgres://u:p@localhost,db.example/x?sslmode=prefer": false,
		"postgres://u:p@localhost.example/x?sslmode=disable":   false,
	} {
		config, err := pgx.ParseConfig(dsn)
		if err != nil {
			t.Fatalf("%s: %v", dsn, err)
		}
		if err := refusePlain(&config.Config); (err == nil) != allowed {
			t.Errorf("%s: %v", dsn, err)
		}
	}
}

func TestConnectionStringIsNotRepeated(t *testing.T) {
	for _, dsn := range []string{"postgres://u:canary@db.example:port/x", "host=db.example password=canary sslmode=disable", "canary"} {
		_, err := Open(t.Context(), Config{Driver: Postgres, DSN: redact.FromString(dsn), Finish: func(_ context.Context, commit func() error) error { return commit() }})
		if err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("got %v", err)
		}
	}
}

func TestPostgresStates(t *testing.T) {
	for state, want := range map[string]codes.Code{
		"23505": codes.AlreadyExists, "23503": codes.FailedPrecondition, "23502": codes.Internal, "53100": codes.ResourceExhausted,
		"40001": codes.Aborted, "40P01": codes.Aborted, "22021": codes.InvalidArgument, "57P01": codes.Unavailable, "53300": codes.Unavailable,
		"08006": codes.Unavailable, "XX001": codes.DataLoss, "XX000": codes.Internal, "42P01": codes.Internal, "25P02": codes.Unavailable, "": codes.Internal,
	} {
		if got := fault.Code(Fault(&pgconn.PgError{Code: state, Message: "inside"})); got != want {
			t.Errorf("%s: got %v, want %v", state, got, want)
		}
	}
	mine := errors.New("mine")
	if got := Fault(mine); got != mine { //nolint:errorlint // the very value comes back
		t.Errorf("an error of no driver became %v", got)
	}
}

// A process that stops in the middle of a transaction does not keep the writer of all others.
func TestPostgresSettings(t *testing.T) {
	dsn := os.Getenv("REDOUBT_TEST_POSTGRES")
	if dsn == "" {
		t.Skip("REDOUBT_TEST_POSTGRES is not set")
	}
	db, err := Open(t.Context(), Config{Driver: Postgres, DSN: redact.FromString(dsn), Finish: func(_ context.Context, commit func() error) error { return commit() }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	err = db.Write(t.Context(), func(ctx context.Context, tx *Tx) error {
		var idle, isolation string
		if err := tx.QueryRowContext(ctx, "SELECT current_setting('idle_in_transaction_session_timeout'), current_setting('transaction_isolation')").Scan(&idle, &isolation); err != nil {
			return err
		}
		if idle != "2s" || isolation != "read committed" {
			t.Errorf("idle timeout %s, isolation %s", idle, isolation)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// The server ends the session in the middle of a transaction: nothing is stored, and the next write works.
	err = db.Write(t.Context(), func(ctx context.Context, tx *Tx) error {
		_, err := tx.ExecContext(ctx, "SELECT pg_terminate_backend(pg_backend_pid())")
		return err
	})
	if fault.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
	if err := db.Write(t.Context(), func(ctx context.Context, tx *Tx) error { return nil }); err != nil {
		t.Errorf("the next write: %v", err)
	}
}
