package identity

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/identity/internal/rotation"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// rarestBundle and oftenestBundle bound how soon those ask for the roots again who follow them.
const (
	rarestBundle   = 5 * time.Minute
	oftenestBundle = time.Second
)

func (c *Config) clock() rotation.Clock {
	return rotation.Clock{
		Period: c.RootPeriod, Leaf: max(c.SVIDLife, c.OperatorLife), Waits: rotation.Waits{Run: c.RunTokenLife, Connection: c.ConnectionLife},
	}
}

func (c *Config) checkClock() error {
	if c.RootPeriod < 0 || c.RootPeriod > c.RootLife/2 {
		return fault.InvalidArgument("roots live for %v: root_period must be positive and at most half of that", c.RootLife)
	}
	return c.clock().Check()
}

func (s *Service) clock() rotation.Clock { return s.cfg.clock() }

// keepAuthorities takes the steps of the clock, while this instance leads (ADR 39). Each is one transaction, decided on the rows as they
// are in it, so whoever leads after a crash goes on where the rows say.
func (s *Service) keepAuthorities(ctx context.Context, term *leader.Term) error {
	tick := time.NewTicker(min(s.cfg.Heartbeat, s.clock().Ahead()/8))
	defer tick.Stop()
	for {
		if err := s.keepAuthoritiesOnce(ctx, term); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *Service) keepAuthoritiesOnce(ctx context.Context, term *leader.Term) error {
	leaves, err := s.store.Leaves(ctx, s.cfg.DB.Reader())
	if err != nil {
		return err
	}
	if now := s.cfg.Now(); !s.clock().Next(now, s.authority.Load().roots, leaves).Due(now) {
		return nil
	}
	var done rotation.Step
	err = term.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		done, err = s.stepAuthorities(ctx, tx)
		return err
	})
	// Also after an error: of a commit whose result was lost, the database knows better.
	s.feed.wake()
	if err != nil {
		return err
	}
	if done.Do != "" {
		s.cfg.Logger.InfoContext(ctx, "the clock has rotated the root of the mesh", "step", string(done.Do), "root", done.Pin)
	}
	return s.feed.apply(ctx)
}

// stepAuthorities takes the step that is due on the rows as this transaction reads them, if one is.
func (s *Service) stepAuthorities(ctx context.Context, tx *sqldb.Tx) (done rotation.Step, err error) {
	if err := s.store.LockInstallation(ctx, tx); err != nil {
		return done, err
	}
	as, err := s.store.Authorities(ctx, tx)
	if err != nil {
		return done, err
	}
	defer store.Wipe(as)
	leaves, err := s.store.Leaves(ctx, tx)
	if err != nil {
		return done, err
	}
	now, roots := s.cfg.Now(), store.Plans(as)
	step := s.clock().Next(now, roots, leaves)
	if !step.Due(now) {
		return done, nil
	}
	next := roots
	switch step.Do {
	case rotation.Prepare:
		a, err := svid.NewAuthority(s.td, now, s.cfg.RootLife)
		if err != nil {
			return done, err
		}
		step.Pin = a.Pin()
		if err := s.insertAuthority(ctx, tx, a, rotation.Root{Phase: rotation.Prepared, Made: now}); err != nil {
			return done, err
		}
	case rotation.Activate:
		next, err = rotation.Activated(now, roots, leaves, step.Pin, false)
	case rotation.Taint:
		next, err = rotation.WithTaint(now, roots, step.Pin, true)
	case rotation.Revoke:
		if err = rotation.Revocable(now, roots, leaves, step.Pin, s.clock().Waits, false); err == nil {
			err = s.store.RevokeAuthority(ctx, tx, step.Pin, now)
		}
	}
	if err != nil {
		return done, err
	}
	if err := s.store.SetAuthorities(ctx, tx, roots, next); err != nil {
		return done, err
	}
	if err := s.store.ChangeKeys(ctx, tx, now, nil); err != nil {
		return done, err
	}
	return step, s.recordOwn(ctx, tx, "authority", "step", string(step.Do), "root", step.Pin)
}

var authoritySteps = map[rotation.Do]identityv1.AuthorityStep{
	rotation.Prepare: identityv1.AuthorityStep_AUTHORITY_STEP_PREPARE, rotation.Activate: identityv1.AuthorityStep_AUTHORITY_STEP_ACTIVATE,
	rotation.Taint: identityv1.AuthorityStep_AUTHORITY_STEP_TAINT, rotation.Revoke: identityv1.AuthorityStep_AUTHORITY_STEP_REVOKE,
}

// clockOf is nil where no clock rotates roots.
func clockOf(c rotation.Clock, next rotation.Step) *identityv1.AuthorityClock {
	if c.Period <= 0 {
		return nil
	}
	return &identityv1.AuthorityClock{
		Period: durationpb.New(c.Period), NextStep: authoritySteps[next.Do], Pin: next.Pin, NextTime: stamp(next.At), WaitsFor: next.Waits, Manual: next.Manual, Late: next.Late,
	}
}

// GetTrustBundle implements KeyService.
func (s *Service) GetTrustBundle(context.Context, *identityv1.GetTrustBundleRequest) (*identityv1.TrustBundle, error) {
	// Half of the shortest time between the moment at which a root can be known and the one from which it has to be.
	refresh := s.cfg.ConnectionLife / 2
	if c := s.clock(); c.Period > 0 {
		refresh = min(refresh, c.Ahead()/2)
	}
	return &identityv1.TrustBundle{Roots: bundle(s.authority.Load()), Refresh: durationpb.New(min(max(refresh, oftenestBundle), rarestBundle))}, nil
}
