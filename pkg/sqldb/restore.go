package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// mark is a table that stands in a store from the first moment of its restore to the end of the whole installation's. Open refuses a
// store that has it.
const mark = "redoubt_restoring"

// existing asks whether a table is there, whose name is $1.
func existing(dialect Dialect) string {
	if dialect == Postgres {
		return "SELECT to_regclass($1) IS NOT NULL"
	}
	return "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = $1)"
}

// Restore makes a store that is restored from a backup: empty, marked, and with every migration set at the version that the backup
// has it at. Fill gets one write transaction for all of its rows, in which references are checked at the end. Then the schema moves
// forward to what this binary knows, and the store is open as after Open, still marked: Unmark is the last step.
//
// There must be no SQLite file, and no table in a PostgreSQL schema, but those of a restore that was interrupted, which are removed. An
// error leaves nothing, or a marked store that no service opens. A version that this binary does not know is FAILED_PRECONDITION, and a
// set that it does not have is too; both leave nothing.
func Restore(ctx context.Context, c Config, at map[string]int64, fill func(ctx context.Context, tx *Tx) error) (*DB, error) {
	if err := checkVersions(c, at); err != nil {
		return nil, err
	}
	if c.Driver == SQLite {
		if _, err := os.Lstat(c.Path); !errors.Is(err, os.ErrNotExist) {
			return nil, fault.FailedPrecondition("there is a database at %s already; restore into an empty folder", c.Path)
		}
	}
	c.restore = &restoring{at: at}
	db, err := Open(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := db.fill(ctx, c, fill); err != nil {
		_ = db.Close()
		return nil, err
	}
	return db, nil
}

// restoring changes what opening a store does.
type restoring struct{ at map[string]int64 }

func checkVersions(c Config, at map[string]int64) error {
	known := make(map[string]bool, len(c.Migrations))
	for _, set := range c.Migrations {
		known[set.Name] = true
		steps, err := sources(set)
		if err != nil {
			return err
		}
		version, ok := at[set.Name]
		switch {
		case !ok: // a library that the service did not have yet
		case version > steps[len(steps)-1]:
			return fault.FailedPrecondition("the backup was made by a newer version of redoubt (%s is at %d, this binary knows %d). Nothing was changed. Restore it with that version",
				set.Name, version, steps[len(steps)-1])
		}
	}
	for name := range at {
		if !known[name] {
			return fault.FailedPrecondition("the backup was made by another version of redoubt: this binary knows no tables %q. Nothing was changed. Restore it with that version", name)
		}
	}
	return nil
}

// fill puts the rows in and moves the schema forward.
func (db *DB) fill(ctx context.Context, c Config, fill func(ctx context.Context, tx *Tx) error) error {
	err := db.Write(ctx, func(ctx context.Context, tx *Tx) error {
		if db.dialect == SQLite {
			if _, err := tx.ExecContext(ctx, "PRAGMA defer_foreign_keys = ON"); err != nil { // to the end of this transaction
				return err
			}
		}
		return fill(ctx, tx)
	})
	if err != nil {
		return err
	}
	c.restore = nil
	return migrate(ctx, db.writer, db.dialect, c, db.log)
}

// Unmark ends the restore of a store: from now on services may open it.
func (db *DB) Unmark(ctx context.Context) error {
	return db.Write(ctx, func(ctx context.Context, tx *Tx) error {
		_, err := tx.ExecContext(ctx, "DROP TABLE "+mark)
		return err
	})
}

// clearFor makes room in a PostgreSQL schema for a restore, and marks it. On SQLite the file is new.
func clearFor(ctx context.Context, pool *sql.DB, dialect Dialect, log *slog.Logger) error {
	if dialect == Postgres {
		if err := clearPostgres(ctx, pool, log); err != nil {
			return err
		}
	}
	_, err := pool.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS "+mark+" (id BIGINT NOT NULL PRIMARY KEY)")
	return Fault(err)
}

func clearPostgres(ctx context.Context, pool *sql.DB, log *slog.Logger) error {
	tables, err := postgresTables(ctx, pool)
	if err != nil {
		return err
	}
	marked := slices.Contains(tables, mark)
	tables = slices.DeleteFunc(tables, func(name string) bool { return name == mark })
	if len(tables) > 0 && !marked {
		return fault.FailedPrecondition("the PostgreSQL schema has tables already (%s and %d more). Nothing was changed. Restore into an empty one", tables[0], len(tables)-1)
	}
	for _, name := range tables {
		log.WarnContext(ctx, "removing what an interrupted restore has left", "table", name)
		if _, err := pool.ExecContext(ctx, fmt.Sprintf("DROP TABLE IF EXISTS %s CASCADE", pgx.Identifier{name}.Sanitize())); err != nil {
			return Fault(err)
		}
	}
	return nil
}

func postgresTables(ctx context.Context, pool *sql.DB) (_ []string, err error) {
	rows, err := pool.QueryContext(ctx, "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY tablename")
	if err != nil {
		return nil, Fault(err)
	}
	defer func() { err = errors.Join(err, Fault(rows.Close())) }()
	var out []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, Fault(err)
		}
		out = append(out, name)
	}
	return out, Fault(rows.Err())
}
