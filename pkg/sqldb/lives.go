package sqldb

import (
	"context"
	"database/sql"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// LivesSchema is where the rows of lives stand, in every database whose services are fenced by them. Its role, which nobody signs in as,
// owns everything in it.
const LivesSchema = "redoubt_fence"

// LivesSQL is what the database's administrator runs, who may create roles, so that the roles may use Lives. They may call four functions and
// nothing else: enter adds a row of the role's own, hold locks one of the role's own to the end of the transaction and says whether it is there,
// bury takes any away, sweep takes those away that are older than an hour and not named. So a role can keep nobody's commit from being fenced
// but its own, and whoever takes a row away that lives has its owner's commits refused. It may be run again.
func LivesSQL(roles ...string) string {
	return `
DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'redoubt_fence') THEN CREATE ROLE redoubt_fence; END IF; END $$;
ALTER ROLE redoubt_fence NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
GRANT redoubt_fence TO CURRENT_USER;
CREATE SCHEMA IF NOT EXISTS redoubt_fence AUTHORIZATION redoubt_fence;
SET ROLE redoubt_fence;
REVOKE ALL ON SCHEMA redoubt_fence FROM PUBLIC;
CREATE TABLE IF NOT EXISTS redoubt_fence.lives (life TEXT NOT NULL PRIMARY KEY, owner NAME NOT NULL, born TIMESTAMPTZ NOT NULL DEFAULT now());
REVOKE ALL ON redoubt_fence.lives FROM PUBLIC;
CREATE OR REPLACE FUNCTION redoubt_fence.enter(TEXT) RETURNS VOID LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ BEGIN INSERT INTO redoubt_fence.lives (life, owner) VALUES ($1, session_user); END $$;
CREATE OR REPLACE FUNCTION redoubt_fence.hold(TEXT) RETURNS BOOLEAN LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ BEGIN PERFORM FROM redoubt_fence.lives l WHERE l.life = $1 AND l.owner = session_user FOR KEY SHARE; RETURN FOUND; END $$;
CREATE OR REPLACE FUNCTION redoubt_fence.bury(TEXT) RETURNS VOID LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ BEGIN DELETE FROM redoubt_fence.lives l WHERE l.life = $1; END $$;
CREATE OR REPLACE FUNCTION redoubt_fence.sweep(TEXT[]) RETURNS VOID LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ BEGIN DELETE FROM redoubt_fence.lives l WHERE l.life <> ALL ($1) AND l.born < now() - INTERVAL '1 hour'; END $$;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA redoubt_fence FROM PUBLIC;
GRANT USAGE ON SCHEMA redoubt_fence TO ` + strings.Join(roles, ", ") + `;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA redoubt_fence TO ` + strings.Join(roles, ", ") + `;
RESET ROLE;
`
}

// livesAtATime is how many rows a process adds or removes at a time.
const livesAtATime = 4

// Lives are the rows of the fence's lives in a PostgreSQL database (LivesSQL). While this process has one, every write transaction locks it at its
// begin: FOR KEY SHARE, in the statement that takes the writer, so it costs no way to the server. Who deletes a row waits for every
// transaction that holds it, and none that comes later commits. They are safe for concurrent use.
type Lives struct {
	pool  *sql.DB // of its own: who waits for a row keeps nobody from writing
	place string
	cur   atomic.Pointer[life]
}

// life is a stretch of time in which the same row has to be held; none where its id is empty. It is never current again once another one was.
type life struct {
	id     string
	absent chan struct{} // closed when a transaction did not find the row
	once   sync.Once
}

// Lives are nil where the engine is SQLite, and where the database's administrator has not made them for this role.
func (db *DB) Lives() *Lives { return db.lives }

// openLives finds out whether there are any.
func (db *DB) openLives(ctx context.Context, connect func() *sql.DB) error {
	var functions int
	// Only what belongs to the role that nobody signs in as: of another one's functions nobody knows what they will do.
	err := db.writer.QueryRowContext(ctx, `SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
		WHERE n.nspname = $1 AND p.proname IN ('enter', 'hold', 'bury', 'sweep') AND p.prosecdef AND pg_get_userbyid(p.proowner) = $1
		AND has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')`, LivesSchema).Scan(&functions)
	if err != nil || functions != 4 {
		return Fault(err)
	}
	l := &Lives{}
	// A dump that was brought into another database is another place; a standby that takes over is the same.
	err = db.writer.QueryRowContext(ctx, `SELECT format('%s/%s/%s', c.system_identifier, d.oid, n.oid) FROM pg_control_system() c, pg_database d, pg_namespace n
		WHERE d.datname = current_database() AND n.nspname = $1`, LivesSchema).Scan(&l.place)
	if err != nil {
		return Fault(err)
	}
	l.pool = connect()
	l.pool.SetMaxIdleConns(0) // rows come and go with processes
	l.cur.Store(&life{})
	db.lives = l
	return nil
}

// Place tells the database from all others.
func (l *Lives) Place() string { return l.place }

// Insert adds a row, which every write transaction of this DB has to hold from then on. gone is closed when one of them did not find it.
func (l *Lives) Insert(ctx context.Context, id string) (gone <-chan struct{}, err error) {
	if _, err := l.pool.ExecContext(ctx, "SELECT redoubt_fence.enter($1)", id); err != nil {
		return nil, Fault(err)
	}
	in := &life{id: id, absent: make(chan struct{})}
	l.cur.Store(in)
	return in.absent, nil
}

// Leave says that nothing is decided now, so that transactions need no row.
func (l *Lives) Leave() { l.cur.Store(&life{}) }

// Delete removes a row, of whatever process, after the transactions that hold it are over. It is no error that there is none.
func (l *Lives) Delete(ctx context.Context, id string) error {
	_, err := l.pool.ExecContext(ctx, "SELECT redoubt_fence.bury($1)", id)
	return Fault(err)
}

// Sweep removes rows that are older than an hour, but those that are named.
func (l *Lives) Sweep(ctx context.Context, keep []string) error {
	_, err := l.pool.ExecContext(ctx, "SELECT redoubt_fence.sweep($1)", keep)
	return Fault(err)
}

// lockWriter takes the schema's writer and the row of the present life, which comes back; nil where there are no rows.
func (db *DB) lockWriter(ctx context.Context, tx *sql.Tx) (*life, error) {
	var in *life
	if db.lives != nil {
		in = db.lives.cur.Load()
	}
	if in == nil || in.id == "" {
		_, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1)", db.advise)
		return in, err
	}
	// The writer comes first, as it is written: a row that is held while another instance writes would keep its deletion waiting for longer.
	return in, in.found(tx.QueryRowContext(ctx, "SELECT redoubt_fence.hold($2) FROM (SELECT pg_advisory_xact_lock($1) OFFSET 0) writer", db.advise, in.id))
}

