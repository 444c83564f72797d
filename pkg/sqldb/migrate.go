package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"log/slog"

	"github.com/pressly/goose/v3"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// provider is goose's view of one set. Migrations are files only: nothing that was registered elsewhere in the process gets in.
func provider(pool *sql.DB, dialect Dialect, set MigrationSet, log *slog.Logger) (*goose.Provider, error) {
	files := set.FS
	if set.Dir != "" {
		sub, err := fs.Sub(set.FS, set.Dir)
		if err != nil {
			return nil, fault.Internal(err, "the migrations of %s cannot be read", set.Name)
		}
		files = sub
	}
	engine := goose.DialectSQLite3
	if dialect == Postgres {
		engine = goose.DialectPostgres
	}
	p, err := goose.NewProvider(engine, pool, files, goose.WithTableName(versions(set)), goose.WithSlog(log), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return nil, fault.Internal(err, "the migrations of %s cannot be read", set.Name)
	}
	return p, nil
}

// versions is the table of a set's versions. The name was checked to be an identifier.
func versions(set MigrationSet) string { return "goose_" + set.Name }

// newest is the version that this binary brings the set to.
func newest(p *goose.Provider) int64 {
	var newest int64
	for _, source := range p.ListSources() {
		newest = max(newest, source.Version)
	}
	return newest
}

// refuseNewer finds a database that a newer binary has migrated, or a restore left half done. It writes nothing.
func refuseNewer(ctx context.Context, pool *sql.DB, dialect Dialect, c Config) error {
	exists := existing(dialect)
	if c.restore == nil {
		var half bool
		if err := pool.QueryRowContext(ctx, exists, mark).Scan(&half); err != nil {
			return Fault(err)
		}
		if half {
			return errRestoring()
		}
	}
	for _, set := range c.Migrations {
		p, err := provider(pool, dialect, set, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		var known bool
		if err := pool.QueryRowContext(ctx, exists, versions(set)).Scan(&known); err != nil {
			return Fault(err)
		}
		if !known {
			continue
		}
		var at sql.NullInt64
		if err := pool.QueryRowContext(ctx, "SELECT MAX(version_id) FROM "+versions(set)).Scan(&at); err != nil {
			return Fault(err)
		}
		if want := newest(p); at.Int64 > want {
			return fault.FailedPrecondition("the database was written by a newer version of redoubt (%s is at %d, this binary knows %d). "+
				"Nothing was changed. Start that version, or bring an older backup back", set.Name, at.Int64, want)
		}
	}
	return nil
}

// sources are the versions that this binary has files for, in order.
func sources(set MigrationSet) ([]int64, error) {
	p, err := provider(new(sql.DB), SQLite, set, slog.New(slog.DiscardHandler)) // only asked for its files
	if err != nil {
		return nil, err
	}
	out := []int64{0}
	for _, s := range p.ListSources() {
		out = append(out, s.Version)
	}
	return out, nil
}

// migrate brings every set to what this binary knows, or to what a backup has, each step in a transaction of its own.
func migrate(ctx context.Context, pool *sql.DB, dialect Dialect, c Config, log *slog.Logger) error {
	if c.restore != nil {
		if err := clearFor(ctx, pool, dialect, log); err != nil {
			return err
		}
	}
	for _, set := range c.Migrations {
		p, err := provider(pool, dialect, set, log)
		if err != nil {
			return err
		}
		up := p.Up
		if c.restore != nil {
			version, ok := c.restore.at[set.Name]
			if !ok || version == 0 {
				continue
			}
			up = func(ctx context.Context) ([]*goose.MigrationResult, error) { return p.UpTo(ctx, version) }
		}
		results, err := up(ctx)
		if err != nil {
			var partial *goose.PartialError
			if errors.As(err, &partial) && partial.Failed != nil && partial.Failed.Source != nil {
				if full := Fault(partial.Err); fault.ReasonOf(full) != fault.ReasonOf(fault.Internal(nil, "")) {
					return full
				}
				return fault.Internal(err, "the migration %s of %s failed", partial.Failed.Source.Path, set.Name)
			}
			if mapped := Fault(err); errors.As(mapped, new(*fault.Error)) {
				return mapped
			}
			return fault.Internal(err, "the migrations of %s failed", set.Name)
		}
		if len(results) > 0 {
			log.InfoContext(ctx, "migrated", "set", set.Name, "steps", len(results), "version", newest(p))
		}
	}
	return nil
}
