// Package store keeps what the vault owns: a row for each vault, the secrets and keys in it, and their versions.
//
// Trust boundary: rows come from a database that others may have changed. Names and values are ciphertext under the vault's
// key, bound to workspace, item and version, so a row that was moved, swapped or rolled into another place does not open.
//
// Invariants: a destroyed vault stays destroyed; versions of an item are numbered from 1 without gaps in the order in which
// they were committed; every change is one transaction, with its audit record in it.
//
// Failure: driver errors become kinds of pkg/fault here. What is damaged is said to be, and is not returned.
package store

import (
	"context"
	"embed"
	"errors"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/keyvault/internal/store/db"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations of the tables that the store owns.
func Migrations() sqldb.MigrationSet {
	return sqldb.MigrationSet{Name: "keyvault", FS: migrations, Dir: "migrations"}
}

// The kinds of item.
const (
	Secret = "secret"
	Key    = "key"
)

// ErrNoVersion is in the chain of the NOT_FOUND that Open gives for an item that is there, without that version.
var ErrNoVersion = errors.New("no such version")

// Item is one version of a secret or key, without its value.
type Item struct {
	UID         string
	Name        string
	Version     int64
	Disabled    bool
	ContentType string
	Created     time.Time
}

// Record writes the audit record of a change into its transaction.
type Record func(ctx context.Context, tx *sqldb.Tx) error

// Store is the database of the vault. It is safe for concurrent use.
type Store struct {
	db   *sqldb.DB
	keys *envelope.Keyring
	now  func() time.Time
}

// New makes a store on a database that has the migrations. keys are the service's own; a vault's key is that of the owner with
// the workspace's uid.
func New(db *sqldb.DB, keys *envelope.Keyring, now func() time.Time) *Store {
	return &Store{db: db, keys: keys, now: now}
}

// CreateVault makes the vault of a workspace, and does nothing if it is there. A destroyed one is refused.
func (s *Store) CreateVault(ctx context.Context, workspace string, record Record) error {
	if _, err := s.keys.Key(ctx, workspace); err != nil {
		return err
	}
	return s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		if _, err := q.InsertVault(ctx, db.InsertVaultParams{WorkspaceUID: workspace, CreateTime: s.now().UnixMicro()}); err != nil {
			return sqldb.Fault(err)
		}
		if err := live(ctx, q, workspace); err != nil {
			return err
		}
		return record(ctx, tx)
	})
}

// DestroyVault removes all that the vault holds and destroys its key, in one transaction. It can be repeated, and must be until it
// succeeds: what the database keeps of deleted rows is wiped last.
func (s *Store) DestroyVault(ctx context.Context, workspace string, record Record) error {
	err := s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		now := s.now().UnixMicro()
		// A vault that never was is destroyed too: nothing may be made for it later.
		if _, err := q.InsertVault(ctx, db.InsertVaultParams{WorkspaceUID: workspace, CreateTime: now}); err != nil {
			return sqldb.Fault(err)
		}
		if _, err := q.DestroyVault(ctx, db.DestroyVaultParams{WorkspaceUID: workspace, DestroyTime: now}); err != nil {
			return sqldb.Fault(err)
		}
		if err := q.DeleteVersionsOfWorkspace(ctx, workspace); err != nil {
			return sqldb.Fault(err)
		}
		if err := q.DeleteItemsOfWorkspace(ctx, workspace); err != nil {
			return sqldb.Fault(err)
		}
		if err := s.keys.DestroyIn(ctx, tx, workspace); err != nil {
			return err
		}
		return record(ctx, tx)
	})
	if err != nil {
		return err
	}
	s.keys.Forget(workspace)
	return s.db.Scrub(ctx)
}

// VaultKey is the key of a live vault.
func (s *Store) VaultKey(ctx context.Context, workspace string) (*envelope.Key, error) {
	if err := live(ctx, db.New(s.db.Reader()), workspace); err != nil {
		return nil, err
	}
	return s.keys.Key(ctx, workspace)
}

func live(ctx context.Context, q *db.Queries, workspace string) error {
	v, err := q.GetVault(ctx, workspace)
	if err = sqldb.Fault(err); fault.Is(err, codes.NotFound) || err == nil && v.DestroyTime != 0 {
		return fault.FailedPrecondition("the workspace has no vault; was it deleted?")
	}
	return err
}

