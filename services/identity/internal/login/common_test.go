package login

import (
	"slices"
	"strings"
	"testing"
)

func TestCommonPasswords(t *testing.T) { // A1
	for _, p := range []string{
		"password1234", "Password2024!", "P@ssw0rd1234", "passwordpassword", "welcome12345", "WelcomeWelcome1", "qwertyuiop12", "1q2w3e4r5t6y", "qwerty123456",
		"123456789012", "098765432109", "aaaaaaaaaaaa", "abcabcabcabc", "abcdefghijkl", "letmein!letmein!", "iloveyou1234", "Summer2026!!!", "admin-admin-admin",
		"zaq1xsw2cde3", "asdfghjkl;'1", "redoubt-redoubt", "ada-lovelace1", "adalovelace2026", "lovelace12345", "changeme1234", "M0nk3yDr4g0n!", "ｐａｓｓｗｏｒｄ１２３４",
		"secret secret 1", "12.12.1999 12.12.1999", "hunter222222",
	} {
		if !Common(p, "ada-lovelace") {
			t.Errorf("%q is taken", p)
		}
	}
	for _, p := range []string{
		"correct horse", "correct horse battery staple", "a good password", "another password", "password of alice", "tulpen im regen 7", "kx7-Vq2m-pLw9", "ñandú y armadillo",
		"пароль из слов", "mauve trapeze", "pw_k3j5n2bq7xyz",
	} {
		if Common(p, "ada-lovelace") {
			t.Errorf("%q is refused", p)
		}
	}
}

func TestTheListIsKept(t *testing.T) {
	var words []string
	for line := range strings.Lines(commonText) {
		w := strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(w, "#") {
			continue
		}
		if len(w) < 3 || len(w) > longestCommon || strings.Trim(w, "abcdefghijklmnopqrstuvwxyz") != "" {
			t.Errorf("%q is no word of letters", w)
		}
		words = append(words, w)
	}
	if !slices.IsSorted(words) || len(slices.Compact(slices.Clone(words))) != len(words) {
		t.Error("the list is not in order, or has a word twice")
	}
}
