package rotation

import (
	"slices"
	"strings"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Phase is what a root of the mesh does.
type Phase string

// The phases of a root. The zero value is none, and every order refuses it.
const (
	Prepared Phase = "prepared" // believed, signs nothing
	Active   Phase = "active"   // signs
	Old      Phase = "old"      // believed, signs no more
	Tainted  Phase = "tainted"  // believed still; who has a leaf of it renews at once
)

// Root is one root of the mesh, as its row says.
type Root struct {
	Pin   string
	Phase Phase
	// Signed is when it signed last: the time at which it stopped. Zero for one that signs or never did.
	Signed time.Time
	// Quiet is since when no instance of a service was seen to replace a leaf of it.
	Quiet time.Time
	// Made is when it was made, Since when the clock began to count its period; zero is Made.
	Made, Since time.Time
	// Manual says that an operator has ordered something about it, and goes on with it himself.
	Manual bool
}

// Leaf is what identity remembers of a certificate that it gave out.
type Leaf struct {
	Holder string // service/compute/a, operator/usr_…
	Pin    string // of the root that signed it
	Bundle []string
	Expire time.Time
}

// Waits are the times for which what hangs on a root goes on.
type Waits struct {
	// Run is the life of the certificates of runs, which are not remembered one by one.
	Run time.Duration
	// Connection is how long a connection between services can outlast the leaf that it was made with.
	Connection time.Duration
}

// Beside refuses a new root where one stands beside the one that signs.
func Beside(roots []Root) error {
	for _, r := range roots {
		if r.Phase != Active {
			return phase("the root %s is %s and stands beside the one that signs: revoke it first, or go on with it", r.Pin, r.Phase)
		}
	}
	return nil
}

// Activated gives the phases after an order to sign with pin. Where it signs already nothing changes. Unless forced it is refused while one of
// leaves' holders has not been given a bundle with the root: what is signed with it would be refused there.
func Activated(now time.Time, roots []Root, leaves []Leaf, pin string, force bool) ([]Root, error) {
	i, err := find(roots, pin)
	if err != nil {
		return nil, err
	}
	out := slices.Clone(roots)
	switch out[i].Phase {
	case Active:
		return out, nil
	case Prepared, Old:
	default:
		return nil, phase("the root is %s: untaint it first", out[i].Phase)
	}
	if late := Unaware(now, leaves, pin); len(late) > 0 && !force {
		return nil, phase("not everybody believes the root yet: %s; see that they run and reach identity, or wait until their certificates end", some(late))
	}
	for j := range out {
		if out[j].Phase == Active {
			out[j].Phase, out[j].Signed = Old, now
		}
	}
	out[i].Phase, out[i].Signed, out[i].Since, out[i].Manual = Active, time.Time{}, now, false
	return out, nil
}

// WithTaint gives the phases after an order to taint pin, or to take that back. Where that is so already nothing changes.
func WithTaint(now time.Time, roots []Root, pin string, taint bool) ([]Root, error) {
	i, err := find(roots, pin)
	if err != nil {
		return nil, err
	}
	from, to := Old, Tainted
	if !taint {
		from, to = to, from
	}
	out := slices.Clone(roots)
	switch out[i].Phase {
	case to:
	case from:
		out[i].Phase = to
		if taint {
			out[i].Quiet = now
		}
	case Active:
		return nil, phase("the root signs: activate another one first")
	default:
		return nil, phase("the root is %s: only one that has signed is tainted", out[i].Phase)
	}
	return out, nil
}

// Revocable refuses to revoke pin while it signs or may do so again, and, unless forced, while something of it may be in use.
func Revocable(now time.Time, roots []Root, leaves []Leaf, pin string, w Waits, force bool) error {
	i, err := find(roots, pin)
	if err != nil {
		return err
	}
	r := roots[i]
	switch r.Phase {
	case Prepared:
	case Tainted:
	case Active:
		return phase("the root signs: activate another one first")
	default:
		return phase("the root is %s: taint it first, so that everybody who has a certificate of it renews", r.Phase)
	}
	if force {
		return nil
	}
	if held := Holding(now, leaves, pin); len(held) > 0 {
		return phase("certificates of the root are held: %s; wait for their renewal or end, or force it and they are refused", some(held))
	}
	if r.Phase == Prepared {
		return nil
	}
	// Whoever had a leaf of it may have connected with it at its end.
	until := later(r.Signed.Add(w.Run), quiet(r, leaves)).Add(w.Connection + Leeway)
	if now.Before(until) {
		return phase("connections and runs that hang on the root may stand until %s; wait, or force it and they are closed", until.UTC().Format(time.RFC3339))
	}
	return nil
}

// quiet is since when no connection is begun with a leaf of the root.
func quiet(r Root, leaves []Leaf) time.Time {
	at := r.Quiet
	for _, l := range leaves {
		if l.Pin == r.Pin && l.Expire.After(at) {
			at = l.Expire
		}
	}
	return at
}

// Holding are those who have a leaf of pin that has not ended.
func Holding(now time.Time, leaves []Leaf, pin string) (out []Leaf) {
	for _, l := range leaves {
		if l.Pin == pin && now.Before(l.Expire) {
			out = append(out, l)
		}
	}
	return out
}

// Unaware are the services that have a leaf, and were given it with a bundle in which pin is not.
func Unaware(now time.Time, leaves []Leaf, pin string) (out []Leaf) {
	for _, l := range services(now, leaves) {
		if !slices.Contains(l.Bundle, pin) {
			out = append(out, l)
		}
	}
	return out
}

// Believing are the services whose last bundle has pin.
func Believing(now time.Time, leaves []Leaf, pin string) (out []Leaf) {
	for _, l := range services(now, leaves) {
		if slices.Contains(l.Bundle, pin) {
			out = append(out, l)
		}
	}
	return out
}

// services are the leaves of services that have not ended.
func services(now time.Time, leaves []Leaf) (out []Leaf) {
	for _, l := range leaves {
		if strings.HasPrefix(l.Holder, "service/") && now.Before(l.Expire) {
			out = append(out, l)
		}
	}
	return out
}

func find(roots []Root, pin string) (int, error) {
	i := slices.IndexFunc(roots, func(r Root) bool { return r.Pin == pin })
	if pin == "" || i < 0 {
		return -1, fault.NotFound("there is no such root; `redoubt ca list` shows them")
	}
	return i, nil
}

// mostNamed bounds how many holders a refusal names.
const mostNamed = 8

func some(leaves []Leaf) string {
	var b strings.Builder
	for i, l := range leaves {
		if i == mostNamed {
			b.WriteString(", and others")
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(l.Holder + " (until " + l.Expire.UTC().Format(time.RFC3339) + ")")
	}
	return b.String()
}

func phase(format string, args ...any) error {
	return fault.FailedPrecondition(format, args...)
}
