// Package sqldb opens a service's own database, moves its schema forward, and is the only place where a transaction begins
// and ends. SQL drivers are imported nowhere else. The same SQL text runs on SQLite (modernc.org/sqlite, the embedded default)
// and on PostgreSQL (pgx): $1 parameters, BIGINT microseconds for time, BYTEA, TEXT, BIGINT.
//
// # What it owns
//
// The database file <path>, its -wal and -shm, and <path>.lock; or one schema of a PostgreSQL database. Only one process at a
// time opens a SQLite file: the lock file is held by flock for the life of the DB, and a second Open is refused. The lock
// file also remembers that the database was made once, so that a database that was lost is not taken for a first start.
//
// # One writer
//
// On both engines one write transaction runs at a time: in the process by a first-come gate, between processes by the file
// lock (SQLite) or by a transaction-level advisory lock (PostgreSQL), taken before the first statement of the function. So a
// function given to Write reads what is committed, and nothing changes between its reads and its commit; there are no
// serialization conflicts, and a function is never run twice. It costs little: an audited change takes its outbox number
// from one locked row in any case. A caller of Write must not hold the transaction over a call to another service.
// Readers never wait for the writer: SQLite reads a WAL snapshot, PostgreSQL REPEATABLE READ, both read-only by the engine.
//
// # Statements
//
// A query that is asked often is parsed once a connection: on SQLite what is kept is bounded and seen by nobody (256 a pool), on PostgreSQL it is
// the driver's. So the rows of a query must be closed before the next statement of its transaction, and a text that differs from call to call
// (a number in it, a list of another length) costs its parsing each time.
//
// # Commits
//
// Every commit passes Config.Finish, which decides whether the effect may still happen. The only commits beside it are those of
// migrations, made in Open before anything is served. When Write returns nil, the change is on stable storage
// (synchronous=FULL; a PostgreSQL server with fsync or synchronous_commit off is refused). When it returns an error before the
// commit was sent, nothing was changed. A commit of which the result was lost is reported as such: the caller must read
// before it repeats.
//
// # Lives
//
// A process may stand still between Finish and the COMMIT. In a PostgreSQL database whose administrator has run LivesSQL, a process can say by a
// row (Lives) that it lives: from then on each of its write transactions locks the row from its first statement on, and is refused without it.
// Who deletes the row waits for what is open, and nothing is committed after it. The row is that of the life in which Finish let the commit pass:
// a commit after another life has begun, or none, is refused.
//
// # Signals
//
// Instances of a service share a PostgreSQL schema. What one commits with Tx.Signal wakes those who wait on Signals in all of them:
// in the process at once, elsewhere by NOTIFY, which a connection of its own hears. A signal says that there is something to
// read and never what; it may come twice, and after a lost connection everybody is woken, since something may have been missed.
// NOTIFY makes commits of one database wait for each other for a moment, so it is for what others must hear of, not for every row.
//
// # How it fails
//
// Driver errors become kinds of pkg/fault here, in words that hold no SQL, path or value; errors of a context keep what they
// are. A full disk is STORAGE_FULL, changes nothing, and ends when there is space again. A failed fsync leaves the state of the
// disk unknown and a later fsync would lie about it: the DB then refuses every write until it is opened anew. A damaged
// SQLite file is found in Open (header, then quick_check up to checkLimit bytes), named, and neither it nor its WAL is changed.
// A schema that is newer than the binary is refused before anything is written.
//
// # Trust boundary
//
// Whoever can write the file or talk to the server as the service's role can change any row: confidentiality and binding of
// what tenants wrote are pkg/envelope's. Files are made 0600. PostgreSQL is reached over a Unix socket, over loopback, or with TLS
// that verifies the server's name (D10); anything weaker is refused.
package sqldb
