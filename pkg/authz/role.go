package authz

import (
	"strings"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
)

// Bounds of a role definition. A role that is past one gives nothing.
const (
	MaxPatternBytes = 128
	MaxPatterns     = 256
)

// role is a compiled role definition.
type role struct {
	name                               string
	actions, notActions, data, notData []string // lower case
}

// compile makes a role of its definition. Where a pattern is malformed the role gives nothing: a not-list that could not be
// read might have taken anything away.
func compile(def *workspacev1.RoleDefinition) *role {
	r := &role{name: def.GetName()}
	for _, list := range []struct {
		from []string
		to   *[]string
	}{
		{def.GetActions(), &r.actions}, {def.GetNotActions(), &r.notActions},
		{def.GetDataActions(), &r.data}, {def.GetNotDataActions(), &r.notData},
	} {
		if len(list.from) > MaxPatterns {
			return &role{name: def.GetName()}
		}
		for _, p := range list.from {
			if !ValidPattern(p) {
				return &role{name: def.GetName()}
			}
			*list.to = append(*list.to, strings.ToLower(p))
		}
	}
	return r
}

// ValidPattern reports whether s can stand in a role definition: letters and digits of ASCII, "/" and "*", at most
// MaxPatternBytes.
func ValidPattern(s string) bool {
	if s == "" || len(s) > MaxPatternBytes {
		return false
	}
	for i := range len(s) {
		if c := fold(s[i]); (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '/' && c != '*' {
			return false
		}
	}
	return true
}

// RoleAllows reports whether a role definition by itself gives an action, as a data action if data. It is for tables and
// explanations; decisions are the Engine's.
func RoleAllows(def *workspacev1.RoleDefinition, action string, data bool) bool {
	return allows(compile(def), action, data)
}

// text is what actions are given as; the bytes are for those that are put together for one look.
type text interface{ string | []byte }

// allows reports whether the role gives the action.
func allows[S text](r *role, action S, data bool) bool {
	yes, no := r.actions, r.notActions
	if data {
		yes, no = r.data, r.notData
	}
	return len(action) > 0 && matchAny(yes, action) && !matchAny(no, action)
}

func matchAny[S text](patterns []string, s S) bool {
	for _, p := range patterns {
		if match(p, s) {
			return true
		}
	}
	return false
}

// match reports whether s is of the pattern, which is in lower case: "*" stands for any characters or none.
func match[S text](pattern string, s S) bool {
	star, from := -1, 0 // where to go on when what follows the last "*" does not fit
	p := 0
	for i := 0; i < len(s); {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, i
			p++
			if p == len(pattern) {
				return true
			}
		case p < len(pattern) && pattern[p] == fold(s[i]):
			p++
			i++
		case star >= 0:
			from++
			p, i = star+1, from
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// fold makes ASCII letters lower case, and nothing else.
func fold(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + ('a' - 'A')
	}
	return c
}
