package sqldb

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"modernc.org/sqlite"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// checkLimit is the size, in bytes, up to which every page of a file is checked in Open; of a larger one only the header is, since
	// a service must be back soon after it was killed. Damage inside a record is found by its authentication in any case.
	checkLimit = 256 << 20
	// walLimit is the size, in bytes, to which the write-ahead log is cut after a checkpoint.
	walLimit = 64 << 20
	// lockMade stands in the lock file from when the schema was first complete.
	lockMade = "made\n"
)

// sqliteFile is what is known of a database file before SQLite opens it.
type sqliteFile struct {
	path   string
	exists bool // and has content
	logged bool // a WAL with content lies beside it
	hot    bool // a rollback journal lies beside it: the very first write was interrupted
	size   int64
}

func (db *DB) openSQLite(ctx context.Context, c Config) error {
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return fault.Internal(err, "the path of the database file %s cannot be resolved", c.Path)
	}
	made, err := db.lockFile(path)
	if err != nil {
		return err
	}
	file, err := look(path, made)
	if err != nil {
		return err
	}
	if file.exists && !file.hot {
		if err := db.inspect(ctx, file, c); err != nil {
			return err
		}
	}
	if err := file.prepare(); err != nil {
		return err
	}
	if db.writer, err = connectSQLite(file.uri(url.Values{"_txlock": {"immediate"}}, "journal_mode(WAL)", "synchronous(FULL)",
		"secure_delete(ON)", fmt.Sprintf("journal_size_limit(%d)", walLimit)), 1); err != nil {
		return err
	}
	var mode string
	if err := db.writer.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return openFault(path, err)
	}
	if mode != "wal" {
		return fault.FailedPrecondition("the file system of %s cannot hold a write-ahead log; put the data folder on a local one", path)
	}
	if file.hot { // could not be inspected without writing
		if err := checkPages(ctx, db.writer, path); err != nil {
			return err
		}
	}
	if err := migrate(ctx, db.writer, SQLite, c, db.log); err != nil {
		return err
	}
	if db.reader, err = connectSQLite(file.uri(url.Values{"mode": {"ro"}}, "query_only(ON)"), readers()); err != nil {
		return err
	}
	db.written, db.read = newStatements(db.writer), newStatements(db.reader)
	return db.markMade(path, made)
}

// lockFile takes <path>.lock for the life of the DB, and reports whether the database was made before.
func (db *DB) lockFile(path string) (made bool, err error) {
	name := path + ".lock"
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, fault.FailedPrecondition("the folder %s does not exist; make it, or choose another data folder", filepath.Dir(path))
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return false, fault.FailedPrecondition("the folder %s cannot be written to; give its user the right to, or choose another data folder", filepath.Dir(path))
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return false, fault.Wrap(err, codes.ResourceExhausted, faultv1.Reason_STORAGE_FULL, "the disk of %s is full", filepath.Dir(path))
	case err != nil:
		return false, fault.Internal(err, "the lock file %s cannot be opened", name)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, fault.FailedPrecondition("the database %s is open in another process; stop that one first", path)
		}
		return false, fault.Internal(err, "the lock file %s cannot be locked", name)
	}
	db.lock = f
	content, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return false, fault.Internal(err, "the lock file %s cannot be read", name)
	}
	return string(content) == lockMade, nil
}

// markMade notes that the database exists, so that its absence at a later start is a loss and no first start.
func (db *DB) markMade(path string, made bool) error {
	if made {
		return nil
	}
	_, err := db.lock.WriteAt([]byte(lockMade), 0)
	if err == nil {
		err = db.lock.Sync()
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fault.Internal(err, "the lock file %s.lock cannot be written", path)
	}
	return nil
}

func damaged(path, what string) error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED,
		"the database file %s is damaged (%s). Nothing was changed. Bring the folder back from a backup", path, what)
}

// look reads what can be told without SQLite. It writes nothing.
func look(path string, made bool) (sqliteFile, error) {
	file := sqliteFile{path: path}
	file.logged = content(path+"-wal") > 0
	file.hot = content(path+"-journal") > 0
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !made && !file.logged:
		return file, nil
	case errors.Is(err, fs.ErrNotExist):
		return file, damaged(path, "it is gone, and what lies beside it says that it was there; to begin with an empty one, remove "+path+".lock and "+path+"-wal")
	case err != nil:
		return file, fault.Internal(err, "the database file %s cannot be read", path)
	case !info.Mode().IsRegular():
		return file, fault.FailedPrecondition("%s is not a file", path)
	}
	file.size = info.Size()
	file.exists = file.size > 0
	if !file.exists {
		if made || file.logged {
			return file, damaged(path, "it is empty")
		}
		return file, nil // the first start was interrupted
	}
	return file, file.header()
}

