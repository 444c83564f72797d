package filter

import (
	"strconv"
	"strings"
)

// Bounds of a filter.
const (
	MaxTerms   = 1000
	MaxValues  = 10_000 // of all lists
	MaxPattern = 1024   // bytes, of one LIKE
	MaxKey     = 250    // bytes
)

// parser reads one filter, or one key to order by.
type parser struct {
	lexer
	schema Schema
	tok    token // the one that is looked at
	values int
}

func newParser(field, in string, s Schema) (*parser, error) {
	p := &parser{lexer: lexer{field: field, in: in}, schema: s}
	return p, p.step()
}

func (p *parser) step() error {
	var err error
	p.tok, err = p.lexer.next()
	return err
}

// Parse reads a filter. An empty one fits everything. field is what an error names.
func Parse(field, in string, s Schema) (Filter, error) {
	p, err := newParser(field, in, s)
	if err != nil {
		return Filter{}, err
	}
	var f Filter
	for p.tok.sort != end {
		if len(f.terms) > 0 {
			if err := p.and(); err != nil {
				return Filter{}, err
			}
		}
		if len(f.terms) == MaxTerms {
			return Filter{}, p.bad(p.tok.at, "more than %d terms; ask in parts", MaxTerms)
		}
		t, err := p.term()
		if err != nil {
			return Filter{}, err
		}
		f.terms = append(f.terms, t)
	}
	return f, nil
}

func (p *parser) and() error {
	switch {
	case p.tok.is("AND"):
		return p.step()
	case p.tok.is("OR"):
		return p.bad(p.tok.at, "terms are joined by AND only; ask once for each of the alternatives")
	}
	return p.bad(p.tok.at, "AND is missing between two terms")
}

// key reads a key: entity, dot and name, or the name of an attribute.
func (p *parser) key() (Key, error) {
	t := p.tok
	if t.sort != word && t.sort != quoted && t.sort != ticked {
		return Key{}, p.bad(t.at, "a key is missing; %s", p.schema.wanted())
	}
	if err := p.step(); err != nil {
		return Key{}, err
	}
	e, name := Attribute, t.text
	if first, rest, dotted := strings.Cut(t.text, "."); t.sort == word && dotted {
		var ok bool
		if e, ok = p.schema.entity(first); !ok {
			return Key{}, p.bad(t.at, "there is no such entity; %s", p.schema.wanted())
		}
		// Only what follows the dot at once is its quoted name.
		if name = rest; rest == "" && p.tok.at == t.at+len(t.text) && (p.tok.sort == quoted || p.tok.sort == ticked) {
			name = p.tok.text
			if err := p.step(); err != nil {
				return Key{}, err
			}
		}
	}
	if len(name) > MaxKey {
		return Key{}, p.bad(t.at, "a key has at most %d bytes", MaxKey)
	}
	k, ok := p.schema.key(e, name)
	if !ok {
		return Key{}, p.bad(t.at, "there is no such key; %s", p.schema.wanted())
	}
	return k, nil
}

func (p *parser) term() (term, error) {
	k, err := p.key()
	if err != nil {
		return term{}, err
	}
	t, at := term{key: k, number: p.schema.number(k)}, p.tok.at
	if t.op, err = p.operator(); err != nil {
		return term{}, err
	}
	switch t.op {
	case isNull, isNotNull:
		if k.Entity != Param && k.Entity != Tag {
			return term{}, p.bad(at, "IS NULL and IS NOT NULL are for params and tags")
		}
		return t, nil
	case in, notIn:
		if t.number {
			return term{}, p.bad(at, "numbers are compared by = != > >= < <=")
		}
		return t, p.list(&t)
	case like, iLike:
		if t.number {
			return term{}, p.bad(at, "numbers are compared by = != > >= < <=")
		}
	case lt, le, gt, ge:
		if !t.number {
			return term{}, p.bad(at, "text is compared by = != LIKE ILIKE IN NOT IN")
		}
	}
	if t.number {
		return t, p.numeric(&t)
	}
	at = p.tok.at
	if t.text, err = p.literal(); err != nil {
		return term{}, err
	}
	if t.op == like || t.op == iLike {
		if len(t.text) > MaxPattern {
			return term{}, p.bad(at, "a pattern has at most %d bytes", MaxPattern)
		}
		t.pattern = newPattern(t.text, t.op == iLike)
	}
	return t, nil
}

