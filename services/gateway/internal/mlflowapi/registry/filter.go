package registry

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/mlflow"
)

const (
	// mostConditions is how many conditions a filter of the registry has, mostTerms how many values a list in one has.
	mostConditions, mostTerms = 64, 1000
)

// fields are what a filter may ask about beside tags: true for numbers.
type fields map[string]bool

func modelFields() fields {
	return fields{"name": false, "creation_timestamp": true, "last_updated_timestamp": true}
}

func versionFields() fields {
	return fields{"name": false, "run_id": false, "source_path": false, "version_number": true, "creation_timestamp": true, "last_updated_timestamp": true}
}

// record is what a filter looks at: fields, as string or int64, and under "tags" the tags.
type record map[string]any

// condition is one comparison; all of them have to hold.
type condition struct {
	tag    bool
	name   string
	op     string // "=", "!=", "<", "<=", ">", ">=", "LIKE", "ILIKE", "IN"
	texts  []string
	number int64
}

// query is a search of the registry, read.
type query struct {
	conditions []condition
	order      []ordering
	size, from int
	digest     string
}

type ordering struct {
	name string
	down bool
}

// exactly gives the one value that a field is asked to have.
func (q *query) exactly(name string) (string, bool) {
	for _, c := range q.conditions {
		if !c.tag && c.name == name && c.op == "=" {
			return c.texts[0], true
		}
	}
	return "", false
}

