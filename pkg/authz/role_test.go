package authz

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestMatch(t *testing.T) {
	cases := []struct {
		pattern, s string
		want       bool
	}{
		{"*", "a/b/c", true},
		{"*", "", true}, // the engine refuses the empty action before
		{"a/b/c", "a/b/c", true},
		{"a/b/c", "A/b/C", true},
		{"a/b/c", "a/b/cc", false},
		{"a/b/cc", "a/b/c", false},
		{"*/read", "a/b/read", true},
		{"*/read", "a/b/c/d/Read", true},
		{"*/read", "/read", true},
		{"*/read", "read", false},
		{"*/read", "a/b/reads", false},
		{"*/read", "a/read/b", false},
		{"*/read", "a/bread", false},
		{"a/*", "a/b/c", true},
		{"a/*", "a/", true},
		{"a/*", "a", false},
		{"a/*", "ab/c", false},
		{"a/*/read", "a/b/c/read", true},
		{"a/*/read", "a/read", false},
		{"a/*/read", "a//read", true},
		{"*b*", "abc", true},
		{"*b*", "ac", false},
		{"a*a", "a", false},
		{"a*a", "aa", true},
		{"**a**", "bab", true},
		{"*ab", "aab", true},
		{"*aab", "aaab", true},
		{"k", "\u212a", false}, // the Kelvin sign folds to k elsewhere
		{"s", "\u017f", false},
		{"a/b", "a/b\x00", false},
		{"a/b/c", "a/b/\u0441", false},
		{"", "", true},
		{"", "a", false},
	}
	for _, c := range cases {
		if got := match(c.pattern, c.s); got != c.want {
			t.Errorf("%q, %q: %v", c.pattern, c.s, got)
		}
		if got := match(c.pattern, []byte(c.s)); got != c.want {
			t.Errorf("%q, bytes of %q: %v", c.pattern, c.s, got)
		}
	}
}

func TestNoRoleGivesTheEmptyAction(t *testing.T) {
	for _, def := range BuiltinRoles() {
		if RoleAllows(def, "", false) || RoleAllows(def, "", true) {
			t.Errorf("%s gives it", def.GetName())
		}
	}
}

// matcher is the meaning of a pattern a second time: a regular expression.
func matcher(pattern string) *regexp.Regexp {
	var b strings.Builder
	for _, c := range pattern {
		switch {
		case c == '*':
			b.WriteString(`(?s:.*)`)
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z':
			b.WriteString("[" + strings.ToLower(string(c)) + strings.ToUpper(string(c)) + "]")
		default:
			b.WriteString(regexp.QuoteMeta(string(c)))
		}
	}
	return regexp.MustCompile(`\A` + b.String() + `\z`)
}

func TestMatchIsWhatTheExpressionSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`[abAB/*]{0,12}`).Draw(t, "pattern")
		s := rapid.StringMatching(`[abABk/\x{212a}]{0,12}`).Draw(t, "s")
		if got, want := match(strings.ToLower(pattern), s), matcher(pattern).MatchString(s); got != want {
			t.Fatalf("%q, %q: %v, the expression says %v", pattern, s, got, want)
		}
	})
}

func TestMatchHasNoCliff(t *testing.T) {
	pattern := strings.Repeat("*a", MaxPatternBytes/2-1) + "*b"
	s := strings.Repeat("a", maxAction)
	best := time.Hour
	for range 50 {
		start := time.Now()
		if match(pattern, s) {
			t.Fatal("it matches")
		}
		best = min(best, time.Since(start))
	}
	if best > time.Millisecond {
		t.Errorf("the worst pattern takes %v", best)
	}
}

func TestValidPattern(t *testing.T) {
	for _, s := range []string{"*", "a/b/c", "Compute/*/Read", strings.Repeat("a", MaxPatternBytes)} {
		if !ValidPattern(s) {
			t.Errorf("%q is refused", s)
		}
	}
	for _, s := range []string{"", " ", "a b", "a/b\x00", "a\n", "\u212a", "\u00e9", "a.b", "a?b", "[a]", "a\\b", strings.Repeat("a", MaxPatternBytes+1)} {
		if ValidPattern(s) {
			t.Errorf("%q is taken", s)
		}
	}
}
