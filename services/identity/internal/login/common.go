package login

import (
	_ "embed"
	"strings"
	"sync"
	"unicode"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

//go:embed common.txt
var commonText string

// commonWords are those of common.txt.
var commonWords = sync.OnceValue(func() map[string]bool {
	words := make(map[string]bool)
	for line := range strings.Lines(commonText) {
		if word := strings.TrimSpace(line); word != "" && word[0] != '#' {
			words[word] = true
		}
	}
	return words
})

// longestCommon bounds a word of common.txt, in bytes.
const longestCommon = 16

// leet are signs that stand for letters in passwords. Where one stands for two letters, both are tried.
var leet = []*strings.Replacer{
	strings.NewReplacer("0", "o", "1", "l", "3", "e", "4", "a", "5", "s", "7", "t", "8", "b", "9", "g", "@", "a", "$", "s", "!", "i", "|", "l", "+", "t"),
	strings.NewReplacer("0", "o", "1", "i", "3", "e", "4", "a", "5", "s", "7", "t", "8", "b", "9", "g", "@", "a", "$", "s", "!", "l", "|", "i", "+", "t"),
	strings.NewReplacer(), // as it stands
}

// rows are what fingers walk along, in either direction.
var rows = []string{
	"abcdefghijklmnopqrstuvwxyzabcdef", "01234567890123456789", "qwertyuiop[]", "asdfghjkl;'", "zxcvbnm,./", "qwertzuiop", "yxcvbnm,.-", "azertyuiop", "qsdfghjklm", "wxcvbn,;:",
	"!@#$%^&*()_+", "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik,9ol.0p;/", "qazwsxedcrfvtgbyhnujmikolp", "1q2w3e4r5t6y7u8i9o0p", "q1w2e3r4t5y6u7i8o9p0",
}

// Common reports whether a password is one of those that are tried first: one that has nothing in it but words of common.txt, parts of
// the user's name, walks along rows of keys, the same again and again, years and other digits, and signs. Case, and signs for letters,
// make no difference. It is asked of passwords that are to be set (NIST SP 800-63B section 3.1.1.2), which are long enough already.
func Common(password, userID string) bool {
	p := cases.Fold().String(norm.NFKC.String(password))
	if repeats(p) {
		return true
	}
	parts := map[string]bool{userID: true, strings.ReplaceAll(userID, "-", ""): true}
	for part := range strings.SplitSeq(userID, "-") {
		parts[part] = true
	}
	for _, r := range leet {
		if !rest(r.Replace(p), p, parts) {
			return true
		}
	}
	return false
}

// repeats reports whether s is one piece of at most a third of it, again and again.
func repeats(s string) bool {
	runes := []rune(s)
	for period := 1; period <= len(runes)/3; period++ {
		same := true
		for i := period; i < len(runes) && same; i++ {
			same = runes[i] == runes[i-period]
		}
		if same {
			return true
		}
	}
	return false
}

// rest reports whether letters are left of a password when all that is common was taken out of it. read is how it is read, plain how it
// was typed; of one sign each they have the same length in bytes.
func rest(read, plain string, own map[string]bool) bool {
	if len(read) != len(plain) {
		read = plain
	}
	words := commonWords()
	n := len(read)
	covered := make([]bool, n+1) // covered[i]: all before i is common
	covered[0] = true
	for i := range n {
		if !covered[i] {
			continue
		}
		if c := rune(plain[i]); c < 0x80 && !unicode.IsLetter(c) {
			covered[i+1] = true
		}
		for l := 3; l <= min(n-i, max(longestCommon, 64)); l++ {
			part := read[i : i+l]
			if l <= longestCommon && words[part] || own[part] || walk(plain[i:i+l]) || l >= 4 && repeats(part) {
				covered[i+l] = true
			}
		}
	}
	return !covered[n]
}

// walk reports whether s runs along a row of keys, of the alphabet or of the digits, at least four of them.
func walk(s string) bool {
	if len(s) < 4 {
		return false
	}
	for _, row := range rows {
		if strings.Contains(row, s) || strings.Contains(row, reverse(s)) {
			return true
		}
	}
	return false
}

func reverse(s string) string {
	b := []byte(s)
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	return string(b)
}
