package models

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

const (
	maxFiles = 1000
	maxBytes = 5 << 30
	// maxPathBytes bounds the paths of a version together, so that a version with its signature is an answer that clients take.
	maxPathBytes = 512 << 10
	// maxAliases is how many aliases a model has at most.
	maxAliases = 100
	// pageMost is how many models or versions a page has at most, pageBytes after how many bytes it ends earlier: tags can be long.
	pageMost  = 100
	pageBytes = 2 << 20
	// sweepEvery is how often left-over blobs are looked for.
	sweepEvery = time.Hour
)

// Config of the registry. DB, Own, Keys, Blobs and Runs are required.
type Config struct {
	DB *sqldb.DB
	// Own are the service's own keys, which the signing keys are sealed under; Keys are those of workspaces.
	Own, Keys *envelope.Keyring
	Blobs     *blob.Store
	// Runs is compute, asked in the caller's name.
	Runs computev1.RunServiceClient
	// MaxFiles and MaxBytes bound one version. Defaults 1,000 and 5 GiB.
	MaxFiles int
	MaxBytes int64

	Now    func() time.Time
	Logger *slog.Logger
}

// Service is the registry.
type Service struct {
	inferencev1.UnsafeModelServiceServer
	cfg     Config
	store   *store.Store
	signing signing

	mu   sync.Mutex
	busy map[string]bool // versions that are being registered
}

var _ inferencev1.ModelServiceServer = (*Service)(nil)

// New makes the registry.
func New(cfg Config) (*Service, error) {
	if cfg.DB == nil || cfg.Own == nil || cfg.Keys == nil || cfg.Blobs == nil || cfg.Runs == nil {
		return nil, errors.New("models: DB, Own, Keys, Blobs and Runs are required")
	}
	if cfg.MaxFiles == 0 {
		cfg.MaxFiles = maxFiles
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = maxBytes
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{cfg: cfg, store: store.New(cfg.DB, cfg.Keys), busy: make(map[string]bool)}
	s.signing = signing{own: cfg.Own, store: s.store, now: cfg.Now, signers: make(map[string]*envelope.Signer)}
	return s, nil
}

// Register puts the registry's methods on a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { inferencev1.RegisterModelServiceServer(r, s) }

// Run removes what is left over, at once and then each hour, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	for {
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.WarnContext(ctx, "left-over blobs of models were not removed; tried again within the hour", "error", err)
		}
		timer := time.NewTimer(sweepEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// Version is a version that a deployment can take: it is there, and its manifest is as it was signed.
type Version struct {
	UID, WorkspaceUID string
	// Model is the model's id, Number the version's, Name the resource name that has the number.
	Model  string
	Number int64
	Name   string
}

// Resolve finds what a version's name means now: its number, an alias or "latest" stands at the end. Whether the caller may use it was
// decided before, by the rule of his call.
//
// Errors: NOT_FOUND, DATA_DAMAGED.
func (s *Service) Resolve(ctx context.Context, workspaceUID string, name resource.Name) (Version, error) {
	m, v, err := s.find(ctx, workspaceUID, name)
	if err != nil {
		return Version{}, err
	}
	if _, _, err := s.verified(ctx, m, v); err != nil {
		return Version{}, err
	}
	return Version{UID: v.UID, WorkspaceUID: v.Workspace, Model: m.ID, Number: v.Number, Name: versionName(name.Parent().String(), v.Number)}, nil
}

// Hold notes in the caller's transaction that a user, the deployment of that uid and name, uses a version, which then stays. Resolve it
// shortly before. NOT_FOUND if it is gone since.
func (s *Service) Hold(ctx context.Context, tx *sqldb.Tx, versionUID, userUID, userName string) error {
	return s.store.Hold(ctx, tx, versionUID, userUID, userName)
}

// Release notes that a user uses no version any more. It is no error if it used none.
func (s *Service) Release(ctx context.Context, tx *sqldb.Tx, userUID string) error {
	return store.Release(ctx, tx, userUID)
}

// Purge removes every model of a workspace, in the transaction that removes all else of it, and their content at once. It can be repeated,
// and must be until it succeeds. What a registration that is under way still writes goes with a later sweep.
func (s *Service) Purge(ctx context.Context, tx *sqldb.Tx, workspaceUID string) error {
	if err := s.cfg.Blobs.DeletePrefix(ctx, workspaceUID); err != nil {
		return err
	}
	return store.PurgeModels(ctx, tx, workspaceUID, s.cfg.Now())
}

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

// model finds the model that a name is of.
func (s *Service) model(ctx context.Context, workspace string, name resource.Name) (*store.Model, error) {
	m, err := s.store.Model(ctx, workspace, name.ID())
	return m, absent(err, name.String())
}

// latest is the alias that every model has.
const latest = "latest"

// find finds the version that a name is of.
func (s *Service) find(ctx context.Context, workspace string, name resource.Name) (*store.Model, *store.Version, error) {
	m, err := s.store.Model(ctx, workspace, name.Parent().ID())
	if err != nil {
		return nil, nil, absent(err, name.String())
	}
	n, isNumber := number(name.ID())
	switch {
	case isNumber:
	case name.ID() == latest:
		n = m.Latest
	default:
		n = m.Body.GetAliases()[name.ID()]
	}
	if n == 0 {
		return nil, nil, rpc.NotFound(name.String())
	}
	v, err := s.store.Version(ctx, m, n)
	return m, v, absent(err, name.String())
}

// number reads a version number in the one spelling that it has.
func number(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n > 0 && strconv.FormatInt(n, 10) == s
}

func versionName(model string, n int64) string {
	return model + "/versions/" + strconv.FormatInt(n, 10)
}

// page opens a page token, and gives what seals the next one.
func (s *Service) page(ctx context.Context, workspace, query, token string) (store.Cursor, func(cur store.Cursor, got, limit int) (string, error), error) {
	key, err := s.store.Key(ctx, workspace)
	if err != nil {
		return store.Cursor{}, nil, err
	}
	next := func(cur store.Cursor, got, limit int) (string, error) {
		if got < limit {
			return "", nil
		}
		return key.SealPage(query, cur.Bytes())
	}
	if token == "" {
		return store.Cursor{}, next, nil
	}
	b, err := key.OpenPage(query, token)
	if err != nil {
		return store.Cursor{}, nil, err
	}
	cur, err := envelope.ParseCursor(b)
	return cur, next, err
}
