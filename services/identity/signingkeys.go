package identity

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/rotation"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// refusedFor is how long everything under a key that was dropped is refused. Who has the key can date what he forges as he likes.
const refusedFor = tenYears

// planned is what writePlan did.
type planned struct{ dropped, made, moved []string }

func (p planned) any() bool { return len(p.dropped)+len(p.made)+len(p.moved) > 0 }

// writePlan makes the rows what the plan says. keys are the rows as this transaction has read them.
func (s *Service) writePlan(ctx context.Context, tx *sqldb.Tx, keys []store.SigningKey, plan rotation.Plan) (done planned, err error) {
	kept := make(map[string]rotation.Key, len(plan))
	for _, p := range plan {
		if p.ID != "" {
			kept[p.ID] = p
			continue
		}
		key, err := authn.GenerateKey()
		if err != nil {
			return done, fault.Internal(err, "a signing key could not be made")
		}
		k := store.SigningKey{KeyID: authn.Thumbprint(&key.PublicKey), Key: key, Publish: p.Publish, SignFrom: p.SignFrom, SignUntil: p.SignUntil, Remove: p.Remove}
		if err := s.store.InsertSigningKey(ctx, tx, k); err != nil {
			return done, err
		}
		done.made = append(done.made, k.KeyID)
	}
	for i, old := range planOf(keys) {
		p, ok := kept[old.ID]
		switch {
		case !ok:
			err = s.store.DeleteSigningKey(ctx, tx, old.ID)
			done.dropped = append(done.dropped, old.ID)
		case !same(p, old):
			k := keys[i]
			k.SignFrom, k.SignUntil, k.Remove = p.SignFrom, p.SignUntil, p.Remove
			err = s.store.PlanSigningKey(ctx, tx, k)
			done.moved = append(done.moved, old.ID)
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// same compares as the rows do, which hold microseconds.
func same(a, b rotation.Key) bool {
	return a.ID == b.ID && a.SignFrom.UnixMicro() == b.SignFrom.UnixMicro() && a.SignUntil.UnixMicro() == b.SignUntil.UnixMicro() && a.Remove.UnixMicro() == b.Remove.UnixMicro()
}

// keepKeys writes what the plan of the signing keys needs by itself, while this instance leads: the key after the next one, and the end of
// one that is over.
func (s *Service) keepKeys(ctx context.Context, term *leader.Term) error {
	tick := time.NewTicker(max(min(s.policy.Ahead/4, rarely*s.cfg.Heartbeat), 100*time.Millisecond))
	defer tick.Stop()
	for {
		if err := s.keepKeysOnce(ctx, term); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *Service) keepKeysOnce(ctx context.Context, term *leader.Term) error {
	now, have := s.cfg.Now(), s.keys.state.Load().plan
	if slices.EqualFunc(rotation.Scheduled(now, have, s.policy), have, same) {
		return nil
	}
	err := term.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		keys, err := s.store.SigningKeys(ctx, tx)
		if err != nil {
			return err
		}
		done, err := s.writePlan(ctx, tx, keys, rotation.Scheduled(now, planOf(keys), s.policy))
		if err != nil || !done.any() {
			return err
		}
		if err := s.store.ChangeKeys(ctx, tx, now, nil); err != nil {
			return err
		}
		return s.recordOwn(ctx, tx, "signing keys", "made", strings.Join(done.made, " "), "removed", strings.Join(done.dropped, " "))
	})
	s.feed.wake()
	if err != nil {
		return err
	}
	return s.feed.apply(ctx)
}

// ListSigningKeys implements KeyService.
func (s *Service) ListSigningKeys(context.Context, *identityv1.ListSigningKeysRequest) (*identityv1.ListSigningKeysResponse, error) {
	return s.signingKeys(), nil
}

var keyStates = map[rotation.State]identityv1.KeyState{
	rotation.Next: identityv1.KeyState_KEY_STATE_NEXT, rotation.Current: identityv1.KeyState_KEY_STATE_CURRENT, rotation.Retiring: identityv1.KeyState_KEY_STATE_RETIRING,
}

func (s *Service) signingKeys() *identityv1.ListSigningKeysResponse {
	now, plan, out := s.cfg.Now(), s.keys.state.Load().plan, &identityv1.ListSigningKeysResponse{}
	for i, k := range plan {
		state, ok := keyStates[rotation.StateOf(now, plan, i)]
		if !ok {
			continue // over, or of a clock that was ahead
		}
		out.SigningKeys = append(out.SigningKeys, &identityv1.SigningKey{
			KeyId: k.ID, State: state, PublishTime: stamp(k.Publish), SignTime: stamp(k.SignFrom), RetireTime: stamp(k.SignUntil), RemoveTime: stamp(k.Remove),
		})
	}
	return out
}

// stamp is nil for "not decided".
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// RotateSigningKeys implements KeyService (A3).
func (s *Service) RotateSigningKeys(ctx context.Context, req *identityv1.RotateSigningKeysRequest) (*identityv1.ListSigningKeysResponse, error) {
	call := rpc.From(ctx)
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		done, err := s.rotate(ctx, tx, req.GetEmergency())
		if err != nil {
			return err
		}
		how := "in turn"
		if req.GetEmergency() {
			how = "emergency"
		}
		return call.Audit(ctx, tx, "rotation", how, "made", strings.Join(done.made, " "), "dropped", strings.Join(done.dropped, " "))
	})
	if err != nil {
		return nil, err
	}
	return s.signingKeys(), nil
}

// rotate follows an order on the rows as this transaction reads them.
func (s *Service) rotate(ctx context.Context, tx *sqldb.Tx, emergency bool) (done planned, err error) {
	now := s.cfg.Now()
	keys, err := s.store.SigningKeys(ctx, tx)
	if err != nil {
		return done, err
	}
	plan := rotation.Rotated(now, planOf(keys), s.policy)
	if emergency {
		plan = rotation.Replaced(now, s.policy)
	}
	if done, err = s.writePlan(ctx, tx, keys, plan); err != nil || !done.any() {
		return done, err
	}
	var revoked []*identityv1.Revocation
	if emergency {
		for _, kid := range done.dropped {
			revoked = append(revoked, &identityv1.Revocation{KeyId: kid, ExpireTime: timestamppb.New(now.Add(refusedFor))})
		}
	}
	return done, s.store.ChangeKeys(ctx, tx, now, revoked)
}
