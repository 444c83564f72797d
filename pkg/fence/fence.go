package fence

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// DefaultPrefix is where the fence stands in etcd.
const DefaultPrefix = "redoubt/fence"

// Class says what a member's lost commits can still do after its lease has ended.
type Class string

const (
	// Embedded is a store in a file of the member's own: its process may be paused between the check and the commit for any time.
	// While such a process may live, a change stays pending.
	Embedded Class = "embedded"
	// SQL is a server that ends a transaction whose client is silent for Times.Idle. Gone is done.
	SQL Class = "sql"
	// SQLFence is a server where every transaction locks the member's row (Rows), which is deleted before the member counts as done. To a
	// member that cannot delete it, since its own rows are at another place or it has none, it is SQL.
	SQLFence Class = "sqlfence"
)

// Times are the bounds of the protocol. Zero fields take the defaults.
type Times struct {
	// Lease is etcd's time to live, whole seconds below 5 min. Default 10 s.
	Lease time.Duration
	// Renew is the time between renewals. Default 1 s.
	Renew time.Duration
	// Idle is after how long the database ends a transaction whose client is silent. Default 2 s.
	Idle time.Duration
	// Margin is how long before its lease's end a member stops: at least Idle and the drift of both clocks. Default 4.5 s.
	Margin time.Duration
	// Watch is how long a member may be behind the log before it stops. Default 5 s.
	Watch time.Duration
	// Wait bounds a Change, which is pending after it. Default 30 s.
	Wait time.Duration
}

// driftPart is the bound of a clock's error while it is slewed, as a part of the time that passed; both sides have one.
const driftPart = 12

// settle is how much longer than Idle and the drift a commit of unknown result keeps its section.
const settle = 500 * time.Millisecond

func (t Times) drift() time.Duration { return 2 * t.Lease / driftPart }

func (t Times) withDefaults() (Times, error) {
	for _, d := range []struct {
		at  *time.Duration
		def time.Duration
	}{{&t.Lease, 10 * time.Second}, {&t.Renew, time.Second}, {&t.Idle, 2 * time.Second}, {&t.Margin, 4500 * time.Millisecond}, {&t.Watch, 5 * time.Second}, {&t.Wait, 30 * time.Second}} {
		if *d.at == 0 {
			*d.at = d.def
		}
	}
	switch {
	case t.Lease < time.Second || t.Lease >= 5*time.Minute || t.Lease%time.Second != 0:
		return t, fault.InvalidArgument("fence: the lease is not whole seconds from 1 s to 5 min")
	case t.Renew <= 0 || t.Idle <= 0 || t.Watch <= 0 || t.Wait <= 0:
		return t, fault.InvalidArgument("fence: a time is negative")
	case t.Margin < t.Idle+t.drift():
		return t, fault.InvalidArgument("fence: the margin of %v does not cover an idle transaction (%v) and the drift of two clocks (%v)", t.Margin, t.Idle, t.drift())
	case t.Lease-t.Margin < 3*t.Renew:
		return t, fault.InvalidArgument("fence: a lease of %v less the margin leaves no time for three renewals", t.Lease)
	}
	return t, nil
}

// Rows are those of class SQLFence, in one database; *sqldb.Lives are.
type Rows interface {
	// Place tells that database from all others.
	Place() string
	// Insert adds the row of a life before it registers. From then on every write transaction of this process locks it, and fails without it;
	// gone is closed when one has.
	Insert(ctx context.Context, life string) (gone <-chan struct{}, err error)
	// Leave says that no life goes on, so that no transaction needs a row.
	Leave()
	// Delete removes the row of a life of any member at this place, after every transaction that has locked it is over.
	Delete(ctx context.Context, life string) error
	// Sweep removes rows that no life has needed for long, but those of lives that are named.
	Sweep(ctx context.Context, keep []string) error
}

