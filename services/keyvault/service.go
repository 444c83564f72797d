package keyvault

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/keyvault/internal/store"
)

// Migrations of the tables that this service owns.
func Migrations() sqldb.MigrationSet { return store.Migrations() }

// Config of the service. DB and Own are required.
type Config struct {
	DB *sqldb.DB
	// Own are the service's own keys, under its seal.
	Own    *envelope.Keyring
	Now    func() time.Time
	Logger *slog.Logger
}

// Service is the vault.
type Service struct {
	store *store.Store
	own   *envelope.Keyring
}

// New makes the service.
func New(cfg Config) (*Service, error) {
	if cfg.DB == nil || cfg.Own == nil {
		return nil, errors.New("keyvault: DB and Own are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{store: store.New(cfg.DB, cfg.Own, cfg.Now), own: cfg.Own}, nil
}

// Register puts the service's methods on a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	keyvaultv1.RegisterSecretServiceServer(r, secrets{s: s})
	keyvaultv1.RegisterKeyServiceServer(r, keys{s: s})
	keyvaultv1.RegisterVaultServiceServer(r, vaults{s: s})
}

// Run has no work of its own in the background; it returns when ctx ends.
func (s *Service) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Close releases nothing: the database is closed by whoever opened it.
func (s *Service) Close() error { return nil }

// record is the audit record of the call that ctx belongs to.
func record(details ...string) store.Record {
	return func(ctx context.Context, tx *sqldb.Tx) error { return rpc.From(ctx).Audit(ctx, tx, details...) }
}

// absent gives the one answer for what is not there.
func absent(err error, name string) error {
	if fault.Is(err, codes.NotFound) {
		return rpc.NotFound(name)
	}
	return err
}

// pages are the limits of a list.
const (
	pageDefault = 100
	pageMost    = 1000
)

// page is the place that a list request asks for: the cursor is bound to workspace and kind.
func (s *Service) page(ctx context.Context, workspace, kind, token string, size int32) (store.Cursor, int, *pager, error) {
	n, err := resource.PageSize(size, pageDefault, pageMost)
	if err != nil {
		return store.Cursor{}, 0, nil, err
	}
	key, err := s.store.VaultKey(ctx, workspace)
	if err != nil {
		return store.Cursor{}, 0, nil, err
	}
	p := &pager{key: key, query: "keyvault/" + kind + "/" + workspace}
	cur, err := p.open(token)
	return cur, n, p, err
}

type pager struct {
	key   *envelope.Key
	query string
}

func (p *pager) open(token string) (store.Cursor, error) {
	if token == "" {
		return store.Cursor{}, nil
	}
	b, err := p.key.OpenPage(p.query, token)
	if err != nil {
		return store.Cursor{}, err
	}
	return envelope.ParseCursor(b)
}

// next is the token of the following page, or "" where this one was the last.
func (p *pager) next(cur store.Cursor, got, limit int) (string, error) {
	if got < limit {
		return "", nil
	}
	return p.key.SealPage(p.query, cur.Bytes())
}
