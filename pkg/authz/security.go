package authz

import (
	"errors"
	"hash/maphash"
	"slices"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

// Revocations are kept for forgetAfter longer than the sender asks, for clocks that are behind, and looked through for what can
// be forgotten every pruneEvery.
const (
	forgetAfter = time.Minute
	pruneEvery  = time.Minute
)

// revocation is what is kept of one: expire is when it can be forgotten, zero for never; until matters for subjects only and
// is zero for "all tokens"; deliver matters for runs only, and is zero for "nothing may be delivered".
type revocation struct{ expire, until, deliver time.Time }

// revoked holds the revocations that still matter, by what they name.
type revoked struct {
	tokens, sessions, runs, subjects, keys *table[revocation]
	epoch                                  uint64
	// issuer is another number after each change of the keys that tokens are signed with.
	issuer uint64
}

func newRevoked(seed maphash.Seed) revoked {
	return revoked{
		tokens: empty[revocation](seed), sessions: empty[revocation](seed), runs: empty[revocation](seed), subjects: empty[revocation](seed),
		keys: empty[revocation](seed),
	}
}

type draftRevoked struct {
	tokens, sessions, runs, subjects, keys *edit[revocation]
	epoch, issuer                          uint64
}

func (r *revoked) edit() draftRevoked {
	return draftRevoked{newEdit(r.tokens), newEdit(r.sessions), newEdit(r.runs), newEdit(r.subjects), newEdit(r.keys), r.epoch, r.issuer}
}

func (d *draftRevoked) done() revoked {
	return revoked{d.tokens.done(), d.sessions.done(), d.runs.done(), d.subjects.done(), d.keys.done(), d.epoch, d.issuer}
}

func (d *draftRevoked) all() []*edit[revocation] {
	return []*edit[revocation]{d.tokens, d.sessions, d.runs, d.subjects, d.keys}
}

// add takes a revocation in. One that is there already is only ever widened.
func (d *draftRevoked) add(r *identityv1.Revocation) error {
	var at *edit[revocation]
	var key string
	set := 0
	for _, c := range []struct {
		key string
		at  *edit[revocation]
	}{{r.GetJti(), d.tokens}, {r.GetSid(), d.sessions}, {r.GetRunUid(), d.runs}, {r.GetSubject(), d.subjects}, {r.GetKeyId(), d.keys}} {
		if c.key != "" {
			at, key = c.at, c.key
			set++
		}
	}
	if set != 1 {
		return errors.New("authz: a revocation names not exactly one of token, session, run, subject and key")
	}
	var n revocation
	if r.GetExpireTime() != nil {
		n.expire = r.GetExpireTime().AsTime()
	}
	if r.GetIssuedUntil() != nil {
		n.until = r.GetIssuedUntil().AsTime()
	}
	if t := r.GetDeliverUntil(); t.IsValid() {
		n.deliver = t.AsTime()
	}
	if old, ok := at.get(key); ok {
		n.expire, n.until, n.deliver = later(old.expire, n.expire), later(old.until, n.until), sooner(old.deliver, n.deliver)
	}
	at.set(key, n)
	d.epoch++
	return nil
}

// later is the later of two times, where zero is never over.
func later(a, b time.Time) time.Time {
	if a.IsZero() || b.IsZero() {
		return time.Time{}
	}
	if a.After(b) {
		return a
	}
	return b
}

// sooner is the earlier of two times, where zero is over already.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || b.IsZero() {
		return time.Time{}
	}
	if a.Before(b) {
		return a
	}
	return b
}

// prune forgets what has expired. It takes nothing back that a valid token could meet, so the epoch stays.
func (d *draftRevoked) prune(now time.Time) (some bool) {
	for _, t := range d.all() {
		var gone []string
		for key, r := range t.all() {
			if !r.expire.IsZero() && now.After(r.expire.Add(forgetAfter)) {
				gone = append(gone, key)
			}
		}
		for _, key := range gone {
			t.del(key)
			some = true
		}
	}
	return some
}

// ApplySecurity takes one message of identity's stream, in order. It is as ApplyAuthorization.
func (e *Engine) ApplySecurity(m *identityv1.WatchSecurityResponse) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.cfg.Now()
	st, err := e.security.next(m.GetSeq(), m.GetReset_(), m.GetComplete(), m.GetHeartbeat())
	if err != nil {
		e.loadingSecurity = nil
		return err
	}
	switch st {
	case alive:
		e.seen.security.Store(&now)
		if now.Sub(e.pruned).Abs() >= pruneEvery {
			e.pruned = now
			if d := e.state.Load().edit(); d.revoked.prune(now) {
				e.publish(d.done())
			}
		}
		return nil
	case part, whole:
		if m.GetReset_() {
			e.loadingSecurity = nil
		}
		e.loadingSecurity = append(e.loadingSecurity, m)
		if st == part {
			return nil
		}
	case change:
		e.loadingSecurity = []*identityv1.WatchSecurityResponse{m}
	}
	msgs := e.loadingSecurity
	e.loadingSecurity = nil
	d := e.state.Load().edit()
	if st == whole {
		d.forgetSecurity()
	}
	if err := d.securityRecords(msgs); err != nil {
		e.security = stream{}
		return err
	}
	next := d.done()
	e.publish(next)
	e.seen.security.Store(&now)
	e.applied(Identity, m.GetSeq())
	return nil
}

