package backup

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldump"
)

// Unfinished is the folder in which a restore builds an installation, below its data folder. While it is there, nothing may start.
const Unfinished = ".restoring"

// Store is where one service keeps what it has.
type Store struct {
	// Folder is the name of its folder below the installation's.
	Folder string
	// Migrations are those of the service, in the order of its node.
	Migrations []sqldb.MigrationSet
	// Blobs says whether it keeps files.
	Blobs bool
	// After puts right what must not come back as it was, before anything can start. It may be nil.
	After func(ctx context.Context, from Summary, db *sqldb.DB, own *envelope.Keyring) error
}

// RestoreConfig says what is made.
type RestoreConfig struct {
	// Data is the installation's folder: empty, or left by a restore that was interrupted. The caller holds its lock.
	Data string
	// Planned says that the folder may have what `bootstrap --plan` writes before it makes services: connections, etcd.
	Planned bool
	// Seals is the folder with the seals.
	Seals string
	// Stores are those of all services that keep something.
	Stores map[string]Store
	// Database is where a service's rows go, if not into a SQLite file below Data: without migrations. It may be nil.
	Database func(service string) (sqldb.Config, bool)
	// BlobStore is where a service's files go, if not into a folder below Data. It may be nil.
	BlobStore func(service string) (blob.Config, bool)
	Say       func(format string, args ...any)
	Logger    *slog.Logger
}

// restored is one service that is built.
type restored struct {
	name, dir string
	db        *sqldb.DB
	own       *envelope.Keyring
}

// Restore makes an installation of an archive that was decrypted already. It is whole when Restore has returned nil; before that, whatever is
// left of it refuses to start.
func Restore(ctx context.Context, cfg RestoreConfig, r io.Reader) (_ Summary, err error) {
	if cfg.Say == nil {
		cfg.Say = func(string, ...any) {}
	}
	in, err := NewReader(r)
	if err != nil {
		return Summary{}, err
	}
	out := summaryOf(in.Head())
	if err := cfg.fits(in.Head()); err != nil {
		return out, err
	}
	own, err := openSeals(cfg.Seals, in.Head())
	if err != nil {
		return out, err
	}
	defer own.close()
	if err := cfg.begin(); err != nil {
		return out, err
	}
	var all []*restored
	placing := false // from here on the unfinished folder has to stay until all is done
	defer func() {
		for _, s := range all {
			_ = s.db.Close()
		}
		if err != nil && !placing { // what a database outside has is marked, and cleared away by the next restore
			err = errors.Join(err, os.RemoveAll(cfg.temporary()))
		}
	}()
	for {
		h, more, err := in.Part()
		if err != nil {
			return out, err
		}
		if !more {
			break
		}
		s, err := cfg.service(ctx, in, h, own, &out)
		if s != nil {
			all = append(all, s)
		}
		if err != nil {
			return out, err
		}
	}
	if err := in.End(); err != nil {
		return out, err
	}
	for _, s := range all {
		if after := cfg.Stores[s.name].After; after != nil {
			if err := after(ctx, out, s.db, s.own); err != nil {
				return out, named(s.name, err)
			}
		}
	}
	placing = true
	return out, cfg.place(ctx, all)
}

// fits compares the services of the archive with those that there are.
func (cfg RestoreConfig) fits(h *maintenancev1.ArchiveHead) error {
	seen := make(map[string]bool)
	for _, s := range h.GetServices() {
		if _, ok := cfg.Stores[s.GetService()]; !ok || seen[s.GetService()] {
			return fault.FailedPrecondition("the backup has a service %q that this version of redoubt has not, or has it twice. Nothing was changed", s.GetService())
		}
		seen[s.GetService()] = true
	}
	for name := range cfg.Stores {
		if !seen[name] {
			return fault.FailedPrecondition("the backup has nothing of %s. Nothing was changed", name)
		}
	}
	return nil
}