// Add makes a new version of an item. With create the item must not exist; without, it is made if it does not.
func (s *Store) Add(ctx context.Context, workspace, kind, name string, create bool, value redact.Secret, contentType string, record Record) (Item, error) {
	key, err := s.VaultKey(ctx, workspace)
	if err != nil {
		return Item{}, err
	}
	var out Item
	err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		if err := live(ctx, q, workspace); err != nil {
			return err
		}
		now := s.now()
		uid := resource.NewUID(uidPrefix(kind))
		sealed, err := key.Seal(nameAAD(workspace, uid), []byte(name))
		if err != nil {
			return err
		}
		mac := key.MAC(kind, workspace, name)
		n, err := q.InsertItem(ctx, db.InsertItemParams{UID: uid, WorkspaceUID: workspace, Kind: kind, Name: sealed, NameMac: mac, CreateTime: now.UnixMicro()})
		if err != nil {
			return sqldb.Fault(err)
		}
		if n == 0 && create {
			return fault.AlreadyExists("the %s exists already", kind)
		}
		if out, err = s.append(ctx, q, key, workspace, kind, mac, value, contentType, now); err != nil {
			return err
		}
		return record(ctx, tx)
	})
	return out, err
}

// append adds a version to the item that mac finds.
func (s *Store) append(ctx context.Context, q *db.Queries, key *envelope.Key, workspace, kind string, mac []byte, value redact.Secret, contentType string, now time.Time) (Item, error) {
	row, err := q.GetItem(ctx, db.GetItemParams{WorkspaceUID: workspace, Kind: kind, NameMac: mac})
	if err != nil {
		return Item{}, sqldb.Fault(err)
	}
	last, err := q.MaxVersion(ctx, row.UID)
	if err != nil {
		return Item{}, sqldb.Fault(err)
	}
	version := last + 1
	v, err := key.Seal(valueAAD(workspace, row.UID, version), value.Reveal())
	if err != nil {
		return Item{}, err
	}
	ct, err := key.Seal(contentTypeAAD(workspace, row.UID, version), []byte(contentType))
	if err != nil {
		return Item{}, err
	}
	err = q.InsertVersion(ctx, db.InsertVersionParams{ItemUID: row.UID, Version: version, Value: v, ContentType: ct, CreateTime: now.UnixMicro()})
	if err != nil {
		return Item{}, sqldb.Fault(err)
	}
	name, err := key.Open(nameAAD(workspace, row.UID), row.Name)
	if err != nil {
		return Item{}, err
	}
	return Item{UID: row.UID, Name: string(name), Version: version, ContentType: contentType, Created: now}, nil
}

// Rotate adds a version to an item that exists.
func (s *Store) Rotate(ctx context.Context, workspace, kind, name string, value redact.Secret, record Record) (Item, error) {
	key, err := s.VaultKey(ctx, workspace)
	if err != nil {
		return Item{}, err
	}
	var out Item
	err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		if out, err = s.append(ctx, db.New(tx), key, workspace, kind, key.MAC(kind, workspace, name), value, "", s.now()); err != nil {
			return err
		}
		return record(ctx, tx)
	})
	return out, err
}

// Open gives a version with its value; version 0 is the newest that is enabled. A disabled one is refused with the reason.
func (s *Store) Open(ctx context.Context, workspace, kind, name string, version int64, disabled faultv1.Reason) (Item, redact.Secret, error) {
	key, err := s.VaultKey(ctx, workspace)
	if err != nil {
		return Item{}, redact.Secret{}, err
	}
	q := db.New(s.db.Reader())
	row, err := q.GetItem(ctx, db.GetItemParams{WorkspaceUID: workspace, Kind: kind, NameMac: key.MAC(kind, workspace, name)})
	if err != nil {
		return Item{}, redact.Secret{}, sqldb.Fault(err)
	}
	var v db.ItemVersion
	if version == 0 {
		v, err = q.LatestEnabledVersion(ctx, row.UID)
		if err = sqldb.Fault(err); fault.Is(err, codes.NotFound) {
			return Item{}, redact.Secret{}, fault.New(codes.FailedPrecondition, disabled, "every version of the %s is disabled; enable one first", kind)
		}
	} else {
		v, err = q.GetVersion(ctx, db.GetVersionParams{ItemUID: row.UID, Version: version})
		if err = sqldb.Fault(err); fault.Is(err, codes.NotFound) {
			return Item{}, redact.Secret{}, fault.Wrap(ErrNoVersion, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND, "the %s has no version %d", kind, version)
		}
	}
	if err != nil {
		return Item{}, redact.Secret{}, sqldb.Fault(err)
	}
	if v.Disabled != 0 {
		return Item{}, redact.Secret{}, fault.New(codes.FailedPrecondition, disabled, "version %d of the %s is disabled; enable it first", v.Version, kind)
	}
	item, err := open(key, row, v)
	if err != nil {
		return Item{}, redact.Secret{}, err
	}
	value, err := key.Open(valueAAD(workspace, row.UID, v.Version), v.Value)
	if err != nil {
		return Item{}, redact.Secret{}, err
	}
	return item, redact.New(value), nil
}