// forgetSecurity empties what identity has told, and keeps what workspace has.
func (d *draft) forgetSecurity() {
	for _, t := range d.revoked.all() {
		t.clear()
	}
	d.revoked.epoch++
	d.revoked.issuer++ // whoever starts over may have missed a change of the keys
	d.groups.clear()
	for id, old := range d.from.who.all() {
		if len(old.groups) > 0 {
			d.entry(id).groups = nil
		}
	}
	d.grants = true
}

func (d *draft) securityRecords(msgs []*identityv1.WatchSecurityResponse) error {
	for _, m := range msgs {
		if m.GetKeysChanged() {
			d.revoked.issuer++
		}
		for _, r := range m.GetRevocations() {
			if err := d.revoked.add(r); err != nil {
				return err
			}
		}
		for _, g := range m.GetGroups() {
			if g.GetGroupUid() == "" {
				return errors.New("authz: a group has no uid")
			}
			d.group(g.GetGroupUid(), g.GetMemberUids())
		}
	}
	return nil
}

// group makes members the whole membership of a group. An empty uid is nobody.
func (d *draft) group(uid string, members []string) {
	members = slices.DeleteFunc(slices.Clone(members), func(m string) bool { return m == "" })
	slices.Sort(members)
	members = slices.Compact(members)
	old, _ := d.groups.get(uid)
	for _, m := range old {
		if _, stays := slices.BinarySearch(members, m); !stays {
			e := d.entry(m)
			e.groups = slices.DeleteFunc(e.groups, func(g string) bool { return g == uid })
		}
	}
	for _, m := range members {
		if _, was := slices.BinarySearch(old, m); !was {
			e := d.entry(m)
			e.groups = append(e.groups, uid)
		}
	}
	if len(members) == 0 {
		d.groups.del(uid)
		return
	}
	d.groups.set(uid, members)
}

// Revocations answers for tokens, in the form that pkg/authn asks.
type Revocations struct{ e *Engine }

// Revocations gives the engine's view of what was revoked.
func (e *Engine) Revocations() Revocations { return Revocations{e} }

// Revoked reports whether a token is revoked by its subject (and when it was issued), session, own id, run, or one of the
// tokens that it descends from. Empty strings match nothing. That its run may still deliver makes no difference here. It allocates nothing.
func (r Revocations) Revoked(sub, sid, jti, run string, ancestors []string, issuedAt time.Time) bool {
	v := &r.e.state.Load().revoked
	if has(v.tokens, jti) || has(v.sessions, sid) || has(v.runs, run) {
		return true
	}
	for _, a := range ancestors {
		if has(v.tokens, a) {
			return true
		}
	}
	if sub == "" {
		return false
	}
	s, ok := v.subjects.get(sub)
	return ok && (s.until.IsZero() || !issuedAt.After(s.until))
}

// DeliversUntil is the end of the time in which the tokens of a revoked run open what delivers; zero where they open nothing, and for a run
// that is not revoked.
func (r Revocations) DeliversUntil(run string) time.Time {
	if run == "" {
		return time.Time{}
	}
	v, _ := r.e.state.Load().revoked.runs.get(run)
	return v.deliver
}

func has(t *table[revocation], key string) bool {
	if key == "" {
		return false
	}
	_, ok := t.get(key)
	return ok
}

// KeyRevoked reports whether everything that a key has signed is revoked. The empty id matches nothing.
func (r Revocations) KeyRevoked(kid string) bool { return has(r.e.state.Load().revoked.keys, kid) }

// KeysEpoch is another number after each change of the keys that tokens are signed with: then those that were fetched before are old.
func (r Revocations) KeysEpoch() uint64 { return r.e.state.Load().revoked.issuer }

// Epoch is another number after each revocation. Once it has returned one, Revoked answers from that state or a later one.
func (r Revocations) Epoch() uint64 { return r.e.state.Load().revoked.epoch }

// Fresh returns nil while identity's stream is current, else Unavailable with AUTHZ_STATE_STALE. Workspace's stream does not
// matter here.
func (r Revocations) Fresh(now time.Time) error { return r.e.freshSecurity(now) }