// found takes what hold has said.
func (in *life) found(row *sql.Row) error {
	var held bool
	if err := row.Scan(&held); err != nil {
		return err
	}
	if held {
		return nil
	}
	in.once.Do(func() { close(in.absent) })
	return fault.New(codes.Unavailable, faultv1.Reason_FENCE_LOST,
		"this instance counted as gone, and its row in the database was taken away, so it changes nothing until it has joined the fence again; repeat the call").
		With("cause", "its row was taken away")
}

// holdPresent takes the row of the present life, where that began after the transaction. It comes before what is decided is looked at for the
// last time, and unchanged after it: so what was found to be decided in a life holds the row of that life.
func (db *DB) holdPresent(ctx context.Context, tx *sql.Tx, held *life) (*life, error) {
	if db.lives == nil {
		return nil, nil
	}
	in := db.lives.cur.Load()
	if in == held || in.id == "" {
		return in, nil
	}
	return in, in.found(tx.QueryRowContext(ctx, "SELECT redoubt_fence.hold($1)", in.id))
}

// unchanged refuses a commit in another life than the one whose row is held.
func (db *DB) unchanged(held *life) error {
	if db.lives == nil || db.lives.cur.Load() == held {
		return nil
	}
	return fault.New(codes.Unavailable, faultv1.Reason_FENCE_LOST, "this instance has left the fence, or joined it again, while the call was under way; repeat it").
		With("cause", "it has left the fence")
}
