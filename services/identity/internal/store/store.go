package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

//go:embed migrations/*.sql
var files embed.FS

// Migrations is the schema.
func Migrations() sqldb.MigrationSet {
	return sqldb.MigrationSet{Name: "identity", FS: files, Dir: "migrations"}
}

// Box seals what is stored and makes keyed hashes of what is looked up. Kind and id say what a value is and which row it is of;
// a value opens only under the same. A value that does not open is DATA_DAMAGED.
type Box interface {
	Seal(ctx context.Context, kind, id string, plain []byte) ([]byte, error)
	Open(ctx context.Context, kind, id string, sealed []byte) ([]byte, error)
	MAC(ctx context.Context, kind, parent, text string) ([]byte, error)
}

// Store reads and writes the records, each method in the transaction or on the reader that it is given. It holds no state.
type Store struct{ box Box }

// New makes a Store.
func New(box Box) *Store { return &Store{box: box} }

// The kinds of sealed values and keyed hashes.
const (
	kindPrincipal  = "principal"
	kindPassword   = "password"
	kindSigningKey = "signing-key"
	kindAuthority  = "authority"
	kindActions    = "agent-actions"
	kindFactor     = "factor"
	kindSignIn     = "sign-in"
	macName        = "name"
	macSkeleton    = "skeleton"
	macCredential  = "webauthn-credential" //nolint:gosec // names a kind
)

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// found turns the absence of a row into ok = false.
func found(err error) (bool, error) {
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, sqldb.Fault(err)
}

// damaged names what does not open. That the key is away is another thing, and stays what it is.
func damaged(what string, cause error) error {
	if cause != nil && fault.Code(cause) != codes.Internal && fault.Code(cause) != codes.DataLoss {
		return cause
	}
	return fault.Wrap(cause, codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "the stored %s is damaged: restore identity's database and its seal key together", what)
}
