package backup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldump"
)

// sealFile is where the seal of a service is, in a data folder and in a copy of its seals.
func sealFile(dir, service string) string { return filepath.Join(dir, service, "seal.key") }

// seals are those of all services of an archive.
type seals map[string]*seal.Seal

// openSeals opens the seals of a folder, and finds that they are those of the archive.
func openSeals(dir string, head *maintenancev1.ArchiveHead) (_ seals, err error) {
	out := make(seals)
	defer func() {
		if err != nil {
			out.close()
		}
	}()
	for _, h := range head.GetServices() {
		if filepath.Base(h.GetService()) != h.GetService() || out[h.GetService()] != nil {
			return nil, damaged("the backup is damaged: it has a service that there is not, or one twice")
		}
		s, err := seal.OpenFile(sealFile(dir, h.GetService()), false)
		if err != nil {
			return nil, err
		}
		out[h.GetService()] = s
		if s.Fingerprint() != h.GetSealFingerprint() {
			return nil, fault.FailedPrecondition("the backup belongs to another installation than the seals in %s: %s was sealed by %.8s…, and the file there is %.8s…. Nothing was changed",
				dir, h.GetService(), h.GetSealFingerprint(), s.Fingerprint())
		}
	}
	return out, nil
}

func (s seals) close() {
	for _, one := range s {
		_ = one.Close()
	}
}

// keyFrom is the service's own key, from a store that has its data keys.
func (s seals) keyFrom(ctx context.Context, service string, db *sqldb.DB) (*envelope.Keyring, *envelope.Key, error) {
	ring, err := envelope.New(envelope.Config{Source: envelope.SealSource(s[service], service), DB: db})
	if err != nil {
		return nil, nil, err
	}
	key, err := ring.Key(ctx, service)
	if err != nil {
		return nil, nil, named(service, err)
	}
	return ring, key, nil
}

// check holds a part's MAC against the key that the part itself brought, which only the right seal opens.
func check(key *envelope.Key, h *maintenancev1.PartHead, e *maintenancev1.PartEnd) error {
	if equal(e.GetMac(), mac(key, h.GetService(), h.GetBackupId(), e.GetDigest())) {
		return nil
	}
	return fault.FailedPrecondition("the part of %s was not made by that service: somebody made this backup who does not have its seal. Do not use it", h.GetService())
}

// dataKeys gathers the data keys of a part that is only read, in a store of its own below dir, so that its MAC can be checked.
func (s seals) dataKeys(ctx context.Context, dir string, h *maintenancev1.PartHead, rows []keyRows) (_ *envelope.Key, err error) {
	path := filepath.Join(dir, h.GetService()+".sqlite")
	db, err := sqldb.Open(ctx, sqldb.Config{Driver: sqldb.SQLite, Path: path, Migrations: []sqldb.MigrationSet{envelope.Migrations()}, Finish: passThrough})
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }()
	err = db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		have, err := sqldump.Tables(ctx, tx)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if len(have) != 1 || !have[0].Equal(r.table) {
				return fault.FailedPrecondition("the data keys of %s are of another version of redoubt; verify the backup with that one", h.GetService())
			}
			in := sqldump.NewInserter(tx, have[0])
			if err := in.Insert(ctx, r.n, r.packed); err != nil {
				return err
			}
			if err := in.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	_, key, err := s.keyFrom(ctx, h.GetService(), db)
	return key, err
}

type keyRows struct {
	table  sqldump.Table
	n      int
	packed []byte
}

func passThrough(_ context.Context, commit func() error) error { return commit() }

// CopySeals copies the seals of an installation's services into another folder, each private to this user. What is there already, and is
// another one, is an error.
func CopySeals(from, to string, services []string) (copied int, err error) {
	for _, service := range services {
		s, err := seal.OpenFile(sealFile(from, service), false)
		if err != nil {
			return copied, err
		}
		fingerprint := s.Fingerprint()
		_ = s.Close()
		target := sealFile(to, service)
		if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
			return copied, err
		}
		if _, err := os.Lstat(target); err == nil {
			old, err := seal.OpenFile(target, false)
			if err != nil {
				return copied, err
			}
			same := old.Fingerprint() == fingerprint
			_ = old.Close()
			if !same {
				return copied, fault.FailedPrecondition("%s is the seal of another installation; nothing there was changed", target)
			}
			continue
		}
		if err := copySeal(sealFile(from, service), target); err != nil {
			return copied, err
		}
		copied++
	}
	return copied, nil
}

// copySeal copies one seal durably, and looks whether the copy is whole.
func copySeal(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	defer clear(b)
	if err := writeFile(to, b); err != nil {
		return err
	}
	s, err := seal.OpenFile(to, false)
	if err != nil {
		return fmt.Errorf("the copy is not whole: %w", err)
	}
	return s.Close()
}