// Config of a Fence. Client, Service, Instance, Class and Owners are required; Rows with SQLFence, Place with Embedded.
type Config struct {
	// Client is etcd's, as discovery keeps it. It is not closed.
	Client *clientv3.Client
	// Service and Instance name the member for people, and Service tells whose rows and places they are.
	Service, Instance string
	Class             Class
	// Place tells one Embedded store from all others. Who holds its lock takes the marks of dead predecessors away. Of SQLFence it is that of Rows.
	Place string
	Rows  Rows
	// Owners are those whose state this member decides with. Each of them has to be Delivered before the member serves.
	Owners []string
	// Prefix is DefaultPrefix when empty.
	Prefix string
	Times  Times
	// Boottime is a clock that goes on in suspend and is never set; CLOCK_BOOTTIME when nil.
	Boottime func() time.Duration
	// OnLost is told why a life of the member ended by itself; OnWait how long a change waited. Nil tells nobody.
	OnLost func(error)
	OnWait func(owner string, took time.Duration, r Result, err error)
	Logger *slog.Logger // silent when nil
}

var (
	// ErrStale says that the decision was made on a view that is not the present one: decide again on the present one.
	ErrStale = errors.New("fence: the security state has changed since the decision")
	// ErrPending says that the change stands and is not known to be in force everywhere: Result names who was not heard of.
	ErrPending = errors.New("fence: the change is not known to be in force everywhere")
)

// View is the security state as of one revision, in one life of the member. Take it before deciding.
type View struct {
	life *life
	rev  int64
	open atomic.Int64  // sections
	next chan struct{} // closed when it is not the present one any more
}

// Revision is etcd's, of the state that was in force here at least when the view was taken.
func (v *View) Revision() int64 { return v.rev }

// Superseded is closed when a later view, or none, is the present one.
func (v *View) Superseded() <-chan struct{} { return v.next }

