//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/test/fault/internal/command"
	"github.com/redoubt-ml/redoubt/test/fault/internal/load"
	"github.com/redoubt-ml/redoubt/test/fault/internal/mesh"
	"github.com/redoubt-ml/redoubt/test/fault/internal/oracle"
)

const startLimit = 90 * time.Second

// suite is one installation and the lanes on it.
type suite struct {
	o       options
	mesh    *mesh.Mesh
	conn    *grpc.ClientConn
	admin   atomic.Pointer[session]
	scoring string
	lanes   []*lane
	rand    *rand.Rand
	kinds   []kind
	faults  []trouble

	pace     *pace
	number   atomic.Int64
	requests atomic.Int64
	count    *count
	mu       sync.Mutex
	broken   []string // rounds that could not be made
}

// session is the administrator's.
type session struct {
	token string
	since time.Time
}

func newSuite(ctx context.Context, o options) (_ *suite, err error) {
	s := &suite{o: o, rand: rand.New(rand.NewPCG(o.Seed, 0)), count: newCount(o.slack)}
	for _, k := range kinds {
		if command.Chosen(o.kinds, k.name) {
			s.kinds = append(s.kinds, k)
		}
	}
	if len(s.kinds) == 0 || o.lanes < 1 || o.rate <= 0 {
		return nil, errors.New("there is nothing to do: name kinds, lanes and a rate")
	}
	s.pace = newPace(o.rate)
	var env []string
	if o.broken != "" {
		env = []string{"REDOUBT_BREAK_FENCE=" + o.broken}
	}
	if s.mesh, err = mesh.Open(ctx, mesh.Config{Binary: o.Binary, Postgres: o.Postgres, Env: env}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, s.outputs(1500))
			err = errors.Join(err, s.close())
		}
	}()
	s.scoring = "https://" + net.JoinHostPort(s.mesh.Of("inference")[0].Host.Addr, "8452") + "/endpoints/"
	s.faults = s.troubles()
	if s.conn, err = dial(s.mesh); err != nil {
		return nil, err
	}
	starting, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	cfg := load.Config{Gateway: s.mesh.Address, TLS: s.mesh.TLS(), Dial: s.mesh.Dial, Admin: s.mesh.Admin, Password: s.mesh.Password, Book: oracle.NewBook("revoke")}
	if _, err := mesh.Poll(starting, func(ctx context.Context) error { return load.Ready(ctx, cfg) }); err != nil {
		return nil, fmt.Errorf("the installation does not answer: %w", err)
	}
	if err := s.signIn(starting); err != nil {
		return nil, err
	}
	for n := range o.lanes {
		l, err := newLane(starting, s, n)
		if err != nil {
			return nil, fmt.Errorf("lane %d: %w", n, err)
		}
		s.lanes = append(s.lanes, l)
	}
	return s, s.fenced(ctx)
}

// fenced looks whether every service that decides is of class sqlfence, on PostgreSQL: it has a row then.
func (s *suite) fenced(ctx context.Context) error {
	if !s.o.Postgres {
		return nil
	}
	rows, err := s.mesh.Query(ctx, "SELECT count(DISTINCT owner) FROM redoubt_fence.lives;")
	if err == nil && rows != strconv.Itoa(len(services)) {
		err = fmt.Errorf("%s services of %d have a row of class sqlfence", rows, len(services))
	}
	return err
}

// signIn gives the administrator a token, and another one after a while.
func (s *suite) signIn(ctx context.Context) error {
	if a := s.admin.Load(); a != nil && time.Since(a.since) < tokenUse {
		return nil
	}
	r, err := identityv1.NewSignInServiceClient(s.conn).SignIn(ctx, &identityv1.SignInRequest{User: s.mesh.Admin, Password: s.mesh.Password})
	if err != nil {
		return fmt.Errorf("the administrator's sign-in: %w", err)
	}
	s.admin.Store(&session{r.GetSession().GetAccessToken(), time.Now()})
	return nil
}

func (s *suite) close() error {
	for _, l := range s.lanes {
		l.close()
	}
	if s.conn != nil {
		_ = s.conn.Close()
	}
	return s.mesh.Close()
}

// all makes the rounds: stretches without a fault, and between them windows with one.
func (s *suite) all(ctx context.Context) error {
	begin := time.Now()
	windows := s.o.windows
	if windows == 0 {
		windows = 1
		if s.o.Seconds == 0 {
			windows = max(1, s.o.Rounds/100)
		}
	}
	order := s.orderOf(windows)
	stretches := len(order) + 1
	for i := range stretches {
		target := s.o.Rounds * (i + 1) / stretches
		until := time.Time{}
		if s.o.Seconds > 0 {
			target, until = s.o.Rounds, begin.Add(time.Duration(s.o.Seconds)*time.Second*time.Duration(i+1)/time.Duration(stretches))
		}
		if err := s.stretch(ctx, target, until, i == 0); err != nil {
			return err
		}
		if s.o.First && s.count.violated() {
			return nil
		}
		if i < len(order) {
			if err := s.window(ctx, order[i]); err != nil {
				return err
			}
		}
		if s.o.First && s.count.violated() {
			return nil
		}
	}
	return nil
}

// stretch makes rounds without a fault, until there are as many in all, or until a time; each kind once at least if all is set.
func (s *suite) stretch(ctx context.Context, target int, until time.Time, all bool) error {
	begin, before, missed := time.Now(), s.requests.Load(), s.pace.lost()
	s.pace.begin(begin)
	var wg sync.WaitGroup
	for _, l := range s.lanes {
		rnd := rand.New(rand.NewPCG(s.o.Seed, s.rand.Uint64()))
		wg.Go(func() {
			failed := 0
			for n := 0; ctx.Err() == nil; {
				order := rnd.Perm(len(s.kinds))
				for _, i := range order {
					over := s.count.clean() >= target || !until.IsZero() && time.Now().After(until)
					if ctx.Err() != nil || over && (!all || n >= len(s.kinds)) || s.o.First && s.count.violated() || failed > 5 {
						return
					}
					n++
					r, err := l.round(ctx, s.kinds[i], int(s.number.Add(1)), rnd, nil)
					if err != nil {
						failed++
						s.failed(r, err)
						pause(ctx, time.Second)
						continue
					}
					failed = 0
					s.count.take(r)
				}
			}
		})
	}
	signing, stop := context.WithCancel(ctx)
	var keeping sync.WaitGroup
	keeping.Go(func() {
		for signing.Err() == nil {
			if err := s.signIn(signing); err != nil && signing.Err() == nil {
				fmt.Println("fence:", err)
			}
			pause(signing, 5*time.Second)
		}
	})
	wg.Wait()
	stop()
	keeping.Wait()
	s.count.load(s.requests.Load()-before, s.pace.lost()-missed, time.Since(begin))
	if ctx.Err() != nil {
		return errors.New("stopped")
	}
	return nil
}

func (s *suite) failed(r *round, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	said := fmt.Sprintf("round %d, %s, lane %d %s: %v", r.number, r.kind, r.lane, r.fault, fault.Describe(err))
	if r.fault == "" {
		said = fmt.Sprintf("round %d, %s, lane %d: %v", r.number, r.kind, r.lane, err)
	}
	s.broken = append(s.broken, said)
	fmt.Println("fence: could not be made:", said)
}

// outputs are the ends of what all processes have printed.
func (s *suite) outputs(most int) string {
	var b strings.Builder
	for _, p := range s.mesh.Processes {
		fmt.Fprintf(&b, "--- %s\n%s\n", p.Name, p.Output(most))
	}
	return b.String()
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}
