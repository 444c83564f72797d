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

func (p *planned) add(q planned) {
	p.dropped, p.made, p.moved = append(p.dropped, q.dropped...), append(p.made, q.made...), append(p.moved, q.moved...)
}

// writePlan makes the rows of one use what the plan says. keys are those rows as this transaction has read them.
func (s *Service) writePlan(ctx context.Context, tx *sqldb.Tx, use store.KeyUse, keys []store.SigningKey, plan rotation.Plan) (done planned, err error) {
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
		k := store.SigningKey{Use: use, KeyID: authn.Thumbprint(&key.PublicKey), Key: key, Publish: p.Publish, SignFrom: p.SignFrom, SignUntil: p.SignUntil, Remove: p.Remove}
		if err := s.store.InsertSigningKey(ctx, tx, k); err != nil {
			return done, err
		}
		done.made = append(done.made, k.KeyID)
	}
	for i, old := range planOf(keys) {
		p, ok := kept[old.ID]
		switch {
		case !ok:
			err = s.store.DeleteSigningKey(ctx, tx, use, old.ID)
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
	now := s.cfg.Now()
	if !slices.ContainsFunc(keyUses, func(use store.KeyUse) bool {
		have := s.planNow(use)
		return !slices.EqualFunc(rotation.Scheduled(now, have, s.policyOf(use)), have, same)
	}) {
		return nil
	}
	err := term.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		keys, err := s.store.SigningKeys(ctx, tx)
		if err != nil {
			return err
		}
		var all planned
		for _, use := range keyUses {
			keys := signingOf(keys, use)
			done, err := s.writePlan(ctx, tx, use, keys, rotation.Scheduled(now, planOf(keys), s.policyOf(use)))
			if err != nil {
				return err
			}
			all.add(done)
		}
		if !all.any() {
			return nil
		}
		if err := s.store.ChangeKeys(ctx, tx, now, nil); err != nil {
			return err
		}
		return s.recordOwn(ctx, tx, "signing keys", "made", strings.Join(all.made, " "), "removed", strings.Join(all.dropped, " "))
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
	return &identityv1.ListSigningKeysResponse{SigningKeys: s.keysAsTold(store.TokenKeys), SvidKeys: s.keysAsTold(store.SVIDKeys)}
}

func (s *Service) keysAsTold(use store.KeyUse) (out []*identityv1.SigningKey) {
	now, plan := s.cfg.Now(), s.planNow(use)
	for i, k := range plan {
		state, ok := keyStates[rotation.StateOf(now, plan, i)]
		if !ok {
			continue // over, or of a clock that was ahead
		}
		out = append(out, &identityv1.SigningKey{
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
	var revoked []*identityv1.Revocation
	for _, use := range keyUses {
		keys := signingOf(keys, use)
		plan := rotation.Rotated(now, planOf(keys), s.policyOf(use))
		if emergency { // for both: a thief of one has read the rows
			plan = rotation.Replaced(now, s.policyOf(use))
		}
		one, err := s.writePlan(ctx, tx, use, keys, plan)
		if err != nil {
			return done, err
		}
		done.add(one)
		if emergency && use == store.TokenKeys {
			for _, kid := range one.dropped {
				revoked = append(revoked, &identityv1.Revocation{KeyId: kid, ExpireTime: timestamppb.New(now.Add(refusedFor))})
			}
		}
	}
	if !done.any() {
		return done, nil
	}
	return done, s.store.ChangeKeys(ctx, tx, now, revoked)
}