// Fence is a member. Make it with New and have it Run.
type Fence struct {
	cfg  Config
	off  off
	hook func(point string)

	cur     atomic.Pointer[View]
	why     atomic.Pointer[string] // why there is no view
	drained chan struct{}          // a section on a view that is not the present one was left

	mu        sync.Mutex
	delivered map[string]uint64 // guarded by mu; an owner that is not in it has brought nothing yet
	moved     chan struct{}     // closed and replaced by Delivered
	present   *life             // guarded by mu
	debts     []debt            // marks of earlier lives that could not be taken away yet; guarded by mu
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$`)

// New checks the configuration. The Fence refuses everything until Run has joined.
func New(cfg Config) (*Fence, error) {
	switch {
	case cfg.Client == nil || len(cfg.Owners) == 0:
		return nil, fault.Internal(nil, "fence: Client and Owners are required")
	case !nameForm.MatchString(cfg.Service) || cfg.Instance == "":
		return nil, fault.InvalidArgument("fence: the member has no name")
	case cfg.Class != Embedded && cfg.Class != SQL && cfg.Class != SQLFence:
		return nil, fault.Internal(nil, "fence: there is no class %q", cfg.Class)
	case cfg.Class == Embedded && cfg.Place == "" || (cfg.Class == SQLFence) != (cfg.Rows != nil):
		return nil, fault.Internal(nil, "fence: an embedded store needs its place, and class sqlfence its rows")
	}
	for _, o := range cfg.Owners {
		if !nameForm.MatchString(o) || o == headName {
			return nil, fault.Internal(nil, "fence: %q names no owner", o)
		}
	}
	var err error
	if cfg.Times, err = cfg.Times.withDefaults(); err != nil {
		return nil, err
	}
	if cfg.Prefix = strings.Trim(cfg.Prefix, "/"); cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	if cfg.Rows != nil {
		cfg.Place = cfg.Rows.Place()
	}
	if cfg.Boottime == nil {
		cfg.Boottime = Boottime
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Fence{cfg: cfg, off: broken(), hook: widened(), drained: make(chan struct{}, 1), delivered: make(map[string]uint64), moved: make(chan struct{})}
	f.because("it has not joined the fence yet")
	return f, nil
}

// Boottime is CLOCK_BOOTTIME: since the machine's start, suspend included.
func Boottime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return time.Duration(1<<63 - 1) // after every deadline
	}
	return time.Duration(t.Nano())
}

// View gives the present view, to decide with. Take it before reading any security state. Without one the error is UNAVAILABLE,
// FENCE_LOST.
func (f *Fence) View() (*View, error) {
	if v := f.cur.Load(); v != nil && !v.life.late.Load() {
		return v, nil
	}
	return nil, f.lost()
}

// Enter opens a section: what was decided on the view may take effect until Leave. Sections are short; a change waits for them. The
// errors are ErrStale, and UNAVAILABLE with FENCE_LOST; then there is nothing to leave.
func (f *Fence) Enter(v *View) error {
	if v == nil {
		return f.lost()
	}
	if f.off.secondLook {
		if err := f.may(v); err != nil {
			return err
		}
		f.at("looked")
		v.open.Add(1)
		return nil
	}
	// Counted first, looked at afterwards: who swaps the view waits for the count, or is seen here (r3).
	v.open.Add(1)
	if err := f.may(v); err != nil {
		f.Leave(v)
		return err
	}
	return nil
}

// may says whether what was decided on v may take effect now (r4).
func (f *Fence) may(v *View) error {
	if f.off.check {
		return nil
	}
	p := f.cur.Load()
	switch {
	case p == nil:
		return f.lost()
	case p.life != v.life && f.off.sameLife:
		v = p
	case p != v:
		return ErrStale
	}
	if f.cfg.Boottime() >= time.Duration(v.life.until.Load()) {
		return f.lost()
	}
	return nil
}

// Leave closes a section.
func (f *Fence) Leave(v *View) {
	if v.open.Add(-1) == 0 && f.cur.Load() != v {
		select {
		case f.drained <- struct{}{}:
		default:
		}
	}
}

// Finish lets an effect take place that was decided on v: it calls commit, once, or returns why not. What commit returns comes back; of
// an error it is not known whether the effect took place, so its section stays open until it must have, or never will.
func (f *Fence) Finish(v *View, commit func() error) error {
	if err := f.Enter(v); err != nil {
		return err
	}
	unknown := true // also if commit panics
	defer func() {
		if unknown && f.cfg.Class != Embedded && !f.off.linger {
			time.AfterFunc(f.cfg.Times.Idle+f.cfg.Times.drift()+settle, func() { f.Leave(v) })
			return
		}
		f.Leave(v)
	}()
	f.at("finishing")
	err := commit()
	unknown = err != nil
	return err
}

// Delivered says that the state that this member decides with is owner's as of seq, all of it. It is called after that state is what
// decisions are made with, and does not wait.
func (f *Fence) Delivered(owner string, seq uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if was, ok := f.delivered[owner]; ok && was == seq {
		return
	}
	f.delivered[owner] = seq
	close(f.moved)
	f.moved = make(chan struct{})
	if f.present != nil {
		f.present.brought(owner, seq)
	}
}

// Ready waits until the member serves.
func (f *Fence) Ready(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := f.View()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// Standing is how the member is, for people.
type Standing struct {
	// Revision is that of the present view, 0 without one.
	Revision int64
	// Left is how long the member may still decide without another renewal; negative if it may not.
	Left time.Duration
	// Lost says why it does not decide, "" if it does.
	Lost string
}

// Standing tells how the member is.
func (f *Fence) Standing() (s Standing) {
	v := f.cur.Load()
	if v != nil {
		s.Revision, s.Left = v.rev, time.Duration(v.life.until.Load())-f.cfg.Boottime()
	}
	if _, err := f.View(); err != nil || s.Left <= 0 {
		s.Lost, s.Left = fault.Describe(f.lost()).Message(), min(s.Left, -1)
	}
	return s
}

func (f *Fence) at(point string) {
	if f.hook != nil {
		f.hook(point)
	}
}

// off switches rules off, in tests that must then fail.
type off struct {
	fromSend, registerFirst, quiesce, secondLook, linger, check, sameLife, reload, term, repeat, ownKey, listInTxn, drain, mark, row, watchdog, resume, apply, wait bool
}
