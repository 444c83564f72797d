package backup

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// holdLimit is how long changes wait for the cut at most. Shorter than what the record of a call waits for its storage (audit.Deadline).
const holdLimit = time.Second

// Config of the Service. All but Blobs and Now are required.
type Config struct {
	// Service and Instance name the node.
	Service, Instance string
	// DB is the node's store, Blobs what it keeps besides; nil keeps none.
	DB    *sqldb.DB
	Blobs *blob.Store
	// Own are the keys under the service's seal, Seal the seal's fingerprint.
	Own  *envelope.Keyring
	Seal string
	Now  func() time.Time // time.Now when nil
}

// Service gives the node's part of a backup.
type Service struct {
	maintenancev1.UnsafeBackupServiceServer

	cfg  Config
	busy sync.Mutex
}

var _ maintenancev1.BackupServiceServer = (*Service)(nil)

// New makes the service.
func New(cfg Config) (*Service, error) {
	if cfg.Service == "" || cfg.Instance == "" || cfg.DB == nil || cfg.Own == nil || cfg.Seal == "" {
		return nil, fault.Internal(nil, "backup: Service, Instance, DB, Own and Seal are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg}, nil
}

// Register registers it.
func (s *Service) Register(r grpc.ServiceRegistrar) { maintenancev1.RegisterBackupServiceServer(r, s) }

// Backup implements BackupService.
func (s *Service) Backup(stream grpc.BidiStreamingServer[maintenancev1.BackupRequest, maintenancev1.BackupResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	id := first.GetPrepare().GetBackupId()
	if id == "" {
		return fault.InvalidArgument("the first message of a backup prepares it")
	}
	if rpc.From(stream.Context()).PeerService != "" {
		return fault.New(codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED, "a backup is taken by an operator himself, with his certificate, and not by a service for him")
	}
	if !s.busy.TryLock() {
		return fault.New(codes.Aborted, faultv1.Reason_CONFLICT, "another backup reads this service; wait for its end")
	}
	defer s.busy.Unlock()
	ctx := stream.Context()
	rpc.From(ctx).Detail("backup", id)

	key, err := s.cfg.Own.Key(ctx, s.cfg.Service) // now, since it may have to write
	if err != nil {
		return err
	}
	p := &part{service: s.cfg.Service, id: id, seal: s.cfg.Seal, key: key, emit: func(record []byte) error {
		return stream.Send(&maintenancev1.BackupResponse{Answer: &maintenancev1.BackupResponse_Record{Record: record}})
	}}
	if s.cfg.Blobs != nil {
		// Before the cut: whatever a row of it refers to is there, or kept aside.
		if p.blobs, err = s.cfg.Blobs.Hold(); err != nil {
			return err
		}
		defer func() { _ = p.blobs.Release() }()
	}
	if err := s.hold(ctx, stream, p); err != nil {
		return err
	}
	defer p.snapshot.Close()
	err = p.write(ctx)
	rpc.From(ctx).Detail("rows", decimal(p.end.GetRows()))
	rpc.From(ctx).Detail("blobs", decimal(p.end.GetBlobs()))
	return err
}

// hold stops changes until all services have, or for holdLimit.
func (s *Service) hold(ctx context.Context, stream grpc.BidiStreamingServer[maintenancev1.BackupRequest, maintenancev1.BackupResponse], p *part) error {
	snapshot, err := s.cfg.DB.Freeze(ctx, holdLimit)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return missed()
		}
		return err
	}
	begin := s.cfg.Now()
	err = s.untilGo(stream)
	snapshot.Release()
	p.held = s.cfg.Now().Sub(begin)
	if err != nil {
		snapshot.Close()
		return err
	}
	p.snapshot = snapshot
	return nil
}

// untilGo says that the service holds, and waits until all do.
func (s *Service) untilGo(stream grpc.BidiStreamingServer[maintenancev1.BackupRequest, maintenancev1.BackupResponse]) error {
	limit := time.NewTimer(holdLimit)
	defer limit.Stop()
	answer := make(chan error, 1)
	go func() { // ends with the stream at the latest
		m, err := stream.Recv()
		if err == nil && m.GetGo() == nil {
			err = fault.InvalidArgument("the second message of a backup is go")
		}
		answer <- err
	}()
	held := &maintenancev1.Held{
		Service: s.cfg.Service, Instance: s.cfg.Instance, SealFingerprint: s.cfg.Seal, Time: timestamppb.New(s.cfg.Now()), Version: build(),
	}
	if err := stream.Send(&maintenancev1.BackupResponse{Answer: &maintenancev1.BackupResponse_Held{Held: held}}); err != nil {
		return err
	}
	select {
	case err := <-answer:
		return err
	case <-limit.C:
		return missed()
	}
}

func missed() error {
	return fault.New(codes.Aborted, faultv1.Reason_CONFLICT, "not all services held in time, so there was no cut; changes go on. Repeat the backup")
}

// build is what runs: version and revision of the binary.
func build() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v += " " + s.Value
		}
	}
	return v
}
