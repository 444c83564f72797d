package audit

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

//go:embed migrations/*.sql
var files embed.FS

// Event is one record of the activity log.
type Event = telemetryv1.ActivityEvent

const (
	// Deadline is how long Append and Record wait for the storage.
	Deadline = 2 * time.Second
	// MaxEventBytes bounds an encoded event. One that is larger loses its details.
	MaxEventBytes = 32 << 10

	openTimeout = 15 * time.Second
)

// Migrations brings the tables of the outbox into a service's database.
func Migrations() sqldb.MigrationSet {
	return sqldb.MigrationSet{Name: "audit", FS: files, Dir: "migrations"}
}

// Config of an Outbox. Service, DB and Keys are required.
type Config struct {
	// Service is the name under which telemetry numbers the events, "workspace".
	Service string
	// DB has the tables of Migrations.
	DB *sqldb.DB
	// Keys are under the service's own seal. The outbox has the data key whose owner is Service.
	Keys *envelope.Keyring
	// Leader says which of the instances on DB relays. Nil only on SQLite, where one process has the database.
	Leader *leader.Leader
	// Now gives events without a time theirs; nil means time.Now.
	Now func() time.Time
	// Logger takes what an operator should know; nil discards.
	Logger *slog.Logger
	// FlushEvery is how often Relay writes the counts of anonymous refusals, and events of bursts that are over. Default 5 s.
	FlushEvery time.Duration
}

// Outbox is safe for concurrent use.
type Outbox struct {
	cfg    Config
	box    *box
	counts counts
	queue  queue
	bursts bursts
	wake   chan struct{}
	// given is the highest number that was handed out; it may be rolled back.
	given atomic.Int64
}

// New makes the Outbox of a service. It opens the service's own data key, and makes it the first time.
func New(cfg Config) (*Outbox, error) {
	if cfg.Service == "" || cfg.DB == nil || cfg.Keys == nil {
		return nil, errors.New("audit: Service, DB and Keys are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.FlushEvery <= 0 {
		cfg.FlushEvery = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	box, err := newBox(ctx, cfg.Keys, cfg.Service)
	if err != nil {
		return nil, err
	}
	return &Outbox{cfg: cfg, box: box, counts: counts{now: cfg.Now}, wake: make(chan struct{}, 1)}, nil
}

// Append writes ev in the transaction of the change that it records. Service and number are set here, uid, time and count where they
// are missing; ev itself is not changed. If it fails, the transaction must not be committed.
//
// Errors: AUDIT_UNAVAILABLE; those of ctx.
func (o *Outbox) Append(ctx context.Context, tx *sqldb.Tx, ev *Event) error {
	if ev == nil {
		return fault.Internal(nil, "a change without an event")
	}
	short, cancel := context.WithTimeout(ctx, Deadline)
	defer cancel()
	if err := o.insert(short, tx, ev); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return unavailable(err)
	}
	// The transaction is still open. The relay looks again until it sees the event, or that it was rolled back.
	o.notify()
	return nil
}

// insert gives ev the next number and stores it.
func (o *Outbox) insert(ctx context.Context, tx *sqldb.Tx, ev *Event) error {
	var seq int64
	if err := tx.QueryRowContext(ctx, "UPDATE outbox_head SET seq = seq + 1 WHERE id = 1 RETURNING seq").Scan(&seq); err != nil {
		return err
	}
	whole := o.whole(ev)
	whole.Seq = seq
	plain, err := encode(whole)
	if err != nil {
		return err
	}
	sealed, err := o.box.seal(ctx, o.box.aad(seq, whole.GetUid()), plain)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO outbox (seq, event_uid, sealed, create_time) VALUES ($1, $2, $3, $4)",
		seq, whole.GetUid(), sealed, o.cfg.Now().UnixMicro()); err != nil {
		return err
	}
	o.gave(seq)
	return nil
}

// encode marshals an event and holds it to MaxEventBytes: a record without its details is better than none.
func encode(ev *Event) ([]byte, error) {
	if proto.Size(ev) > MaxEventBytes {
		ev.Details = map[string]string{"details": "left out, too large"}
	}
	plain, err := proto.Marshal(ev)
	if err != nil {
		return nil, fault.Internal(err, "an event could not be encoded")
	}
	if len(plain) > MaxEventBytes {
		return nil, fault.Internal(nil, "an event of %d bytes is larger than the %d that are kept", len(plain), MaxEventBytes)
	}
	return plain, nil
}

// write runs fn in a group transaction and gives up after Deadline, even where the storage does not come back.
func (o *Outbox) write(ctx context.Context, fn func(ctx context.Context, tx *sqldb.Tx) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Deadline)
	done := make(chan error, 1)
	go func() {
		defer cancel()
		done <- o.cfg.DB.WriteGrouped(ctx, fn)
	}()
	select {
	case err := <-done:
		if err != nil {
			return unavailable(err)
		}
		o.notify()
		return nil
	case <-ctx.Done():
	}
	select {
	case err := <-done: // it ended at the same moment, and cancelled ctx itself
		if err == nil {
			o.notify()
			return nil
		}
		return unavailable(err)
	default:
		return unavailable(ctx.Err())
	}
}

// Depth is the number of events that wait for delivery.
func (o *Outbox) Depth(ctx context.Context) (int64, error) {
	var n int64
	err := o.cfg.DB.Reader().QueryRowContext(ctx, "SELECT COUNT(*) FROM outbox").Scan(&n)
	return n, sqldb.Fault(err)
}

// Waiting is the number of events that wait for delivery, and when the oldest of them was written; the zero time if none waits.
func (o *Outbox) Waiting(ctx context.Context) (n int64, oldest time.Time, err error) {
	var at sql.NullInt64
	err = o.cfg.DB.Reader().QueryRowContext(ctx, "SELECT COUNT(*), MIN(create_time) FROM outbox").Scan(&n, &at)
	if err != nil {
		return 0, time.Time{}, sqldb.Fault(err)
	}
	if at.Valid {
		oldest = time.UnixMicro(at.Int64)
	}
	return n, oldest, nil
}

// notify wakes the relay.
func (o *Outbox) notify() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func unavailable(cause error) error {
	return fault.Wrap(cause, codes.Unavailable, faultv1.Reason_AUDIT_UNAVAILABLE,
		"the record of this call could not be stored, so the call was not carried out; repeat it when the service's storage is well again")
}