const operators = "a comparator is = != > >= < <= LIKE ILIKE IN NOT IN IS NULL IS NOT NULL"

func (p *parser) operator() (operator, error) {
	t := p.tok
	if err := p.step(); err != nil {
		return 0, err
	}
	if t.sort == sign {
		for op, s := range map[operator]string{eq: "=", ne: "!=", lt: "<", le: "<=", gt: ">", ge: ">="} {
			if t.text == s {
				return op, nil
			}
		}
		return 0, p.bad(t.at, operators)
	}
	switch {
	case t.is("LIKE"):
		return like, nil
	case t.is("ILIKE"):
		return iLike, nil
	case t.is("IN"):
		return in, nil
	case t.is("NOT") && p.tok.is("IN"):
		return notIn, p.step()
	case t.is("IS") && p.tok.is("NULL"):
		return isNull, p.step()
	case t.is("IS") && p.tok.is("NOT"):
		if err := p.step(); err != nil {
			return 0, err
		}
		if p.tok.is("NULL") {
			return isNotNull, p.step()
		}
	}
	return 0, p.bad(t.at, operators)
}

// literal reads a text.
func (p *parser) literal() (string, error) {
	t := p.tok
	if t.sort != text && t.sort != quoted {
		return "", p.bad(t.at, "a text in quotes is missing")
	}
	return t.text, p.step()
}

func (p *parser) numeric(t *term) error {
	tok := p.tok
	if tok.sort != word || strings.Trim(tok.text, "0123456789+-.eE") != "" {
		return p.bad(tok.at, "a number without quotes is missing")
	}
	n, err := strconv.ParseFloat(tok.text, 64)
	if err != nil {
		return p.bad(tok.at, "a number that cannot be read, or is out of range")
	}
	t.value = n
	return p.step()
}

// list reads texts in parentheses.
func (p *parser) list(t *term) error {
	if t.set = make(map[string]struct{}); p.tok.sort != sign || p.tok.text != "(" {
		return p.bad(p.tok.at, "a list in parentheses is missing")
	}
	for {
		if err := p.step(); err != nil {
			return err
		}
		if p.values++; p.values > MaxValues {
			return p.bad(p.tok.at, "more than %d values in lists; ask in parts", MaxValues)
		}
		s, err := p.literal()
		if err != nil {
			return err
		}
		t.set[s] = struct{}{}
		if p.tok.sort == sign && p.tok.text == ")" {
			return p.step()
		}
		if p.tok.sort != sign || p.tok.text != "," {
			return p.bad(p.tok.at, "a comma or a closing parenthesis is missing")
		}
	}
}

// ParseOrder reads keys to order by, the most important first: "metrics.loss ASC", "attributes.start_time DESC". Without a direction it
// is ASC.
func ParseOrder(field string, keys []string, s Schema) (Order, error) {
	var o Order
	for _, in := range keys {
		p, err := newParser(field, in, s)
		if err != nil {
			return Order{}, err
		}
		k, err := p.key()
		if err != nil {
			return Order{}, err
		}
		by := by{key: k, number: s.number(k)}
		if by.descending = p.tok.is("DESC"); by.descending || p.tok.is("ASC") {
			if err := p.step(); err != nil {
				return Order{}, err
			}
		}
		if p.tok.sort != end {
			return Order{}, p.bad(p.tok.at, "after a key come ASC, DESC or nothing")
		}
		o.by = append(o.by, by)
	}
	return o, nil
}