func (cfg RestoreConfig) temporary() string { return filepath.Join(cfg.Data, Unfinished) }

// ours is what a restore makes in a service's folder.
var ours = []string{"db.sqlite", "db.sqlite-wal", "db.sqlite-shm", "db.sqlite.lock", "blob", "seal.key", "seal.id"}

// before is what a plan puts into a service's folder before the service is made.
var before = []string{"postgres.dsn", "postgres.crt", "blobs.yaml", "blobs.crt"}

// begin finds the folder empty, or clears away what an interrupted restore has left.
func (cfg RestoreConfig) begin() error {
	_, err := os.Lstat(cfg.temporary())
	interrupted := err == nil
	if interrupted {
		cfg.Say("clearing away what an interrupted restore has left in %s", cfg.Data)
	}
	entries, err := os.ReadDir(cfg.Data)
	if err != nil {
		return err
	}
	var left []string
	for _, e := range entries {
		switch {
		case e.Name() == "lock", e.Name() == Unfinished:
		case cfg.folder(e.Name()):
			below, err := os.ReadDir(filepath.Join(cfg.Data, e.Name()))
			if err != nil {
				return err
			}
			for _, b := range below {
				switch {
				case cfg.Planned && slices.Contains(before, b.Name()):
				case interrupted && slices.Contains(ours, b.Name()):
					left = append(left, filepath.Join(cfg.Data, e.Name(), b.Name()))
				default:
					return notEmpty(cfg.Data, filepath.Join(e.Name(), b.Name()))
				}
			}
		case !cfg.Planned:
			return notEmpty(cfg.Data, e.Name())
		}
	}
	for _, path := range append(left, cfg.temporary()) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	if err := os.Mkdir(cfg.temporary(), 0o700); err != nil {
		return err
	}
	return syncDir(cfg.Data)
}

func (cfg RestoreConfig) folder(name string) bool {
	for _, s := range cfg.Stores {
		if s.Folder == name {
			return true
		}
	}
	return false
}

func notEmpty(data, name string) error {
	return fault.FailedPrecondition("%s is not empty: %s is there. Nothing was changed. Restore into another folder, or move what is there away", data, name)
}

