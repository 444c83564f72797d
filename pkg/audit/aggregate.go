package audit

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

const (
	// maxKinds is how many kinds of anonymous refusals are told apart between two flushes. Further ones share one count for each code.
	maxKinds = 512
	// maxTried is how many of those may be about an account. Further ones are counted without it, so that whoever tries every account leaves room.
	maxTried = 256
	// maxAddresses is how many addresses are kept of those who tried one account.
	maxAddresses = 4
)

// kind is what anonymous refusals are told apart by.
type kind struct {
	method, action, code, reason string
	result                       telemetryv1.ActivityEvent_Result
	account, accountType         string // that was tried, "" for none
}

// tally counts one kind.
type tally struct {
	n           int64
	first, last time.Time
	addresses   []string // of an account alone; at most maxAddresses, and how many tries came from others
	elsewhere   int64
}

func (t *tally) add(o tally) {
	if t.n == 0 || o.first.Before(t.first) {
		t.first = o.first
	}
	if o.last.After(t.last) {
		t.last = o.last
	}
	t.n += o.n
	t.elsewhere += o.elsewhere
	for _, a := range o.addresses {
		switch {
		case slices.Contains(t.addresses, a):
		case len(t.addresses) < maxAddresses:
			t.addresses = append(slices.Clip(t.addresses), a)
		default:
			t.elsewhere++
		}
	}
}

// counts are the refusals that wait for a flush.
type counts struct {
	now   func() time.Time
	mu    sync.Mutex
	kinds map[kind]tally
	tried int        // how many of kinds are about an account
	flush sync.Mutex // one flush at a time
}

// Aggregate counts ev, the refusal of a caller that nobody knows, by method, code and reason. Where ev has a principal, it is the account that he
// tried to be, which is told apart too, with the first addresses that he came from. It neither waits nor fails; memory is bounded. The rest of
// ev is not kept.
func (o *Outbox) Aggregate(ev *Event) {
	if ev == nil {
		return
	}
	now := o.counts.now()
	t := tally{n: max(1, ev.GetCount()), first: now, last: now}
	if ev.GetPrincipal() != "" && ev.GetAddress() != "" {
		t.addresses = []string{host(ev.GetAddress())}
	}
	o.counts.add(kind{
		method: ev.GetMethod(), action: ev.GetAction(), code: ev.GetCode(), reason: ev.GetReason(), result: ev.GetResult(),
		account: ev.GetPrincipal(), accountType: ev.GetPrincipalType(),
	}, t)
}

// host is an address without its port.
func host(address string) string {
	if ap, err := netip.ParseAddrPort(address); err == nil {
		return ap.Addr().String()
	}
	return address
}

func (c *counts) add(k kind, t tally) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kinds == nil {
		c.kinds = make(map[kind]tally)
	}
	if _, known := c.kinds[k]; !known && k.account != "" {
		if c.tried < maxTried {
			c.tried++
		} else {
			k.account, k.accountType = "", ""
			t.addresses, t.elsewhere = nil, 0
		}
	}
	if _, known := c.kinds[k]; !known && len(c.kinds) >= maxKinds {
		k = kind{method: "/", code: k.code, result: k.result}
		if _, known := c.kinds[k]; !known && len(c.kinds) >= maxKinds+32 { // codes are few; what callers write is not
			k = kind{method: "/", result: k.result}
		}
	}
	sum := c.kinds[k]
	sum.add(t)
	c.kinds[k] = sum
}

// take empties the counts.
func (c *counts) take() map[kind]tally {
	c.mu.Lock()
	defer c.mu.Unlock()
	kinds := c.kinds
	c.kinds, c.tried = nil, 0
	return kinds
}

// Flush writes what Aggregate has counted, one event for each kind, in one transaction; what cannot be written is counted on, and where the storage
// hangs it may then be counted twice. It makes events of all bursts of this process, too.
//
// Errors: AUDIT_UNAVAILABLE.
func (o *Outbox) Flush(ctx context.Context) error {
	return errors.Join(o.flushCounts(ctx), o.endBursts(ctx, true))
}

// flushCounts writes what Aggregate has counted.
func (o *Outbox) flushCounts(ctx context.Context) error {
	o.counts.flush.Lock()
	defer o.counts.flush.Unlock()
	kinds := o.counts.take()
	if len(kinds) == 0 {
		return nil
	}
	err := o.write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		for k, t := range kinds {
			if err := o.insert(ctx, tx, summary(k, t)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		for k, t := range kinds {
			o.counts.add(k, t)
		}
	}
	return err
}

// summary is the event that stands for the refusals of one kind.
func summary(k kind, t tally) *Event {
	ev := &Event{
		Time: timestamppb.New(t.first), Method: k.method, Action: k.action, Scope: resource.Root, Code: k.code, Reason: k.reason,
		Result: k.result, Count: t.n, Principal: k.account, PrincipalType: k.accountType,
		Details: map[string]string{"callers": "unknown", "last_time": t.last.UTC().Format(time.RFC3339Nano)},
	}
	if len(t.addresses) > 0 {
		ev.Details["addresses"] = strings.Join(t.addresses, " ")
	}
	if t.elsewhere > 0 {
		ev.Details["from_elsewhere"] = strconv.FormatInt(t.elsewhere, 10)
	}
	return ev
}