// content is the size of a file, 0 if there is none.
func content(path string) int64 {
	info, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// header checks the first 100 bytes (https://sqlite.org/fileformat2.html#the_database_header).
func (f sqliteFile) header() error {
	raw, err := os.Open(f.path)
	if err != nil {
		return fault.Internal(err, "the database file %s cannot be read", f.path)
	}
	defer func() { _ = raw.Close() }()
	var head [100]byte
	if _, err := io.ReadFull(raw, head[:]); err != nil {
		return damaged(f.path, "it is shorter than a header")
	}
	if !bytes.Equal(head[:16], []byte("SQLite format 3\x00")) {
		return damaged(f.path, "it does not begin as a SQLite file")
	}
	page := int64(binary.BigEndian.Uint16(head[16:18]))
	if page == 1 {
		page = 1 << 16
	}
	if page < 512 || page&(page-1) != 0 {
		return damaged(f.path, "its page size is not possible")
	}
	// With a WAL beside it the file may be behind its header, in the middle of a checkpoint.
	pages := int64(binary.BigEndian.Uint32(head[28:32]))
	if !f.logged && !f.hot && f.size < pages*page {
		return damaged(f.path, "its end is missing")
	}
	return nil
}

// inspect checks pages and schema versions on a connection that cannot write the file or its WAL.
func (db *DB) inspect(ctx context.Context, f sqliteFile, c Config) error {
	// Without a WAL the file is all there is, and SQLite need not even make its shared memory.
	options := url.Values{"mode": {"ro"}}
	if !f.logged {
		options.Set("immutable", "1")
	}
	pool, err := connectSQLite(f.uri(options, "query_only(ON)"), 1)
	if err != nil {
		return err
	}
	defer func() { _ = pool.Close() }()
	if f.size <= checkLimit {
		if err := checkPages(ctx, pool, f.path); err != nil {
			return err
		}
	} else {
		db.log.InfoContext(ctx, "the database file is too large to check every page of it at start", "file", f.path, "bytes", f.size)
	}
	return refuseNewer(ctx, pool, SQLite, c)
}

func checkPages(ctx context.Context, pool *sql.DB, path string) error {
	var found string
	if err := pool.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&found); err != nil {
		return openFault(path, err)
	}
	if found != "ok" {
		return damaged(path, "its pages do not fit together")
	}
	return nil
}

// openFault names the file, which only the operator reads.
func openFault(path string, err error) error {
	var lite *sqlite.Error
	if !errors.As(err, &lite) {
		return Fault(err)
	}
	switch code := sqliteCode(lite.Code()); code {
	case codes.DataLoss:
		return damaged(path, "SQLite cannot read it")
	case codes.ResourceExhausted:
		return fault.Wrap(err, code, faultv1.Reason_STORAGE_FULL, "the disk of %s is full", filepath.Dir(path))
	default:
		return fault.Wrap(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "the database file %s cannot be opened", path)
	}
}

// prepare makes the file, or narrows the mode of one that is there, so that SQLite gives the same mode to -wal and -shm.
func (f sqliteFile) prepare() error {
	raw, err := os.OpenFile(f.path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fault.Wrap(err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "the database file %s cannot be written to", f.path)
	}
	err = raw.Chmod(0o600)
	// Nothing of SQLite is open yet, so that this Close takes no lock of it away.
	if closed := raw.Close(); err == nil {
		err = closed
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if narrow := os.Chmod(f.path+suffix, 0o600); err == nil && !errors.Is(narrow, fs.ErrNotExist) {
			err = narrow
		}
	}
	if err == nil && !f.exists {
		err = syncDir(filepath.Dir(f.path))
	}
	if err != nil {
		return fault.Internal(err, "the database file %s cannot be prepared", f.path)
	}
	return nil
}

func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	err = dir.Sync()
	if closed := dir.Close(); err == nil {
		err = closed
	}
	return err
}

// uri is the connection string of the file with these options and pragmas, and those that every connection gets: foreign keys are
// enforced, SQL cannot reach around the file format, nothing is spilled to files elsewhere.
func (f sqliteFile) uri(options url.Values, pragmas ...string) string {
	options.Set("_dqs", "0")
	options.Set("_defensive", "1")
	options.Set("_error_rc", "1")
	options.Add("_pragma", fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()))
	for _, pragma := range append(pragmas, "foreign_keys(ON)", "trusted_schema(OFF)", "cell_size_check(ON)", "temp_store(MEMORY)") {
		options.Add("_pragma", pragma)
	}
	return (&url.URL{Scheme: "file", Path: f.path, RawQuery: options.Encode()}).String()
}

func connectSQLite(uri string, size int) (*sql.DB, error) {
	connector, err := sqlite.NewConnector(uri)
	if err != nil {
		return nil, fault.Internal(err, "the database file cannot be opened")
	}
	pool := sql.OpenDB(connector)
	pool.SetMaxOpenConns(size)
	pool.SetMaxIdleConns(size)
	return pool, nil
}