// service builds one service of its part.
func (cfg RestoreConfig) service(ctx context.Context, in *Reader, h *maintenancev1.PartHead, own seals, out *Summary) (s *restored, err error) {
	name := h.GetService()
	store := cfg.Stores[name]
	dir := filepath.Join(cfg.temporary(), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	db := sqldb.Config{Driver: sqldb.SQLite, Path: filepath.Join(dir, "db.sqlite")}
	if cfg.Database != nil {
		if elsewhere, ok := cfg.Database(name); ok {
			db = elsewhere
		}
	}
	db.Migrations, db.Finish, db.Logger = store.Migrations, passThrough, cfg.Logger
	s = &restored{name: name, dir: dir}
	s.db, err = sqldb.Restore(ctx, db, h.GetVersions(), func(ctx context.Context, tx *sqldb.Tx) error { return fill(ctx, tx, in, name) })
	if err != nil {
		return nil, named(name, err)
	}
	if err := cfg.files(ctx, in, s, store); err != nil {
		return s, named(name, err)
	}
	e, err := in.PartEnd()
	if err != nil {
		return s, err
	}
	var key *envelope.Key
	if s.own, key, err = own.keyFrom(ctx, name, s.db); err != nil {
		return s, err
	}
	if err := check(key, h, e); err != nil {
		return s, err
	}
	if err := copySeal(sealFile(cfg.Seals, name), filepath.Join(dir, "seal.key")); err != nil {
		return s, err
	}
	out.add(h, e)
	cfg.Say("%s: %d rows, %d files of %d bytes", name, e.GetRows(), e.GetBlobs(), e.GetBlobBytes())
	return s, writeFile(filepath.Join(dir, "seal.id"), []byte(own[name].Fingerprint()+"\n"))
}

// fill puts the tables of a part into a store that has the same.
func fill(ctx context.Context, tx *sqldb.Tx, in *Reader, name string) error {
	tables, err := sqldump.Tables(ctx, tx)
	if err != nil {
		return err
	}
	if err := sqldump.Clear(ctx, tx, tables); err != nil {
		return err
	}
	// Those of a library that the service did not have yet stay as the migrations make them, but none may be missing here.
	for done := make(map[string]bool); ; {
		t, more, err := in.Table()
		if err != nil || !more {
			if err == nil && len(done) != len(tables) {
				err = damaged("the backup is damaged: %s has %d tables, and not %d", name, len(done), len(tables))
			}
			return err
		}
		i := slices.IndexFunc(tables, t.Equal)
		if i < 0 || done[t.Name] {
			return damaged("the backup is damaged: the table %s of %s is not as its version has it", t.Name, name)
		}
		done[t.Name] = true
		if err := fillTable(ctx, tx, in, t); err != nil {
			return err
		}
	}
}

func fillTable(ctx context.Context, tx *sqldb.Tx, in *Reader, t sqldump.Table) (err error) {
	to := sqldump.NewInserter(tx, t)
	defer func() { err = errors.Join(err, to.Close()) }()
	for {
		n, packed, more, err := in.Rows()
		if err != nil || !more {
			return err
		}
		if err := to.Insert(ctx, n, packed); err != nil {
			return err
		}
	}
}

// files puts the blobs of a part into their store.
func (cfg RestoreConfig) files(ctx context.Context, in *Reader, s *restored, store Store) error {
	if !store.Blobs {
		if _, _, more, err := in.Blob(); err != nil || more {
			return errors.Join(err, damaged("the backup is damaged: it has files where there are none"))
		}
		return nil
	}
	to := blob.Config{Dir: filepath.Join(s.dir, "blob")}
	if cfg.BlobStore != nil {
		if elsewhere, ok := cfg.BlobStore(s.name); ok {
			to = elsewhere
		}
	}
	blobs, err := blob.Open(ctx, to)
	if err != nil {
		return err
	}
	defer func() { _ = blobs.Close() }()
	for {
		name, content, more, err := in.Blob()
		if err != nil || !more {
			return err
		}
		if _, err := blobs.Put(ctx, name, content); err != nil {
			return err
		}
	}
}

// place gives everything its place. The unfinished folder goes last.
func (cfg RestoreConfig) place(ctx context.Context, all []*restored) error {
	var outside []*restored
	for _, s := range all {
		if s.db.Dialect() == sqldb.Postgres {
			outside = append(outside, s)
			continue
		}
		if err := errors.Join(s.db.Unmark(ctx), s.db.Close()); err != nil {
			return named(s.name, err)
		}
	}
	for _, s := range all {
		if err := cfg.move(s); err != nil {
			return err
		}
	}
	for _, s := range outside {
		if err := s.db.Unmark(ctx); err != nil {
			return named(s.name, err)
		}
	}
	if err := syncDir(cfg.Data); err != nil {
		return err
	}
	if err := os.Remove(cfg.temporary()); err != nil {
		return err
	}
	return syncDir(cfg.Data)
}

// move gives what was built of a service its place, which may have a connection string already.
func (cfg RestoreConfig) move(s *restored) error {
	if err := syncTree(s.dir); err != nil {
		return err
	}
	target := filepath.Join(cfg.Data, cfg.Stores[s.name].Folder)
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(s.dir, e.Name()), filepath.Join(target, e.Name())); err != nil {
			return err
		}
	}
	return errors.Join(syncDir(target), os.Remove(s.dir))
}

// syncTree makes the folders of a service durable; what is in its files is already.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			err = syncDir(path)
		}
		return err
	})
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writeFile writes a private file durably.
func writeFile(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
