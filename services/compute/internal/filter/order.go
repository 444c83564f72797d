package filter

import (
	"cmp"
	"math"
)

// Order is keys to order by. The zero value is no order.
type Order struct{ by []by }

type by struct {
	key                Key
	number, descending bool
}

// Empty reports whether it orders nothing.
func (o Order) Empty() bool { return len(o.by) == 0 }

// Keys are the keys that it looks at, the one that counts most first.
func (o Order) Keys() []Key {
	out := make([]Key, 0, len(o.by))
	for _, b := range o.by {
		out = append(out, b.key)
	}
	return out
}

// Only reports whether it is by that one key alone, in that direction.
func (o Order) Only(k Key, descending bool) bool {
	return len(o.by) == 1 && o.by[0].key == k && o.by[0].descending == descending
}

// Place is where a record stands in an order. It is comparable with places of the same order only.
type Place struct{ values []value }

// value is a number or a text. after is 0 for one that there is, 1 for NaN, and 2 for what is missing.
type value struct {
	after  uint8
	number float64
	text   string
}

// Of reads the place of a record.
func (o Order) Of(r Record) Place {
	p := Place{make([]value, len(o.by))}
	for i, b := range o.by {
		v := &p.values[i]
		var ok bool
		if b.number {
			if v.number, ok = r.Number(b.key); math.IsNaN(v.number) {
				v.after, v.number = 1, 0
			}
		} else {
			v.text, ok = r.Text(b.key)
		}
		if !ok {
			*v = value{after: 2}
		}
	}
	return p
}

// Compare is less than 0 where a comes before b, and 0 where the order does not part them.
func (o Order) Compare(a, b Place) int {
	for i, by := range o.by {
		x, y := a.values[i], b.values[i]
		if c := cmp.Compare(x.after, y.after); c != 0 {
			return c
		}
		c := cmp.Compare(x.text, y.text)
		if by.number {
			c = cmp.Compare(x.number, y.number)
		}
		if by.descending {
			c = -c
		}
		if c != 0 {
			return c
		}
	}
	return 0
}
