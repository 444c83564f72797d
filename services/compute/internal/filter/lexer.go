package filter

import (
	"strings"
	"unicode/utf8"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// sort is what a token is.
type sort uint8

const (
	end sort = iota
	word
	text   // in single quotes
	quoted // in double quotes: text, or a key
	ticked // in backticks: a key
	sign   // a comparator, a parenthesis or a comma
)

// token is one piece of a filter. Its text is without quotes.
type token struct {
	sort sort
	text string
	at   int // in bytes, from 0
}

// is compares a word without regard to case.
func (t token) is(keyword string) bool { return t.sort == word && strings.EqualFold(t.text, keyword) }

// lexer cuts a text into tokens.
type lexer struct {
	field, in string
	at        int
}

// bad is an error about the place.
func (l *lexer) bad(at int, format string, args ...any) error {
	// Characters are counted as a reader does, from 1.
	place := utf8.RuneCountInString(l.in[:min(at, len(l.in))]) + 1
	e := fault.InvalidArgument(format, args...)
	return fault.InvalidArgument("%s, character %d: %s", l.field, place, e.Message()).Field(l.field, e.Message())
}

func wordByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c >= utf8.RuneSelf || strings.IndexByte("_./-+:@$#", c) >= 0
}

func (l *lexer) next() (token, error) {
	for l.at < len(l.in) && strings.IndexByte(" \t\r\n", l.in[l.at]) >= 0 {
		l.at++
	}
	at := l.at
	if at == len(l.in) {
		return token{end, "", at}, nil
	}
	switch c := l.in[at]; {
	case wordByte(c):
		for l.at < len(l.in) && wordByte(l.in[l.at]) {
			l.at++
		}
		return token{word, l.in[at:l.at], at}, nil
	case c == '\'':
		return l.quoted(text)
	case c == '"':
		return l.quoted(quoted)
	case c == '`':
		return l.quoted(ticked)
	case strings.IndexByte("(),", c) >= 0:
		l.at++
		return token{sign, l.in[at:l.at], at}, nil
	case strings.IndexByte("=!<>", c) >= 0:
		for l.at < len(l.in) && strings.IndexByte("=!<>", l.in[l.at]) >= 0 {
			l.at++
		}
		return token{sign, l.in[at:l.at], at}, nil
	}
	return token{}, l.bad(at, "a sign that does not belong there; a key with it stands in double quotes, a text in single ones")
}

// quoted reads up to the closing quote; a quote twice is one of the text.
func (l *lexer) quoted(s sort) (token, error) {
	at, q := l.at, l.in[l.at:l.at+1]
	var b strings.Builder
	for l.at++; ; {
		n := strings.Index(l.in[l.at:], q)
		if n < 0 {
			return token{}, l.bad(at, "a quote that is not closed")
		}
		b.WriteString(l.in[l.at : l.at+n])
		l.at += n + 1
		if l.at == len(l.in) || l.in[l.at] != q[0] {
			return token{s, b.String(), at}, nil
		}
		b.WriteString(q)
		l.at++
	}
}
