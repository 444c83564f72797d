package fence

import (
	"context"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Changer is what an owner of state needs of the fence; *Fence is one.
type Changer interface {
	Change(ctx context.Context, owner string, seq uint64) (Result, error)
	Record(ctx context.Context, owner string, seq uint64) error
	Recorded(ctx context.Context, owner string) (uint64, error)
}

// Owner has the changes of one owner of security state be in force everywhere. Make it with NewOwner. It is safe for concurrent use.
type Owner struct {
	fence     Changer
	name      string
	confirmed atomic.Uint64 // the highest number that is known to be in force everywhere
}

// NewOwner makes the owner of a name.
func NewOwner(f Changer, name string) *Owner { return &Owner{fence: f, name: name} }

const (
	// answerWithin is what a call keeps of its deadline, to answer that it is pending.
	answerWithin = time.Second
	// leastWait is how long is waited whatever the deadline.
	leastWait = time.Second
)

// Everywhere waits until the state as of seq, which is committed, is in force everywhere: nil. Who asked may be gone meanwhile; his
// deadline bounds the wait all the same.
//
// Errors: DEADLINE_EXCEEDED, CHANGE_PENDING, with the instances that were not heard of, or with the cause.
func (o *Owner) Everywhere(ctx context.Context, seq uint64) error {
	if seq <= o.confirmed.Load() {
		return nil
	}
	until, bounded := ctx.Deadline()
	ctx = context.WithoutCancel(ctx)
	if bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, max(leastWait, time.Until(until)-answerWithin))
		defer cancel()
	}
	r, err := o.fence.Change(ctx, o.name, seq)
	if err == nil {
		o.confirm(seq)
		return nil
	}
	who := "etcd could not be asked"
	if len(r.Pending) > 0 {
		who = "nothing was heard of " + strings.Join(r.Pending, ", ")
	}
	return fault.Wrap(err, codes.DeadlineExceeded, faultv1.Reason_CHANGE_PENDING,
		"the change is stored, but it is not known yet that it is in force everywhere: %s. Start what stands still, or stop it for good, and repeat the call: it waits again", who).
		With("instances", strings.Join(r.Pending, ",")).With("revision", strconv.FormatInt(r.Revision, 10))
}

// Soon is Everywhere for a change that nobody depends on: it waits for a while, and gives the error for the log.
func (o *Owner) Soon(ctx context.Context, seq uint64, within time.Duration) error {
	if seq <= o.confirmed.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	_, err := o.fence.Change(ctx, o.name, seq)
	if err == nil {
		o.confirm(seq)
	}
	return err
}

func (o *Owner) confirm(seq uint64) {
	for {
		was := o.confirmed.Load()
		if seq <= was || o.confirmed.CompareAndSwap(was, seq) {
			return
		}
	}
}

// Settle brings log and store together at the owner's start, and tries until it has, or ctx ends. What was committed and not put is put.
// If the log knows more than the store, the store was restored: raise has it count on from the number that it is given.
func (o *Owner) Settle(ctx context.Context, at func() uint64, raise func(ctx context.Context, to uint64) error) error {
	for {
		err := o.settle(ctx, at(), raise)
		if err == nil || ctx.Err() != nil {
			return err
		}
		pause(ctx, time.Second)
	}
}

func (o *Owner) settle(ctx context.Context, seq uint64, raise func(ctx context.Context, to uint64) error) error {
	recorded, err := o.fence.Recorded(ctx, o.name)
	if err != nil {
		return err
	}
	if recorded > seq {
		seq = recorded + 1
		if err := raise(ctx, seq); err != nil {
			return err
		}
	}
	return o.fence.Record(ctx, o.name, seq)
}
