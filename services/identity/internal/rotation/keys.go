package rotation

import (
	"slices"
	"strings"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Leeway is how far the clocks of two instances may differ.
const Leeway = 30 * time.Second

// maxKeys bounds how many keys a policy may have published at a time: key sets are read up to 64.
const maxKeys = 48

// Policy says how signing keys rotate.
type Policy struct {
	// Period is how long a key signs.
	Period time.Duration
	// Ahead is how long a key is published before it signs: at least as long as others may keep the key set.
	Ahead time.Duration
	// Life is that of the longest token: so long a key is kept after it has signed last.
	Life time.Duration
}

// Check refuses a policy that cannot be followed.
func (p Policy) Check() error {
	switch {
	case p.Ahead < time.Second || p.Period < p.Ahead || p.Life <= 0:
		return fault.InvalidArgument("signing keys are published for at least 1s before they sign, and sign for at least as long: correct key_period and key_ahead")
	case p.Life/p.Period > maxKeys-3:
		return fault.InvalidArgument("with tokens that live for %v, keys that sign for %v would be more than %d at a time: make key_period longer or token_life shorter", p.Life, p.Period, maxKeys)
	}
	return nil
}

// Key is the plan of one signing key. The zero times of SignUntil and Remove are "not decided": no key follows yet.
type Key struct {
	ID                                   string
	Publish, SignFrom, SignUntil, Remove time.Time
}

// State is what a key does at a time.
type State int

// The states of a key. Later is one from the future of this clock, which is not published.
const (
	Later State = iota
	Next
	Current
	Retiring
	Gone
)

// Published reports whether the key stands in the key set at now. A clock that is a little behind that of the instance that made a key
// does not hide it.
func (k Key) Published(now time.Time) bool {
	return !now.Before(k.Publish.Add(-Leeway)) && (k.Remove.IsZero() || now.Before(k.Remove))
}

func (k Key) signs(now time.Time, leeway time.Duration) bool {
	return !now.Before(k.SignFrom.Add(-leeway)) && (k.SignUntil.IsZero() || now.Before(k.SignUntil))
}

// Signer is the index of the key that signs at now: the newest whose time has come, or one whose time comes within Leeway, for a clock
// that is a little behind. It is -1 when there is none. keys are in the order of Sort.
func Signer(now time.Time, keys []Key) int {
	for _, leeway := range []time.Duration{0, Leeway} {
		for i := len(keys) - 1; i >= 0; i-- {
			if keys[i].Published(now) && keys[i].signs(now, leeway) {
				return i
			}
		}
	}
	return -1
}

// StateOf is the state of keys[i] at now.
func StateOf(now time.Time, keys []Key, i int) State {
	k := keys[i]
	switch {
	case i == Signer(now, keys):
		return Current
	case !k.Remove.IsZero() && !now.Before(k.Remove):
		return Gone
	case !k.Published(now):
		return Later
	case now.Before(k.SignFrom):
		return Next
	default:
		return Retiring
	}
}

// Sort puts keys in the order in which they sign.
func Sort(keys []Key) {
	slices.SortFunc(keys, func(a, b Key) int {
		if c := a.SignFrom.Compare(b.SignFrom); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
}

// Plan is what becomes of keys: those that are kept, with their new times, and those to be made, whose ID is empty, in the order of
// Sort. What is not in it is dropped.
type Plan []Key

// Scheduled is the plan when nobody has ordered anything: what is over is dropped, the key that signs has one that follows it, and if
// none signs, since this is the first start or the clock was set back, there is one that does so at once.
func Scheduled(now time.Time, keys []Key, p Policy) Plan {
	var out Plan
	for _, k := range keys {
		over := !k.Remove.IsZero() && !now.Before(k.Remove)
		// A clock that was far ahead has left a key behind that would keep all others from following.
		far := k.SignFrom.After(now.Add(2*p.Period + p.Ahead))
		if !over && !far {
			out = append(out, k)
		}
	}
	Sort(out)
	if strict := signer(now, out); strict < 0 {
		k := Key{Publish: now, SignFrom: now}
		out = append(out, k)
		Sort(out)
	}
	return follow(now, out, p)
}

// signer is Signer without leeway.
func signer(now time.Time, keys []Key) int {
	for i := len(keys) - 1; i >= 0; i-- {
		if keys[i].Published(now) && keys[i].signs(now, 0) {
			return i
		}
	}
	return -1
}

// follow adds the key after the one that signs, where there is none, and lets each key sign until the one after it does.
func follow(now time.Time, keys Plan, p Policy) Plan {
	i := signer(now, keys)
	if i == len(keys)-1 {
		from := keys[i].SignFrom.Add(p.Period)
		if soonest := now.Add(p.Ahead); from.Before(soonest) {
			from = soonest
		}
		keys = append(keys, Key{Publish: now, SignFrom: from})
	}
	for i := range keys {
		if i == len(keys)-1 {
			keys[i].SignUntil, keys[i].Remove = time.Time{}, time.Time{}
			continue
		}
		// What a key signed last may live as long as any token. An end that was decided before is never put off.
		if until := keys[i+1].SignFrom; keys[i].SignUntil.IsZero() || until.Before(keys[i].SignUntil) {
			keys[i].SignUntil, keys[i].Remove = until, until.Add(p.Life+Leeway)
		}
	}
	return keys
}

// Rotated is the plan when the next key shall sign as soon as it may: when it was published for Policy.Ahead.
func Rotated(now time.Time, keys []Key, p Policy) Plan {
	out := Scheduled(now, keys, p)
	i := signer(now, out)
	if i < 0 || i == len(out)-1 {
		return out
	}
	next := &out[i+1]
	from := next.Publish.Add(p.Ahead)
	if from.Before(now) {
		from = now
	}
	if from.Before(next.SignFrom) {
		next.SignFrom = from
	}
	return follow(now, out, p)
}

// Replaced is the plan in an emergency: nothing that there was is kept, and a new key signs at once.
func Replaced(now time.Time, p Policy) Plan {
	return follow(now, Plan{{Publish: now, SignFrom: now}}, p)
}
