package authz

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// DefaultMaxStale is how long a stream may be silent where Config does not say.
const DefaultMaxStale = 10 * time.Second

// Config of an Engine. The zero value is usable.
type Config struct {
	// Now is the clock; time.Now if nil.
	Now func() time.Time
	// MaxStale is how long a stream may be silent before its state no longer counts; DefaultMaxStale if 0 or less.
	MaxStale time.Duration
	// OwnAuthorization and OwnSecurity say that the process itself is the source of that state and applies each change as it
	// is made, so that silence means that nothing changed. Workspace sets the first, identity the second. A full state must
	// be applied all the same before anything is decided.
	OwnAuthorization, OwnSecurity bool
	// OnApplied is told up to which number of workspace's or of identity's changes decisions are made from now on; nil tells nobody. It
	// must not wait, nor call the Engine.
	OnApplied func(owner string, seq uint64)
}

// The owners of the two parts of the state.
const (
	Workspace = "workspace"
	Identity  = "identity"
)

// Engine holds the authorization state of one service. Make it with New.
type Engine struct {
	cfg   Config
	state atomic.Pointer[state]
	seen  struct{ authorization, security atomic.Pointer[time.Time] } // when the state was last known to be current

	mu                   sync.Mutex // of writers; guards what follows
	authorization        stream
	security             stream
	loadingAuthorization []*workspacev1.WatchAuthorizationResponse
	loadingSecurity      []*identityv1.WatchSecurityResponse
	pruned               time.Time
}

// New makes an Engine without state: it refuses everything until both streams have brought theirs.
func New(cfg Config) *Engine {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxStale <= 0 {
		cfg.MaxStale = DefaultMaxStale
	}
	e := &Engine{cfg: cfg}
	e.state.Store(newState())
	return e
}

// publish makes next the state that decisions are made with. The caller holds e.mu.
func (e *Engine) publish(next *state) {
	close(e.state.Swap(next).changed)
}

// applied tells up to where the state is. The caller holds e.mu.
func (e *Engine) applied(owner string, seq uint64) {
	if e.cfg.OnApplied != nil {
		e.cfg.OnApplied(owner, seq)
	}
}

// Version returns a number that is another one after every change of the state, and a channel that is closed when the next
// change has come: for streams that are open while rights change.
func (e *Engine) Version() (uint64, <-chan struct{}) {
	s := e.state.Load()
	return s.version, s.changed
}

// Fresh returns nil while both streams have brought a full state and have been heard within MaxStale before now. Otherwise it
// is Unavailable with AUTHZ_STATE_STALE, and no decision may be acted on.
func (e *Engine) Fresh(now time.Time) error {
	if err := e.freshAuthorization(now); err != nil {
		return err
	}
	return e.freshSecurity(now)
}

func (e *Engine) freshAuthorization(now time.Time) error {
	return e.fresh(now, e.cfg.OwnAuthorization, e.seen.authorization.Load(), "workspace")
}

func (e *Engine) freshSecurity(now time.Time) error {
	return e.fresh(now, e.cfg.OwnSecurity, e.seen.security.Load(), "identity")
}

var (
	errNoState = errors.New("no full state has come")
	errSilent  = errors.New("the stream is silent")
)

func (e *Engine) fresh(now time.Time, own bool, at *time.Time, from string) error {
	cause := errNoState
	if at != nil { // a full state has come
		if own {
			return nil
		}
		// A clock that was set back says nothing about how old the state is.
		if age := now.Sub(*at); age <= e.cfg.MaxStale && age >= -e.cfg.MaxStale {
			return nil
		}
		cause = errSilent
	}
	return fault.Wrap(cause, codes.Unavailable, faultv1.Reason_AUTHZ_STATE_STALE,
		"this service has not heard from %s lately, so it cannot say what is allowed now; repeat the call, and if it stays so look whether %s is up", from, from)
}
