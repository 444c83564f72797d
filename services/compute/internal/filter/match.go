package filter

import "math"

type operator uint8

const (
	eq operator = iota + 1
	ne
	lt
	le
	gt
	ge
	like
	iLike
	in
	notIn
	isNull
	isNotNull
)

// term is one condition.
type term struct {
	key     Key
	op      operator
	number  bool // value counts, not text
	value   float64
	text    string
	set     map[string]struct{}
	pattern pattern
}

// Record is what a filter looks at. Each says whether there is such a value.
type Record interface {
	Text(k Key) (string, bool)
	Number(k Key) (float64, bool)
}

// Filter is a parsed filter. The zero value fits everything.
type Filter struct{ terms []term }

// Match reports whether a record fits.
func (f Filter) Match(r Record) bool {
	for i := range f.terms {
		if !f.terms[i].match(r) {
			return false
		}
	}
	return true
}

// Empty reports whether it fits everything.
func (f Filter) Empty() bool { return len(f.terms) == 0 }

// Keys are the keys that it looks at.
func (f Filter) Keys() []Key {
	out := make([]Key, 0, len(f.terms))
	for i := range f.terms {
		out = append(out, f.terms[i].key)
	}
	return out
}

// Split parts a filter into the terms about keys for which is holds, and the others. What both fit, the filter fits.
func (f Filter) Split(is func(k Key) bool) (yes, no Filter) {
	for _, t := range f.terms {
		if is(t.key) {
			yes.terms = append(yes.terms, t)
		} else {
			no.terms = append(no.terms, t)
		}
	}
	return yes, no
}

// Range gives bounds, both inclusive, between which a number of every record that fits is. They are infinite where there are none.
func (f Filter) Range(k Key) (least, most float64) {
	least, most = math.Inf(-1), math.Inf(1)
	for _, t := range f.terms {
		if t.key != k || !t.number {
			continue
		}
		switch t.op {
		case eq:
			least, most = max(least, t.value), min(most, t.value)
		case gt, ge:
			least = max(least, t.value)
		case lt, le:
			most = min(most, t.value)
		}
	}
	return least, most
}

func (t *term) match(r Record) bool {
	if t.number {
		v, ok := r.Number(t.key)
		return ok && t.compare(v)
	}
	v, ok := r.Text(t.key)
	switch {
	case t.op == isNull:
		return !ok
	case !ok:
		return false
	}
	_, has := t.set[v]
	switch t.op {
	case eq:
		return v == t.text
	case ne:
		return v != t.text
	case like, iLike:
		return t.pattern.match(v)
	case in:
		return has
	case notIn:
		return !has
	case isNotNull:
		return true
	}
	return false
}

func (t *term) compare(v float64) bool {
	switch t.op {
	case eq:
		return v == t.value
	case ne:
		return v != t.value
	case lt:
		return v < t.value
	case le:
		return v <= t.value
	case gt:
		return v > t.value
	case ge:
		return v >= t.value
	}
	return false
}
