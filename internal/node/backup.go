package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"google.golang.org/grpc"

	"github.com/redoubt-ml/redoubt/internal/backup"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn/proofs"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity"
	"github.com/redoubt-ml/redoubt/services/inference"
)

// keepsBlobs are the services that keep files besides their database.
var keepsBlobs = map[string]bool{"workspace": true, "compute": true, "inference": true}

// restoredFile stands in a folder that a restore has made, until something is started on it.
const restoredFile = ".restored"

// sets are the migration sets of a service, in the order in which they are applied.
func sets(own ...sqldb.MigrationSet) []sqldb.MigrationSet {
	return append([]sqldb.MigrationSet{envelope.Migrations(), audit.Migrations(), leader.Migrations(), proofs.Migrations()}, own...)
}

// Stores are what the services keep, for a restore.
func Stores() map[string]backup.Store {
	out := make(map[string]backup.Store, len(migrations))
	for name, own := range migrations {
		out[name] = backup.Store{Folder: name, Migrations: sets(own()), Blobs: keepsBlobs[name]}
	}
	ids := out["identity"]
	ids.After = func(ctx context.Context, from backup.Summary, db *sqldb.DB, own *envelope.Keyring) error {
		outbox, err := audit.New(audit.Config{Service: "identity", DB: db, Keys: own})
		if err != nil {
			return err
		}
		return identity.Restored(ctx, db, outbox, identity.Backup{ID: from.ID, Time: from.Time})
	}
	out["identity"] = ids
	inf := out["inference"]
	inf.After = func(ctx context.Context, _ backup.Summary, db *sqldb.DB, _ *envelope.Keyring) error {
		return inference.Restored(ctx, db)
	}
	out["inference"] = inf
	return out
}

// serveBackup gives operators the node's part of a backup.
func (n *Node) serveBackup(r grpc.ServiceRegistrar, st *state) error {
	s, err := backup.New(backup.Config{Service: n.name, Instance: n.cfg.Service.Instance, DB: st.db, Blobs: n.blobs, Own: st.own, Seal: st.seal, Now: n.opts.Now})
	if err != nil {
		return err
	}
	s.Register(r)
	return nil
}

// MarkRestored notes that a folder was made by a restore, so that bootstrap may go on with it.
func MarkRestored(data string) error {
	return os.WriteFile(filepath.Join(data, restoredFile), nil, 0o600)
}

// wasRestored reports, once, whether a folder was made by a restore.
func wasRestored(data string) bool { return os.Remove(filepath.Join(data, restoredFile)) == nil }

// refuseHalfRestored refuses to start on what an interrupted restore has left: in the folder itself, or in that above a service's.
func refuseHalfRestored(dirs ...string) error {
	for _, dir := range dirs {
		if _, err := os.Lstat(filepath.Join(dir, backup.Unfinished)); !errors.Is(err, fs.ErrNotExist) {
			return fault.FailedPrecondition("the restore into %s was interrupted, so nothing starts on it. Restore the backup once more: it clears away what is there", dir)
		}
	}
	return nil
}