// parse reads a search. The grammar is MLflow's: comparisons of fields and of tags.KEY, joined by AND.
func (s *search) parse(known fields) (*query, error) {
	q := &query{size: searchPage}
	if s.MaxResults != nil {
		if *s.MaxResults < 1 || *s.MaxResults > mostModels {
			return nil, mlflow.BadParameter("max_results is 1 to 10000")
		}
		q.size = int(*s.MaxResults)
	}
	p := &parser{rest: s.Filter}
	for p.skip(); p.rest != ""; p.skip() {
		if len(q.conditions) > 0 && !p.word("AND") {
			return nil, p.wrong("conditions are joined by AND")
		}
		c, err := p.condition(known)
		if err != nil {
			return nil, err
		}
		if q.conditions = append(q.conditions, c); len(q.conditions) > mostConditions {
			return nil, p.wrong("a filter has at most 64 conditions")
		}
	}
	for _, o := range s.OrderBy {
		parts := strings.Fields(o)
		down := len(parts) == 2 && strings.EqualFold(parts[1], "DESC")
		if len(parts) == 0 || len(parts) > 2 || len(parts) == 2 && !down && !strings.EqualFold(parts[1], "ASC") {
			return nil, mlflow.BadParameter(`order_by is a list of fields, each with ASC or DESC behind it or not`)
		}
		name := strings.TrimPrefix(parts[0], "attribute.")
		if name == "timestamp" {
			name = "last_updated_timestamp"
		}
		if _, ok := known[name]; !ok {
			return nil, mlflow.BadParameter("order_by knows " + known.names())
		}
		q.order = append(q.order, ordering{name, down})
	}
	sum := sha256.Sum256([]byte(strings.Join(append([]string{s.Filter}, s.OrderBy...), "\x00")))
	q.digest = hex.EncodeToString(sum[:8])
	if s.PageToken == "" {
		return q, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(s.PageToken)
	from, digest, ok := strings.Cut(string(raw), ".")
	if q.from, _ = strconv.Atoi(from); err != nil || !ok || digest != q.digest || q.from < 1 {
		return nil, mlflow.BadParameter("page_token is not one of this search")
	}
	return q, nil
}

func (f fields) names() string {
	var all []string
	for n := range f {
		all = append(all, n)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// parser reads a filter from the front. Each byte is looked at a bounded number of times.
type parser struct{ rest string }

func (p *parser) wrong(what string) error {
	at := p.rest
	if len(at) > 40 {
		at = at[:40] + "…"
	}
	return mlflow.BadParameter(fmt.Sprintf("the filter cannot be read at %q: %s", at, what))
}

func (p *parser) skip() { p.rest = strings.TrimLeft(p.rest, " \t\r\n") }

// word takes a keyword.
func (p *parser) word(w string) bool {
	if len(p.rest) < len(w) || !strings.EqualFold(p.rest[:len(w)], w) || len(p.rest) > len(w) && plainByte(p.rest[len(w)]) {
		return false
	}
	p.rest = p.rest[len(w):]
	p.skip()
	return true
}

func plainByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '.' || c == '-' || c == '/'
}

// plain takes a run of letters, digits and the like.
func (p *parser) plain() string {
	n := 0
	for n < len(p.rest) && plainByte(p.rest[n]) {
		n++
	}
	w := p.rest[:n]
	p.rest = p.rest[n:]
	return w
}

// quoted takes what stands between one of the quotes and its like.
func (p *parser) quoted(quotes string) (string, bool) {
	if p.rest == "" || strings.IndexByte(quotes, p.rest[0]) < 0 {
		return "", false
	}
	end := strings.IndexByte(p.rest[1:], p.rest[0])
	if end < 0 {
		return "", false
	}
	s := p.rest[1 : end+1]
	p.rest = p.rest[end+2:]
	return s, true
}

func (p *parser) condition(known fields) (condition, error) {
	c := condition{}
	c.name = strings.TrimPrefix(p.plain(), "attribute.")
	for _, prefix := range []string{"tags.", "tag."} {
		if key, ok := strings.CutPrefix(c.name, prefix); ok {
			if c.tag, c.name = true, key; key == "" {
				if c.name, ok = p.quoted("`\""); !ok {
					return c, p.wrong("a tag is tags.KEY or tags.`KEY`")
				}
			}
			break
		}
	}
	number, ok := known[c.name]
	if !ok && !c.tag {
		return c, p.wrong("a condition begins with tags.KEY, " + known.names())
	}
	number = number && !c.tag
	p.skip()
	for _, op := range []string{"!=", "<=", ">=", "=", "<", ">"} {
		if rest, ok := strings.CutPrefix(p.rest, op); ok {
			c.op, p.rest = op, rest
			break
		}
	}
	for _, op := range []string{"LIKE", "ILIKE", "IN"} {
		if c.op == "" && p.word(op) {
			c.op = op
		}
	}
	p.skip()
	switch {
	case number && c.op != "" && strings.Contains("!=<=>=", c.op):
		n, err := strconv.ParseInt(p.plain(), 10, 64)
		if err != nil {
			return c, p.wrong(c.name + " is compared with a whole number")
		}
		c.number = n
		return c, nil
	case number, c.op == "", c.op != "!=" && strings.ContainsAny(c.op, "<>"):
		return c, p.wrong("numbers are compared by = != < <= > >=, texts by = != LIKE ILIKE IN")
	case c.op == "IN":
		return p.list(c)
	}
	s, ok := p.quoted(`'"`)
	if !ok {
		return c, p.wrong("a text stands between quotes")
	}
	c.texts = []string{s}
	return c, nil
}

// list takes ('a', 'b').
func (p *parser) list(c condition) (condition, error) {
	rest, ok := strings.CutPrefix(p.rest, "(")
	for p.rest = rest; ok && len(c.texts) <= mostTerms; {
		p.skip()
		s, quoted := p.quoted(`'"`)
		if !quoted {
			break
		}
		c.texts = append(c.texts, s)
		p.skip()
		if rest, end := strings.CutPrefix(p.rest, ")"); end {
			p.rest = rest
			return c, nil
		}
		p.rest, ok = strings.CutPrefix(p.rest, ",")
	}
	return c, p.wrong("a list is ('a', 'b'), of at most 1000 texts")
}

func (c *condition) holds(r record) bool {
	if c.tag {
		tags, _ := r["tags"].(map[string]string)
		v, ok := tags[c.name]
		return ok && c.text(v)
	}
	switch v := r[c.name].(type) {
	case string:
		return c.text(v)
	case int64:
		switch n := cmp.Compare(v, c.number); c.op {
		case "=":
			return n == 0
		case "!=":
			return n != 0
		case "<":
			return n < 0
		case "<=":
			return n <= 0
		case ">":
			return n > 0
		case ">=":
			return n >= 0
		}
	}
	return false
}

func (c *condition) text(v string) bool {
	switch c.op {
	case "!=":
		return v != c.texts[0]
	case "LIKE":
		return like(c.texts[0], v)
	case "ILIKE":
		return like(strings.ToLower(c.texts[0]), strings.ToLower(v))
	}
	return slices.Contains(c.texts, v)
}

// like matches SQL's pattern: % for any text, _ for one character. It goes back to the last % only, so it takes at most len(pattern) ×
// len(text) steps.
func like(pattern, text string) bool {
	p, s := []rune(pattern), []rune(text)
	i, j, star, mark := 0, 0, -1, 0
	for j < len(s) {
		switch {
		case i < len(p) && p[i] == '%':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '_' || p[i] == s[j]):
			i, j = i+1, j+1
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '%' {
		i++
	}
	return i == len(p)
}

// pick gives the page of those that a query asks for, and the token of the next.
func pick[T any](q *query, all []T, of func(T) record) (found []T, next string) {
	type item struct {
		value T
		record
	}
	var fit []item
	for _, v := range all {
		r := of(v)
		if !slices.ContainsFunc(q.conditions, func(c condition) bool { return !c.holds(r) }) {
			fit = append(fit, item{v, r})
		}
	}
	order := append(slices.Clone(q.order), ordering{"name", false}, ordering{"version_number", true})
	slices.SortStableFunc(fit, func(a, b item) int {
		for _, o := range order {
			n := compare(a.record[o.name], b.record[o.name])
			if o.down {
				n = -n
			}
			if n != 0 {
				return n
			}
		}
		return 0
	})
	for i := min(q.from, len(fit)); i < len(fit); i++ {
		if len(found) == q.size {
			return found, base64.RawURLEncoding.EncodeToString([]byte(strconv.Itoa(i) + "." + q.digest))
		}
		found = append(found, fit[i].value)
	}
	return found, ""
}

func compare(a, b any) int {
	switch x := a.(type) {
	case string:
		y, _ := b.(string)
		return cmp.Compare(x, y)
	case int64:
		y, _ := b.(int64)
		return cmp.Compare(x, y)
	}
	return 0
}
