//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// requestTime bounds a request, parkedTime one of those that are to wait at a service that stands still.
	requestTime, parkedTime = 2 * time.Second, 40 * time.Second
	// Caches are warmed this long before the call, and the right is tried this long after it.
	leastWarm, mostWarm = 250 * time.Millisecond, 500 * time.Millisecond
	leastAfter          = 300 * time.Millisecond
	mostAfter           = 600 * time.Millisecond
	// mostOpen requests of one lane at one service; more are not sent, and counted.
	mostOpen = 100
	// againWithin bounds a repetition that has to be pending again.
	againWithin = 3 * time.Second
	// tokenUse is how long a token is used that is not what is taken away.
	tokenUse = 4 * time.Minute
)

// driver asks with a right at a steady rate, whatever becomes of the requests.
type driver struct {
	lane *lane
	r    *round
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// drive starts one.
func (l *lane) drive(ctx context.Context, r *round, with *right, parked bool) *driver {
	d := &driver{lane: l, r: r}
	var ticking context.Context
	ticking, d.stop = context.WithCancel(ctx)
	open := make(map[string]chan struct{})
	for _, p := range with.probes {
		open[p.service] = make(chan struct{}, mostOpen)
	}
	d.wg.Go(func() {
		beat := time.Now()
		for n := 0; ticking.Err() == nil; n++ {
			due := l.s.pace.next(time.Now())
			if n < len(with.probes) {
				due = time.Now() // everything at once: what was given has to work at once
			}
			select {
			case <-ticking.Done():
				l.s.pace.back()
				return
			case <-time.After(time.Until(due)):
			}
			if time.Since(beat) > heartbeat {
				beat = time.Now()
				d.wg.Go(func() { l.beat(ctx) })
				l.s.requests.Add(1)
				continue
			}
			p := with.probes[n%len(with.probes)]
			select {
			case open[p.service] <- struct{}{}:
			default:
				r.mu.Lock()
				r.shed++
				r.mu.Unlock()
				continue
			}
			limit := requestTime
			if parked && n%8 == 0 {
				limit = parkedTime
			}
			l.s.requests.Add(1)
			d.wg.Go(func() {
				defer func() { <-open[p.service] }()
				ctx, cancel := context.WithTimeout(ctx, limit)
				defer cancel()
				q := request{service: p.service, sent: time.Now()}
				err := p.ask(ctx)
				q.got = time.Now()
				if q.outcome = judge(err); err != nil {
					q.why = fault.ReasonOf(fault.Describe(err)).String()
				}
				r.add(q)
			})
		}
	})
	return d
}

// end stops asking and waits for the answers.
func (d *driver) end() {
	d.stop()
	d.wg.Wait()
}

// follow opens the stream of a right and notes what comes on it, until ctx ends or it does.
func (l *lane) follow(ctx context.Context, r *round, with *right) (wait func()) {
	var wg sync.WaitGroup
	if with.watch == nil {
		return func() {}
	}
	wg.Go(func() {
		s, err := with.watch(ctx)
		for err == nil {
			var e interface{ GetRequestId() string }
			if e, err = s.Recv(); err != nil {
				break
			}
			if begun, ok := l.told.Load(e.GetRequestId()); ok {
				r.mu.Lock()
				r.heard = append(r.heard, message{begun.(time.Time), time.Now()})
				r.mu.Unlock()
			}
		}
		if ctx.Err() == nil {
			r.mu.Lock()
			r.ended = time.Now()
			r.mu.Unlock()
		}
	})
	return wg.Wait
}

// window is a fault, as a round sees it.
type window struct {
	name string
	// warm is passed when every lane uses its right, hurt is closed when the fault is there; tried is passed when every lane has had its answer, and
	// healed closed when the fault is over.
	warm, tried  *sync.WaitGroup
	hurt, healed chan struct{}
	// within bounds the first call, repeats the repetitions that follow the healing.
	within, repeats time.Duration
	parked          bool
	again           bool // repeat a call that is pending while the fault lasts
}

// round makes one. An error says that it could not be made, which says nothing of the installation while a fault is healing.
func (l *lane) round(ctx context.Context, k kind, number int, rnd *rand.Rand, w *window) (_ *round, err error) {
	r := &round{lane: l.n, number: number, kind: k.name, committed: [2]int64{-1, -1}}
	if w != nil {
		r.fault = w.name
		warm, tried := sync.OnceFunc(w.warm.Done), sync.OnceFunc(w.tried.Done)
		defer func() { warm(); tried() }()
		err = l.made(ctx, k, r, rnd, w, warm, tried)
		return r, err
	}
	return r, l.made(ctx, k, r, rnd, &window{within: setUp, repeats: setUp}, func() {}, func() {})
}

func (l *lane) made(ctx context.Context, k kind, r *round, rnd *rand.Rand, w *window, warm, tried func()) error {
	if err := l.keepTokens(ctx); err != nil {
		return fmt.Errorf("sign in: %w", err)
	}
	admin := func(within time.Duration) (context.Context, context.CancelFunc) {
		return context.WithTimeout(bearer(ctx, l.s.admin.Load().token), within)
	}
	secret := fmt.Sprintf("r%d", r.number)
	giving, cancel := admin(setUp)
	defer cancel()
	r.given.sent = time.Now()
	with, err := k.give(giving, l, secret)
	if err != nil {
		return fmt.Errorf("giving %s: %w", k.name, err)
	}
	r.given.got, r.writes = time.Now(), with.writes
	streaming, hang := context.WithCancel(ctx)
	defer hang()
	heard := l.follow(streaming, r, with)
	d := l.drive(ctx, r, with, w.parked)
	pause(ctx, between(rnd, leastWarm, mostWarm))
	warm()
	if w.hurt != nil {
		select {
		case <-w.hurt:
		case <-ctx.Done():
		}
	}
	r.taken.sent = time.Now()
	r.outcome, r.pending = l.take(ctx, with, w.within)
	r.first = time.Since(r.taken.sent)
	if r.outcome == "returned" {
		r.taken.got = time.Now()
		if with.writes {
			r.committed[0] = l.version(ctx, secret)
		}
	}
	pause(ctx, between(rnd, leastAfter, mostAfter))
	if w.again && r.outcome == "pending" {
		r.repeated, _ = l.take(ctx, with, againWithin)
	}
	if w.hurt == nil && r.outcome == "done" {
		d.end()
		return fmt.Errorf("taking %s away was refused", k.name)
	}
	tried()
	if w.healed != nil {
		select {
		case <-w.healed:
		case <-ctx.Done():
		}
	}
	for begin := time.Now(); r.taken.got.IsZero() && time.Since(begin) < w.repeats && ctx.Err() == nil; {
		how, _ := l.take(ctx, with, w.repeats)
		if how == "done" && k.name == "run" {
			break // compute refuses the agent, which says nothing of the others: when all honour it nobody is told
		}
		if how == "returned" || how == "done" {
			r.taken.got = time.Now()
			if with.writes {
				r.committed[0] = l.version(ctx, secret)
			}
			break
		}
		pause(ctx, 100*time.Millisecond)
	}
	if w.healed != nil {
		pause(ctx, between(rnd, leastAfter, mostAfter))
	}
	d.end()
	hang()
	heard()
	if with.writes {
		r.committed[1] = l.version(ctx, secret)
	}
	if r.taken.got.IsZero() && k.name != "run" && ctx.Err() == nil {
		return fmt.Errorf("taking %s away never returned: %s", k.name, r.outcome)
	}
	return ctx.Err()
}

// take calls once, and says how that ended: "returned", "pending" with who is named, "done" if a repetition finds that there is nothing left
// to take away, or else "unknown" with the code.
func (l *lane) take(ctx context.Context, with *right, within time.Duration) (how string, pending []string) {
	ctx, cancel := context.WithTimeout(bearer(ctx, l.s.admin.Load().token), within)
	defer cancel()
	err := with.take(ctx)
	switch f := fault.Describe(err); {
	case err == nil:
		return "returned", nil
	case fault.ReasonOf(f) == faultv1.Reason_CHANGE_PENDING:
		return "pending", split(f.Metadata()["instances"])
	case fault.Is(f, codes.NotFound) || fault.Is(f, codes.FailedPrecondition) || fault.ReasonOf(f) == faultv1.Reason_TOKEN_REVOKED:
		return "done", nil
	default:
		return "unknown: " + fault.ReasonOf(f).String(), nil
	}
}

func between(rnd *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rnd.Int64N(int64(most-least)+1))
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