// List gives the newest version of each item after the cursor, in the order of making.
func (s *Store) List(ctx context.Context, workspace, kind string, after Cursor, limit int) ([]Item, Cursor, error) {
	key, err := s.VaultKey(ctx, workspace)
	if err != nil {
		return nil, after, err
	}
	var items []Item
	err = s.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		items = nil
		q := db.New(tx)
		rows, err := q.ListItems(ctx, db.ListItemsParams{WorkspaceUID: workspace, Kind: kind, CreateTime: after.Time, UID: after.UID, Limit: int32(limit)})
		if err != nil {
			return sqldb.Fault(err)
		}
		for _, row := range rows {
			v, err := q.LatestVersion(ctx, row.UID)
			if err != nil {
				return sqldb.Fault(err)
			}
			item, err := open(key, row, v)
			if err != nil {
				return err
			}
			items = append(items, item)
			after = Cursor{Time: row.CreateTime, UID: row.UID}
		}
		return nil
	})
	return items, after, err
}

// Cursor is the place in a list after which the next page starts.
type Cursor = envelope.Cursor

// SetDisabled disables or enables one version.
func (s *Store) SetDisabled(ctx context.Context, workspace, kind, name string, version int64, disabled bool, record Record) (Item, error) {
	key, err := s.VaultKey(ctx, workspace)
	if err != nil {
		return Item{}, err
	}
	var out Item
	err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		row, err := q.GetItem(ctx, db.GetItemParams{WorkspaceUID: workspace, Kind: kind, NameMac: key.MAC(kind, workspace, name)})
		if err != nil {
			return sqldb.Fault(err)
		}
		var flag int64
		if disabled {
			flag = 1
		}
		if _, err := q.SetVersionDisabled(ctx, db.SetVersionDisabledParams{ItemUID: row.UID, Version: version, Disabled: flag}); err != nil {
			return sqldb.Fault(err)
		}
		v, err := q.GetVersion(ctx, db.GetVersionParams{ItemUID: row.UID, Version: version})
		if err != nil {
			return sqldb.Fault(err)
		}
		if out, err = open(key, row, v); err != nil {
			return err
		}
		return record(ctx, tx)
	})
	return out, err
}

// Delete removes an item with all its versions.
func (s *Store) Delete(ctx context.Context, workspace, kind, name string, record Record) error {
	key, err := s.VaultKey(ctx, workspace)
	if err != nil {
		return err
	}
	return s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		row, err := q.GetItem(ctx, db.GetItemParams{WorkspaceUID: workspace, Kind: kind, NameMac: key.MAC(kind, workspace, name)})
		if err != nil {
			return sqldb.Fault(err)
		}
		if err := q.DeleteVersions(ctx, row.UID); err != nil {
			return sqldb.Fault(err)
		}
		if _, err := q.DeleteItem(ctx, row.UID); err != nil {
			return sqldb.Fault(err)
		}
		return record(ctx, tx)
	})
}

func open(key *envelope.Key, row db.Item, v db.ItemVersion) (Item, error) {
	name, err := key.Open(nameAAD(row.WorkspaceUID, row.UID), row.Name)
	if err != nil {
		return Item{}, err
	}
	contentType, err := key.Open(contentTypeAAD(row.WorkspaceUID, row.UID, v.Version), v.ContentType)
	if err != nil {
		return Item{}, err
	}
	if v.ItemUID != row.UID {
		return Item{}, errors.New("keyvault: a version of another item")
	}
	return Item{UID: row.UID, Name: string(name), Version: v.Version, Disabled: v.Disabled != 0, ContentType: string(contentType), Created: time.UnixMicro(v.CreateTime)}, nil
}

func uidPrefix(kind string) string {
	if kind == Key {
		return "key"
	}
	return "sec"
}

func nameAAD(workspace, uid string) envelope.AAD {
	return envelope.AAD{Owner: workspace, Kind: "item", ID: uid, Field: "name"}
}

func valueAAD(workspace, uid string, version int64) envelope.AAD {
	return envelope.AAD{Owner: workspace, Kind: "item", ID: uid, Field: "value", Version: version}
}

func contentTypeAAD(workspace, uid string, version int64) envelope.AAD {
	return envelope.AAD{Owner: workspace, Kind: "item", ID: uid, Field: "content_type", Version: version}
}
