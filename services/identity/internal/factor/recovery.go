package factor

import (
	"crypto/rand"
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	recoveryCodes   = 10
	recoveryLetters = 20 // of five bits each
	recoveryGroup   = 5
)

// alphabet is Crockford's: no letter of it is taken for another sign of it.
const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// NewRecoveryCodes makes ten codes of 100 random bits, in the form that Recovery gives. Show is how they are shown.
func NewRecoveryCodes() []redact.Secret {
	out := make([]redact.Secret, recoveryCodes)
	for i := range out {
		b := make([]byte, recoveryLetters)
		_, _ = rand.Read(b) // crypto/rand never fails
		for j := range b {
			b[j] = alphabet[b[j]&31]
		}
		out[i] = redact.New(b)
	}
	return out
}

// Show is a recovery code as people read it.
func Show(code redact.Secret) string {
	s := code.RevealString()
	var b strings.Builder
	for i := 0; i < len(s); i += recoveryGroup {
		if i > 0 {
			b.WriteByte('-')
		}
		b.WriteString(s[i:min(i+recoveryGroup, len(s))])
	}
	return b.String()
}

// maxTyped bounds what is read of a recovery code, in bytes.
const maxTyped = 64

// Recovery reads a typed recovery code: case, spaces and hyphens make no difference, nor does o for 0, and i or l for 1. ok is false for
// what is none by its form.
func Recovery(typed string) (code redact.Secret, ok bool) {
	if len(typed) > maxTyped {
		return redact.Secret{}, false
	}
	out := make([]byte, 0, recoveryLetters)
	for i := range len(typed) {
		c := typed[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		switch c {
		case ' ', '-':
			continue
		case 'o':
			c = '0'
		case 'i', 'l':
			c = '1'
		}
		if strings.IndexByte(alphabet, c) < 0 {
			return redact.Secret{}, false
		}
		out = append(out, c)
	}
	if len(out) != recoveryLetters {
		return redact.Secret{}, false
	}
	return redact.New(out), true
}
