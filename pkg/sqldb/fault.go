package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"google.golang.org/grpc/codes"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Fault makes a fault of a driver's error. Its message is for callers: no SQL, name or value of the database stands in it; the
// driver's words are the cause, which is only logged. Faults, errors of a context, and errors that come from no driver are
// returned as they are.
//
//	no row                                  NOT_FOUND
//	a unique index has the value already    ALREADY_EXISTS
//	a foreign key forbids it                FAILED_PRECONDITION
//	the disk is full                        RESOURCE_EXHAUSTED, STORAGE_FULL
//	the engine says repeat                  ABORTED
//	a value the engine cannot hold          INVALID_ARGUMENT
//	damaged pages                           DATA_LOSS, DATA_DAMAGED
//	the engine is away, closed or busy      UNAVAILABLE
//	anything else                           INTERNAL
func Fault(err error) error {
	var known *fault.Error
	switch {
	case err == nil, errors.As(err, &known):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, sql.ErrNoRows):
		return fault.Wrap(err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND, "there is no such resource")
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		return kind(sqliteCode(lite.Code()), err)
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return kind(postgresCode(pg.Code), err)
	}
	if lostConnection(err) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, sql.ErrTxDone) || closedPool(err) {
		return kind(codes.Unavailable, err)
	}
	return err
}

// kind is the fault of each code that a driver's error is given.
func kind(code codes.Code, cause error) error {
	message, reason := "the database failed", faultv1.Reason_INTERNAL_FAULT
	switch code {
	case codes.AlreadyExists:
		message, reason = "it exists already", faultv1.Reason_RESOURCE_ALREADY_EXISTS
	case codes.FailedPrecondition:
		message, reason = "other records refer to it, or what it refers to does not exist", faultv1.Reason_PRECONDITION_FAILED
	case codes.ResourceExhausted:
		message, reason = "the disk of the database is full; nothing was changed; repeat the call when there is space", faultv1.Reason_STORAGE_FULL
	case codes.Aborted:
		message, reason = "another change came first; read again and repeat", faultv1.Reason_CONFLICT
	case codes.InvalidArgument:
		message, reason = "a value cannot be stored: it is too large or not valid text", faultv1.Reason_REQUEST_INVALID
	case codes.DataLoss:
		message, reason = "stored data is damaged", faultv1.Reason_DATA_DAMAGED
	case codes.Unavailable:
		message, reason = "the database is not available; repeat the call", faultv1.Reason_SERVICE_UNAVAILABLE
	default:
		code = codes.Internal
	}
	return fault.Wrap(cause, code, reason, "%s", message)
}

// sqliteCode maps an extended result code (https://sqlite.org/rescode.html).
func sqliteCode(code int) codes.Code {
	switch code {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID:
		return codes.AlreadyExists
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
		return codes.FailedPrecondition
	case sqlite3.SQLITE_IOERR_SHMSIZE: // the shared-memory file could not grow
		return codes.ResourceExhausted
	}
	switch code & 0xff {
	case sqlite3.SQLITE_FULL:
		return codes.ResourceExhausted
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return codes.DataLoss
	case sqlite3.SQLITE_TOOBIG:
		return codes.InvalidArgument
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN,
		sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOMEM:
		return codes.Unavailable
	}
	return codes.Internal
}

// postgresCode maps a SQLSTATE (PostgreSQL manual, appendix A).
func postgresCode(state string) codes.Code {
	switch state {
	case "23505", "23P01": // unique_violation, exclusion_violation
		return codes.AlreadyExists
	case "23503", "23001": // foreign_key_violation, restrict_violation
		return codes.FailedPrecondition
	case "53100": // disk_full
		return codes.ResourceExhausted
	case "55P03": // lock_not_available
		return codes.Aborted
	case "22021", "22001", "54000": // character_not_in_repertoire, string_data_right_truncation, program_limit_exceeded
		return codes.InvalidArgument
	case "25006": // read_only_sql_transaction: a server that became a standby, or a write on Read
		return codes.Unavailable
	}
	class := state
	if len(class) > 2 {
		class = class[:2]
	}
	switch class {
	case "40": // transaction_rollback: serialization, deadlock
		return codes.Aborted
	case "08", "53", "57", "58", "25": // connection, resources, operator intervention, system error, transaction state
		return codes.Unavailable
	case "XX":
		if state == "XX001" || state == "XX002" { // data_corrupted, index_corrupted
			return codes.DataLoss
		}
	}
	return codes.Internal
}

// fromDriver reports whether err was made by database/sql or a driver, so that the end of a context may be its reason.
func fromDriver(err error) bool {
	var lite *sqlite.Error
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg):
		return pg.Code == "57014" // query_canceled; every other state is the server's own answer
	case errors.As(err, &lite):
		return lite.Code()&0xff == sqlite3.SQLITE_INTERRUPT
	}
	return errors.Is(err, sql.ErrTxDone) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || lostConnection(err)
}

// lostConnection reports that there is no answer from the server, so that what it did is not known.
func lostConnection(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return strings.HasPrefix(pg.Code, "57P") || strings.HasPrefix(pg.Code, "08")
	}
	var network net.Error
	var connect *pgconn.ConnectError
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.As(err, &network) || errors.As(err, &connect) || pgconn.SafeToRetry(err)
}

// closedPool knows database/sql's answer after Close, for which it has no value.
func closedPool(err error) bool { return err.Error() == "sql: database is closed" }

// unsafeDisk reports that what is on disk is not known any more: an fsync failed, or the commit met an error of the disk that is not
// a full one. SQLite rolls such a transaction back in memory, and a second fsync would succeed without having stored it.
func unsafeDisk(err error, commit bool) bool {
	var lite *sqlite.Error
	if !errors.As(err, &lite) || lite.Code()&0xff != sqlite3.SQLITE_IOERR || lite.Code() == sqlite3.SQLITE_IOERR_SHMSIZE {
		return false
	}
	return commit || lite.Code() == sqlite3.SQLITE_IOERR_FSYNC || lite.Code() == sqlite3.SQLITE_IOERR_DIR_FSYNC
}
