package filter

import (
	"strings"
	"unicode/utf8"
)

// pattern is a LIKE: % stands for any text, _ for one character, and nothing else is special.
type pattern struct {
	parts []part // between the signs %; the first begins the text, and the last ends it
	fold  bool
}

func newPattern(s string, fold bool) pattern {
	if fold {
		s = strings.ToLower(s)
	}
	p := pattern{fold: fold}
	for in := range strings.SplitSeq(s, "%") {
		p.parts = append(p.parts, newPart(in))
	}
	return p
}

func (p pattern) match(s string) bool {
	if p.fold {
		s = strings.ToLower(s)
	}
	n, ok := p.parts[0].begins(s)
	if !ok {
		return false
	}
	if len(p.parts) == 1 {
		return n == len(s)
	}
	s = s[n:]
	// The leftmost place for each part leaves the most for those that follow.
	for _, part := range p.parts[1 : len(p.parts)-1] {
		n, ok := part.find(s)
		if !ok {
			return false
		}
		s = s[n:]
	}
	return p.parts[len(p.parts)-1].ends(s)
}

// part is what stands between two signs %. One with _ is looked for with one bit for each of its characters, so that the time is
// bounded by the length of the text times a 64th of its own.
type part struct {
	text  string
	runes int
	fits  map[rune][]uint64 // the bits of the places where a character fits; nil where there is no _
	any   []uint64          // the bits of _
}

func newPart(text string) part {
	p := part{text: text, runes: utf8.RuneCountInString(text)}
	if strings.IndexByte(text, '_') < 0 {
		return p
	}
	words := (p.runes + 63) / 64
	p.any, p.fits = make([]uint64, words), make(map[rune][]uint64)
	i := 0
	for _, c := range text {
		if c == '_' {
			p.any[i/64] |= 1 << (i % 64)
		} else {
			if p.fits[c] == nil {
				p.fits[c] = make([]uint64, words)
			}
			p.fits[c][i/64] |= 1 << (i % 64)
		}
		i++
	}
	for _, bits := range p.fits {
		for i := range bits {
			bits[i] |= p.any[i]
		}
	}
	return p
}

// begins reports whether s begins with the part, and how many bytes of s that is.
func (p part) begins(s string) (int, bool) {
	at := 0
	for _, c := range p.text {
		r, n := utf8.DecodeRuneInString(s[at:])
		if n == 0 || c != '_' && c != r {
			return 0, false
		}
		at += n
	}
	return at, true
}

// ends reports whether s ends with the part.
func (p part) ends(s string) bool {
	at := len(s)
	for range p.runes {
		_, n := utf8.DecodeLastRuneInString(s[:at])
		if n == 0 {
			return false
		}
		at -= n
	}
	n, ok := p.begins(s[at:])
	return ok && at+n == len(s)
}

// find gives the end of the leftmost place of the part.
func (p part) find(s string) (int, bool) {
	if p.fits == nil {
		n := strings.Index(s, p.text)
		return n + len(p.text), n >= 0
	}
	// Bit i of state says that the last i+1 characters are the first i+1 of the part.
	state := make([]uint64, len(p.any))
	last, full := (p.runes-1)/64, uint64(1)<<((p.runes-1)%64)
	for at := 0; at < len(s); {
		c, n := utf8.DecodeRuneInString(s[at:])
		at += n
		fits, ok := p.fits[c]
		if !ok {
			fits = p.any
		}
		carry := uint64(1)
		for i, bits := range state {
			state[i] = (bits<<1 | carry) & fits[i]
			carry = bits >> 63
		}
		if state[last]&full != 0 {
			return at, true
		}
	}
	return 0, false
}
